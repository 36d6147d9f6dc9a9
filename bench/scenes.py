"""Scenes of forty ads that nothing was tuned on, held against the truth; and how fast they are found."""

import json
import os
import sys
import tempfile
from pathlib import Path

from _measure import best
from scenedetect import AdaptiveDetector, ContentDetector, detect

from alignment_video.scenes import find_scenes
from alignment_video.video import film, read_frames
from alignment_video.world import Ad

SEEDS = range(1000, 1040)  # the limits of the dissolve test were chosen on seeds 100 to 129


class Score:
    """Counts over many ads."""

    def __init__(self) -> None:
        self.cuts = self.exact = self.near = self.dissolves = self.melted = self.false = 0
        self.errors: list[int] = []

    def add(self, found: list[int], ad: Ad) -> None:
        """Hold the borders found in an ad against its cuts."""
        hard = [cut.frame for cut in ad.cuts if cut.kind == "cut"]
        soft = [cut.frame for cut in ad.cuts if cut.kind == "dissolve"]
        self.cuts, self.dissolves = self.cuts + len(hard), self.dissolves + len(soft)
        self.exact += sum(cut in found for cut in hard)
        self.near += sum(any(abs(frame - cut) <= 1 for frame in found) for cut in hard)
        errors = [min((frame - cut for frame in found), key=abs, default=999) for cut in soft]
        self.errors += [error for error in errors if abs(error) <= 6]
        self.melted = len(self.errors)
        self.false += sum(frame not in hard and all(abs(frame - cut) > 6 for cut in soft) for frame in found)

    def line(self) -> dict[str, object]:
        """The counts in words; F1 over hard cuts at the exact frame."""
        return {
            "hard cuts": self.cuts,
            "exact": self.exact,
            "within 1 frame": self.near,
            "false": self.false,
            "F1": round(2 * self.exact / (self.exact + self.false + self.cuts), 4) if self.cuts else None,
            "dissolves": self.dissolves,
            "within 6 frames": self.melted,
            "largest error": max(map(abs, self.errors), default=None),
        }


def main() -> None:
    """One JSON line a measurement."""
    ours, content, adaptive = Score(), Score(), Score()
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS[: int(sys.argv[1])] if len(sys.argv) > 1 else SEEDS:
            ad, path = Ad(seed), Path(folder) / f"{seed}.mp4"
            film(ad, path)
            ours.add(find_scenes(path)["start_frame"].tolist()[1:], ad)
            for score, detector in ((content, ContentDetector), (adaptive, AdaptiveDetector)):
                score.add([start.frame_num for start, _ in detect(str(path), detector(min_scene_len=12))][1:], ad)
        for name, score in (("find_scenes", ours), ("ContentDetector", content), ("AdaptiveDetector", adaptive)):
            line = {"bench": "scenes", "what": f"{name}, 480x270"} | score.line()
            target = {"target": "F1 >= 0.98, every dissolve"} if score is ours else {}
            print(json.dumps(line | target), flush=True)
        seconds = best(lambda: find_scenes(path))
        library = best(lambda: detect(str(path), AdaptiveDetector()))
        reading = best(lambda: sum(1 for _ in read_frames(path)))
        line = {"bench": "scenes", "what": "frames a second, 480x270", "find_scenes": round(ad.frames / seconds)}
        line |= {"detect() of PySceneDetect": round(ad.frames / library), "reading alone": round(ad.frames / reading)}
        line |= {"ratio to detect()": round(library / seconds, 2), "cores": os.cpu_count()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

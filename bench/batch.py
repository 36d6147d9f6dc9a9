"""Two local workers against one; and what one worker's memory is after one video, and after fifty.

python bench/batch.py    small ads, edited by rule and by the miniature: five minutes on two cores
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alignment_video.batch import Here, Processes, Task, run_videos
from alignment_video.core import Study, study_config
from alignment_video.unbroken import BY_RULE, SETTINGS, small_study


def names_of(study: Study) -> list[str]:
    return sorted(path.stem for path in study.videos.glob("*.mp4"))


def seconds(study: Study, workers: int) -> tuple[float, float]:
    """To make all of a study's films by so many processes: in all, and since their models were loaded."""
    shutil.rmtree(study.outputs / "edits", ignore_errors=True)
    shutil.rmtree(study.stimuli, ignore_errors=True)
    for manifest in study.variants.rglob("manifest.json"):
        manifest.unlink()
    task = Task(str(study.root), study_config(study))
    start = time.perf_counter()
    crew = Processes(task, workers)
    try:
        while crew.free() < workers:
            crew.wait()
        loaded = time.perf_counter()
        assert all(one.state == "made" for one in run_videos(task, names_of(study), crew))
    finally:
        crew.close()
    end = time.perf_counter()
    return end - start, end - loaded


def peak(folder: str, videos: int) -> float:
    """Megabytes that a process needs at most in which one worker makes so many videos."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", folder, str(videos)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for what, settings in (("by rule", BY_RULE), ("by the miniature, 4 steps", SETTINGS)):
            study = small_study(Path(folder) / what[:7].strip(), 8, settings)
            one, two = seconds(study, 1), seconds(study, 2)
            told = {"one": round(one[0], 1), "two": round(two[0], 1), "ratio": round(one[0] / two[0], 2)}
            told["ratio_when_loaded"] = round(one[1] / two[1], 2)
            print(json.dumps({"bench": "batch", "what": f"workers, 8 videos {what}"} | told), flush=True)
        small_study(Path(folder) / "fifty", 50, BY_RULE)
        first, fifty = peak(f"{folder}/fifty", 1), peak(f"{folder}/fifty", 50)
        told = {"one": round(first), "fifty": round(fifty), "ratio": round(fifty / first, 2)}
        print(json.dumps({"bench": "batch", "what": "peak memory in MB, videos by one worker"} | told), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        place = Study(sys.argv[2])
        job = Task(str(place.root), study_config(place))
        assert all(one.state == "made" for one in run_videos(job, names_of(place)[: int(sys.argv[3])], Here(job)))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main()

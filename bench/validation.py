"""How fast a large study is validated: by names and headers alone, and with every file decoded; and in how much memory.

`--full` builds the tree of 176,000 scenes (528,000 hard links); without it, a sixteenth of that.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from alignment_video.core import Study
from alignment_video.outcomes import bulk_scenes, write_tables
from alignment_video.pictures import write_map, write_mask
from alignment_video.video import save_picture
from alignment_video.world import still

SCENES, SIDE = 8, 512
SCRIPT = """
import json, resource, sys, time
from alignment_video.validation import validate
validate(sys.argv[2], deep=False)  # modules loaded, names and headers in the system's memory
start, cpu = time.perf_counter(), time.process_time()
found = validate(sys.argv[1], deep=sys.argv[3] == "deep")
took, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": took, "cpu": cpu, "MB": peak, "valid": len(found.valid), "excluded": len(found.excluded)}))
"""


def build(study: Study, videos: int, real: Path, heatmap: str) -> None:
    """A study of so many videos of eight scenes: hard links to a few real files, and tables to match."""
    table = bulk_scenes(videos, scenes=(SCENES, SCENES))
    write_tables(study, table)
    for kind, folder in (("picture", study.scenes), ("mask", study.masks), (heatmap, study.attention)):
        suffix = {"picture": ".jpg", "mask": ".png", "heatmap": ".png", "grey": ".jpg"}[kind]
        for video_id in table["video_id"].unique():
            place = folder / video_id
            place.mkdir(parents=True)
            for number in range(1, SCENES + 1):
                os.link(real / f"{kind}{number}{suffix}", f"{place}/{video_id}-Scene-{number:03d}-01{suffix}")


def draw(real: Path) -> None:
    """Pictures, masks and maps of eight scenes."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    for number in range(1, SCENES + 1):
        scene = still(number, size=(SIDE, SIDE))
        attention = np.exp(-3 * ((x - 0.1 * number + 0.4) ** 2 + y**2))
        save_picture(real / f"picture{number}.jpg", scene.image)
        write_mask(real / f"mask{number}.png", scene.mask)
        write_map(real / f"heatmap{number}.png", attention)
        save_picture(real / f"grey{number}.jpg", (255 * attention).round().astype(np.uint8))


def measured(study: Study, small: Study, how: str) -> dict[str, float]:
    """Seconds and peak megabytes of one process."""
    command = [sys.executable, "-c", SCRIPT, study.root, small.root, how]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(full: bool) -> None:
    """One JSON line a measurement."""
    videos = 22_000 if full else 1_375
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "real"
        real.mkdir()
        draw(real)
        studies = {name: Study(Path(folder) / name) for name in ("large", "small", "deep", "grey")}
        start = time.perf_counter()
        build(studies["large"], videos, real, "heatmap")
        built = time.perf_counter() - start
        build(studies["small"], 2, real, "heatmap")
        build(studies["deep"], 250, real, "heatmap")
        build(studies["grey"], 250, real, "grey")
        found = measured(studies["large"], studies["small"], "fast")
        scenes = videos * SCENES
        assert found["valid"] == scenes and found["excluded"] == 0, found
        line = {
            "bench": "validation",
            "what": f"names and headers of {scenes:,} scenes, three files each",
            "seconds": round(found["seconds"], 1),
            "microseconds a scene": round(1e6 * found["seconds"] / scenes),
            "seconds for 176,000 at this pace": round(176_000 * found["seconds"] / scenes, 1),
            "target": "<= 60",
            "peak MB": round(found["MB"]),
            "target MB": "<= 1000",
            "seconds to build": round(built),
        }
        print(json.dumps(line | {"cores": os.cpu_count()}), flush=True)
        for name, what in (("deep", "16-bit PNG heatmaps"), ("grey", "8-bit JPG heatmaps")):
            found = measured(studies[name], studies["small"], "deep")
            assert found["valid"] == 250 * SCENES, found
            rate = round(250 * SCENES / found["seconds"])
            line = {
                "bench": "validation",
                "what": f"every file decoded, {SIDE}x{SIDE}, {what}",
                "scenes a second": rate,
            }
            line |= {"target": ">= 400", "scenes a CPU second": round(250 * SCENES / found["cpu"])}
            print(json.dumps(line | {"peak MB": round(found["MB"]), "cores": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    main("--full" in sys.argv[1:])

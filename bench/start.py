"""How long the package and the command take to answer, against an empty Python."""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

program = Path(sys.executable).with_name("alignment-video")
commands = {
    "empty Python": [sys.executable, "-c", "pass"],
    "import alignment_video": [sys.executable, "-c", "import alignment_video"],
    "import alignment_video.core": [sys.executable, "-c", "import alignment_video.core"],
    "alignment-video --help": [str(program), "--help"],
}
targets = {"import alignment_video": 0.3, "alignment-video --help": 1.0}
seconds: dict[str, list[float]] = {name: [] for name in commands}
for _ in range(8):  # in turn, so that a slow moment of the machine meets them all
    for name, command in commands.items():
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds[name].append(time.perf_counter() - start)
empty = median(seconds["empty Python"][1:])
for name, runs in seconds.items():
    took = median(runs[1:])
    line = {
        "bench": "start",
        "what": name,
        "seconds": round(took, 3),
        "ratio to an empty Python": round(took / empty, 1),
    }
    print(json.dumps(line | ({"target": f"< {targets[name]} s"} if name in targets else {})))

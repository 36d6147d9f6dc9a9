"""How long the work on the project itself takes: all pages in real kernels, and `make` when nothing is to be done."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

root = Path(__file__).resolve().parents[1]


def timed(*command: str) -> tuple[float, str]:
    """Seconds that a command takes, and its last line."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, (done.stdout.splitlines() or [""])[-1]


def main() -> None:
    """One JSON line a measurement."""
    subprocess.run(["make", "env"], cwd=root, check=True, stdout=subprocess.DEVNULL)  # now it is up to date
    seconds = median(timed("make", "env")[0] for _ in range(5))
    line = {"bench": "house", "what": "make env, up to date", "seconds": round(seconds, 2), "target": "< 5 s"}
    print(json.dumps(line), flush=True)
    seconds, last = timed(sys.executable, ".ci/pages.py")
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed", last)
    if not counts:
        sys.exit(f"pages.py ended without a count: {last}")
    line = {"bench": "house", "what": "all pages in real kernels", "seconds": round(seconds), "target": "< 300 s"}
    print(json.dumps(line | {"failed": int(counts[2]), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()

"""Run the checks: all of them, or those named. `check.py sync order`; the last line is `N passed, M failed`.

Each check is a command of its own whose last line is `N passed, M failed`; this script only runs them and adds up.
Two run side by side where there are two cores, the longest first; each line then begins with its check's name.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from common import root

python = [sys.executable]
checks: dict[str, tuple[str, list[str]]] = {
    "sync": ("modules are what the notebooks give, notebooks are clean", [*python, ".ci/sync.py"]),
    "notebooks": ("nbdev's tests in every notebook, with coverage", [*python, ".ci/notebooks.py"]),
    "pages": ("every notebook in a real kernel, outputs unchanged", [*python, ".ci/pages.py"]),
    "lint": ("ruff and mypy", [*python, ".ci/lint.py"]),
    "order": ("downward imports, light import, README current", [*python, ".ci/order.py"]),
    "wheel": ("clean install without development packages runs the demo", [*python, ".ci/wheel_check.py"]),
    "site-check": (
        "site built with warnings as errors, opened in a browser",
        [*python, ".ci/site_check.py", "--build"],
    ),
    "extra": ("tests/", [*python, ".ci/extra.py"]),
}


long = ("extra", "pages", "notebooks", "wheel", "site-check")


def run(name: str, side_by_side: bool, faults: list[str]) -> tuple[str, int, int, float]:
    """Run one check and show what it says; its counts of passed and failed and its seconds; what failed to `faults`."""
    what, command = checks[name]
    before, start, held = f"{name:10} | " if side_by_side else "", time.monotonic(), None
    print(f"{before}── {name}: {what}", flush=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
    if side_by_side:
        env.setdefault("OMP_NUM_THREADS", "1")  # more threads than cores stand in each other's way
    with subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if held is not None:
                print(before + held, end="", flush=True)
            if re.match(r"  FAIL |(FAILED|ERROR) \S+::|E  ", line):
                faults.append(f"{name:10} | {line.rstrip()}")
            held = line
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed\n", held or "")
    passed, failed = (int(counts[1]), int(counts[2])) if counts else (0, 1)
    if not counts or (process.returncode and not failed):
        said = "" if counts else " and no count"
        print(f"{before}{held or ''}\n{before}  FAIL the check ended with code {process.returncode}{said}", flush=True)
        failed = 1
    return name, passed, failed, time.monotonic() - start


def main(names: Sequence[str]) -> int:
    """Run the checks, print the table, and say how it went."""
    unknown = [name for name in names if name not in checks]
    if unknown:
        print(f"unknown check {unknown[0]!r}; there are: {' '.join(checks)}")
        print("0 passed, 1 failed")
        return 1
    chosen = list(names or checks)
    lanes = min(2, os.cpu_count() or 1, len(chosen)) if set(chosen) & set(long) else 1
    start = time.monotonic()
    with ThreadPoolExecutor(lanes) as pool:
        in_order = sorted(chosen, key=lambda name: long.index(name) if name in long else len(long))
        faults: list[str] = []
        rows = list(pool.map(lambda name: run(name, lanes > 1, faults), in_order))
    passed, failed = (sum(row[i] for row in rows) for i in (1, 2))
    print(f"\n{'check':12}{'passed':>8}{'failed':>8}{'seconds':>9}")
    for name, good, bad, seconds in sorted(rows, key=lambda row: chosen.index(row[0])):
        print(f"{name:12}{good:8}{bad:8}{seconds:9.1f}")
    print(f"{'total':12}{passed:8}{failed:8}{time.monotonic() - start:9.1f}\n")
    print(*faults, sep="\n", end="\n\n" if faults else "")
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

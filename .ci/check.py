"""Run the checks: all of them, or those named. `check.py sync order`; the last line is `N passed, M failed`.

Each check is a command of its own whose last line is `N passed, M failed`; this script only runs them and adds up.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence

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


def run(command: Sequence[str]) -> tuple[int, int]:
    """Run one check, show what it says, and give back how many of its results passed and failed."""
    held = None
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if held is not None:
                print(held, end="", flush=True)
            held = line
    counts = re.fullmatch(r"(\d+) passed, (\d+) failed\n", held or "")
    if not counts:
        print((held or "") + f"  FAIL the check ended with code {process.returncode} and no count", flush=True)
        return 0, 1
    passed, failed = int(counts[1]), int(counts[2])
    if process.returncode and not failed:
        print(f"  FAIL the check ended with code {process.returncode}", flush=True)
        failed = 1
    return passed, failed


def main(names: Sequence[str]) -> int:
    """Run the checks, print the table, and say how it went."""
    unknown = [name for name in names if name not in checks]
    if unknown:
        print(f"unknown check {unknown[0]!r}; there are: {' '.join(checks)}")
        print("0 passed, 1 failed")
        return 1
    rows = []
    for name in names or checks:
        what, command = checks[name]
        print(f"── {name}: {what}", flush=True)
        start = time.monotonic()
        rows.append((name, *run(command), time.monotonic() - start))
    passed, failed = (sum(row[i] for row in rows) for i in (1, 2))
    print(f"\n{'check':12}{'passed':>8}{'failed':>8}{'seconds':>9}")
    for name, good, bad, seconds in rows:
        print(f"{name:12}{good:8}{bad:8}{seconds:9.1f}")
    print(f"{'total':12}{passed:8}{failed:8}{sum(row[3] for row in rows):9.1f}\n")
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

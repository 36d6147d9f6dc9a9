"""Run every bench/*.py, one after the other; their JSON lines go to the screen and to bench/results/latest.jsonl."""

import json
import os
import subprocess
import sys

from common import root


def main(names: list[str]) -> int:
    """Run the named measurements, or all; 1 if one of them broke, or printed no JSON line."""
    scripts = sorted((root / "bench").glob("[!_]*.py"))
    if names:
        scripts = [script for script in scripts if script.stem in names]
    if not scripts:
        print("no measurement found in bench/", file=sys.stderr)
        return 1
    results = root / "bench" / "results"
    results.mkdir(exist_ok=True)
    broken = 0
    with open(results / "latest.jsonl", "w", encoding="utf-8") as file:
        for script in scripts:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            done = subprocess.run(
                [sys.executable, script], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            for line in lines:
                json.loads(line)
                print(line, flush=True)
                file.write(line + "\n")
            if done.returncode or not lines:
                print(f"{script.name}: code {done.returncode}, {len(lines)} results", file=sys.stderr)
                broken += 1
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Check 8: tests/, what a notebook cannot hold."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from common import Tally, root


def main() -> None:
    """Run pytest and count from its report, not from its words; what was skipped is named, with the reason."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "--durations=5"]
        done = subprocess.run([*command, f"--junitxml={report}", *(sys.argv[1:] or ["tests"])], cwd=root)
        suites = list(ElementTree.parse(report).getroot().iter("testsuite")) if report.exists() else []
        total, errors, failures, skipped = (
            sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "errors", "failures", "skipped")
        )
    tally.ok(total - errors - failures - skipped)
    tally.failed += errors + failures
    if done.returncode and not tally.failed:
        tally.fail(f"pytest ended with code {done.returncode}")
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for skip in case.findall("skipped"):
            print(f"  skipped {case.get('classname')}::{case.get('name')}: {skip.get('message')}")
    if skipped:
        print(f"  {skipped} skipped, counted neither way")
    tally.end()


if __name__ == "__main__":
    main()

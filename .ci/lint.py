"""Check 4: ruff on notebooks, package and scripts, mypy on the package."""

import subprocess
import sys
from pathlib import Path

from common import Tally, package, root

tools = Path(sys.executable).parent


def main() -> None:
    """Run the three tools; each is one result."""
    tally = Tally()
    written = [folder for folder in ("nbs", "tests", "bench", ".ci", "setup.py") if (root / folder).exists()]
    modules = len(list(package.rglob("*.py")))
    if not modules:
        tally.fail("no module to check in alignment_video")
    for tool, arguments in (
        ("ruff", ["check", "--quiet", "--output-format=concise", *written, "alignment_video"]),
        ("ruff", ["format", "--quiet", "--diff", *written]),
        ("mypy", ["--config-file=.mypy.ini", "--no-error-summary", "alignment_video"]),
    ):
        done = subprocess.run([tools / tool, *arguments], cwd=root, capture_output=True, text=True)
        said = (done.stdout + done.stderr).strip()
        tally.expect(done.returncode == 0, f"{tool} {arguments[0]}\n{said}")
    print(f"  {modules} modules and {' '.join(written)}")
    tally.end()


if __name__ == "__main__":
    main()

"""What the checks share: counting results, and working on a copy of the project."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

root = Path(__file__).resolve().parents[1]
package = root / "alignment_video"


class Tally:
    """Counts results, prints failures as they come, and ends with the line `N passed, M failed`."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def ok(self, count: int = 1) -> None:
        self.passed += count

    def fail(self, why: str) -> None:
        self.failed += 1
        print("  FAIL " + why.rstrip().replace("\n", "\n       "), flush=True)

    def expect(self, good: object, why: str) -> bool:
        """Count one result: passed if `good`, else failed with the reason."""
        self.ok() if good else self.fail(why)
        return bool(good)

    def end(self) -> NoReturn:
        """Print the last line and exit; a check that found nothing to check has failed."""
        if not self.passed and not self.failed:
            self.fail("nothing was found to check")
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(self.failed > 0)


def project_files(folder: Path = root) -> list[str]:
    """Names of the files that are, or would be, committed."""
    names = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=folder, capture_output=True, text=True, check=True
    )
    return sorted({name for name in names.stdout.split("\0") if name and (folder / name).is_file()})


def copy_project(target: Path, source: Path = root) -> Path:
    """Copy what would be committed to `target`, so that a check may change it."""
    for name in project_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    return target


def notebooks(folder: Path = root) -> list[Path]:
    """Every notebook of the project, in reading order: numbered pages, index, tutorials."""
    found = (folder / "nbs").rglob("*.ipynb")
    kept = [p for p in found if not any(part[0] in "._" for part in p.relative_to(folder).parts)]
    return sorted(kept, key=lambda p: (len(p.relative_to(folder).parts), p.as_posix()))


def tail(text: str, lines: int = 25) -> str:
    """The last lines of a long text."""
    return "\n".join(text.strip().splitlines()[-lines:])

"""Check 1: the modules are exactly what the notebooks give, and the notebooks are clean.

Works on a copy: delete the modules, `nbdev_export`, `nbdev_clean`, compare byte for byte with what is there.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Tally, copy_project, notebooks, project_files, root, tail

tools = Path(sys.executable).parent


def differences(folder: Path) -> tuple[dict[str, str], int]:
    """What is wrong in the project at `folder`, by file, and how many files were looked at."""
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # under IN_TEST nbdev does nothing
    with tempfile.TemporaryDirectory() as place:
        copy = copy_project(Path(place).resolve(), folder)
        before = {name: (copy / name).read_bytes() for name in project_files(folder)}
        for module in (copy / "alignment_video").rglob("*.py"):
            module.unlink()
        for tool in ("nbdev_export", "nbdev_clean"):
            done = subprocess.run([tools / tool], cwd=copy, env=environment, capture_output=True, text=True)
            if done.returncode:
                return {tool: tail(done.stdout + done.stderr)}, len(before)
        skip = {"__pycache__", ".last_checked"}
        found = [path for path in copy.rglob("*") if path.is_file() and not skip & set(path.parts)]
        after = {path.relative_to(copy).as_posix(): path.read_bytes() for path in found}
    wrong = {}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        if name.endswith(".ipynb"):
            wrong[name] = "is not clean; run nbdev_clean, or save it with make save"
        elif name not in after:
            wrong[name] = "comes from no notebook; delete it"
        elif name not in before:
            wrong[name] = "is missing; run make export"
        else:
            wrong[name] = "is not what its notebook gives; run make export (hand edits belong in the notebook)"
    return wrong, len(before)


def main() -> None:
    """Every module and every notebook is one result."""
    tally = Tally()
    wrong, _ = differences(root)
    pages = [path.relative_to(root).as_posix() for path in notebooks()]
    modules = [name for name in project_files() if name.startswith("alignment_video/") and name.endswith(".py")]
    if not pages or len(modules) <= 2:  # __init__ and _modidx are always there
        tally.fail(f"{len(pages)} notebooks and {len(modules)} modules found")
    for name, why in wrong.items():
        tally.fail(f"{name} {why}")
    tally.ok(len([name for name in pages + modules if name not in wrong]))
    print(f"  {len(modules)} modules, {len(pages)} notebooks")
    tally.end()


if __name__ == "__main__":
    main()

"""Check 6: the wheel, installed without development packages into a clean environment, imports and runs the demo."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from common import Tally, copy_project, package, root, tail

absent = ("nbdev", "fastcore", "execnb", "IPython", "ipykernel", "pytest", "sphinx")
imports = """
import importlib, importlib.util, pkgutil, sys, alignment_video
names = [m.name for m in pkgutil.walk_packages(alignment_video.__path__, "alignment_video.")]
for name in names: importlib.import_module(name)
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
assert not found, f"development packages are here: {found}"
print(len(names))
"""


def run(tally: Tally, what: str, command: list[object], folder: Path) -> str | None:
    """Run one step as one result; its output, or None if it failed."""
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
    good = tally.expect(done.returncode == 0, f"{what}\n{tail(done.stdout + done.stderr)}")
    return done.stdout if good else None


def contents(tally: Tally, wheel: Path) -> None:
    """The wheel holds the package, all of it, its license, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    foreign = [n for n in names if n.split("/")[0] != package.name and ".dist-info/" not in n]
    tally.expect(not foreign, f"the wheel holds {foreign[:5]}")
    tally.expect(any(n.endswith("LICENSE") for n in names), "the wheel holds no LICENSE")
    kinds = {".py", ".safetensors", ".json", ".txt"}
    ours = {path.relative_to(root).as_posix() for path in package.rglob("*") if path.suffix in kinds}
    tally.expect(ours <= names, f"the wheel lacks {sorted(ours - names)[:5]}")


def main() -> None:
    """Build, look inside, install, import, help, demo."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        source, outside = copy_project(folder / "source"), folder / "elsewhere"
        outside.mkdir()
        pip: list[object] = [sys.executable, "-m", "pip", "-q"]
        options = ["--no-deps", "--no-build-isolation", "-w", folder / "dist"]
        run(tally, "pip wheel", [*pip, "wheel", *options, source], folder)
        wheels = list((folder / "dist").glob("*.whl"))
        if not wheels:
            tally.end()
        contents(tally, wheels[0])
        clean = folder / "clean"
        run(tally, "venv", [sys.executable, "-m", "venv", "--without-pip", clean], folder)
        python, command = clean / "bin" / "python", clean / "bin" / "alignment-video"
        install = [*pip, "--python", python, "install", "-c", root / "constraints.txt", wheels[0]]
        if run(tally, "pip install", install, folder) is not None:
            count = run(tally, "import of every module", [python, "-I", "-c", imports, *absent], outside)
            size = wheels[0].stat().st_size / 1e3
            print(f"  {wheels[0].name} {size:.0f} kB, {(count or '0').strip()} modules imported")
            run(tally, "pip check", [*pip, "--python", python, "check"], outside)
            run(tally, "alignment-video --help", [command, "--help"], outside)
            run(tally, "alignment-video demo", [command, "demo", "--out", outside / "demo"], outside)
            made = [path for path in (outside / "demo").rglob("*") if path.is_file()]
            tally.expect(made, "the demo left no files")
            print(f"  the demo made {len(made)} files, {sum(path.stat().st_size for path in made) / 1e6:.1f} MB")
    tally.end()


if __name__ == "__main__":
    main()

"""Check 5: modules import only lower-numbered ones, the package is light, README.md is what index.ipynb gives."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import readme
from common import Tally, notebooks, root

development = {"fastcore", "nbdev", "execnb", "IPython", "ipykernel", "pytest"}
heavy = {"torch", "torchvision", "diffusers", "transformers"}


def module_numbers(folder: Path = root) -> dict[str, tuple[int, str]]:
    """Each module's number and notebook, from the notebooks' names and their default_exp."""
    numbers = {}
    for path in notebooks(folder):
        number = re.match(r"\d+", path.name)
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            name = re.match(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"]))
            if name and cell["cell_type"] == "code":
                numbers[name[1]] = (int(number[0]) if number else 1000, path.name)
    return numbers


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported anywhere in a module: in functions too, and by a call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(part for part in ([package] if node.level else []) + [node.module or ""] if part)
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func)):
            for name in [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")]:
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield node.lineno, re.sub(r"^\.+", package + ".", name.value)


def broken_order(folder: Path = root, package: str = "alignment_video") -> tuple[list[str], int]:
    """Imports that go up or that a user's installation lacks, and how many imports were looked at."""
    numbers, wrong, seen = module_numbers(folder), [], 0
    for module, (number, notebook) in numbers.items():
        path = folder / package / f"{module.replace('.', '/')}.py"
        if not path.exists():
            wrong.append(f"{notebook} says default_exp {module}, but there is no {package}/{module}.py")
            continue
        for line, name in imports(path, package):
            seen += 1
            where = f"{package}/{module}.py line {line}"
            if name.split(".")[0] in development:
                wrong.append(f"{where} imports {name}, which is not installed with the package")
            if name.startswith(package + "."):
                inside = name.removeprefix(package + ".")
                other = next((m for m in numbers if inside == m or inside.startswith(m + ".")), None)
                if other and other != module and numbers[other][0] >= number:
                    wrong.append(f"{where} ({notebook}) imports {other} ({numbers[other][1]}): imports only go down")
    return wrong, seen


def heavy_import(name: str) -> str:
    """What is wrong with `import name` in a fresh interpreter: it fails, or it loads heavy libraries."""
    code = f"import sys, {name}; print(*sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return f"loads {done.stdout.strip()}; import it in the function that needs it" if done.stdout.strip() else ""


def main() -> None:
    """Imports, lightness and README, each counted."""
    tally = Tally()
    wrong, seen = broken_order()
    numbers = module_numbers()
    for why in wrong:
        tally.fail(why)
    tally.ok(seen - len(wrong) if seen > len(wrong) else 0)
    if not seen:
        tally.fail("no imports found: are the modules there?")
    for name in ("alignment_video", "alignment_video.cli"):
        why = heavy_import(name)
        tally.expect(not why, f"import {name}: {why}")
    stale = readme.stale() if (root / "nbs" / "index.ipynb").exists() else ["nbs/index.ipynb"]
    tally.expect(not stale, f"{', '.join(stale)}: not what nbs/index.ipynb gives; run make readme")
    print(f"  {len(numbers)} modules, {seen} imports")
    tally.end()


if __name__ == "__main__":
    main()

"""Check 2: every notebook as `nbdev_test` runs it, in one process, with coverage of the exported modules.

nbdev runs exported cells in the notebook's own namespace, where coverage would see none of them. Here such a cell is
compiled under its module's file name, with its lines numbered as they stand in the module, so that they count there.
In the other cells each assertion is followed as it runs: one that is never reached is not counted, one in a loop once.
"""

import ast
import gc
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import coverage
from common import Tally, notebooks, package, root

os.environ["IN_TEST"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor


def exported_lines() -> dict[str, tuple[str, int]]:
    """For each exported cell's id: its module's file and the line its code starts on."""
    places = {}
    for module in package.rglob("*.py"):
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), start=1):
            header = re.fullmatch(r"# %% \S+\.ipynb #(\S+)", line)
            if header:
                places[header[1]] = (str(module), number + 1)
    return places


class Follow(ast.NodeTransformer):
    """Makes a cell's assertions report their place: assert statements, calls of test_…, expect_fail, pytest.raises."""

    def __init__(self, cell_id: str):
        self.cell_id = cell_id

    def report(self, node: ast.AST, *values: ast.expr) -> ast.Call:
        place = ast.Constant(f"{self.cell_id} {node.lineno}:{node.col_offset}")  # type: ignore[attr-defined]
        return ast.Call(ast.Name("_asserted", ast.Load()), [place, *values], [])

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return [node, ast.copy_location(ast.Expr(self.report(node)), node)]

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name.startswith(("test_", "assert_")) or name in ("expect_fail", "raises"):
            return ast.copy_location(self.report(node, node), node)
        return node


class Shell(CaptureShell):
    """nbdev's shell, which counts assertions and gives exported cells their module's lines."""

    def __init__(self, path: Path, places: dict[str, tuple[str, int]]):
        super().__init__(path)
        self.places, self.cell_id, self.reached, self.ran = places, "", set[str](), 0
        plain = self.compile.cache
        self.ast_transformers.append(self)
        self.user_ns["_asserted"] = self.asserted

        def cache(code: str, number: int = 0, raw_code: str | None = None) -> str:
            name = plain(code, number, raw_code)
            return self.places[self.cell_id][0] if self.cell_id in self.places else name

        self.compile.cache = cache

    def visit(self, tree: ast.Module) -> ast.Module:
        """Shift an exported cell's lines to where the module has them; follow another's assertions."""
        if self.cell_id in self.places:
            return ast.increment_lineno(tree, self.places[self.cell_id][1] - 1)
        return ast.fix_missing_locations(Follow(self.cell_id).visit(tree))

    def asserted(self, place: str, value: Any = None) -> Any:
        self.reached.add(place)
        return value

    def cell(self, cell: Any, **options: Any) -> None:
        self.cell_id = cell.get("id", "")
        super().cell(cell, **options)
        self.cell_id = ""
        if not self.exc:
            self.ran += 1


def run(path: Path, places: dict[str, tuple[str, int]], flags: set[str]) -> tuple[str | None, int, int, bool]:
    """Run a notebook: what broke, if anything, its assertions and cells that ran, and whether it makes a module."""
    notebook = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    source = any("default_exp" in cell.directives_ for cell in notebook.cells if cell.cell_type == "code")
    if str(getattr(notebook, "frontmatter_", {}).get("skip_exec", "")).lower() == "true":
        return None, 0, 0, source

    def skipped(cell: Any) -> bool:
        directives = cell.directives_
        never = cell.cell_type != "code" or "nbdev_export(" in cell.source
        return never or directives.get("eval:", [""])[0].lower() == "false" or bool(flags & directives.keys())

    shell = Shell(path, places)
    broken = None
    try:
        with working_directory(path.parent):
            shell.run_all(notebook, exc_stop=True, preproc=skipped)
    except Exception:
        broken = shell.prettytb(fname=path)
    counts = len(shell.reached), shell.ran
    shell.reset(new_session=False)
    sys.modules.get("matplotlib.pyplot") and sys.modules["matplotlib.pyplot"].close("all")
    gc.collect()
    return broken, *counts, source


def main() -> None:
    """A notebook that ran is one result, and so is each of its assertions; coverage is one more."""
    tally, places, flags = Tally(), exported_lines(), set(get_config().tst_flags.split())
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or notebooks()
    if not chosen:
        tally.fail("no notebooks found")
    sys.path.insert(0, str(root))
    cover = coverage.Coverage(config_file=str(root / ".coveragerc"))
    cover.start()
    total = 0
    for path in chosen:
        start = time.monotonic()
        broken, count, ran, source = run(path, places, flags)
        name = path.relative_to(root)
        if broken:
            tally.fail(f"{name}\n{broken}")
        elif source and not count:
            tally.fail(f"{name} makes a module and no assertion in it runs")
        else:
            tally.ok()
        tally.ok(count)
        total += count
        print(f"  {name!s:32} {ran:3} cells {count:4} assertions {time.monotonic() - start:6.1f} s", flush=True)
    cover.stop()
    print(f"  {len(chosen)} notebooks, {total} assertions")
    if not sys.argv[1:] and chosen:
        measured = cover.report(skip_empty=True)
        least = cover.get_option("report:fail_under")
        tally.expect(measured >= least, f"coverage {measured:.1f} % is below {least} %")
    tally.end()


if __name__ == "__main__":
    main()

"""Check 3: every page top to bottom in a real kernel; its outputs are those committed. Also what authors save with.

    pages.py [PAGE …]          run and compare
    pages.py --save [PAGE …]   run, keep stored outputs that still hold, write the others, clean the notebook

Cells marked `#| eval: false`, `#| slow` or `#| gpu` are not run; their stored outputs stay.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from common import Tally, notebooks, root
from compare import differences, normal, text
from execnb.nbio import nb2str
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.clean import clean_nb
from nbdev.config import get_config

kernel = {"display_name": "python3", "language": "python", "name": "python3"}
private = re.compile(rf"{re.escape(str(root))}|/(tmp|home|root|Users)/|\bat 0x[0-9a-f]{{6,}}")


class ThisPython(KernelSpecManager):
    """Knows one kernel, this interpreter, whatever kernels the machine has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=40", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="python3", language="python")


class Runner(NotebookClient):
    """Runs the cells that are to be run, and leaves the others' outputs alone."""

    async def async_execute_cell(self, cell: Any, cell_index: int, *args: Any, **options: Any) -> Any:
        if skipped(cell):
            return cell
        return await super().async_execute_cell(cell, cell_index, *args, **options)


def skipped(cell: Any) -> bool:
    flags = "|".join(get_config().tst_flags.split())
    pattern = rf"^#\|[ \t]*(eval:[ \t]*false|({flags})\b)"
    return bool(re.search(pattern, text(cell["source"]), flags=re.M | re.I))


def read(path: Path) -> dict[str, Any]:
    return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)


def clean_text(notebook: Any) -> str:
    """The notebook as nbdev cleans and writes it."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata["kernelspec"] = dict(kernel)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [nbformat.from_dict(output) for output in normal(cell.outputs)]
    plain = json.loads(nbformat.writes(notebook))  # with the lines of texts apart, as notebooks are stored
    clean_nb(plain)
    return nb2str(plain)


def execute(path: Path, timeout: int = 900) -> tuple[Any, str | None]:
    """The notebook with fresh outputs, and what broke, if anything did."""
    notebook = read(path)
    os.environ.update(PYTHONHASHSEED="0", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", COLUMNS="120", PYTHONNOUSERSITE="1")
    os.environ.pop("MPLBACKEND", None)
    client = Runner(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython(), kernel_name="python3"),
        timeout=timeout,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    try:
        client.execute(cleanup_kc=True)  # else the kernel goes on beside the next page
    except CellExecutionError as error:
        return notebook, f"{error.ename}: {error.evalue}\n" + "\n".join(str(error).splitlines()[-20:])
    except (CellTimeoutError, DeadKernelError) as error:
        return notebook, str(error)
    return notebook, None


def complaints(notebook: Any) -> list[str]:
    """What no output may hold: errors, words on standard error, this machine's paths and addresses."""
    found = []
    for i, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            said = text(output.get("text", "")) + "".join(
                text(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")
            )
            if output["output_type"] == "error":
                found.append(f"cell {i}: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"cell {i} writes on standard error: {said[:300]}")
            elif match := private.search(said):
                found.append(f"cell {i} shows this machine: …{said[max(0, match.start() - 20) : match.end() + 40]}…")
    if not any(cell.get("outputs") for cell in notebook["cells"]):
        found.append("the page shows no output")
    return found


def compare(stored: Any, fresh: Any) -> list[str]:
    """What differs between the stored and the fresh outputs, cell by cell."""
    return [
        f"cell {i} ({a.get('id')}): {why}"
        for i, (a, b) in enumerate(zip(stored["cells"], fresh["cells"], strict=True))
        if a["cell_type"] == "code"
        for why in differences(a["outputs"], b["outputs"])
    ]


def save(path: Path, stored: Any, fresh: Any) -> bool:
    """Write the fresh outputs that differ; True if the file changed."""
    for a, b in zip(stored["cells"], fresh["cells"], strict=True):
        if a["cell_type"] == "code" and not list(differences(a["outputs"], b["outputs"])):
            b["outputs"] = a["outputs"]
    new = clean_text(fresh)
    changed = new != path.read_text(encoding="utf-8")
    if changed:
        path.write_text(new, encoding="utf-8")
    return changed


def main() -> None:
    """Every page is one result, and so is every cell of it whose outputs hold."""
    saving = "--save" in sys.argv[1:]
    chosen = [Path(name).resolve() for name in sys.argv[1:] if name != "--save"] or notebooks()
    tally = Tally()
    for path in chosen:
        start, stored = time.monotonic(), read(path)
        skip_page = "skip_exec: true" in "".join(text(c["source"]) for c in stored["cells"] if c["cell_type"] == "raw")
        fresh, broken = (read(path), None) if skip_page else execute(path)
        said = ""
        problems = [broken] if broken else complaints(fresh)
        if saving and not broken:
            said = "saved" if save(path, stored, fresh) else "unchanged"
        elif not broken:
            problems += compare(stored, fresh)
        for why in problems:
            tally.fail(f"{path.relative_to(root)} {why}")
        if not problems:
            tally.ok(1 + sum(bool(cell.get("outputs")) for cell in fresh["cells"]))
        print(f"  {path.relative_to(root)!s:32} {time.monotonic() - start:6.1f} s {said}", flush=True)
    tally.end()


if __name__ == "__main__":
    main()

"""How an exported symbol stands on its page: name, signature, docstring, methods, and its source, folded."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import root

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def index() -> Iterator[tuple[str, str, str]]:
    """Every symbol's name inside its module, the address of its documentation, and its module's file."""
    found: dict[str, Any] = {}
    exec((root / "alignment_video" / "_modidx.py").read_text(encoding="utf-8"), found)
    for module, names in found["d"]["syms"].items():
        yield from ((name.removeprefix(module + "."), url, file) for name, (url, file) in names.items())


def symbols() -> dict[str, str]:
    """The public symbols by address: `core.html#study.video` -> `Study.video`."""
    return {url: name for name, url, _ in index() if not re.search(r"(^|\.)_", name)}


def page_name(notebook: str) -> str:
    """The page of a notebook, named as nbdev does: `10_video.ipynb` -> `video`."""
    return re.sub(r"(^|/)\d+[a-zA-Z0-9]*_", r"\1", notebook.removesuffix(".ipynb")).lower()


def module_of(page: str) -> Path | None:
    """The module that a page exports."""
    return next((root / file for _, url, file in index() if url.split("#")[0] == page + ".html"), None)


def code_of(module: Path, name: str) -> tuple[str, int]:
    """A symbol's source text, decorators included, and the line it begins on."""
    text = module.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, Definition) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno]), first
    return "", 0


def head(node: ast.FunctionDef | ast.AsyncFunctionDef, code: str) -> str:
    """A function's first lines as they are written, up to the colon."""
    lines = code.splitlines()[node.lineno - 1 : max(node.lineno, node.body[0].lineno - 1)]
    if node.body[0].lineno == node.lineno:
        lines = ast.unparse(node).splitlines()[-2:-1]
    return textwrap.dedent("\n".join(lines)).rstrip().removesuffix(":")


def signature(code: str) -> str:
    """How a symbol is called: a function's own first lines; a class with its fields, or with what __init__ takes."""
    node = ast.parse(code).body[0]
    if isinstance(node, Function):
        return head(node, code)
    assert isinstance(node, ast.ClassDef)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            header = re.sub(r"def __init__\((\s*)self,?\s*", rf"class {node.name}(\1", head(item, code))
            return header.removesuffix(" -> None")
    fields = [ast.get_source_segment(code, item) or "" for item in node.body if isinstance(item, ast.AnnAssign)]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    return "\n    ".join([f"class {node.name}{bases}" + ":" * bool(fields), *fields])


def call(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A method's arguments, without self."""
    return re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))


def fold(summary: str, body: str, kind: str) -> str:
    return f'<details class="{kind}"><summary>{summary}</summary>\n\n{body}\n\n</details>'


def methods(code: str) -> str:
    """A class's public methods as a list, each with the anchor that nbdev's links point to."""
    node, rows = ast.parse(code).body[0], []
    if not isinstance(node, ast.ClassDef):
        return ""
    for item in node.body:
        if isinstance(item, Function) and not item.name.startswith("_"):
            said = (ast.get_docstring(item) or "").split("\n")[0]
            anchor = f'<span id="{node.name.lower()}.{item.name.lower()}"></span>'
            rows.append(f"- {anchor}`{item.name}({call(item)})` {said}".rstrip())
    return fold(f"{len(rows)} method{'s' * (len(rows) != 1)}", "\n".join(rows), "methods") if rows else ""


def documentation(output: str, module: Path | None) -> tuple[str, int, str]:
    """One exported symbol from what nbdev's show_doc printed: its name, its line, and its entry on the page."""
    found = re.search(r"^### (\S+)[ \t]*$", output, re.M)
    code, line = code_of(module, found[1]) if found and module else ("", 0)
    if not found or not module or not code:
        return "", 0, output
    said = re.sub(r"```python\n.*?```", "", output[found.end() :], flags=re.S).strip()
    said = re.sub(r"\A\*(.*)\*$", r"\1", said, flags=re.M)
    where = module.relative_to(root).as_posix()
    parts = [
        f"### `{found[1]}`",  # MyST gives this heading the anchor that nbdev's links point to
        f"````python\n{signature(code)}\n````",
        said,
        methods(code),
        fold(f"Source <span>{where}, line {line}</span>", f"````python\n{code}\n````", "source"),
    ]
    return found[1], line, "\n\n".join(part for part in parts if part)

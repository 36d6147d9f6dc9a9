"""README.md from nbs/index.ipynb, without Quarto: `make readme`.

A figure of that page becomes a file, nbs/images/<label>.png, which the README shows with its alt text and caption.
"""

import base64
import json
import re
from pathlib import Path

from common import root
from compare import Output, text

warning = "<!-- Made from nbs/index.ipynb by `make readme`; edit there. -->"


def relative(markdown: str) -> str:
    """Turn links and pictures that are relative to nbs/ into ones that hold at the top of the repository."""

    def target(match: re.Match[str]) -> str:
        start, address, end = match.groups()
        if re.match(r"[a-z]+:|#|/", address):
            return match[0]
        return start + (address[3:] if address.startswith("../") else f"nbs/{address}") + end

    markdown = re.sub(r"(\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))", target, markdown)
    markdown = re.sub(r"(\]\([^)]*\))\{[^}]*\}", r"\1", markdown)  # attributes that only the site understands
    return re.sub(r"(<img [^>]*src=\")([^\"]+)(\")", target, markdown)


def shown(output: Output, options: dict[str, str], pictures: dict[str, bytes]) -> str | None:
    """An output as markdown; a labelled figure is put into `pictures` under the name of its file."""
    data = output.get("data", {})
    if "text/markdown" in data:
        return relative(text(data["text/markdown"]))
    if "image/png" in data and "label" in options:
        name = f"nbs/images/{options['label']}.png"
        pictures[name] = base64.b64decode(text(data["image/png"]))
        caption = f"\n\n*{options['fig-cap']}*" if "fig-cap" in options else ""
        return f"![{options.get('fig-alt', '')}]({name}){caption}"
    plain = text(output.get("text", "") or data.get("text/plain", ""))
    if "image/png" in data or "text/html" in data or not plain.strip():
        return None
    return "```text\n" + plain.rstrip() + "\n```"


def readme(folder: Path = root) -> dict[str, bytes]:
    """README.md and its pictures: each file's name and what it holds."""
    parts, pictures = [warning], dict[str, bytes]()
    for cell in json.loads((folder / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = text(cell["source"]).strip()
        found = re.findall(r"^#\|[ \t]*([\w-]+):?[ \t]*(.*)$", source, flags=re.M)
        options = {key: value.strip().strip("\"'") for key, value in found}
        if cell["cell_type"] == "markdown":
            parts.append(relative(source))
        elif cell["cell_type"] == "code" and not options.keys() & {"hide", "export", "exporti", "default_exp"}:
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            if code and options.get("echo") != "false":
                parts.append(f"```python\n{code}\n```")
            if options.get("output") != "false":
                parts += [said for output in cell["outputs"] if (said := shown(output, options, pictures))]
    return {"README.md": ("\n\n".join(part for part in parts if part) + "\n").encode()} | pictures


def stale(folder: Path = root) -> list[str]:
    """The files of README.md and its pictures that are not what index.ipynb gives."""
    files = {folder / name: content for name, content in readme(folder).items()}
    return [path.name for path, content in files.items() if not path.is_file() or path.read_bytes() != content]


if __name__ == "__main__":
    for name, content in readme().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        print(f"{name} {len(content) / 1e3:.0f} kB")

"""A Sphinx extension: formulas become MathML while the site is built, so that pages need no script for them."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

log = logging.getLogger(__name__)


def mathml(node: nodes.Element, display: str) -> str:
    """A node's LaTeX as MathML; what cannot be converted is a warning, and so an error of the build."""
    latex = re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", node.astext().strip())
    try:
        made = convert(latex, display=display)
        if unknown := re.search(r">(\\\w+|&)<", made):
            raise ValueError(f"{unknown[1]} is not known to latex2mathml")
        return made
    except Exception as error:
        log.warning("formula %r: %s", latex, error, location=node)
        return f"<code>{nodes.unescape(latex)}</code>"


def inline(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.Element) -> None:
    ids = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    translator.body.append(f'<div class="formula"{ids}>{number}{mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

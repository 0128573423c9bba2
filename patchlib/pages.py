"""A notebook as a page that stands alone: no script from elsewhere, formulas as MathML."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
    MathInlineParser,
)

_WIDGET = "application/vnd.jupyter.widget-view+json"
# Browsers no longer know the letters of MathML's own variants.
_STYLE = "<style>math [mathvariant=monospace] { font-family: monospace; }</style>"


def page(notebook: nbformat.NotebookNode) -> str:
    """Writes an executed notebook as HTML that needs no network.

    Args:
        notebook: the notebook.

    Example:
        >>> cells = [nbformat.v4.new_markdown_cell("$x^2$ for $5 or $6, and `$x$`")]
        >>> text = page(nbformat.v4.new_notebook(cells=cells))
        >>> "<msup><mi>x</mi><mn>2</mn></msup>" in text
        True
        >>> "for $5 or $6, and <code>$x$</code>" in text
        True
    """
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    exporter.register_filter("markdown2html", _markdown)
    text: str = exporter.from_notebook_node(notebook)[0]
    return text.replace("</head>", f"{_STYLE}</head>", 1)


def drop_widgets(notebook: nbformat.NotebookNode) -> None:
    """Takes out the package's widgets; what stands in for each is an output of its own.

    Args:
        notebook: the executed notebook, changed in place.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if set(out.get("data", ())) != {_WIDGET}]


@pass_context
def _markdown(context: Any, source: str) -> str:
    renderer = _Renderer(escape=False, attachments=context.get("cell", {}).get("attachments", {}))
    return MarkdownWithMath(renderer, inline=_Formulas(hard_wrap=False)).render(source)


class _Formulas(MathInlineParser):
    """Tells formulas from prices: a formula has no space inside its signs and no digit after."""

    SPECIFICATION: ClassVar[dict[str, str]] = {
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": r"(?<![$\\])\$(?![\s$])(?P<math_inline_tex>[^$`]+)(?<![\s\\])\$(?!\d)",
    }


class _Renderer(IPythonRenderer):
    """Writes formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")


def mathml(latex: str, display: str) -> str:
    r"""Writes a formula as MathML, which browsers draw without a script.

    Args:
        latex: the formula.
        display: ``"inline"`` or ``"block"``.

    Example:
        >>> "<mi>x</mi>" in mathml("x^2", "inline")
        True
    """
    # Within \texttt the library leaves LaTeX's escapes as they are.
    return re.sub(r"\\([_%#&])", r"\1", convert(latex.strip(), display=display))

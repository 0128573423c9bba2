"""Pages that stand alone: formulas as MathML, prices and code as they are, no widget's error."""

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from patchlib import pages
from patchlib.notebooks import NOTEBOOKS

WIDGET = "application/vnd.jupyter.widget-view+json"


def page_of(*cells):
    return BeautifulSoup(pages.page(new_notebook(cells=list(cells))), "html.parser")


def text_of(markdown):
    return page_of(new_markdown_cell(markdown)).select_one(".jp-MarkdownCell")


def test_formulas_are_mathml():
    shown = text_of("Of $P_*$:\n\n$$\\frac{a}{b} + \\texttt{resid\\_post}\n= c.$$\n\nEnd")
    inline, block = shown.find_all("math")
    assert (inline["display"], block["display"]) == ("inline", "block")
    assert "".join(inline.find("msub").get_text().split()) == "P*"
    assert [part.get_text() for part in block.find("mfrac").find_all("mi")] == ["a", "b"]
    assert block.find("mtext").get_text() == "resid_post"
    assert "$" not in shown.get_text()


@pytest.mark.parametrize(
    "markdown",
    [
        "It costs $5 and not $6 or **$7**.",
        "A dollar \\$5 and \\$x\\$.",
        "From $5-$6 to $7.",
        "The shell's `$HOME` and `$PATH$`.",
        "```\necho $HOME $$ $x$\n```",
        "It costs $5 in `$x$`.",
    ],
)
def test_prices_and_code_are_no_formulas(markdown):
    shown = text_of(markdown)
    assert shown.find("math") is None
    plain = markdown.replace("\\$", "$").replace("*", "").replace("`", "").strip()
    assert plain in shown.get_text()


def test_a_formula_is_found_beside_a_price():
    shown = text_of("For $5 it is $x$, for $6 it is $y^2$.")
    assert len(shown.find_all("math")) == 2
    assert "For $5 it is" in shown.get_text() and "for $6 it is" in shown.get_text()


def test_code_cells_keep_their_dollars():
    page = page_of(new_code_cell("price = '$x$'"), new_markdown_cell("none"))
    assert "'$x$'" in page.get_text() and page.find("math") is None


def test_markdown_that_a_cell_puts_out_has_formulas_too():
    output = new_output("display_data", {"text/markdown": "so $x$", "text/plain": "so"})
    assert page_of(new_code_cell("", outputs=[output])).find("math") is not None


def test_a_page_of_the_collection_needs_no_network():
    text = pages.page(nbformat.read(NOTEBOOKS / "notation_and_settings.ipynb", as_version=4))
    page = BeautifulSoup(text, "html.parser")
    assert page.find("math") is not None and "$\\" not in text
    assert not [script for script in page.select("script[src]") if script["src"].strip()]


def test_widgets_give_way_to_what_stands_in_for_them():
    view = {WIDGET: {"model_id": "1"}}
    table = {"text/html": "<table>", "text/plain": "x"}
    outputs = [new_output("display_data", data) for data in (view, table, view | table)]
    cell = new_code_cell("", outputs=[*outputs, new_output("stream", text="y")])
    notebook = new_notebook(cells=[new_markdown_cell("x"), cell])
    pages.drop_widgets(notebook)
    # Another package's widget stays with what it says of itself.
    left = [set(output.get("data", ())) for output in notebook.cells[1].outputs]
    assert left == [set(table), set(view | table), set()]

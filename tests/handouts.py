"""Writes what a class is given: ``python tests/handouts.py student`` or ``solutions``.

Both come from the notebooks, whose exercises have ``...`` where an answer belongs; guesses are
``...``, too. The student's notebooks have no outputs. The worked ones have the right answers of
``tests/solutions`` and keep the stored outputs of all other cells; nbgrader reads them as a source.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache, partial
from itertools import count
from pathlib import Path
from textwrap import indent

import nbformat
from nbformat.v4 import new_code_cell

from patchlib.files import BUILD, write_whole
from patchlib.notebooks import NOTEBOOKS

SOLUTIONS = Path(__file__).with_name("solutions")
ANSWER = """
### BEGIN SOLUTION
from types import SimpleNamespace


{worked}


{answer} = worked(SimpleNamespace({given}))
### END SOLUTION"""


def student(notebook: nbformat.NotebookNode) -> None:
    """Takes outputs and guesses away."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None, source=without_guesses(cell.source))


def without_guesses(source: str) -> str:
    """Puts ``...`` in the place of each guess; one of several to choose from stays in the comment.

    Example:
        >>> without_guesses('pl.predict("31-8", "some")  # or "all", "none"')
        'pl.predict("31-8", ...)  # "some" or "all", "none"'
    """
    call = r'(pl\.predict\("[^"]+", )'
    source = re.sub(call + r"(.+)\)  # or ", r"\1...)  # \2 or ", source)
    return re.sub(call + r"(?!\.\.\.).+?\)(?=$|  #)", r"\1...)", source, flags=re.M)


def solutions(notebook: nbformat.NotebookNode) -> None:
    """Answers the exercises, and takes guesses away."""
    notebook.cells = [part for cell in notebook.cells for part in answered(cell)]


def answered(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cell itself; for an exercise a cell with its answer and one that checks it."""
    if cell.cell_type != "code":
        return [cell]
    if "pl.check(" not in cell.source:
        source = without_guesses(cell.source)
        if source != cell.source:
            cell.update(outputs=[], execution_count=None, source=source)
        return [cell]
    check = ast.parse(cell.source).body[-1]
    call = check.value  # type: ignore[attr-defined]
    id, answer = call.args[0].value, call.args[1].id
    given = ", ".join(ast.unparse(word) for word in call.keywords)
    before = cell.source.splitlines()[: check.lineno - 1]
    region = ANSWER.format(worked=all_worked()[id], answer=answer, given=given)
    return [
        for_nbgrader(f"{id}-answer", "\n".join([*before, region]), {"solution": True}),
        for_nbgrader(id, segment(cell.source, check), {"grade": True, "locked": True, "points": 1}),
    ]


def for_nbgrader(id: str, source: str, says: dict[str, bool | int]) -> nbformat.NotebookNode:
    """A cell with what nbgrader has to know of it."""
    name = id.replace(".", "-")
    no = dict.fromkeys(["solution", "grade", "locked", "task"], False)
    metadata = {"schema_version": 3, "grade_id": name, **no, **says}
    return new_code_cell(source, id=name, metadata={"nbgrader": metadata})


@cache
def all_worked(folder: Path = SOLUTIONS) -> dict[str, str]:
    """For each exercise the code of a function that gives its right answer, as students read it."""
    found = {}
    for path in sorted(folder.glob("[a-z]*.py")):
        text = path.read_text(encoding="utf-8")
        *lines, table = ast.parse(text).body
        for id, entry in zip(table.value.keys, table.value.values, strict=True):  # type: ignore
            found[id.value] = worked(text, lines, entry.elts[0])
    return found


def worked(text: str, lines: list[ast.stmt], right: ast.expr) -> str:
    """The right answer as a function, with the definitions of its module that it needs, inside.

    Inside, since the notebook may have other things of the same names.
    """
    needed: list[ast.stmt] = []
    wanted = names(right)
    # What a line needs may stand before it or after it.
    for _ in lines:
        needed = [line for line in lines if defined(line) & wanted]
        wanted = wanted.union(*map(names, needed))
    is_lambda = isinstance(right, ast.Lambda)
    result = segment(text, right.body) if is_lambda else f"{segment(text, right)}(nb)"
    parts = [*(segment(text, line) for line in needed), f"return {result}"]
    return "def worked(nb):\n" + indent("\n\n".join(parts), "    ")


def names(tree: ast.AST) -> set[str]:
    """The names that a piece of code uses."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def defined(line: ast.stmt) -> set[str]:
    """The names that a line of a module defines: an import, a constant or a function."""
    if isinstance(line, ast.Import | ast.ImportFrom):
        return {each.asname or each.name for each in line.names}
    if isinstance(line, ast.Assign):
        return set().union(*map(names, line.targets))
    return {line.name} if isinstance(line, ast.FunctionDef) else set()


def segment(text: str, part: ast.AST) -> str:
    """The code of a part, as it is written."""
    return ast.get_source_segment(text, part) or ""


KINDS = {"student": student, "solutions": solutions}


def write(kind: str) -> Path:
    """Writes all notebooks of a kind.

    A folder with others in it, in which somebody may have worked, is renamed first.

    Args:
        kind: ``"student"`` or ``"solutions"``.

    Returns:
        The folder, ``_build/student`` or ``_build/solutions``.
    """
    # Saved in JupyterLab, these are no pairs.
    texts = {"jupytext.toml": 'formats = "ipynb"\n'}
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        KINDS[kind](notebook)
        texts[path.name] = nbformat.writes(notebook) + "\n"
    for path in NOTEBOOKS.glob("*.md"):
        texts[path.name] = path.read_text(encoding="utf-8").replace("](../", "](../../")
    folder = BUILD / kind
    here = [(folder / name, text) for name, text in texts.items() if (folder / name).is_file()]
    if any(path.read_text(encoding="utf-8") != text for path, text in here):
        numbered = (folder.with_name(f"{kind}-{n}") for n in count(1))
        aside = next(path for path in numbered if not path.exists())
        print("what was there before is in", folder.rename(aside))
    for name, text in texts.items():
        write_whole(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    return folder


if __name__ == "__main__":
    if sys.argv[1:] not in [[kind] for kind in KINDS]:
        raise SystemExit(f"usage: python tests/handouts.py {'|'.join(KINDS)}")
    print("notebooks are in", write(sys.argv[1]))

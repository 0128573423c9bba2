"""The web site: the stored notebooks, the pages beside them, and a reference from docstrings.

The sources lie where a reader of the repository finds them, so that links hold in both places.
"""

import re
import shutil
from pathlib import Path

from docutils.nodes import SkipNode

import patchlib
from patchlib.pages import mathml

ROOT = Path(__file__).parents[1]

project = "Activation patching, step by step"
author = copyright = "The patchlib authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "notebooks/*.ipynb",
    "notebooks/**.md",
    "data/models/**.md",
    "site/*.md",
]
exclude_patterns = ["site/contents.md", ".*", "_build"]

# The stored outputs are the site.
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "html_image"]
# Two prices are no formula.
myst_dmath_allow_space = False
myst_dmath_allow_digits = False

# In docstrings `name` is code, as in Markdown.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["filter.js"]
html_copy_source = False
html_use_index = False
html_domain_indices = False
# The excerpts of a search are fetched, which a page opened from disk may not do.
html_show_search_summary = False
html_math_renderer = "mathml"


# What a reader looks for under each folder's name, in the order of an experiment.
_FOLDERS = {
    "tasks": "Tasks",
    "prompts": "Prompts and corruptions",
    "models": "Models",
    "patching": "Patching",
    "methods": "Other methods",
    "measure": "Measuring",
    "paper": "The paper",
    "show": "Figures and widgets",
    "lessons": "Notebooks and exercises",
    "training": "Training the small models",
    "notebooks": "Running notebooks",
    "errors": "Errors and names",
    "heads": "",
}

_SCORES = ["model", "method", "corruption", "site", "direction", "metric", "of", "auc"]
_SCORES += ["average_precision", "passes"]


def _reference():
    """Every public name of the package, for autodoc."""
    stub = (ROOT / "patchlib" / "__init__.pyi").read_text(encoding="utf-8")
    public = re.findall(r"^from \.([\w.]*) import (\w+) as", stub, re.M)
    by_folder = {}
    for module, name in public:
        by_folder.setdefault(module.split(".")[0] or name, []).append(name)
    if by_folder.keys() - _FOLDERS:
        raise ValueError(f"no title in site/conf.py for {by_folder.keys() - _FOLDERS}")
    for folder, title in _FOLDERS.items():
        yield f"\n## {title}\n" if title else ""
        yield "```{eval-rst}"
        for name in by_folder[folder]:
            what = getattr(patchlib, name)
            if hasattr(what, "__path__") or hasattr(what, "__file__"):
                yield f".. rubric:: pl.{name}\n\n.. automodule:: {what.__name__}\n   :members:\n"
            elif isinstance(what, type):
                yield f".. autoclass:: patchlib.{name}\n   :members:\n"
            else:
                yield f".. autofunction:: patchlib.{name}\n"
        yield "```"


def _read(app, name, source):
    """Adds what a page has on the site alone."""
    if name == "README":
        source[0] += (ROOT / "site" / "contents.md").read_text(encoding="utf-8")
    if name == "site/reference":
        source[0] += "\n".join(_reference())
    if name == "site/results":
        table = patchlib.scores()[_SCORES].fillna("–").to_html(index=False, border=0)
        source[0] += f'\n<div class="table-wrapper">\n{table}\n</div>\n'


def _add_anchors(app, doctree):
    """Adds JupyterLab's anchors, which keep capitals, to those of the repository's host."""
    anchors = app.env.metadata[app.env.docname].get("myst_slugs", {})
    anchors |= {each[2].replace(" ", "-"): each for each in anchors.values()}


def _finish(app, error):
    if not error:
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def _formula(display):
    def visit(writer, node):
        writer.body.append(mathml(node.astext(), display))
        raise SkipNode

    return visit, None


def setup(app):
    app.connect("source-read", _read)
    app.connect("doctree-read", _add_anchors)
    app.connect("build-finished", _finish)
    app.add_html_math_renderer("mathml", _formula("inline"), _formula("block"))

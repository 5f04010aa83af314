"""Settings of the documentation site. `make docs` runs `prepare.py` first, then Sphinx with these."""

import re

from docutils import nodes
from latex2mathml.converter import convert

project = "toco_lab"
author = "The toco_lab maintainers"
copyright = "The toco_lab maintainers, MIT licence"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
]
exclude_patterns = ["_build", "_templates"]
default_role = "py:obj"  # `fit` in a docstring is a link where there is something of that name
nitpicky = True
# Types of other packages, whose pages a site without a network cannot link to, and names in back quotes that are no
# object of this package (shell commands, file names, config values).
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:(class|data|exc|meth|func|attr)", r"(?!toco_lab\.).*"),
    (
        "py:class",
        r"toco_lab\.\S*\.(FigureLike|Value|Reader|Run|Part|Item|Found)",
    ),  # type variables and unions have no page
]
suppress_warnings = ["ref.python"]  # a name that two classes have, `dense()` say: the first is linked

# --- the reference: one page a module, from the docstrings; prepare.py makes the list of pages
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

# --- pages and notebooks
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # prepare.py has executed them
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 1)]

highlight_language = "none"

html_theme = "furo"
html_title = "toco_lab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"  # browsers draw it themselves: no script, no network
pygments_dark_style = "monokai"


OPENINGS = {"table": [".. list-table::", "   :header-rows: 1", ""], "drawing": ["::", ""], "prose": []}


def _as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with back quotes: drawings, |x| and * stand as they are, tables become tables."""
    text, kind, opening = [], "prose", True
    for line in lines:
        opening = opening and not (
            what != "module" and re.fullmatch(r"[A-Z][a-z]+:", line)
        )  # the part above Args, Returns ...
        before = kind
        if line.startswith(("| ", "|-")):
            kind = "table"
        elif opening and line.startswith("    "):
            kind = "drawing"
        elif line.strip() or kind == "table":
            kind = "prose"
        if kind != before:
            text += ["", *OPENINGS[kind]]
        if kind == "table":
            text += [] if set(line) <= set("|-: ") else _row(line)
        else:
            text.append("    " + line if kind == "drawing" else _escaped(line))
    lines[:] = text


def _row(line: str) -> list[str]:
    """A row of a Markdown table as one of a list-table."""
    cells = [_escaped(cell.strip()) for cell in line.strip().split("|")[1:-1]]
    return [f"   {'* -' if at == 0 else '  -'} {cell}" for at, cell in enumerate(cells)]


def _escaped(line: str) -> str:
    """A line of prose; what stands in back quotes or behind >>> stays. `low, high:` of Args is one entry."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    line = re.sub(r"^( +)(\w+(?:, \w+)+): ", lambda found: f"{found[1]}{found[2].replace(', ', ',')}: ", line)
    pieces = re.split(r"(`+[^`]*`+)", line)
    pieces[::2] = [re.sub(r"(?<!\\)(\||\*(?=\S)|(?<=\w)_(?!\w))", r"\\\1", prose) for prose in pieces[::2]]
    return "".join(pieces)


def _formula(display: str):
    def visit(self, node) -> None:
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app) -> None:
    """The hook for docstrings runs before napoleon's, which has the default priority."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=100)
    app.add_html_math_renderer("mathml", inline_renderers=_formula("inline"), block_renderers=_formula("block"))

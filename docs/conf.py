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
    ("py:class", r"toco_lab\.\S*\.(FigureLike|Reader|Run|Part)"),  # type variables and unions have no page
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

html_theme = "furo"
html_title = "toco_lab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"  # browsers draw it themselves: no script, no network
pygments_dark_style = "monokai"


def _as_restructured_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with back quotes: drawings and tables stand as they are; so do |x| and *."""
    text, inside, opening = [], False, True
    for line in lines:
        opening = opening and not re.fullmatch(r"[A-Z][a-z]+:", line)  # the part above Args, Returns ...
        drawn = line.startswith("| ") or (opening and line.startswith("    "))
        if drawn and not inside:
            text += ["", "::", ""]
        if inside and not drawn and line.strip():
            text.append("")
        inside = drawn or (inside and not line.strip())
        text.append("    " + line if drawn else _escaped(line))
    lines[:] = text


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

"""The documentation: `make docs` builds it, runs its notebooks, and takes a warning for an error."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from pyro_vae import __version__

project = "pyro-vae"
author = "The pyro-vae developers"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyro-vae {__version__}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["cells.css"]
# A line of 100 characters fits beside the table of contents.
html_theme_options = {name: {"code-font-size": "75%"} for name in ("light_css_variables", "dark_css_variables")}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# A page with code cells is a notebook: it runs whenever the documentation is built, so that what it shows is what the
# present code prints. An error in it is an error here. What it writes goes to a folder that is thrown away.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True
# This Python's kernel, whatever a kernel of that name at home may be. It has one thread, as the examples' matrices are
# too small to share; and it keeps quiet that without ipywidgets tqdm draws no bars, which no page is about.
os.environ["JUPYTER_PATH"] = str(Path(__file__).parent / "_kernels")
# A package of the theme sets the whole process to log whatever happens, such as the start of every kernel.
logging.getLogger("traitlets").setLevel(logging.WARNING)

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Else each entry of "Attributes:" is documented twice, here and as a member.
napoleon_use_ivar = True
# Docstrings write `name`, as their readers in a terminal and in an editor expect.
default_role = "code"


def as_text(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Keep a shape (*B, D) and a modulus |a - b| from being read as markup: docstrings are written for terminals."""
    directive: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if directive is not None and line.strip() and indent <= directive:
            directive = None
        if line.lstrip().startswith(".. "):
            directive = indent
        if directive is None and not line.lstrip().startswith((">>>", "...")):
            pieces = line.split("`")
            # Every other piece is code.
            pieces[::2] = [re.sub(r"\*(?=\w+[,)\]])|\|", r"\\\g<0>", piece) for piece in pieces[::2]]
            lines[number] = "`".join(pieces)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    # Before napoleon, whose own markup must stay.
    app.connect("autodoc-process-docstring", as_text, priority=400)

"""Configuration of the documentation: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pyro_seq

project = "pyro_seq"
author = "The pyro_seq authors"
copyright = author
release = version = pyro_seq.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "results"]
# In signatures of named tuples types are bare names, and two modules may have one of that name.
suppress_warnings = ["ref.python"]
html_theme = "furo"
html_title = "pyro_seq"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"

autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "show-inheritance": False,
    "member-order": "bysource",
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def skip_tuple_fields(
    app: object, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out the generated entries of NamedTuple fields, which Attributes describes."""
    doc = getattr(member, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


def escape_stars(
    app: object, what: str, name: str, member: object, options: object, lines: list[str]
) -> None:
    """Escape the star of shapes such as (batch, time, *frame) where it is plain text."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"(?<=[( ])\*(?=\w)", r"\\*", part) for part in parts[::2]]
            lines[i] = "`".join(parts)


def setup(app: object) -> None:
    app.connect("autodoc-skip-member", skip_tuple_fields)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", escape_stars, priority=400)  # type: ignore[attr-defined]

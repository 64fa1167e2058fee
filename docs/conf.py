"""Settings of Sphinx for the pages in this folder. `make docs` builds them, with warnings as errors."""

from importlib.metadata import version as installed_version

project = "Roundwise"
author = "The Roundwise authors"
project_copyright = "The Roundwise authors"
release = installed_version("roundwise")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "Roundwise"

# Pages are Markdown, with formulas between dollar signs and links to headings.
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings follow Google's style, with names between single backquotes.
default_role = "code"
napoleon_numpy_docstring = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # `Recipe()`'s defaults written out would fill a page

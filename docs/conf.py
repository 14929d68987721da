"""How Sphinx builds these pages; `make docs` in the folder above runs it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from inventories import mapping  # noqa: E402
from public_names import at_home, data_of  # noqa: E402

from batchcam_captum import __version__  # noqa: E402

project = "batchcam_captum"
author = "The batchcam_captum authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "pages",
    "public_names",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxarg.ext",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_parser",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates", "recipes/README.md"]
templates_path = ["_templates"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "config.cache"]

nitpicky = True
autosummary_generate = True
#: Where what is inherited stops being described here.
BASES = (
    "Module, LayerGradCam, GuidedGradCam, LayerAttribution, GradientAttribution, Metric, Callback, Dataset, Sequence, "
    "Mapping, dict, tuple, int, Enum, ValueError, RuntimeError"
)
autosummary_context = {"at_home": at_home, "data_of": data_of, "bases": BASES}
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "py:obj"

html_theme = "furo"
html_title = f"batchcam_captum {release}"
html_static_path = ["_static"]

bibtex_bibfiles = ["reference/references.bib"]
bibtex_reference_style = "author_year"

intersphinx_mapping = mapping(HERE / "inventories", HERE / "_build" / "inventories")
intersphinx_timeout = 5

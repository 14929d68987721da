"""How Sphinx builds these pages; `make docs` in the folder above runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # a debugger's advice, printed under every notebook

from inventories import mapping  # noqa: E402
from public_names import at_home, data_of  # noqa: E402
from sphinx_gallery.sorting import FileNameSortKey  # noqa: E402

from batchcam_captum import __version__  # noqa: E402

project = "batchcam_captum"
author = "The batchcam_captum authors"
copyright = f"2026, {author}"
version = release = __version__
#: Where the source lies, for the links that edit a page.
source_address = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["urls"]["Source"]

#: The page of the commands includes what they say of themselves.
COMMANDS = HERE / "_build" / "commands.md"
COMMANDS.parent.mkdir(exist_ok=True)
subprocess.run(
    [
        sys.executable,
        "-m",
        "typer",
        "batchcam_captum.cli.app",
        "utils",
        "docs",
        "--name",
        "batchcam",
        "--output",
        str(COMMANDS),
    ],
    check=True,
    capture_output=True,
)

extensions = [
    "dashes",
    "diagrams",
    "mathml",
    "pages",
    "public_names",
    "sources",
    "sphinx_gallery.gen_gallery",  # before autosummary, whose pages show which examples use a name
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
    "built_pages",
]
source_suffix = {
    ".rst": "restructuredtext",
    ".md": "myst-nb",
    ".ipynb": "myst-nb",
}  # autosummary writes the first
exclude_patterns = ["_build", "_templates", "gallery", "auto_examples/*.ipynb", "**sg_execution_times.rst"]
templates_path = ["_templates"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "config.cache"]

#: Notebooks lie here without outputs, and run when the pages are built.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

#: So do the scripts of the gallery.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "capture_repr": (),
    "remove_config_comments": True,
    "show_signature": False,
    "min_reported_time": 1e9,
    "image_scrapers": ("figures",),
    "matplotlib_animations": False,
    "backreferences_dir": "reference/examples",
    "doc_module": ("batchcam_captum",),
    "reference_url": {"batchcam_captum": None},
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

nitpicky = True
autosummary_generate = True
#: Where what is inherited stops being described here.
BASES = (
    "Module, LayerGradCam, GuidedGradCam, LayerAttribution, GradientAttribution, Metric, Callback, Dataset, Sequence, "
    "Mapping, dict, tuple, int, Enum, ValueError, RuntimeError"
)


def has_examples(name: str) -> bool:
    """Whether a script of the gallery uses a class of the package; sphinx-gallery leaves out which module it is in."""
    found = HERE / sphinx_gallery_conf["backreferences_dir"] / "backreferences_all.json"
    return bool(json.loads(found.read_text()).get(f"batchcam_captum.{name}"))


autosummary_context = {"at_home": at_home, "data_of": data_of, "bases": BASES, "has_examples": has_examples}
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
smartquotes = False  # two hyphens begin an option
pygments_dark_style = "github-dark"

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"batchcam_captum {release}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]
html_theme_options = {
    "source_edit_link": source_address,  # each page's own: _ext/pages.py
    "footer_icons": [],
}
html_show_sourcelink = False
copybutton_selector = (
    "div:not(.highlight-text):not(.output) > div.highlight > pre"  # what was printed is not for copying
)

bibtex_bibfiles = ["reference/references.bib"]
bibtex_reference_style = "author_year"

intersphinx_mapping = mapping(HERE / "inventories", HERE / "_build" / "inventories")
intersphinx_timeout = 5

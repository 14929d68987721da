"""How Sphinx builds these pages; `make docs` in the folder above runs it."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

from sphinx_gallery.sorting import FileNameSortKey

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # otherwise a debugger prints advice under every notebook

from references import escaped  # noqa: E402

from batchcam_captum import __version__  # noqa: E402

project = "batchcam_captum"
author = "The batchcam_captum authors"
copyright = f"2026, {author}"
version = release = __version__

# What the commands say of themselves; the page of the command line includes it.
COMMANDS = HERE / "_build" / "commands.md"
COMMANDS.parent.mkdir(exist_ok=True)
typer = "-m typer batchcam_captum.cli.app utils docs --name batchcam --output"
subprocess.run([sys.executable, *typer.split(), str(COMMANDS)], check=True, capture_output=True)

extensions = [
    "drawings",
    "references",
    "sphinx_gallery.gen_gallery",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "_templates", "gallery", "auto_examples/*.ipynb", "**sg_execution_times.rst"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore_regex = [("py:obj", r".*\.T")]  # type variables
default_role = "py:obj"
suppress_warnings = ["myst.header", "config.cache"]
smartquotes_action = "D"  # two hyphens are a dash; quotes stay as they are typed

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# Notebooks and the scripts of the gallery are stored without outputs and run when the pages are built.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
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
    "reference_url": {"batchcam_captum": None},
}
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")


def data_of(package: str) -> dict[str, str]:
    """Return the public names of a package that are neither classes nor functions, and their comments."""
    from sphinx.pycode import ModuleAnalyzer

    comments = {}
    for path in [path for path in sys.modules if path.startswith(package)]:
        comments |= ModuleAnalyzer.for_module(path).find_attr_docs()
    module = import_module(package)
    described = (inspect.isclass, inspect.isroutine, inspect.ismodule)
    names = [name for name in module.__all__ if not any(kind(getattr(module, name)) for kind in described)]
    values = {name: f"``{getattr(module, name)}``".replace("typing.", "") for name in names}
    return {name: " ".join(escaped(comments.get(("", name), [value]))) for name, value in values.items()}


autosummary_imported_members = True
autosummary_ignore_module_all = False
autosummary_context = {
    "data_of": data_of,
    "functional": import_module("batchcam_captum.functional").__all__,
    # evaluation has the metrics as well; they are described once
    "metrics": import_module("batchcam_captum.evaluation.metrics").__all__,
    # descriptions of what is inherited end at these
    "bases": "Module, LayerGradCam, GuidedGradCam, LayerAttribution, GradientAttribution, Metric, Callback, Dataset, "
    "Sequence, Mapping, dict, tuple, int, Enum, ValueError, RuntimeError",
}
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

bibtex_bibfiles = ["reference/references.bib"]
bibtex_reference_style = "author_year"

html_theme = "furo"
html_title = f"batchcam_captum {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]
html_show_sourcelink = False
pygments_dark_style = "github-dark"
copybutton_selector = (
    "div:not(.highlight-text):not(.output) > div.highlight > pre"  # output is not for copying
)

"""The figures of the gallery: those of pyplot, and those that functions of the package return, which pyplot does not know."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

_saved: WeakSet[Figure] = WeakSet()


def _get_sg_image_scraper() -> Any:
    """Return the scraper; sphinx-gallery asks for it by this name."""
    return scrape


def scrape(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Save the figures that a block of a script has made and return the reStructuredText that shows them."""
    known = [pyplot.figure(number) for number in pyplot.get_fignums()]
    paths = []
    for value in variables["example_globals"].values():
        if isinstance(value, Figure) and value not in _saved:
            _saved.add(value)
            if value not in known:  # pyplot's own scraper saves the others
                paths.append(next(variables["image_path_iterator"]))
                value.savefig(paths[-1], dpi=120, bbox_inches="tight")
    shown = matplotlib_scraper(block, variables, settings, bbox_inches="tight", dpi=120)
    return figure_rst(paths, settings["src_dir"]) + str(shown)

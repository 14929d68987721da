"""The gallery's figures: those of pyplot, and those that functions of the package return, which pyplot does not know."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper

_drawn: WeakSet[Figure] = WeakSet()


def _get_sg_image_scraper() -> Any:
    """sphinx-gallery asks a module for its scraper under this name."""
    return scrape


def scrape(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Saves the figures that a block of a script has drawn, without their margins.

    Args:
        block: the block's kind, text and line.
        variables: of the block; ``example_globals`` are the script's.
        settings: of the gallery.

    Returns:
        What shows them, in reStructuredText.
    """
    known = {id(pyplot.figure(number)) for number in pyplot.get_fignums()}
    paths = []
    for value in variables["example_globals"].values():
        if not isinstance(value, Figure) or value in _drawn:
            continue
        _drawn.add(value)
        if id(value) not in known:
            paths.append(next(variables["image_path_iterator"]))
            value.savefig(paths[-1], dpi=120, bbox_inches="tight")
    own = figure_rst(paths, settings["src_dir"])
    return own + str(matplotlib_scraper(block, variables, settings, bbox_inches="tight", dpi=120))

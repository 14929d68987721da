"""``batchcam report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .arguments import warnings_as_remarks


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    report = commands.add_parser(
        "report",
        help="a store of batchcam explain as one HTML file that opens offline",
        description="Make one HTML file of a store: a gallery of the images and their maps with filters and search, a table of "
        "the classes with their mean maps, mistakes, metrics and damaged images. The page needs no network.",
    )
    report.set_defaults(run=run, extra="explain")
    report.add_argument("store", type=Path, metavar="STORE", help="what batchcam explain wrote")
    report.add_argument(
        "--output", type=Path, metavar="FILE", help="default: beside the store, of its name with .html"
    )
    report.add_argument("--title", metavar="TEXT", help="heading of the page; default: the store's name")
    report.add_argument(
        "--pictures",
        type=int,
        metavar="PIXELS",
        help="longer side of the pictures, at most that of the store's thumbnails; 0 for none; by default large thumbnails are "
        "reduced as the number of images grows, to 70 pixels for 10,000 images",
    )
    report.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    from ..explain import Status, open_store
    from ..explain.report import write_report

    if options.pictures is not None and options.pictures < 0:
        raise ValueError(f"--pictures: expected at least 0, got {options.pictures}")
    store = open_store(options.store)
    path = options.output or _beside(options.store)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"--output: expected a file in a folder that exists, got {path}; make the folder, or choose another"
        )
    shown = not options.quiet and sys.stderr.isatty()
    with warnings_as_remarks(options.quiet):
        written = write_report(store, path, title=options.title, pictures=options.pictures, progress=shown)
    if not store.complete and not options.quiet:
        missing = int((store.status[:] == Status.MISSING).sum())
        print(
            f"batchcam: {missing:,} of {len(store):,} images are not explained yet; give batchcam explain again, then this",
            file=sys.stderr,
        )
    print(f"Written to {written} ({written.stat().st_size / 1e6:,.1f} MB); open it in a browser")


def _beside(store: Path) -> Path:
    """``maps.zarr`` -> ``maps.html``, in the same folder."""
    store = store.resolve()
    return store.with_name(f"{store.name.removesuffix('.zarr')}.html")

"""``batchcam report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Quiet, remark, show_progress, warnings_as_remarks


def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store that batchcam explain wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: beside the store, with its name and the suffix .html."),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Heading of the page. Default: the store's name.")
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=0,
            help="Longer side of the pictures, at most that of the store's thumbnails; 0 for none. Default: the more images, "
            "the fewer pixels, 70 for 10,000.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a store as one offline HTML page.

    The page has a gallery of the images and their maps with filters and search, a table of the classes with their mean maps,
    mistakes, metrics and damaged images.
    """
    from ..explain import Status, open_store
    from ..explain.report import write_report

    opened = open_store(store)
    place = store.resolve()
    path = output or place.with_name(f"{place.name.removesuffix('.zarr')}.html")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"--output: expected a file in a folder that exists, got {path}; create the folder, or choose another"
        )
    with warnings_as_remarks(quiet):
        written = write_report(opened, path, title=title, pictures=pictures, progress=show_progress(quiet))
    if not opened.complete:
        missing = int((opened.status[:] == Status.MISSING).sum())
        remark(
            f"{missing:,} of {len(opened):,} images are not explained yet; run batchcam explain again, then this",
            quiet,
        )
    typer.echo(f"Written to {written} ({written.stat().st_size / 1e6:,.1f} MB); open it in a browser")

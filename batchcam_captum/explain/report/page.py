"""The report: one HTML file made from ``template.html``, ``report.js`` and ``report.css``."""

from __future__ import annotations

import base64
import hashlib
import os
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...files import written_whole
from ...optional import load
from ..store import Store, open_store
from .content import read_content, visible

#: Bytes above which a page opens slowly.
LARGE = 60e6


def write_report(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    pictures: int | None = None,
    progress: bool = False,
) -> Path:
    """Write a store as one HTML file that opens offline.

    The page shows a summary, a gallery of images and maps with filters, search and a detail view, a table of the classes with
    their mean maps, the mistakes if there are labels, damaged samples, and the settings. It requests nothing, and nothing that
    the store contains can run in it.

    Maps are relu(C)/max in 256 steps, at most 32×32 and ten per sample. The page is held in memory while it is written.

    Args:
        store: What :func:`.open_store` returns, or the path of a store. It may be incomplete; the page then says so.
        path: The file to write. Its folder must exist. An existing file is replaced when the new one is complete.
        title: The page's heading. Default: the name of the store's folder without ``.zarr``.
        pictures: Largest side length of the pictures in pixels, at most that of the store's thumbnails; 0 for none. By default
            large thumbnails are reduced as the number of samples grows, to 70 pixels for 10,000 samples.
        progress: Show a progress bar.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If it is no store, one of another version, or one of signals or volumes; or if ``pictures`` is negative.
        OSError: If the file cannot be written. An existing file stays as it is.
        ModuleNotFoundError: If zarr, pandas, Pillow or Jinja2 is not installed.
    """
    if not isinstance(store, Store):
        store = open_store(store)
    if store.maps.ndim != 4:
        raise ValueError(
            f"store: expected maps with two spatial dimensions, got {store.maps.shape[1:]} per sample; read them with "
            "open_store(path).maps"
        )
    if pictures is not None and pictures < 0:
        raise ValueError(f"pictures: expected at least 0 pixels, got {pictures}")
    path = Path(path)
    template = _template()
    with written_whole(path) as temporary:
        content = read_content(store, pictures=pictures, progress=progress)
        content["title"] = visible(
            store.path.resolve().name.removesuffix(".zarr") if title is None else title
        )
        with open(temporary, "w", encoding="utf-8", newline="\n") as page:
            page.writelines(template.generate(content))
        size = temporary.stat().st_size
    if size > LARGE:
        warnings.warn(
            f"{path}: the page has {size / 1e6:,.0f} MB and opens slowly; pass a smaller pictures= (--pictures)",
            stacklevel=2,
        )
    return path


def _template() -> Any:
    jinja2, markupsafe = (
        load(name, purpose="write_report", extra="explain") for name in ("jinja2", "markupsafe")
    )
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    template, style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("template.html", "report.css", "report.js")
    )
    # The browser runs this very script and no other, should something ever get past the escaping (CSP level 3, section 2.3.1).
    environment.globals |= {
        "style": markupsafe.Markup(style),
        "script": markupsafe.Markup(script),
        "policy": f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
    }
    return environment.from_string(template)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""The pictures and maps of a few samples, as text that the page decodes when it shows one of them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from ...optional import load
from .embed import base64_text

#: Samples a block. A page of samples in any order touches up to as many blocks as it has samples, so blocks are small; a sheet
#: of pictures has its JPEG header once.
SAMPLES = 16
_ACROSS = 4
#: Pictures begin at multiples of this, so that no JPEG block lies on two of them.
_STEP = 16
#: Of colour, and of grey, which has large even areas that smear visibly, and costs little.
_QUALITY, _GREY_QUALITY = 85, 93


def tile_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a picture's place on a sheet."""
    return -(-height // _STEP) * _STEP, -(-width // _STEP) * _STEP


def sheet(thumbnails: np.ndarray[Any, Any]) -> str:
    """A JPEG of up to :data:`SAMPLES` pictures, four a row, as base64.

    Args:
        thumbnails: (n, height, width, 3) uint8.
    """
    count, height, width, _ = thumbnails.shape
    down, across = tile_size(height, width)
    rows = -(-count // _ACROSS)
    # The rim of a place repeats the picture's edge: what JPEG smears over it then stays the same.
    padded = np.pad(thumbnails, ((0, 0), (0, down - height), (0, across - width), (0, 0)), mode="edge")
    placed = np.zeros((rows * _ACROSS, down, across, 3), dtype=np.uint8)
    placed[:count] = padded
    joined = placed.reshape(rows, _ACROSS, down, across, 3).transpose(0, 2, 1, 3, 4)
    picture = load("PIL.Image", purpose="a report", extra="explain").fromarray(
        joined.reshape(rows * down, _ACROSS * across, 3)
    )
    grey = bool((thumbnails == thumbnails[..., :1]).all())
    if grey:
        picture = picture.convert("L")
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=_GREY_QUALITY if grey else _QUALITY, optimize=True)
    return base64.b64encode(written.getvalue()).decode("ascii")


def block(thumbnails: np.ndarray[Any, Any] | None, maps: np.ndarray[Any, Any]) -> str:
    """A block's text: its sheet, or an empty line, and its maps.

    Args:
        thumbnails: (n, height, width, 3) uint8.
        maps: (n, m, h, w) uint8.
    """
    return f"{'' if thumbnails is None else sheet(thumbnails)}\n{base64_text(maps)}"

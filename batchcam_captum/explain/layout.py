"""What lies where in a store: a Zarr group with an array for each kind of thing, samples first.

All arrays are cut into chunks of the same samples, so that a chunk is the unit of work: it is computed by one process, written
whole, and marked in ``status`` last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import ceil, prod
from typing import Any

#: Raised when older versions of this package could misread a store.
FORMAT = 1
#: Of the group's attributes.
KEY = "batchcam_captum"
#: Names of the metrics of maps and masks.
MASK_METRICS = ("energy_in_mask", "pointing_game")
#: How many samples a chunk has, about, and how many bytes of maps at most.
_CHUNK_SAMPLES, _CHUNK_BYTES = 256, 64 * 2**20


class Status(IntEnum):
    """Of a sample."""

    MISSING = 0  #: not there yet
    WRITTEN = 1
    DAMAGED = 2  #: it could not be read; why is in ``problems``


@dataclass(frozen=True)
class Array:
    """Shape, dtype and what stands where nothing is written."""

    shape: tuple[int, ...]
    dtype: str
    fill: Any


@dataclass(frozen=True)
class Layout:
    """All sizes of a store."""

    samples: int  #: N
    chunk: int  #: samples a chunk
    maps: tuple[int, ...]  #: (M, *spatial), M maps a sample, mostly (M, h, w)
    classes: int  #: K
    dtype: str = "float32"  #: of the maps
    thumbnail: tuple[int, int] | None = None  #: (height, width)
    metrics: tuple[str, ...] = ()  #: of maps and masks

    @property
    def chunks(self) -> int:
        """How many there are."""
        return ceil(self.samples / self.chunk)

    def rows(self, chunk: int) -> slice:
        """The samples of a chunk."""
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples))

    def arrays(self) -> dict[str, Array]:
        """Name -> array; ``status`` is the last one, as it is the last to be written."""
        count = self.samples
        found = {
            "maps": Array((count, *self.maps), self.dtype, float("nan")),
            "targets": Array((count, self.maps[0]), "int32", -1),
            "scores": Array((count, self.classes), "float32", float("nan")),
            "predictions": Array((count,), "int32", -1),
            "confidences": Array((count,), "float32", float("nan")),
            "labels": Array((count,), "int32", -1),
            "ids": Array((count,), "string", ""),
            "paths": Array((count,), "string", ""),
            "problems": Array((count,), "string", ""),
        }
        if self.thumbnail is not None:
            found["thumbnails"] = Array((count, *self.thumbnail, 3), "uint8", 0)
        for name in self.metrics:
            found[name] = Array((count, self.maps[0]), "float32", float("nan"))
        found["status"] = Array((count,), "uint8", int(Status.MISSING))
        return found


#: Of all arrays that a store may have, in their order.
NAMES = tuple(
    Layout(samples=1, chunk=1, maps=(1,), classes=1, thumbnail=(1, 1), metrics=MASK_METRICS).arrays()
)


def chunk_size(batch_size: int, maps: tuple[int, ...], dtype: str) -> int:
    """Samples a chunk: whole batches, so that a chunk's numbers do not hang on where a run began."""
    bytes_a_sample = prod(maps) * (2 if dtype == "float16" else 4)
    samples = min(_CHUNK_SAMPLES, max(1, _CHUNK_BYTES // bytes_a_sample))
    return batch_size * max(1, samples // batch_size)

"""The arrays of a store: a Zarr group with one array per kind of value, samples first.

All arrays are cut into chunks of the same samples. A chunk is the unit of work: one process computes it, writes its files,
and then enters it into the progress record.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import ceil, isnan, prod
from typing import Any

#: Version of the format; readers refuse others.
FORMAT = 2
#: Name of the group's attribute that describes the store.
KEY = "batchcam_captum"
#: Metrics that compare maps with masks.
MASK_METRICS = ("energy_in_mask", "pointing_game")
#: About how many samples a chunk has, and how many bytes of maps at most.
_CHUNK_SAMPLES, _CHUNK_BYTES = 256, 64 * 2**20


class Status(IntEnum):
    """Status of a sample."""

    MISSING = 0  #: not written yet
    WRITTEN = 1
    DAMAGED = 2  #: unreadable; ``problems`` says why


@dataclass(frozen=True)
class Array:
    """Shape, dtype and fill value of an array."""

    shape: tuple[int, ...]
    dtype: str
    fill: Any

    def metadata(self, chunk: int) -> dict[str, Any]:
        """Return the array's Zarr metadata, which open_store compares with those on the disk.

        Args:
            chunk: number of samples per chunk.
        """
        endian = {} if self.dtype == "uint8" else {"endian": "little"}
        to_bytes = (
            {"name": "vlen-utf8"} if self.dtype == "string" else {"name": "bytes", "configuration": endian}
        )
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk, *self.shape[1:]]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if isinstance(self.fill, float) and isnan(self.fill) else self.fill,
            "codecs": [to_bytes, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}],
            "attributes": {},
            "storage_transformers": [],
        }

    def file_name(self, chunk: int) -> str:
        """Return the name of a chunk's file in the array's folder."""
        return ".".join(["c", str(chunk), *["0"] * (len(self.shape) - 1)])


@dataclass(frozen=True)
class Layout:
    """Sizes of a store's arrays."""

    samples: int  #: N
    chunk: int  #: number of samples per chunk
    maps: tuple[int, ...]  #: (M, *spatial): M maps per sample
    classes: int  #: K
    dtype: str = "float32"  #: of the maps
    thumbnail: tuple[int, ...] | None = None  #: (height, width)
    metrics: tuple[str, ...] = ()  #: of maps and masks

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return ceil(self.samples / self.chunk)

    def rows(self, chunk: int) -> slice:
        """Return the samples of a chunk."""
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples))

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name, in the order in which their files are written: ``status`` is last."""
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


#: Names of all arrays that a store may have, in their order.
NAMES = tuple(
    Layout(samples=1, chunk=1, maps=(1,), classes=1, thumbnail=(1, 1), metrics=MASK_METRICS).arrays()
)


def chunk_size(batch_size: int, maps: tuple[int, ...], dtype: str) -> int:
    """Return the number of samples per chunk: whole batches, so that a sample's batch does not depend on where a run resumes."""
    sample_bytes = prod(maps) * (2 if dtype == "float16" else 4)
    samples = min(_CHUNK_SAMPLES, max(1, _CHUNK_BYTES // sample_bytes))
    return batch_size * max(1, samples // batch_size)

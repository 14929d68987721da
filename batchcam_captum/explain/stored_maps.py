"""A store as pairs of images and maps, for training on them or looking at them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from .store import Store

#: Bytes of an array's chunks that a process keeps; one chunk at least.
_KEPT = 16 * 2**20


class StoredMaps(Dataset[tuple[Any, Tensor]]):
    """(image, map) of each written sample, the map (M, h, w) in float32. Made by :meth:`.Store.dataset`.

    Zarr decompresses whole chunks: those that were read last are kept, 16 MiB of them in each process, or a single one. In a
    random order over larger maps a batch reads each chunk once that has a sample of it.

    Args:
        store: whose maps they are.
        images: the data set that was explained, in the same order; None: the files that the store names, or its thumbnails.
        transform: of the image, whichever it is; see :meth:`.Store.dataset`.

    Raises:
        ValueError: images of another number, or neither files nor thumbnails.

    Attributes:
        positions: of the samples in the store.
    """

    def __init__(
        self, store: Store, images: Dataset[Any] | None, transform: Callable[[Any], Any] | None
    ) -> None:
        self.store = store
        self.images = images
        self.transform = transform
        self.positions = store.written()
        if images is not None and len(images) != len(store):  # type: ignore[arg-type]
            raise ValueError(
                f"images: expected the {len(store)} samples of the store, got {len(images)}; pass the data set that was explained"  # type: ignore[arg-type]
            )
        self._maps = _Rows(store.maps)
        self._thumbnails: _Rows | None = None
        self._paths: list[str] | None = None
        if images is None:
            self._choose()

    def _choose(self) -> None:
        """Files or thumbnails, see :meth:`.Store.dataset`."""
        paths = [str(path) for path in np.asarray(self.store.paths[:], dtype=object)]
        has_files = all(paths[position] for position in self.positions)
        thumbnails = self.store.thumbnails
        if has_files and (self.transform is not None or thumbnails is None):
            self._paths = paths
        elif thumbnails is not None:
            self._thumbnails = _Rows(thumbnails)
        else:
            raise ValueError(
                "images: expected a data set, as the store has neither paths nor thumbnails, got None; pass the one that was "
                "explained"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Tensor]]:
        """Those of a batch, which a ``DataLoader`` asks for; each chunk is read once."""
        positions = self.positions[np.asarray(indices, dtype=int)]
        maps = torch.from_numpy(self._maps[positions].astype(np.float32, copy=False))
        return list(zip(self._images(positions), maps, strict=True))

    def _images(self, positions: np.ndarray[Any, Any]) -> list[Any]:
        found: list[Any]
        if self._thumbnails is not None:
            pixels = torch.from_numpy(self._thumbnails[positions])
            found = list(pixels.permute(0, 3, 1, 2).float() / 255)
        else:
            found = [self._image(int(position)) for position in positions]
        return found if self.transform is None else [self.transform(image) for image in found]

    def _image(self, position: int) -> Any:
        if self.images is not None:
            sample = self.images[position]
            return sample[0] if isinstance(sample, tuple | list) else sample
        from ..loading.images import read_image

        assert self._paths is not None
        image = read_image(self._paths[position])
        if self.transform is not None:
            return image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class _Rows:
    """Rows of a Zarr array, any of them in any order. Chunks that were read last are kept, and left behind in pickling."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self._size = int(array.chunks[0])
        self._chunks: OrderedDict[int, np.ndarray[Any, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": OrderedDict()}

    def __getitem__(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.empty((len(rows), *self.array.shape[1:]), self.array.dtype)
        chunks = rows // self._size
        for chunk in np.unique(chunks):
            chosen = chunks == chunk
            found[chosen] = self._chunk(int(chunk))[rows[chosen] - chunk * self._size]
        return found

    def _chunk(self, chunk: int) -> np.ndarray[Any, Any]:
        if chunk not in self._chunks:
            values = np.asarray(self.array[chunk * self._size : (chunk + 1) * self._size])
            while self._chunks and (len(self._chunks) + 1) * values.nbytes > _KEPT:
                self._chunks.popitem(last=False)
            self._chunks[chunk] = values
        self._chunks.move_to_end(chunk)
        return self._chunks[chunk]

"""A store as a data set of images and maps, for training or looking at them."""

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

#: How many bytes of an array's chunks a process keeps; at least one chunk.
_KEPT_BYTES = 16 * 2**20


class StoredMaps(Dataset[tuple[Any, Tensor]]):
    """(image, map) of each written sample, the map (M, h, w) in float32. Made by :meth:`.Store.dataset`.

    Zarr decompresses whole chunks. Each process keeps those that were read last, up to 16 MiB. A batch in random order reads each
    chunk once.

    Args:
        store: The store of the maps.
        images: The data set that was explained, in the same order; None: the files that the store names, or its thumbnails.
        transform: Applied to the image, see :meth:`.Store.dataset`.

    Raises:
        ValueError: If there are not as many images as samples, or neither files nor thumbnails.

    Attributes:
        positions: The positions of the samples in the store.
    """

    def __init__(
        self, store: Store, images: Dataset[Any] | None, transform: Callable[[Any], Any] | None
    ) -> None:
        self.store, self.images, self.transform = store, images, transform
        self.positions = store.written()
        if images is not None and len(images) != len(store):  # type: ignore[arg-type]
            raise ValueError(
                f"images: expected the {len(store)} samples of the store, got {len(images)}; pass the data set that was explained"  # type: ignore[arg-type]
            )
        self._maps = _Rows(store.maps)
        self._thumbnails: _Rows | None = None
        self._paths = [str(path) for path in np.asarray(store.paths[:], dtype=object)]
        has_files = all(self._paths[position] for position in self.positions)
        if images is None and not (has_files and (transform is not None or store.thumbnails is None)):
            if store.thumbnails is None:
                raise ValueError(
                    "images: expected a data set, as the store has neither paths nor thumbnails, got None; pass the one that was "
                    "explained"
                )
            self._thumbnails = _Rows(store.thumbnails)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Tensor]]:
        """Return the samples of a batch, as a ``DataLoader`` asks for them."""
        positions = self.positions[np.asarray(indices, dtype=int)]
        maps = torch.from_numpy(self._maps[positions].astype(np.float32, copy=False))
        images: list[Any]
        if self._thumbnails is not None:
            images = list(torch.from_numpy(self._thumbnails[positions]).permute(0, 3, 1, 2).float() / 255)
        else:
            images = [self._image(int(position)) for position in positions]
        if self.transform is not None:
            images = [self.transform(image) for image in images]
        return list(zip(images, maps, strict=True))

    def _image(self, position: int) -> Any:
        if self.images is not None:
            sample = self.images[position]
            return sample[0] if isinstance(sample, tuple | list) else sample
        from ..loading.images import read_image

        image = read_image(self._paths[position])
        if self.transform is not None:
            return image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class _Rows:
    """Rows of a Zarr array in any order. Keeps the chunks that were read last, but does not pickle them."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self._chunks: OrderedDict[int, np.ndarray[Any, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": OrderedDict()}

    def __getitem__(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.empty((len(rows), *self.array.shape[1:]), self.array.dtype)
        size = int(self.array.chunks[0])
        for chunk in np.unique(rows // size):
            chosen = rows // size == chunk
            found[chosen] = self._chunk(int(chunk), size)[rows[chosen] - chunk * size]
        return found

    def _chunk(self, chunk: int, size: int) -> np.ndarray[Any, Any]:
        if chunk not in self._chunks:
            values = np.asarray(self.array[chunk * size : (chunk + 1) * size])
            while self._chunks and (len(self._chunks) + 1) * values.nbytes > _KEPT_BYTES:
                self._chunks.popitem(last=False)
            self._chunks[chunk] = values
        self._chunks.move_to_end(chunk)
        return self._chunks[chunk]

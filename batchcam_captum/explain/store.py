"""Reading what :func:`~batchcam_captum.explain.explain_dataset` has written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..optional import load
from .layout import FORMAT, MASK_METRICS, NAMES, Status
from .metadata import check_store, read_about
from .stored_maps import StoredMaps

if TYPE_CHECKING:
    import pandas


class Store:
    """Maps, scores and samples of a data set, read as they are asked for. Made by :func:`open_store`.

    Its arrays are Zarr's: slicing one reads the chunks that are touched, ``store.maps[:100]``, and ``[:]`` reads all.
    N samples, M maps a sample, K classes.

    Args:
        path: of the store's folder.
        group: the Zarr group in it.
        about: the store's metadata: ``settings``, ``class_names``, ``environments`` and whether it is ``complete``.
    """

    def __init__(self, path: Path, group: Any, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about = about
        self._group = group

    def __len__(self) -> int:
        return int(self.status.shape[0])

    def __repr__(self) -> str:
        done = "complete" if self.complete else "not complete"
        count, *shape = self.maps.shape
        return f"Store({str(self.path)!r}, {count} samples, maps {tuple(shape)} {self.maps.dtype}, {done})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    @property
    def maps(self) -> Any:
        """(N, M, h, w) float16 or float32: signed, as the weighting gives them; NaN where there is none."""
        return self._group["maps"]

    @property
    def targets(self) -> Any:
        """(N, M) int32: the class that each map explains; −1 where there is none."""
        return self._group["targets"]

    @property
    def scores(self) -> Any:
        """(N, K) float32: what the model returned, before any softmax; NaN where there is none."""
        return self._group["scores"]

    @property
    def predictions(self) -> Any:
        """(N,) int32: the class with the highest score; −1 where there is none."""
        return self._group["predictions"]

    @property
    def confidences(self) -> Any:
        """(N,) float32: the highest softmax probability; NaN where there is none."""
        return self._group["confidences"]

    @property
    def labels(self) -> Any:
        """(N,) int32: the true class; −1 where it is not known."""
        return self._group["labels"]

    @property
    def ids(self) -> Any:
        """(N,) strings: of the samples; by default their positions in the data set."""
        return self._group["ids"]

    @property
    def paths(self) -> Any:
        """(N,) strings: of the samples' files; empty where there are none."""
        return self._group["paths"]

    @property
    def problems(self) -> Any:
        """(N,) strings: why a sample is damaged; empty for the others."""
        return self._group["problems"]

    @property
    def status(self) -> Any:
        """(N,) uint8: 0 not written yet, 1 written, 2 damaged."""
        return self._group["status"]

    @property
    def thumbnails(self) -> Any | None:
        """(N, height, width, 3) uint8: small pictures of the inputs; None where none were kept."""
        return self._group.get("thumbnails")

    @property
    def metrics(self) -> dict[str, Any]:
        """Name -> (N, M) float32, of maps and masks; empty where the data set has no masks. NaN where there is none."""
        return {name: array for name, array in self.arrays().items() if name in MASK_METRICS}

    @property
    def settings(self) -> dict[str, Any]:
        """All that the numbers depend on but for machine and versions."""
        return dict(self.about["settings"])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """K names, where they are known."""
        names = self.about["class_names"]
        return None if names is None else tuple(names)

    @property
    def complete(self) -> bool:
        """Whether every sample is written, or known to be damaged."""
        return bool(self.about["complete"])

    def arrays(self) -> dict[str, Any]:
        """Those of a store by name, in the order of the properties, then metrics; not what others have put into the group."""
        found = {name: self._group.get(name) for name in NAMES}
        return {name: array for name, array in found.items() if array is not None}

    def written(self) -> np.ndarray[Any, Any]:
        """The positions of the samples that have maps."""
        return np.flatnonzero(np.asarray(self.status[:]) == Status.WRITTEN)

    def frame(self) -> pandas.DataFrame:
        """The samples as a table: a row each, in the order of the data set.

        Returns:
            ``id``, ``path``, ``status`` (``"missing"``, ``"written"``, ``"damaged"``), ``problem``, ``label``, ``prediction``,
            ``confidence``, ``correct`` (missing where the label is not known), and the metrics of the first map.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        pandas = load("pandas", purpose="Store.frame", extra="explain")
        labels, predictions = np.asarray(self.labels[:]), np.asarray(self.predictions[:])
        known = (labels >= 0) & (predictions >= 0)
        names = np.array([each.name.lower() for each in Status], dtype=object)
        columns = {
            "id": np.asarray(self.ids[:], dtype=object),
            "path": np.asarray(self.paths[:], dtype=object),
            "status": names[np.asarray(self.status[:])],
            "problem": np.asarray(self.problems[:], dtype=object),
            "label": pandas.array(labels, dtype="Int32"),
            "prediction": pandas.array(predictions, dtype="Int32"),
            "confidence": np.asarray(self.confidences[:]),
            "correct": pandas.array(labels == predictions, dtype="boolean"),
        }
        columns["label"][labels < 0] = pandas.NA
        columns["prediction"][predictions < 0] = pandas.NA
        columns["correct"][~known] = pandas.NA
        columns |= {name: np.asarray(array[:, 0]) for name, array in self.metrics.items()}
        return pandas.DataFrame(columns, index=pandas.RangeIndex(len(self), name="position"))

    def dataset(
        self, images: Dataset[Any] | None = None, *, transform: Callable[[Any], Any] | None = None
    ) -> StoredMaps:
        """The written samples as a ``torch.utils.data.Dataset`` of (image, map), which a ``DataLoader`` takes as it is.

        Which images, the first that there is of:

        1. those of ``images``, as they come from there;
        2. with a ``transform``, the files that ``paths`` names, as PIL images in RGB. Files are read whole, while a map is of
           what the model was given, often their middle: ``transform`` has to cut out the same;
        3. the thumbnails, (3, height, width) float32 in [0, 1];
        4. the files, likewise as tensors: batches of them need files of one size.

        Args:
            images: the data set that was explained, in the same order, of images or of tuples that begin with one.
            transform: of the image, whichever it is.

        Raises:
            ValueError: no images: neither files nor thumbnails, or a data set of another length.
        """
        return StoredMaps(self, images, transform)


def open_store(path: str | os.PathLike[str], *, any_format: bool = False) -> Store:
    """Open a store for reading, complete or not.

    Args:
        path: of the store's folder.
        any_format: read only ``about``, also of a store of another version or one that lacks arrays.

    Returns:
        The store; nothing but its metadata is read yet.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: no store, a damaged one, one of another version, or one that holds arrays, codecs, folders or links that this
            package does not write.
        ModuleNotFoundError: zarr is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a store of explain_dataset or batchcam explain, got nothing; check the path"
        )
    zarr = load("zarr", purpose="a store", extra="explain")
    about = read_about(path)
    if any_format:
        return Store(path, {}, about)
    if about["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected a store of version {FORMAT}, got one of version {about['format']!r}; read it with the version of "
            "batchcam-captum that wrote it, or explain the data set again"
        )
    check_store(path)
    return Store(path, zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False), about)

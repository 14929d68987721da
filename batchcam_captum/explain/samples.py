"""Read the samples of a data set in batches, some of which may be damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from ..loading.images import reason_of
from .sources import integers

T = TypeVar("T")
#: Errors that no sample is to blame for; the next one would raise them, too.
_FATAL = (MemoryError, ImportError, NameError, NotImplementedError)
#: The system's errors of a file that is damaged, and of one that is missing, or all of them if their folder is. Others are fatal:
#: a stale handle, a lost connection, a read error, too many open files.
_DAMAGED = frozenset((errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ))
_MISSING = frozenset((errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR))


@dataclass(frozen=True)
class Batch:
    """The samples of a batch that could be read, and why the others could not."""

    positions: list[int]  #: of all its samples in the data set
    problems: dict[int, str]  #: position -> why it could not be read
    images: Tensor | None = None  #: (n, C, *spatial) of those that could; None if there are none
    labels: Tensor | None = None  #: (n,); None if the data set has none
    masks: Tensor | None = None  #: (n, 1, *spatial); likewise

    @property
    def readable(self) -> list[int]:
        """The rows of the batch that could be read."""
        return [row for row, position in enumerate(self.positions) if position not in self.problems]


@dataclass(frozen=True)
class KnownSamples:
    """What a data set says about its N samples before they are read; None where it says nothing."""

    ids: Sequence[str] | None = None
    paths: Sequence[str] | None = None
    labels: Sequence[int] | None = None
    class_names: Sequence[str] | None = None  #: of the model's classes

    @classmethod
    def of(cls, dataset: Dataset[Any]) -> KnownSamples:
        """Ask a data set's attributes, those of torchvision's folders, tensors, and parts of them.

        Raises:
            ValueError: If ``ids`` or ``paths`` are not as many as the samples.
        """
        if isinstance(dataset, Subset):
            whole = cls.of(dataset.dataset)

            def part(values: Sequence[T] | None) -> list[T] | None:
                return None if values is None else [values[index] for index in dataset.indices]

            return cls(part(whole.ids), part(whole.paths), part(whole.labels), whole.class_names)
        if isinstance(dataset, TensorDataset):
            return cls(labels=integers(dataset.tensors[1]) if len(dataset.tensors) > 1 else None)
        count = len(dataset)  # type: ignore[arg-type]
        names = {name: getattr(dataset, name, None) for name in ("ids", "paths")}
        for name, values in names.items():
            if values is not None and len(values) != count:
                raise ValueError(f"{name}: expected {count}, one per sample, got {len(values)}")
        if names["paths"] is None:  # (path, class) in torchvision's folders
            samples = getattr(dataset, "samples", None)
            samples = samples if isinstance(samples, list) and len(samples) == count else []
            if samples and all(isinstance(each, tuple) and isinstance(each[0], str) for each in samples):
                names["paths"] = [each[0] for each in samples]
        ids, paths = (None if values is None else list(map(str, values)) for values in names.values())
        labels = integers(getattr(dataset, "labels", getattr(dataset, "targets", None)))
        return cls(ids, paths, labels, getattr(dataset, "class_names", None))


class MissingFiles:
    """Tell a folder that is not there from single files that are missing.

    Args:
        most: How many samples in a row may be missing; None for any number.

    Attributes:
        row: The positions of the samples that were missing last, one after the other.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.row: list[int] = []

    def count(self, positions: Sequence[int], problems: Mapping[int, Any]) -> None:
        """Count the missing samples of a batch.

        Raises:
            OSError: If there are too many in a row.
        """
        for position in positions if self.most is not None else ():
            sample = problems.get(position)
            if sample is None or sample.number not in _MISSING:
                self.row.clear()
                continue
            self.row.append(position)
            if len(self.row) >= (self.most or 0):
                raise OSError(
                    f"loader: expected files that can be read, got {len(self.row)} in a row that cannot, the last one: {sample}; "
                    "check that their folder is there, or pass a higher max_missing to list them as damaged"
                )


@dataclass(frozen=True)
class _Damaged:
    reason: str
    number: int | None = None  #: of the system's error
    path: str | None = None  #: that the error names

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path} ({self.reason})"


class _Guarded(Dataset[tuple[int, Any]]):
    """(position, sample), where a sample that raises is a :class:`_Damaged`."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> tuple[int, Any]:
        try:
            return position, self.dataset[position]
        except _FATAL:
            raise
        except Exception as error:  # whatever reads images raises anything for a damaged file
            # Errors that end the run as well: a worker's would arrive as text with its traceback.
            number, path = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
            return position, _Damaged(reason_of(error), number, path if path is None else os.fsdecode(path))


class _Collate:
    """Make a batch of the samples that could be read; if none can be made, the main process says why."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[int], dict[int, _Damaged], Any]:
        problems = {position: sample for position, sample in items if isinstance(sample, _Damaged)}
        good = [sample for position, sample in items if position not in problems]
        try:
            batch = self.collate(good) if good else None
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            images = [each[0] if isinstance(each, tuple | list) and each else each for each in good]
            kinds = {
                str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in images
            }
            batch = _Damaged(f"{reason_of(error)}; the images are {' and '.join(sorted(kinds)[:3])}")
        return [position for position, _ in items], problems, batch


def check_loader(loader: object) -> DataLoader[Any]:
    """Return a loader of a map-style data set in fixed order.

    Raises:
        TypeError: If it is not a ``DataLoader``, or if its data set has no positions.
        ValueError: If it shuffles or has no batch size, or if the data set is empty.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"loader: expected a torch.utils.data.DataLoader, got {type(loader).__name__}; pass one with shuffle=False"
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            f"loader: expected a map-style data set, whose runs can be resumed, got {type(loader.dataset).__name__}; give it "
            "__len__ and __getitem__"
        )
    order = loader.sampler
    if loader.batch_size is None or not isinstance(order, SequentialSampler):
        got = type(order if loader.batch_size is not None else loader.batch_sampler).__name__
        raise ValueError(
            f"loader: expected a DataLoader with a batch_size and shuffle=False, whose runs can be resumed, got one with {got}; "
            "for a part of a data set pass torch.utils.data.Subset"
        )
    if not len(loader.dataset):
        raise ValueError("loader: expected at least one sample, got an empty data set; check its folder")
    return loader


def guarded_batches(
    loader: DataLoader[Any],
    positions: Sequence[Sequence[int]],
    *,
    missing: MissingFiles,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield batches of a loader's data set, read with the loader's workers.

    Args:
        loader: From :func:`check_loader`.
        positions: The samples of each batch.
        missing: Counts files that are missing in a row.
        pin_memory: Allow copies to a GPU that do not block.

    Raises:
        ValueError: If samples make no batch, such as images of different sizes.
        OSError: If the file system fails, or too many files are missing.
    """
    reader: DataLoader[Any] = DataLoader(
        _Guarded(loader.dataset),
        batch_sampler=positions,  # type: ignore[arg-type]  # ranges take less memory than lists
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor,
        multiprocessing_context=loader.multiprocessing_context,
        collate_fn=_Collate(loader.collate_fn),
        pin_memory=pin_memory or loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator().manual_seed(0),  # leaves torch's own alone
    )
    for read, problems, batch in reader:
        yield _checked(read, problems, batch, missing)


def first_readable(loader: DataLoader[Any], *, preferred: int = 0, max_missing: int | None = None) -> Batch:
    """Return a batch of the first sample that can be read.

    Args:
        loader: From :func:`check_loader`.
        preferred: The position of a sample to take if it can be read.
        max_missing: How many files in a row may be missing.

    Raises:
        ValueError: If none can be read, with the first reasons; or as :func:`guarded_batches`.
        OSError: As :func:`guarded_batches`.
    """
    missing = MissingFiles(max_missing)
    guarded, collate = _Guarded(loader.dataset), _Collate(loader.collate_fn)
    reasons: list[str] = []
    for position in chain([min(preferred, len(guarded) - 1)], range(len(guarded))):
        batch = _checked(*collate([guarded[position]]), missing)
        if batch.images is not None:
            return batch
        reasons += [f"sample {position}: {batch.problems[position]}"] if len(reasons) < 3 else []
    raise ValueError(
        f"loader: expected at least one sample that can be read, got none of {len(guarded)}; {'; '.join(reasons)}"
    )


def _checked(positions: list[int], damaged: dict[int, _Damaged], batch: Any, missing: MissingFiles) -> Batch:
    """Check what a loader has read."""
    for sample in damaged.values():
        if sample.number is not None and sample.number not in _DAMAGED | _MISSING:
            raise OSError(
                sample.number,
                f"loader: expected a file system that can be read, got: {sample}; what is written is kept: run the same again, "
                "and leave the file out if it fails again",
            )
    missing.count(positions, damaged)
    problems = {position: sample.reason for position, sample in damaged.items()}
    if batch is None:
        return Batch(positions, problems)
    if isinstance(batch, _Damaged):
        raise ValueError(
            f"loader: expected samples that make a batch, got: {batch}; bring images to one size, or pass a collate_fn"
        )
    images, labels, masks = (
        (*batch, None, None)[:3] if isinstance(batch, tuple | list) else (batch, None, None)
    )
    count = len(positions) - len(problems)
    if not isinstance(images, Tensor) or images.dim() < 3 or len(images) != count:
        got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"loader: expected batches that begin with images ({count}, C, …), got {got}; pass a collate_fn that makes them"
        )
    labels = labels if isinstance(labels, Tensor) else None
    masks = (
        masks if isinstance(masks, Tensor) and masks.dim() > 1 else None
    )  # one number per sample is no mask
    if labels is not None and (labels.shape != (count,) or labels.is_floating_point()):
        raise ValueError(
            f"loader: expected labels ({count},) of integers, got {tuple(labels.shape)} {labels.dtype}; pass a collate_fn that "
            "makes class indices of them, or leaves them out"
        )
    if masks is not None and masks.shape != (count, 1, *images.shape[2:]):
        raise ValueError(
            f"loader: expected masks {(count, 1, *images.shape[2:])}, got {tuple(masks.shape)}; pass a collate_fn that makes "
            "them, or leaves them out"
        )
    return Batch(positions, problems, images, labels, masks)

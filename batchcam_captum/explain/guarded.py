"""Batches of a data set some of whose samples cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from ..loading.images import reason_of

#: Of these no sample is to blame, and the next one would raise them, too.
_FATAL = (MemoryError, ImportError, NameError, NotImplementedError)
_FATAL_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
        *(
            "ENETDOWN",
            "ENETUNREACH",
            "ENETRESET",
            "ECONNRESET",
            "ECONNABORTED",
            "ECONNREFUSED",
            "ENODEV",
            "ENXIO",
        ),
    )
    if hasattr(errno, name)
)
#: With these the file system refuses a file, or all of them.
_REFUSED_NUMBERS = frozenset((errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO))


@dataclass(frozen=True)
class _Damaged:
    reason: str
    number: int | None = None  #: of the system's error
    path: str | None = None  #: where the error names one

    @property
    def refused(self) -> bool:
        """By the file system, so that nothing is known of the sample itself."""
        return self.number in _REFUSED_NUMBERS

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path} ({self.reason})"


class Refusals:
    """Tells a file system that fails from samples that are damaged.

    Args:
        most: how many samples it may refuse one after the other; None: any number.

    Attributes:
        row: positions of those that it refused last, one after the other.
    """

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.row: list[int] = []

    def take(self, positions: Sequence[int], problems: Mapping[int, _Damaged]) -> None:
        """Samples in their order.

        Raises:
            OSError: one refusal too many, or an error that no sample is to blame for.
        """
        if self.most is None and not problems:
            return
        for position in positions:
            sample = problems.get(position)
            if sample is not None and sample.number in _FATAL_NUMBERS:
                raise OSError(
                    sample.number,
                    f"loader: expected a file system that gives files, got: {sample}; what is written is kept: run the same "
                    "again",
                )
            if sample is None or not sample.refused:
                self.row.clear()
            elif self.most is not None:
                self.row.append(position)
                if len(self.row) >= self.most:
                    raise OSError(
                        f"loader: expected files that can be read, got {len(self.row)} in a row that cannot, the last one: "
                        f"{sample}; see whether their folder is there, or pass a higher max_missing to list them as damaged"
                    )


@dataclass(frozen=True)
class GuardedBatch:
    """The samples of a batch that could be read, and why the others could not."""

    positions: list[int]  #: of all its samples in the data set
    problems: dict[int, str]  #: position -> why it could not be read
    images: Tensor | None  #: (n, C, *spatial) of those that could; None where there are none
    labels: Tensor | None  #: (n,); None where the data set has none
    masks: Tensor | None  #: (n, 1, *spatial); likewise

    @property
    def readable(self) -> list[int]:
        """Which rows of the batch could be read."""
        return [row for row, position in enumerate(self.positions) if position not in self.problems]


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
            # Errors that end the run, too: those of a worker are raised with its traceback as their text.
            number, path = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
            return position, _Damaged(reason_of(error), number, path if path is None else os.fsdecode(path))


class _Collate:
    """Makes a batch of the samples that could be read; a batch that cannot be made is told in the main process."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[int], dict[int, _Damaged], Any]:
        problems = {position: sample for position, sample in items if isinstance(sample, _Damaged)}
        good = [sample for position, sample in items if position not in problems]
        try:
            batch = self.collate(good) if good else None
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            batch = _Damaged(_why_no_batch(good) or f"{type(error).__name__}: {reason_of(error)}")
        return [position for position, _ in items], problems, batch


def _why_no_batch(samples: list[Any]) -> str | None:
    """What most often is wrong."""
    images = [sample[0] if isinstance(sample, tuple | list) and sample else sample for sample in samples]
    sizes = {tuple(image.shape) for image in images if isinstance(image, Tensor)}
    if len(sizes) > 1:
        return f"images of several sizes, {' and '.join(map(str, sorted(sizes)[:3]))}; bring them to one size"
    other = next((image for image in images if not isinstance(image, Tensor)), None)
    if other is not None:
        return f"a {type(other).__name__} as image; let the data set's transform make a tensor of it"
    return None


def check_loader(loader: object) -> DataLoader[Any]:
    """A loader of a map-style data set in fixed order.

    Raises:
        TypeError: something else than a ``DataLoader``, or one of a data set without positions.
        ValueError: a loader that shuffles, or without a batch size; an empty data set.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"loader: expected a torch.utils.data.DataLoader, got {type(loader).__name__}; pass one with shuffle=False"
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            "loader: expected a data set with positions and a length, got one that can only be gone through; a run could not go "
            "on where it stopped: pass a map-style data set"
        )
    order = loader.sampler
    fixed = isinstance(order, SequentialSampler) or (
        isinstance(order, torch.utils.data.DistributedSampler) and not order.shuffle
    )
    if loader.batch_size is None or not fixed:
        raise ValueError(
            "loader: expected a DataLoader with a batch_size and shuffle=False, got one with "
            f"{type(order if loader.batch_size is not None else loader.batch_sampler).__name__}; a run could not go on where it "
            "stopped: for a part of a data set pass torch.utils.data.Subset"
        )
    if not len(loader.dataset):
        raise ValueError("loader: expected at least one sample, got an empty data set; check its folder")
    return loader


def guarded_batches(
    loader: DataLoader[Any],
    positions: Sequence[Sequence[int]],
    *,
    refusals: Refusals,
    pin_memory: bool = False,
) -> Iterator[GuardedBatch]:
    """Batches of samples of a loader's data set, read as the loader would, with its workers.

    Args:
        loader: see :func:`check_loader`.
        positions: of each batch.
        refusals: counts those of the file system.
        pin_memory: for copies to a GPU that need not be waited for.

    Yields:
        The batches, in their order.

    Raises:
        ValueError: samples that make no batch, such as images of different sizes; batches of another kind.
        OSError: a file system that fails, or refuses too many samples.
    """
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    reader: DataLoader[Any] = DataLoader(
        _Guarded(loader.dataset),
        batch_sampler=positions,  # type: ignore[arg-type]  # ranges take less than lists
        num_workers=loader.num_workers,
        collate_fn=_Collate(loader.collate_fn),
        pin_memory=pin_memory or loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator().manual_seed(0),  # torch's own is left alone
        **workers,
    )
    for read, problems, batch in reader:
        refusals.take(read, problems)
        yield _batch_of(read, problems, batch)


def first_readable(
    loader: DataLoader[Any], *, preferred: int = 0, max_missing: int | None = None
) -> GuardedBatch:
    """A batch of the first sample that can be read, or of a certain one where that can.

    Raises:
        ValueError: none can; with the first reasons. Or see :func:`guarded_batches`.
        OSError: likewise.
    """
    refusals = Refusals(max_missing)
    guarded, collate = _Guarded(loader.dataset), _Collate(loader.collate_fn)
    reasons: list[str] = []
    if 0 < preferred < len(guarded):
        read, problems, batch = collate([guarded[preferred]])
        if not problems:
            return _batch_of(read, problems, batch)
    for position in range(len(guarded)):
        read, problems, batch = collate([guarded[position]])
        if not problems:
            return _batch_of(read, problems, batch)
        refusals.take(read, problems)
        reasons += [f"sample {position}: {problems[position].reason}"] if len(reasons) < 3 else []
    raise ValueError(
        f"loader: expected at least one sample that can be read, got none of {len(guarded)}; {'; '.join(reasons)}"
    )


def _batch_of(positions: list[int], damaged: dict[int, _Damaged], batch: Any) -> GuardedBatch:
    problems = {position: sample.reason for position, sample in damaged.items()}
    if batch is None:
        return GuardedBatch(positions, problems, None, None, None)
    if isinstance(batch, _Damaged):
        raise ValueError(
            f"loader: expected samples that make a batch, got {batch.reason}; or pass a collate_fn that makes one"
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
    # A number a sample is something else than a mask.
    masks = masks if isinstance(masks, Tensor) and masks.dim() > 1 else None
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
    return GuardedBatch(positions, problems, images, labels, masks)

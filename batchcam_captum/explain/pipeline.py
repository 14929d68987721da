"""From batches on a device to chunks on the disk, while the next batches are computed."""

from __future__ import annotations

import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .guarded import GuardedBatch
from .layout import Status
from .writing import StoreWriter

#: Batches that may be computed and not fetched.
_IN_FLIGHT = 2
#: Threads that write, a chunk each, and how many bytes these chunks may hold together, when there is more than one.
_WRITERS, _WAITING_BYTES = 4, 256 * 2**20


class Pipeline:
    """Takes batches in their order, makes chunks of them, and writes these in threads of its own.

    Args:
        writer: of the store.
        chunks: that come, in their order.
        ids: N names of the samples; None: their positions.
        paths: N paths; None: there are none.
    """

    def __init__(
        self,
        writer: StoreWriter,
        chunks: list[int],
        ids: list[str] | None,
        paths: list[str] | None,
    ) -> None:
        self.writer = writer
        self._chunks = deque(chunks)
        self._ids, self._paths = ids, paths
        self._computed: deque[tuple[GuardedBatch, dict[str, Tensor], torch.cuda.Event | None]] = deque()
        self._columns: dict[str, np.ndarray[Any, Any]] = {}
        self._filled = 0
        self._writing: deque[Future[None]] = deque()
        arrays = writer.layout.arrays().values()
        sample_bytes = sum(
            prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
            for array in arrays
            if array.dtype != "string"
        )
        self._at_once = max(1, min(_WRITERS, _WAITING_BYTES // (writer.layout.chunk * sample_bytes)))
        self._threads = ThreadPoolExecutor(self._at_once, "store")
        self._few_digits = 0
        self._status = writer.status()
        self._lost = 0
        #: Those that were given to be written.
        self.written: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._threads:  # waits for what they are at
            if kind is None:
                while self._computed:
                    self._fetch()
                while self._writing:
                    self._writing.popleft().result()
        if self._few_digits:
            warnings.warn(
                f"{self._few_digits} samples have maps that peak below 6e-5, where float16 keeps few digits; pass "
                "dtype='float32'",
                stacklevel=3,
            )
        if self._lost:
            warnings.warn(
                f"{self._lost} of the store's samples cannot be read now; their chunks are left as they were, damaged "
                "samples included",
                stacklevel=3,
            )

    def take(self, batch: GuardedBatch, computed: dict[str, Tensor]) -> None:
        """A batch, with what was computed of the samples that could be read.

        Raises:
            OSError: the disk is full.
            ValueError: maps that the store's dtype cannot hold.
        """
        host: dict[str, Tensor] = {}
        gpu: torch.device | None = None
        for name, values in computed.items():
            if values.device.type == "cuda":
                gpu = values.device
                there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                host[name] = there.copy_(values, non_blocking=True)
            else:
                host[name] = values.cpu()
        event = None
        if gpu is not None:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(gpu))  # which need not be the process's current device
        self._computed.append((batch, host, event))
        while len(self._computed) > (_IN_FLIGHT if event is not None else 0):
            self._fetch()

    def _fetch(self) -> None:
        batch, computed, event = self._computed.popleft()
        if event is not None:
            event.synchronize()
        if not self._columns:
            self._columns = self._empty(self._chunks[0])
        start, rows = self._filled, np.array(batch.readable, dtype=int)
        self._check(batch, computed)
        for name, column in self._columns.items():
            if name in computed:
                column[start + rows] = computed[name].numpy()
        stop = start + len(batch.positions)
        chosen = slice(batch.positions[0], batch.positions[-1] + 1)
        self._columns["ids"][start:stop] = (
            list(map(str, batch.positions)) if self._ids is None else self._ids[chosen]
        )
        if self._paths is not None:
            self._columns["paths"][start:stop] = self._paths[chosen]
        status = self._columns["status"]
        status[start:stop] = Status.WRITTEN
        for row, position in enumerate(batch.positions):
            if position in batch.problems:
                status[start + row] = Status.DAMAGED
                self._columns["problems"][start + row] = batch.problems[position]
        self._filled = stop
        if stop == len(status):
            self._write(self._chunks.popleft(), self._columns)
            self._columns, self._filled = {}, 0

    def _empty(self, chunk: int) -> dict[str, np.ndarray[Any, Any]]:
        rows = self.writer.layout.rows(chunk)
        return {
            name: np.full(
                (rows.stop - rows.start, *array.shape[1:]),
                array.fill,
                dtype=object if array.dtype == "string" else array.dtype,
            )
            for name, array in self.writer.layout.arrays().items()
        }

    def _check(self, batch: GuardedBatch, computed: dict[str, Tensor]) -> None:
        if "lossy" in computed:
            lossy = computed.pop("lossy")
            if bool((lossy >= 2).any()):
                raise ValueError(
                    f"dtype: expected one that holds the maps, got float16, which ends at 65,504, and larger values in samples "
                    f"{batch.positions[0]} to {batch.positions[-1]}; pass dtype='float32'"
                )
            self._few_digits += int((lossy == 1).sum())

    def _write(self, chunk: int, columns: dict[str, np.ndarray[Any, Any]]) -> None:
        if not self._better(chunk, columns["status"]):
            return
        while len(self._writing) >= self._at_once or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()  # raises early what went wrong
        self._writing.append(self._threads.submit(self.writer.write, chunk, columns))
        self.written.add(chunk)

    def _better(self, chunk: int, status: np.ndarray[Any, Any]) -> bool:
        """Whether a chunk is to replace the one that is there: it has to bring samples back, and to lose none."""
        there = self._status[self.writer.layout.rows(chunk)]
        if (there == Status.MISSING).any():
            return True
        lost = int(((there == Status.WRITTEN) & (status == Status.DAMAGED)).sum())
        self._lost += lost
        return not lost and bool(((there == Status.DAMAGED) & (status == Status.WRITTEN)).any())

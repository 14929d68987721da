"""Explain a whole data set and write the results into a store."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..attribution import BatchGradCam
from ..attribution.output import Picker, check_picker, pick_output
from ..distributed import is_distributed
from ..environment import environment
from ..functional import CamMethod
from ..loading import find_layer
from .computing import Explainer, MapSize, Thumbnails, images_for
from .layout import MASK_METRICS, Layout, Status, chunk_size
from .samples import Batch, KnownSamples, MissingFiles, check_loader, first_readable, guarded_batches
from .store import Store, open_store
from .targets import ClassChoice, ExplainTargets
from .writing import StoreWriter, remove_store, writing

MapDtype = Literal["float16", "float32"]
#: How many computed batches may wait for the thread that writes.
_WAITING = 2
#: How many bytes of maps a batch may have, which one call of the compressor takes.
_BATCH_BYTES = 2**31 - 1


def explain_dataset(
    model: nn.Module,
    layer: nn.Module | str | None,
    loader: DataLoader[Any],
    store: str | os.PathLike[str],
    *,
    targets: ExplainTargets = "predicted",
    method: str | CamMethod = "grad_cam",
    dtype: MapDtype = "float32",
    size: MapSize = "layer",
    output: Picker = None,
    thumbnails: Thumbnails | None = Thumbnails(),  # noqa: B008
    class_names: Sequence[str] | None = None,
    max_missing: int | None = 100,
    retry_damaged: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Store:
    """Explain every sample of a data set and write maps, scores and samples into a store, a Zarr group on the disk.

    A run that was stopped resumes when it is called again with the same arguments: samples in the store are not computed again,
    and the store ends up the same, bit for bit, as that of a run that was never stopped (on one machine with the same versions).
    Files of the store that were lost or changed meanwhile are computed again. Memory does not grow with the data set; chunks are
    written while the next batches are computed.

    Samples that cannot be read (their ``__getitem__`` raises) are listed in the store's ``problems`` and do not end the run,
    unless the file system fails: a connection that is lost, a read error, or ``max_missing`` files in a row that are missing.

    Several processes share the work under ``torchrun``, which sets ``RANK`` and ``WORLD_SIZE``, or in torch's process group. All
    write to one store, on a file system that they share; any number of them may resume what others began.

    Args:
        model: In ``eval()``, (N, C, *spatial) -> scores (N, K) with K of at least 2. It gets the images on its own device and in
            its own floating-point type.
        layer: The layer to explain, or its name. None: the one that :func:`~batchcam_captum.suggest_layers` recommends.
        loader: A loader of a map-style data set with ``shuffle=False``. Its workers, batch size, ``collate_fn``,
            ``worker_init_fn``, ``prefetch_factor`` and ``timeout`` are used, but not ``drop_last`` and ``persistent_workers``.
            Batches are images (N, C, *spatial), or tuples that begin with images, then integer labels (N,), negative where
            unknown, and then masks (N, 1, *spatial) in [0, 1] of where the evidence should be, for metrics. Samples are named by
            the data set's attributes ``ids`` (by default their positions) and ``paths`` (or ``samples``, as torchvision's
            ``ImageFolder`` has them), sequences of N texts.
        store: The folder to write.
        targets: Which classes are explained: ``"predicted"``, ``"true"`` (the labels), ``"all"``, an integer k for the k highest
            scores in descending order, or a list of classes.
        method: The weighting, see :class:`~batchcam_captum.BatchGradCam`.
        dtype: The type of the stored maps. Raw maps are often very small: float16 keeps few digits of values below 6e-5.
        size: The size of the stored maps: ``"layer"``, or bilinearly resized to ``"input"``.
        output: Which part of the model's output holds the scores, see :class:`~batchcam_captum.BatchGradCam`.
        thumbnails: The small pictures that a report shows, see :class:`Thumbnails`; None for none. Only images with two spatial
            dimensions have any.
        class_names: K names. Default: the data set's attribute ``class_names``.
        max_missing: How many files in a row may be missing or refused (no such file, no permission) before the run ends, because
            their folder is probably not there; None for any number.
        retry_damaged: Try again to read the store's damaged samples; the chunks that hold them are computed again.
        overwrite: Remove an existing store and start again. Several processes must be in a process group of torch.
        progress: Show a progress bar.
        about: Anything else that tells one run from another, in plain values: a checkpoint's name, how images are prepared, …. It
            is kept in the settings, and a run with other values is refused.

    Returns:
        The store, opened for reading. It is complete when all processes are done.

    Raises:
        OtherSettingsError: If the store has other settings; the message names them. A ``ValueError``.
        ValueError: If the model is in training mode or its output is not (N, K); if the loader shuffles; if no sample can be read
            or images differ in size; if an argument does not fit.
        TypeError: If an argument has the wrong type.
        OSError: If the folder cannot be written to, the disk is full, or the file system fails; what is written is kept.
        ModuleNotFoundError: If zarr is not installed.
    """
    choice = ClassChoice.of(targets)
    loader = check_loader(loader)
    rank, world_size = _rank_of(overwrite)
    _check_arguments(model, dtype, size, max_missing)
    check_picker(output)
    known = KnownSamples.of(loader.dataset)
    count, batch_size = len(loader.dataset), loader.batch_size or 1  # type: ignore[arg-type]
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    previous = None if overwrite else _example_of(store)
    example = first_readable(
        loader, preferred=previous["position"] if previous else 0, max_missing=max_missing
    )
    assert example.images is not None
    images = images_for(model, example.images, device)
    _try_model(model, images, output)
    found = find_layer(model, layer, images)
    grad_cam = BatchGradCam(model, found.name, method=method, reshape=found.reshape, output=output)
    explainer = Explainer(grad_cam, choice, getattr(torch, dtype), size, thumbnails, device)
    layout = _layout_of(explainer(example), example, count, batch_size, dtype)
    class_names = _class_names(class_names, known, layout.classes)
    settings = _fingerprint(model, example, previous, known) | {
        "layer": found.name,
        "reshape": found.reshape,
        "method": _name_of(method),
        "output": _name_of(output),
        "targets": choice.setting,
        "samples": count,
        "batch_size": batch_size,
        "dtype": dtype,
        "size": size,
        "thumbnails": None if thumbnails is None else asdict(thumbnails),
        "about": dict(about or {}),
    }
    if overwrite:  # only after everything that can be wrong has been checked
        _remove(store, rank, world_size)
    with writing(
        store,
        layout,
        settings=settings,
        environment=environment(device) | {"device": device.type},  # any GPU of several
        class_names=class_names,
        rank=rank,
        world_size=world_size,
    ) as writer:
        run = _Run(loader, explainer, tuple(images.shape[1:]), known, MissingFiles(max_missing))
        run.write(writer, retry_damaged=retry_damaged, progress=progress)
    return open_store(store)


class _Run:
    """Batches of a loader through an explainer into chunks of a store.

    Args:
        loader: From :func:`.check_loader`.
        explainer: Explains a batch.
        image_shape: (C, *spatial) of every image.
        known: What the data set says about its samples.
        missing: Counts files that are missing in a row.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        explainer: Explainer,
        image_shape: tuple[int, ...],
        known: KnownSamples,
        missing: MissingFiles,
    ) -> None:
        self.loader, self.explainer, self.image_shape = loader, explainer, image_shape
        self.known, self.missing = known, missing
        self._columns: dict[str, np.ndarray[Any, Any]] = {}
        self._few_digits = 0

    def write(self, writer: StoreWriter, *, retry_damaged: bool, progress: bool) -> None:
        """Compute and write the chunks of a writer that are missing."""
        from tqdm.auto import tqdm

        size = self.loader.batch_size or 1
        rows = [writer.layout.rows(chunk) for chunk in writer.missing(retry_damaged=retry_damaged)]
        positions = [
            range(start, min(start + size, part.stop))
            for part in rows
            for start in range(part.start, part.stop, size)
        ]
        on_gpu = self.explainer.device.type == "cuda"
        waiting: deque[Future[None]] = deque()
        try:
            with (
                tqdm(
                    total=sum(map(len, positions)), unit="image", desc="explain", disable=not progress
                ) as bar,
                ThreadPoolExecutor(1, "store") as thread,  # one, so that batches stay in order
            ):
                for batch in guarded_batches(self.loader, positions, missing=self.missing, pin_memory=on_gpu):
                    self._check_size(batch)
                    computed, copied = _to_host(self.explainer(batch))
                    waiting.append(thread.submit(self._take, writer, batch, computed, copied))
                    while len(waiting) > _WAITING or (waiting and waiting[0].done()):
                        waiting.popleft().result()
                    bar.update(len(batch.positions))
                while waiting:
                    waiting.popleft().result()
        except BaseException:
            # These samples may be there again when the run resumes.
            with suppress(OSError):
                writer.forget({position // writer.layout.chunk for position in self.missing.row})
            raise
        writer.warn_lost()
        if self._few_digits:
            warnings.warn(
                f"{self._few_digits} samples have maps that peak below 6e-5, where float16 keeps few digits; pass "
                "dtype='float32'",
                stacklevel=3,
            )

    def _check_size(self, batch: Batch) -> None:
        if batch.images is not None and tuple(batch.images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"loader: expected images of one size, {self.image_shape} as the first, got {tuple(batch.images.shape[1:])} in "
                f"samples {batch.positions[0]} to {batch.positions[-1]}; bring them to one size"
            )

    def _take(
        self, writer: StoreWriter, batch: Batch, computed: dict[str, Tensor], copied: torch.cuda.Event | None
    ) -> None:
        """Put a batch into its chunk, and write the chunk with its last batch. Runs in the thread that writes."""
        if copied is not None:
            copied.synchronize()
        first = batch.positions[0]
        chunk = first // writer.layout.chunk
        rows = writer.layout.rows(chunk)
        if first == rows.start:
            self._columns = {
                name: np.full(
                    (rows.stop - rows.start, *array.shape[1:]),
                    array.fill,
                    dtype=object if array.dtype == "string" else array.dtype,
                )
                for name, array in writer.layout.arrays().items()
            }
        if "lossy" in computed:
            lossy = computed.pop("lossy")
            if bool((lossy >= 2).any()):
                raise ValueError(
                    "dtype: expected a type that holds the maps, got float16, which ends at 65,504, and larger values in samples "
                    f"{first} to {batch.positions[-1]}; pass dtype='float32'"
                )
            self._few_digits += int((lossy == 1).sum())
        start, readable = first - rows.start, np.array(batch.readable, dtype=int)
        for name, values in computed.items():
            self._columns[name][start + readable] = values.numpy()
        ids, paths = self.known.ids, self.known.paths
        for position in batch.positions:
            row = position - rows.start
            self._columns["ids"][row] = str(position) if ids is None else ids[position]
            self._columns["paths"][row] = "" if paths is None else paths[position]
            self._columns["problems"][row] = batch.problems.get(position, "")
            damaged = position in batch.problems
            self._columns["status"][row] = Status.DAMAGED if damaged else Status.WRITTEN
        if (self._columns["status"] != Status.MISSING).all():  # no batch of it has failed
            writer.write(chunk, self._columns)
            self._columns = {}


def _to_host(computed: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """Start to copy tensors to the host. They are there when the event, if any, has happened."""
    host: dict[str, Tensor] = {}
    gpu = next((values.device for values in computed.values() if values.device.type == "cuda"), None)
    for name, values in computed.items():
        if values.device.type == "cuda":
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host[name] = pinned.copy_(values, non_blocking=True)
        else:
            host[name] = values.cpu()
    if gpu is None:
        return host, None
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(gpu))  # the process's current device may be another
    return host, copied


def _layout_of(
    computed: dict[str, Tensor], example: Batch, count: int, batch_size: int, dtype: str
) -> Layout:
    """Return the sizes of the store from the results of one sample."""
    maps = tuple(computed["maps"].shape[1:])
    needed = batch_size * prod(maps) * computed["maps"].element_size()
    if needed > _BATCH_BYTES:
        raise ValueError(
            f"loader: expected batches whose maps take less than 2 GiB, got {needed / 2**30:.1f} GiB for {batch_size} images "
            f"with maps {maps}; pass a smaller batch size, size='layer', or fewer targets"
        )
    return Layout(
        samples=count,
        chunk=chunk_size(batch_size, maps, dtype),
        maps=maps,
        classes=computed["scores"].shape[1],
        dtype=dtype,
        thumbnail=tuple(computed["thumbnails"].shape[1:3]) if "thumbnails" in computed else None,
        metrics=MASK_METRICS if example.masks is not None else (),
    )


def _fingerprint(
    model: nn.Module,
    example: Batch,
    previous: dict[str, Any] | None,
    known: KnownSamples,
) -> dict[str, Any]:
    """Return the settings by which a store recognizes its model and samples."""
    assert example.images is not None
    if previous is None or previous["position"] == example.positions[0]:
        # Recognizes images that were prepared in another way, unless this very image cannot be read anymore.
        previous = {"position": example.positions[0], "sha256": _hash(_bytes(example.images))}
    return {
        "model": {"class": type(model).__name__, "sha256": _model_hash(model)},
        "names": _texts_hash(known.ids, known.paths),
        "labels": _texts_hash(known.labels),
        "image_size": list(example.images.shape[1:]),
        "example": previous,
    }


def _class_names(names: Sequence[str] | None, known: KnownSamples, classes: int) -> tuple[str, ...] | None:
    if names is None and known.class_names is not None and len(known.class_names) == classes:
        names = known.class_names
    if names is not None and len(names) != classes:
        raise ValueError(f"class_names: expected {classes}, one per score of the model, got {len(names)}")
    return None if names is None else tuple(map(str, names))


def _remove(store: str | os.PathLike[str], rank: int, world_size: int) -> None:
    """Remove a store in the first of several processes; if it cannot, all of them say why."""
    problem: list[Any] = [None]
    if rank == 0:
        try:
            remove_store(store)
        except (OSError, ValueError) as error:
            problem = [error]
    if world_size > 1:
        torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise problem[0]


def _rank_of(overwrite: bool) -> tuple[int, int]:
    """Return which of how many processes this is."""
    if is_distributed():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK: expected 0 to {world_size - 1}, as WORLD_SIZE says, got {rank}")
    if overwrite and world_size > 1:
        raise ValueError(
            f"overwrite: expected one process, or several in a process group of torch, got {world_size} that do not know of each "
            "other; remove the store first"
        )
    return rank, world_size


def _check_arguments(model: object, dtype: str, size: str, max_missing: int | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError(
            "model: expected a model in eval mode, because in training mode a map depends on the rest of its batch, got one in "
            "training mode; call model.eval()"
        )
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
    if size not in ("layer", "input"):
        raise ValueError(f"size: expected 'layer' or 'input', got {size!r}")
    if max_missing is not None and max_missing < 1:
        raise ValueError(f"max_missing: expected at least 1 file, or None for any number, got {max_missing}")


def _try_model(model: nn.Module, images: Tensor, output: Picker) -> None:
    """Run the model once, before anything is asked of its layers."""
    try:
        with torch.no_grad():
            found = model(images)
    except Exception as error:  # whatever a model raises
        raise ValueError(
            f"model: expected {type(model).__name__} to take images of shape (N, {', '.join(map(str, images.shape[1:]))}), got "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    pick_output(found, output)


def _example_of(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the sample by which a store recognizes its images: the first that could be read when it was made."""
    try:
        example = dict(open_store(path).settings["example"])
        return example if isinstance(example["position"], int) else None
    except (OSError, ValueError, LookupError, TypeError):  # no store; the writer says so
        return None


def _model_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _texts_hash(*texts: Sequence[object] | None) -> str | None:
    """Return the SHA-256 of lists; None if there are none."""
    parts = [f"{len(text)}:{text}" for one in texts if one is not None for text in map(str, one)]
    given = any(one is not None for one in texts)
    return _hash("".join(parts).encode(errors="surrogateescape")) if given else None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _name_of(function: str | Callable[..., Any] | int | None) -> Any:
    """Return how a setting that may be a function is written down."""
    if not callable(function):
        return function
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else str(function)

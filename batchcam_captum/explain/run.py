"""A whole data set through a model, into a store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..attribution import BatchGradCam
from ..attribution.output import Picker, check_picker
from ..distributed import is_distributed
from ..environment import environment
from ..functional import CamMethod
from ..functional.images import PerChannel
from ..loading import find_layer
from .checks import check_arguments, check_bytes, check_known, names_of, rank_of, try_model
from .computing import Computing, MapSize, thumbnail_size
from .guarded import GuardedBatch, Refusals, check_loader, first_readable, guarded_batches
from .layout import MASK_METRICS, Layout, chunk_size
from .pipeline import Pipeline
from .settings import Samples, example_of, model_hash, name_of, numbers, tensor_hash, texts_hash
from .store import Store, open_store
from .targets import ClassChoice, ExplainTargets
from .writing import StoreWriter, remove_store, writing

MapDtype = Literal["float16", "float32"]


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
    mean: PerChannel = None,
    std: PerChannel = None,
    thumbnails: int = 64,
    class_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    max_missing: int | None = 100,
    retry_damaged: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Store:
    """Explain every sample of a data set, and keep maps, scores and samples in a store, a Zarr group on the disk.

    A run that was stopped, by whatever, goes on when it is called again with the same arguments: what is in the store is not
    computed again, and the result is, byte for byte, that of a run that was never stopped (on one machine with one version of
    everything). Memory does not grow with the data set; writing goes on while the next batches are computed.

    Samples that cannot be read (their ``__getitem__`` raises) are listed in the store's ``problems``, and end nothing; unless it
    is the file system that fails: a connection that is lost, or ``max_missing`` files in a row that are not there.

    Several processes share the work, each with chunks of its own, under ``torchrun`` or with ``rank`` and ``world_size``; all
    write to the one store, on a file system that they share. Any number of them may go on with what others began.

    Args:
        model: in ``eval()``, (N, C, *spatial) -> scores (N, K), K of 2 or more. One in half or double precision gets its images
            in its own.
        layer: what is explained, or its name; None: the one that :func:`~batchcam_captum.suggest_layers` recommends.
        loader: of a map-style data set, with ``shuffle=False``. Its workers, batch size, ``collate_fn``, ``worker_init_fn``,
            ``prefetch_factor`` and ``timeout`` are used, not its ``drop_last`` and ``persistent_workers``. Batches are images
            (N, C, *spatial), or tuples that begin with images, then integer labels (N,), negative where not known, and then
            masks (N, 1, *spatial) in [0, 1] of where the evidence should be, for metrics.
        store: the folder to write.
        targets: which classes are explained: ``"predicted"``, ``"true"`` (by the labels), ``"all"``, an integer k for the k with
            the highest scores, the highest first, or a list of classes.
        method: the weighting, see :class:`~batchcam_captum.BatchGradCam`.
        dtype: of the maps in the store. Maps are raw, often very small: float16 keeps few digits of what is below 6e-5.
        size: of the maps: as the layer has them, or bilinearly resized to ``"input"``.
        output: which part of what the model returns holds the scores, see :class:`~batchcam_captum.BatchGradCam`.
        mean: the ``mean`` of ``Normalize`` that the images went through, for the thumbnails.
        std: its ``std``.
        thumbnails: pixels of the longer side of the small pictures that a report shows; 0: keep none. Of images with two spatial
            dimensions alone.
        class_names: K names. Default: the data set's own, of an :class:`.ImageFiles`.
        ids: N names of the samples. Default: the data set's own, of an :class:`.ImageFiles`; otherwise their positions.
        paths: N paths of their files. Default: the data set's own, of an :class:`.ImageFiles`, and where it has ``samples`` as
            torchvision's ``ImageFolder``.
        device: where the batches go. Default: where the model's first parameter is.
        max_missing: how many samples in a row the file system may refuse (no such file, no permission, a read error) before that
            is taken for a folder that is not there, and the run ends; None: any number.
        retry_damaged: try the samples of the store that could not be read again, with the chunks that they are in.
        overwrite: remove a store that is there, and begin anew. Several processes have to be in a process group of torch.
        progress: show images per second and the time left.
        rank: of this process, 0 … world_size − 1. Default: that of torch's process group, or of ``torchrun``'s environment.
        world_size: how many processes there are; likewise.
        about: what else tells one run from another, in plain values: a checkpoint's name, how images are prepared, …. It is kept
            in the settings, and a run with others is refused.

    Returns:
        The store, opened for reading. It is complete when all processes are done.

    Raises:
        OtherSettingsError: a store of other settings; the message names them. A ``ValueError``.
        ValueError: a model in training mode, or whose output is not (N, K); a loader that shuffles; no sample that can be read;
            images of several sizes; arguments that do not fit.
        TypeError: arguments of a wrong kind.
        OSError: a folder that cannot be written to, a full disk, or a file system that fails, see ``max_missing``; what is
            written is kept.
        ModuleNotFoundError: zarr is not installed.
    """
    choice = ClassChoice.of(targets)
    loader = check_loader(loader)
    rank, world_size = rank_of(rank, world_size)
    together = overwrite and world_size > 1
    if together and not is_distributed():
        raise ValueError(
            "overwrite: expected one process, or several in one process group of torch, as another may be writing already, got "
            f"{world_size} that do not know of each other; remove the store first"
        )
    check_arguments(model, dtype, size, thumbnails, max_missing)
    check_picker(output)
    own = Samples.of(loader.dataset)
    count = len(loader.dataset)  # type: ignore[arg-type]
    names = {
        "ids": names_of("ids", own.ids if ids is None else ids, count),
        "paths": names_of("paths", own.paths if paths is None else paths, count),
    }
    place = _Place.of(model, device)
    there = None if overwrite else example_of(store)
    preferred = 0 if there is None else there["position"]
    example = first_readable(loader, preferred=preferred, max_missing=max_missing)
    assert example.images is not None
    images = place.images(example.images)
    try_model(model, images, output)
    found = find_layer(model, layer, images)
    grad_cam = BatchGradCam(model, found.name, method=method, reshape=found.reshape, output=output)
    computing = Computing(grad_cam, choice, getattr(torch, dtype), size, thumbnails, mean, std)
    computed = computing(images, place(example.labels), place(example.masks))
    batch_size = loader.batch_size
    assert batch_size is not None
    maps = tuple(computed["maps"].shape[1:])
    check_bytes(batch_size, maps, computed["maps"].element_size())
    layout = Layout(
        samples=count,
        chunk=chunk_size(batch_size, maps, dtype),
        maps=maps,
        classes=computed["scores"].shape[1],
        dtype=dtype,
        thumbnail=thumbnail_size(images.shape[2:], thumbnails) if "thumbnails" in computed else None,
        metrics=MASK_METRICS if example.masks is not None else (),
    )
    if class_names is None and own.class_names is not None and len(own.class_names) == layout.classes:
        class_names = own.class_names
    if class_names is not None and len(class_names) != layout.classes:
        raise ValueError(
            f"class_names: expected {layout.classes}, as the model has scores, got {len(class_names)}"
        )
    settings = {
        "model": {"class": type(model).__name__, "sha256": model_hash(model)},
        "layer": found.name,
        "reshape": found.reshape,
        "method": name_of(method),
        "output": name_of(output),
        "targets": choice.setting,
        "samples": count,
        "names": texts_hash(names["ids"], names["paths"]),
        "labels": texts_hash(own.labels),
        "image_size": list(images.shape[1:]),
        # Tells images that were prepared otherwise; not where that very image cannot be read any more.
        "example": {"position": example.positions[0], "sha256": tensor_hash(example.images)}
        if there is None or preferred == example.positions[0]
        else there,
        "batch_size": batch_size,
        "dtype": dtype,
        "size": size,
        "thumbnails": thumbnails,
        "mean": numbers(mean),
        "std": numbers(std),
        "about": dict(about or {}),
    }
    if together:  # nothing is removed before all that can be wrong is known
        _remove_together(store, rank)
    with writing(
        store,
        layout,
        settings=settings,
        environment=environment(place.device) | {"device": place.device.type},  # whichever of several alike
        class_names=None if class_names is None else tuple(map(str, class_names)),
        overwrite=overwrite and not together,
        alone=world_size == 1,
    ) as writer:
        run = _Run(loader, computing, place, tuple(images.shape[1:]), names, max_missing)
        run.write(writer, rank, world_size, retry_damaged=retry_damaged, progress=progress)
        writer.finish()
    return open_store(store)


def _remove_together(store: str | os.PathLike[str], rank: int) -> None:
    """By the first of several processes; where it cannot, all say why."""
    problem: Exception | None = None
    if rank == 0:
        try:
            remove_store(store)
        except (OSError, ValueError) as error:
            problem = error
    told = [None if problem is None else str(problem)]
    torch.distributed.broadcast_object_list(told, src=0)
    if problem is not None:
        raise problem
    if told[0] is not None:
        raise ValueError(told[0])


@dataclass(frozen=True)
class _Place:
    """Where batches go."""

    device: torch.device
    dtype: torch.dtype | None  #: of the images; None: as they come

    @classmethod
    def of(cls, model: nn.Module, device: torch.device | str | None) -> _Place:
        """A model in half or double precision takes nothing else."""
        first = next(model.parameters(), None)
        if device is None:
            device = "cpu" if first is None else first.device
        floating = first is not None and first.is_floating_point()
        return cls(torch.device(device), first.dtype if first is not None and floating else None)

    def __call__(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.device, non_blocking=True)

    def images(self, images: Tensor) -> Tensor:
        """Integers stay what they are: a model that takes them divides by 255 itself."""
        dtype = self.dtype if images.is_floating_point() else None
        return images.to(self.device, dtype, non_blocking=True)


@dataclass(frozen=True)
class _Run:
    """What is computed of which samples."""

    loader: DataLoader[Any]
    computing: Computing
    place: _Place
    image_shape: tuple[int, ...]  #: (C, *spatial)
    names: Mapping[str, list[str] | None]  #: ids and paths
    max_missing: int | None

    def write(
        self, writer: StoreWriter, rank: int, world_size: int, *, retry_damaged: bool, progress: bool
    ) -> None:
        """Compute and write the chunks of a rank that are not there yet."""
        from tqdm.auto import tqdm

        layout, size = writer.layout, self.loader.batch_size
        assert size is not None
        chunks = writer.missing(rank, world_size, retry_damaged=retry_damaged)
        rows = [layout.rows(chunk) for chunk in chunks]
        positions = [
            range(start, min(start + size, part.stop))
            for part in rows
            for start in range(part.start, part.stop, size)
        ]
        own = [layout.rows(chunk) for chunk in range(rank, layout.chunks, world_size)]
        total, left = (sum(part.stop - part.start for part in parts) for parts in (own, rows))
        refusals = Refusals(self.max_missing)
        pipeline = Pipeline(writer, chunks, **self.names)
        try:
            with (
                tqdm(
                    total=total, initial=total - left, unit="image", desc="explain", disable=not progress
                ) as bar,
                pipeline,
            ):
                batches = guarded_batches(
                    self.loader,
                    positions,
                    refusals=refusals,
                    pin_memory=self.place.device.type == "cuda",
                )
                for batch in batches:
                    pipeline.take(batch, self._computed(batch))
                    bar.update(len(batch.positions))
        except BaseException:
            # What the file system refused at the end may be there again when the run goes on.
            refused = {position // layout.chunk for position in refusals.row}
            with suppress(OSError):
                writer.take_back(sorted(refused & pipeline.written))
            raise

    def _computed(self, batch: GuardedBatch) -> dict[str, Tensor]:
        if batch.images is None:
            return {}
        if tuple(batch.images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"loader: expected images of one size, {self.image_shape} as the first, got {tuple(batch.images.shape[1:])} of "
                f"samples {batch.positions[0]} to {batch.positions[-1]}; bring them to one size"
            )
        if self.computing.choice.kind == "true":
            check_known(batch)
        return self.computing(
            self.place.images(batch.images), self.place(batch.labels), self.place(batch.masks)
        )

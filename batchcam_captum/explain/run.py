"""A whole data set through a model, into a store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..attribution import BatchGradCam
from ..distributed import is_distributed
from ..environment import environment
from ..functional import CamMethod
from ..functional.images import PerChannel
from ..loading import find_layer
from .computing import MASK_METRICS, Computing, MapSize, thumbnail_size
from .guarded import GuardedBatch, check_loader, first_readable, guarded_batches
from .layout import Layout, chunk_size
from .pipeline import Pipeline
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
    mean: PerChannel = None,
    std: PerChannel = None,
    thumbnails: int = 64,
    class_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    device: torch.device | str | None = None,
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

    Samples that cannot be read (their ``__getitem__`` raises) are listed in the store's ``problems``, and end nothing.

    Several processes share the work, each with chunks of its own, under ``torchrun`` or with ``rank`` and ``world_size``; all
    write to the one store, on a file system that they share. Any number of them may go on with what others began.

    Args:
        model: in ``eval()``, (N, C, *spatial) -> scores (N, K), K of 2 or more.
        layer: what is explained, or its name; None: the one that :func:`~batchcam_captum.suggest_layers` recommends.
        loader: of a map-style data set, with ``shuffle=False``. Its workers, batch size and ``collate_fn`` are used, not its
            ``drop_last``. Batches are images (N, C, *spatial), or tuples that begin with images, then integer labels (N,),
            negative where not known, and then masks (N, 1, *spatial) in [0, 1] of where the evidence should be, for metrics.
        store: the folder to write.
        targets: which classes are explained: ``"predicted"``, ``"true"`` (by the labels), ``"all"``, an integer k for the k with
            the highest scores, the highest first, or a list of classes.
        method: the weighting, see :class:`~batchcam_captum.BatchGradCam`.
        dtype: of the maps in the store. Maps are raw, often very small: float16 keeps few digits of what is below 6e-5.
        size: of the maps: as the layer has them, or bilinearly resized to ``"input"``.
        mean: the ``mean`` of ``Normalize`` that the images went through, for the thumbnails.
        std: its ``std``.
        thumbnails: pixels of the longer side of the small pictures that a report shows; 0: keep none. Of images with two spatial
            dimensions alone.
        class_names: K names.
        ids: N names of the samples. Default: their positions.
        paths: N paths of their files. Default: the data set's own, where it has ``samples`` as torchvision's ``ImageFolder``.
        device: where the batches go. Default: where the model's first parameter is.
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
        OSError: a folder that cannot be written to, or a full disk; what is written is kept.
        ModuleNotFoundError: zarr is not installed.
    """
    choice = ClassChoice.of(targets)
    loader = check_loader(loader)
    rank, world_size = _place(rank, world_size)
    together = overwrite and world_size > 1
    if together and not is_distributed():
        raise ValueError(
            "overwrite: expected one process, or several in one process group of torch, as another may be writing already, got "
            f"{world_size} that do not know of each other; remove the store first"
        )
    _check_arguments(model, dtype, size, thumbnails)
    count = len(loader.dataset)  # type: ignore[arg-type]
    names = {
        "ids": _names("ids", ids, count),
        "paths": _names("paths", paths, count) or _paths_of(loader.dataset),
    }
    place = torch.device(device) if device is not None else _device_of(model)
    example = first_readable(loader)
    assert example.images is not None
    images = example.images.to(place)
    _try_model(model, images)
    found = find_layer(model, _layer_name(model, layer), images)
    grad_cam = BatchGradCam(model, found.name, method=method, reshape=found.reshape)
    computing = Computing(grad_cam, choice, getattr(torch, dtype), size, thumbnails, mean, std)
    computed = computing(images, _to(example.labels, place), _to(example.masks, place))
    batch_size = loader.batch_size
    assert batch_size is not None
    maps = tuple(computed["maps"].shape[1:])
    layout = Layout(
        samples=count,
        chunk=chunk_size(batch_size, maps, dtype),
        maps=maps,
        classes=computed["scores"].shape[1],
        dtype=dtype,
        thumbnail=thumbnail_size(images.shape[2:], thumbnails) if "thumbnails" in computed else None,
        metrics=MASK_METRICS if example.masks is not None else (),
    )
    if class_names is not None and len(class_names) != layout.classes:
        raise ValueError(
            f"class_names: expected {layout.classes}, as the model has scores, got {len(class_names)}"
        )
    settings = {
        "model": {"class": type(model).__name__, "sha256": model_hash(model)},
        "layer": found.name,
        "reshape": found.reshape,
        "method": method if isinstance(method, str) else getattr(method, "__qualname__", str(method)),
        "targets": choice.setting,
        "samples": count,
        "names": _hash(*(names["ids"] or ()), *(names["paths"] or ())),
        "image_size": list(images.shape[1:]),
        "first_image": hashlib.sha256(
            _bytes(example.images)
        ).hexdigest(),  # tells images that were prepared otherwise
        "batch_size": batch_size,
        "dtype": dtype,
        "size": size,
        "thumbnails": thumbnails,
        "mean": _plain(mean),
        "std": _plain(std),
        "about": dict(about or {}),
    }
    if together:  # nothing is removed before all that can be wrong is known
        if rank == 0:
            remove_store(store)
        torch.distributed.barrier()
    with writing(
        store,
        layout,
        settings=settings,
        environment=environment(place),
        class_names=None if class_names is None else tuple(map(str, class_names)),
        overwrite=overwrite and not together,
        alone=world_size == 1,
    ) as writer:
        run = _Run(loader, computing, place, tuple(images.shape[1:]), names)
        run.write(writer, rank, world_size, progress=progress)
        writer.finish()
    return open_store(store)


@dataclass(frozen=True)
class _Run:
    """What is computed of which samples."""

    loader: DataLoader[Any]
    computing: Computing
    device: torch.device
    image_shape: tuple[int, ...]  #: (C, *spatial)
    names: Mapping[str, list[str] | None]  #: ids and paths

    def write(self, writer: StoreWriter, rank: int, world_size: int, *, progress: bool) -> None:
        """Compute and write the chunks of a rank that are not there yet."""
        from tqdm.auto import tqdm

        layout, size = writer.layout, self.loader.batch_size
        assert size is not None
        chunks = writer.missing(rank, world_size)
        rows = [layout.rows(chunk) for chunk in chunks]
        positions = [
            range(start, min(start + size, part.stop))
            for part in rows
            for start in range(part.start, part.stop, size)
        ]
        own = [layout.rows(chunk) for chunk in range(rank, layout.chunks, world_size)]
        total, left = (sum(part.stop - part.start for part in parts) for parts in (own, rows))
        on_gpu = self.device.type == "cuda"
        with (
            tqdm(
                total=total, initial=total - left, unit="image", desc="explain", disable=not progress
            ) as bar,
            Pipeline(writer, chunks, **self.names) as pipeline,
        ):
            for batch in guarded_batches(self.loader, positions, pin_memory=on_gpu):
                pipeline.take(batch, self._computed(batch))
                bar.update(len(batch.positions))

    def _computed(self, batch: GuardedBatch) -> dict[str, Tensor]:
        if batch.images is None:
            return {}
        if tuple(batch.images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"loader: expected images of one size, {self.image_shape} as the first, got {tuple(batch.images.shape[1:])} of "
                f"samples {batch.positions[0]} to {batch.positions[-1]}; bring them to one size"
            )
        if self.computing.choice.kind == "true":
            _check_known(batch)
        return self.computing(
            batch.images.to(self.device, non_blocking=True),
            _to(batch.labels, self.device),
            _to(batch.masks, self.device),
        )


def _check_known(batch: GuardedBatch) -> None:
    """Every sample needs a label where that is what is explained; a batch without any is refused where maps are made."""
    if batch.labels is not None and bool((batch.labels < 0).any()):
        row = int((batch.labels < 0).nonzero()[0])
        raise ValueError(
            f"targets: expected a label for every sample, as targets is 'true', got {int(batch.labels[row])} for sample "
            f"{[batch.positions[each] for each in batch.readable][row]}; pass targets='predicted', or leave such samples out"
        )


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers with their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _hash(*texts: str) -> str | None:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode(errors="surrogateescape"))
    return digest.hexdigest() if texts else None


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which of how many processes this is."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank, world_size: expected both or neither, got {rank} and {world_size}")
    if rank is None or world_size is None:
        if is_distributed():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
    return rank, world_size


def _check_arguments(model: object, dtype: str, size: str, thumbnails: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError(
            "model: expected one in eval mode, as in training mode a map would hang on the batch it is in, got one in training "
            "mode; call model.eval()"
        )
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
    if size not in ("layer", "input"):
        raise ValueError(f"size: expected 'layer' or 'input', got {size!r}")
    if thumbnails < 0:
        raise ValueError(f"thumbnails: expected at least 0 pixels, got {thumbnails}")


def _names(argument: str, names: Sequence[str] | None, count: int) -> list[str] | None:
    if names is None:
        return None
    if len(names) != count:
        raise ValueError(f"{argument}: expected {count}, one a sample, got {len(names)}")
    return list(map(str, names))


def _paths_of(dataset: Dataset[Any]) -> list[str] | None:
    """Those of torchvision's folders, also of a part of one."""
    if isinstance(dataset, Subset):
        whole = _paths_of(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and len(samples) == len(dataset):  # type: ignore[arg-type]
        firsts = (sample[0] if isinstance(sample, tuple) else sample for sample in samples)
        paths = [path for path in firsts if isinstance(path, str)]
        return paths if len(paths) == len(samples) else None
    return None


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _layer_name(model: nn.Module, layer: nn.Module | str | None) -> str | None:
    if not isinstance(layer, nn.Module):
        return layer
    for name, module in model.named_modules():
        if module is layer:
            return str(name)
    raise ValueError(f"layer: expected one of the model's, got a {type(layer).__name__} that is not in it")


def _try_model(model: nn.Module, images: Tensor) -> None:
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:  # whatever a model raises
        raise ValueError(
            f"model: expected {type(model).__name__} to take images of shape (N, {', '.join(map(str, images.shape[1:]))}), got "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


def _plain(value: PerChannel) -> Any:
    """Numbers that JSON holds."""
    if value is None or isinstance(value, int | float):
        return value
    return [float(each) for each in value]

"""``batchcam explain``."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import (
    BatchSize,
    Checkpoint,
    Data,
    DataRoot,
    DemoModel,
    Device,
    Layer,
    Mean,
    Method,
    NumClasses,
    Pretrained,
    Quiet,
    Size,
    Std,
    printable,
    remark,
    show_progress,
    warnings_as_remarks,
)

if TYPE_CHECKING:
    from ..explain import Store
    from ..explain.sources import Classes
    from ..loading import Preprocessing
    from .inputs import DataSource, ModelSource

_TARGETS = ("predicted", "true", "all")
_LISTED = 10
_DAYS = 7  # a rank may have much more to do than another


def _parse_targets(text: str) -> str | int | list[int]:
    if text in _TARGETS:
        return text
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"expected {', '.join(_TARGETS)}, a number, or classes with commas between, got {text!r}"
        ) from None


def _parse_store(text: str) -> Path:
    if not text:
        raise typer.BadParameter("expected the folder of the store, such as maps.zarr, got an empty path")
    return Path(text)


def explain(
    model: DemoModel,
    data: Data,
    output: Annotated[
        Path,
        typer.Option(parser=_parse_store, metavar="STORE", help="Folder of the store, such as maps.zarr."),
    ],
    data_root: DataRoot = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a data set: train, val, ... Default: test.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove a store that exists, and start again.")
    ] = False,
    retry_damaged: Annotated[
        bool, typer.Option("--retry-damaged", help="Try the images again that could not be read.")
    ] = False,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    num_classes: NumClasses = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the model's classes, one per line. Default: those of the data if there are as many, and "
            "ImageNet's for 1,000.",
        ),
    ] = None,
    layer: Layer = None,
    method: Method = "grad_cam",
    device: Device = "cpu",
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 32,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Processes that read images, for each rank of torchrun. Default: up to 4, none for data in memory.",
        ),
    ] = None,
    max_missing: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Stop after so many files in a row that are missing or refused, because then their folder is gone; 0: never.",
        ),
    ] = 100,
    targets: Annotated[
        Any,
        typer.Option(
            parser=_parse_targets,
            metavar="WHICH",
            help="predicted, true, all, the number of highest scores (3), or classes with commas between (3,5,9; a single "
            "one: 3,).",
        ),
    ] = "predicted",
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Of the maps.")] = "float32",
    map_size: Annotated[
        Literal["layer", "input"], typer.Option(help="Size of the maps: the layer's, or that of the images.")
    ] = "layer",
    thumbnails: Annotated[
        int,
        typer.Option(
            metavar="PIXELS", min=0, help="Longer side of the pictures kept for reports; 0 for none."
        ),
    ] = 64,
    quiet: Quiet = False,
) -> None:
    """Write the maps of a data set into a store.

    The Zarr store has maps, scores, labels, ids and paths. A run that was stopped continues when the same command is given
    again. Images that cannot be read are listed, and end nothing.
    Under torchrun each process writes its own part.
    """
    from ..explain import Thumbnails
    from ..explain.targets import ClassChoice
    from ..explain.writing import check_output
    from ..functional import get_method
    from ..optional import load
    from .inputs import ModelSource, make_dataset, open_data

    # Checks that take no time come first.
    device = _rank_device(device)
    get_method(method)
    ClassChoice.of(targets)
    load("zarr", purpose="batchcam explain", extra="explain")
    settings: dict[str, Any] = {
        "targets": targets,
        "method": method,
        "dtype": dtype,
        "size": map_size,
        "max_missing": max_missing or None,
        "retry_damaged": retry_damaged,
        "overwrite": overwrite,
    }
    with _joined_ranks() as (rank, wait), warnings_as_remarks(quiet or rank > 0):
        quiet = quiet or rank > 0
        if rank == 0:
            check_output(output)
        source = ModelSource(model, checkpoint, pretrained, num_classes, device, size, mean, std)
        samples = open_data(data, data_root, split, source)
        network, prepare, matched = _load_model(source, samples, classes, targets)
        finished = 0 if overwrite or rank else _count_finished(output, retry_damaged)
        wait()
        if source.has_random_weights:
            remark(
                f"{model} has random weights; for meaningful maps pass --checkpoint or --pretrained", quiet
            )
        if matched.remark:
            remark(matched.remark, quiet)
        settings.update(
            thumbnails=Thumbnails(thumbnails, prepare.mean, prepare.std) if thumbnails else None,
            class_names=matched.names,
            about=_about(source, data, split, samples, prepare),
            progress=show_progress(quiet),
        )
        loader = _loader(make_dataset(samples, prepare, matched), batch_size, workers)
        started = time.perf_counter()
        store = _run(source, network, layer, loader, output, settings)
        wait()
        if rank == 0:
            _print_outcome(store, output, finished, time.perf_counter() - started)


def _run(
    source: ModelSource, network: Any, layer: str | None, loader: Any, output: Path, settings: dict[str, Any]
) -> Store:
    """Explain the data set; an interrupt says what is written, and an error of torch becomes one of the command."""
    from ..explain import explain_dataset

    try:
        return explain_dataset(network, layer, loader, output, **settings)
    except KeyboardInterrupt as stop:
        raise type(stop)(
            f"{_count_finished(output):,} images are in {output} and stay: give the same command again"
        ) from None
    except (RuntimeError, TypeError) as error:  # out of memory, above all
        raise ValueError(
            f"explain: {source.name} on {source.device} ended with {type(error).__name__}: {error}; what is written is kept"
        ) from error


def _rank_device(name: str) -> str:
    """Return the device of this process, and keep its rank off the others'."""
    import torch

    from ..loading import check_device

    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = check_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return name


@contextmanager
def _joined_ranks() -> Iterator[tuple[int, Any]]:
    """Give the rank and a function that waits for all ranks of torchrun."""
    from torch import distributed

    from ..distributed import is_distributed

    rank, world_size = (int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("WORLD_SIZE", 1)))
    joins = world_size > 1 and not is_distributed() and "MASTER_ADDR" in os.environ
    if joins:
        distributed.init_process_group("gloo", timeout=timedelta(days=_DAYS))

    def wait() -> None:
        if world_size > 1 and is_distributed():
            try:
                distributed.barrier()
            except RuntimeError as error:
                raise ValueError(
                    "explain: expected all ranks to finish, but one ended early; what is written is kept: give the same command "
                    "again to continue"
                ) from error

    try:
        yield rank, wait
    finally:
        if joins:
            distributed.destroy_process_group()


def _load_model(
    source: ModelSource, samples: DataSource, names_file: Path | None, targets: object
) -> tuple[Any, Preprocessing, Classes]:
    """Return the model, the preprocessing, and which of its classes the labels of the data are."""
    from ..explain.sources import match_classes
    from . import inputs

    given = None if names_file is None else inputs.read_lines(names_file)
    names, labels = inputs.class_names(samples), inputs.labels_of(samples)
    known = given or names
    model = source.load(classes=len(known) if known is not None and len(known) > 1 else None)
    prepare = source.preprocessing(model)
    if isinstance(samples, inputs.KnownData):
        prepare = replace(prepare, mean=samples.mean, std=samples.std)
    example = inputs.example_of(samples, prepare).to(source.device)
    count = inputs.count_classes(model, example, source.name, inputs.remedy_for(samples))
    if given is not None and len(given) != count:
        raise ValueError(
            f"--classes: expected {count} names, one for each class of {source.name}, got {len(given)} in {names_file}"
        )
    packaged, words = inputs.imagenet_classes() if given is None and count == 1000 else (None, {})
    matched = match_classes(names, count, given=given, packaged=packaged, also=words)
    if names is None and labels is not None and max(labels) >= count:
        raise ValueError(
            f"--data: expected labels from 0 to {count - 1}, as {source.name} has {count} classes, got {max(labels)}"
        )
    if targets == "true":
        lacking = sum(matched(label) < 0 for label in labels or ())
        if lacking or not matched.order:
            which = "any" if labels is None else f"{lacking} of {len(labels)}"
            why = f" ({matched.remark})" if matched.remark else ""
            raise ValueError(
                f"--targets: expected a label for each image with true, got none for {which}{why}; pass --targets predicted"
            )
    return model, prepare, matched


def _loader(dataset: Any, batch_size: int, workers: int | None) -> Any:
    from torch.utils.data import DataLoader, TensorDataset

    if workers is None:
        workers = 0 if isinstance(dataset, TensorDataset) else _usual_workers()
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)


def _usual_workers() -> int:
    """Return up to four, and over all ranks of a machine no more than this process may use processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, processors // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))))


def _about(
    source: ModelSource, data: str, split: str | None, samples: DataSource, prepare: Preprocessing
) -> dict[str, Any]:
    """Return what identifies the run beside the settings: a run that continues must have the same.

    Paths of models and weights are left out, as the weights are compared by their hash. A folder or a CSV keeps its place, as the
    store contains the paths of the files.
    """
    from ..explain.sources import Listing, as_text
    from .inputs import KnownData

    file, colon, function = source.name.rpartition(":")
    files = isinstance(samples, Listing)
    return {
        "model": as_text(f"{os.path.basename(file)}{colon}{function}"),
        "checkpoint": None if source.checkpoint is None else as_text(source.checkpoint.name),
        "pretrained": source.pretrained,
        "data": as_text(os.path.abspath(data)) if files else data,
        "split": None if files else split or "test",
        "preparation": None if isinstance(samples, KnownData) else asdict(prepare),
    }


def _count_finished(path: Path, retry_damaged: bool = False) -> int:
    """Return how many samples need not be computed, which is decided by whole chunks."""
    from ..explain import Status, open_store

    try:
        store = open_store(path)
    except (OSError, ValueError):
        return 0
    status, chunk = store.status[:], store.status.chunks[0]
    chunks = (status[start : start + chunk] for start in range(0, len(status), chunk))
    again = (Status.MISSING, Status.DAMAGED) if retry_damaged else (Status.MISSING,)
    return sum(len(each) for each in chunks if not any((each == status).any() for status in again))


def _print_outcome(store: Store, output: Path, finished: int, seconds: float) -> None:
    """Print what was done, what could not be read, and what to do next."""
    from ..explain import Status, open_store

    store = open_store(store.path)  # other ranks may have finished after this one
    status = store.status[:]
    counts = {each: int((status == each).sum()) for each in (Status.WRITTEN, Status.DAMAGED, Status.MISSING)}
    damaged, missing = counts[Status.DAMAGED], counts[Status.MISSING]
    computed = counts[Status.WRITTEN] + damaged - finished
    pace = f", {computed / seconds:,.1f} images per second" if computed > 0 else ""
    earlier = f", {finished:,} of them earlier" if finished else ""
    print(f"Explained {counts[Status.WRITTEN]:,} of {len(store):,} images{earlier}{pace}")
    if damaged:
        print(f"Could not be read: {damaged:,}")
        problems, paths, ids = store.problems[:], store.paths[:], store.ids[:]
        for place in (status == Status.DAMAGED).nonzero()[0][:_LISTED]:
            print(f"  {printable(paths[place] or ids[place])}: {printable(problems[place])}")
        if damaged > _LISTED:
            print(f"  and {damaged - _LISTED:,} more")
        print("After repairing them: the same command with --retry-damaged")
    if missing:
        print(f"Not there yet: {missing:,}; give the same command again to continue")
    where = printable(output)
    print(f"\nWritten to {where}\nTo look at it: batchcam report {shlex.quote(where)}")

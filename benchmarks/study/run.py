"""Run the runs of the study that are not finished yet."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from batchcam_captum.environment import environment, version_of

from .data import StudyData, load
from .measuring import VALIDATION_MAPS, measure
from .networks import NETWORKS
from .settings import Settings, finished, write
from .training import DivergedError, OutOfTimeError, train

#: A folder beside the results, for what is none yet.
UNFINISHED = ".unfinished"


def run_all(
    plan: Callable[[], Iterable[Settings]],
    folder: Path,
    root: Path,
    device: torch.device,
    *,
    limit: float = math.inf,
    commit: str | None = None,
    progress: bool = True,
) -> int:
    """Run what is missing, one JSON a run. Several processes may do so at once; none takes what another is at.

    Args:
        plan: makes the runs. Those that hang on the results of earlier ones come when these are there.
        folder: of the results.
        root: torchvision's folder.
        device: where to train.
        limit: seconds. No run begins that would not end by then, if it took as long as the longest so far; one that is at it
            stops at the end of an epoch, and goes on there the next time.
        commit: of the code.
        progress: show bars.

    Returns:
        How many runs are still missing.

    Raises:
        OtherStudyError: the folder has results by other settings.
    """
    start = time.monotonic()
    loaded: tuple[tuple[object, ...], StudyData] | None = None
    longest = 0.0
    for settings in plan():
        if time.monotonic() - start + longest >= limit:
            break
        with claimed(settings, folder) as ours:
            if not ours or finished(settings, folder):
                continue
            padding = NETWORKS[settings.network].padding
            sizes = {"train_size": settings.train_size, "test_size": settings.test_size}
            key = (settings.data, settings.split, *sizes.values(), padding)
            if loaded is None or loaded[0] != key:
                found = load(settings.data, root, split=settings.split, **sizes, padding=padding)
                loaded = key, found
            began = time.monotonic()
            try:
                run(
                    settings,
                    loaded[1],
                    folder,
                    device,
                    commit=commit,
                    deadline=start + limit,
                    progress=progress,
                )
            except OutOfTimeError as stopped:
                print(stopped)
                break
            longest = max(longest, time.monotonic() - began)
    return sum(not finished(settings, folder) for settings in plan())


@contextmanager
def claimed(settings: Settings, folder: Path) -> Iterator[bool]:
    """Whether this process may do a run; while it does, no other may. A process that dies gives it back."""
    path = folder / UNFINISHED / settings.file(folder).with_suffix(".lock").name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def list_runs(plan: Callable[[], Iterable[Settings]], folder: Path) -> int:
    """Say which runs are finished; return how many are missing.

    Raises:
        OtherStudyError: the folder has results by other settings.
    """
    missing = 0
    for settings in plan():
        there = finished(settings, folder)
        missing += not there
        print("finished" if there else "missing ", settings.name)
    print(f"{missing} missing")
    return missing


def run(
    settings: Settings,
    data: StudyData,
    folder: Path,
    device: torch.device,
    *,
    commit: str | None,
    deadline: float = math.inf,
    progress: bool,
) -> None:
    """One run: train, measure, write. A run whose numbers are none is written as such, and enters no mean."""
    versions = {name: version_of(name) for name in ("timm", "torchvision")}
    about = {"environment": environment(device) | versions, "commit": commit}
    began = time.monotonic()
    checkpoint = folder / UNFINISHED / settings.file(folder).with_suffix(".pt").name
    try:
        trained = train(settings, data, device, checkpoint=checkpoint, deadline=deadline, progress=progress)
        seconds = time.monotonic() - began
        found = measure(
            trained,
            data,
            device,
            maps=VALIDATION_MAPS if settings.split == "validation" else None,
            faithfulness=settings.faithfulness,
        )
    except DivergedError as error:
        write(settings, folder, diverged=str(error), **about)
        checkpoint.unlink(missing_ok=True)
        return
    write(
        settings,
        folder,
        metrics=found,
        losses=trained.losses,
        seconds_per_step=trained.seconds_per_step,
        seconds=seconds,
        **about,
    )
    checkpoint.unlink(missing_ok=True)
    if progress:
        print(settings.name, {key: round(value, 4) for key, value in found.items()}, flush=True)

"""Run the runs of the study that are not finished yet."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch

from batchcam_captum.environment import environment

from .data import StudyData, load
from .measuring import VALIDATION_MAPS, measure
from .networks import NETWORKS
from .settings import Settings, finished, write
from .training import DivergedError, train


def run_all(
    wanted: Iterable[Settings],
    folder: Path,
    root: Path,
    device: torch.device,
    *,
    limit: float = float("inf"),
    share: tuple[int, int] = (0, 1),
    commit: str | None = None,
    progress: bool = True,
) -> int:
    """Run what is missing, one JSON a run.

    Args:
        wanted: the runs.
        folder: of the results.
        root: torchvision's folder.
        device: where to train.
        limit: seconds after which no further run begins.
        share: (which, of how many): for several processes at once.
        commit: of the code.
        progress: show bars.

    Returns:
        How many runs are still missing.

    Raises:
        OtherStudyError: the folder has results by other settings.
    """
    start = time.monotonic()
    missing = [
        each
        for index, each in enumerate(wanted)
        if index % share[1] == share[0] and not finished(each, folder)
    ]
    loaded: tuple[tuple[object, ...], StudyData] | None = None
    longest = 0.0
    while missing and time.monotonic() - start + longest < limit:
        settings = missing.pop(0)
        padding = NETWORKS[settings.network].padding
        key = (settings.data, settings.split, settings.train_size, padding)
        if loaded is None or loaded[0] != key:
            loaded = (
                key,
                load(
                    settings.data, root, split=settings.split, train_size=settings.train_size, padding=padding
                ),
            )
        began = time.monotonic()
        run(settings, loaded[1], folder, device, commit=commit, progress=progress)
        longest = max(longest, time.monotonic() - began)
    return len(missing)


def list_runs(wanted: Iterable[Settings], folder: Path) -> int:
    """Say which runs are finished; return how many are missing.

    Raises:
        OtherStudyError: the folder has results by other settings.
    """
    missing = 0
    for settings in wanted:
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
    progress: bool,
) -> None:
    """One run: train, measure, write. A run whose loss is no number is written as such, and enters no mean."""
    about = {"environment": environment(device), "commit": commit}
    began = time.monotonic()
    # Not beside the results, so that a copy of these holds nothing unfinished.
    checkpoint = folder / ".unfinished" / settings.file(folder).with_suffix(".pt").name
    try:
        trained = train(settings, data, device, checkpoint=checkpoint, progress=progress)
    except DivergedError as error:
        write(settings, folder, diverged=str(error), **about)
        checkpoint.unlink(missing_ok=True)
        return
    seconds = time.monotonic() - began
    found = measure(
        trained,
        data,
        device,
        maps=VALIDATION_MAPS if settings.split == "validation" else None,
        faithfulness=settings.faithfulness,
    )
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

"""What several commands work on, from what the user names: the demo's network and data sets, and how images are prepared."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..datasets.torchvision_files import WITHOUT_DOWNLOAD
from ..demo.data import DataName, DemoData, Images, load_data
from ..demo.model import SimpleCNN
from ..loading import Preprocessing, load_checkpoint, preprocessing

#: The ``MODEL`` that a checkpoint of ``batchcam demo`` is for.
DEMO = "demo"


def demo_checkpoint(path: Path | None) -> dict[str, Any]:
    """What ``batchcam demo`` saved beside the weights; nothing else can be read into its network."""
    if path is None:
        raise ValueError(
            "model: expected --checkpoint FILE with demo, got none; name a checkpoint of batchcam demo"
        )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"model", "num_classes", "image_size", "mean", "std"} - saved.keys()
    except OSError as error:
        raise OSError(
            f"checkpoint: expected a file that can be read, got {path} ({error.strerror or error})"
        ) from error
    except Exception as error:  # a damaged file raises anything
        raise ValueError(
            f"checkpoint: expected one of batchcam demo, got {path}, which is damaged or something else "
            f"({type(error).__name__})"
        ) from error
    if missing:
        raise ValueError(
            f"checkpoint: expected one of batchcam demo, got {path} without {', '.join(sorted(missing))}; name the model that it "
            "belongs to instead of demo"
        )
    return dict(saved)


def demo_model(saved: dict[str, Any], checkpoint: Path, device: str) -> nn.Module:
    """The demo's network with the weights of a checkpoint, in eval mode.

    Args:
        saved: from :func:`demo_checkpoint`, of this checkpoint or of one like it.
        checkpoint: the weights.
        device: where it goes.

    Raises:
        ValueError: they do not fit.
    """
    model = SimpleCNN(int(saved["num_classes"]), int(saved["image_size"]))
    load_checkpoint(model, checkpoint)
    return model.to(device).eval()


def known_data(
    name: DataName,
    root: Path | None,
    mean: list[float] | None,
    std: list[float] | None,
    saved: dict[str, Any] | None,
) -> DemoData:
    """A data set of the demo, standardised as asked for, else as the checkpoint has it, else by its training images.

    Args:
        name: of the data set.
        root: ``--data-root``.
        mean: ``--mean``.
        std: ``--std``.
        saved: from :func:`demo_checkpoint`.

    Raises:
        ValueError: several numbers for grey images.
        OSError: files that are missing or cannot be read.
        ModuleNotFoundError: a library that is needed is not installed.
    """
    data = load_data(name, root, wording=WITHOUT_DOWNLOAD)
    shift, scale = _one("--mean", mean), _one("--std", std)
    shift = shift if shift is not None else float(saved["mean"]) if saved else data.mean
    scale = scale if scale is not None else float(saved["std"]) if saved else data.std
    if (shift, scale) == (data.mean, data.std):
        return data

    def standardised(part: Images) -> Images:
        return Images((part.images * data.std + data.mean - shift) / scale, part.labels)

    return DemoData(standardised(data.train), standardised(data.test), data.class_names, shift, scale)


def _one(argument: str, values: list[float] | None) -> float | None:
    """The one number of a greyscale data set."""
    if values is None:
        return None
    if len(values) != 1 or (argument == "--std" and not values[0] > 0):
        raise ValueError(f"{argument}: expected one number for grey images, above 0 for --std, got {values}")
    return values[0]


def preprocessing_of(
    options: argparse.Namespace, model: nn.Module, saved: dict[str, Any] | None = None
) -> Preprocessing:
    """How files become images: as the options say, else as the model's weights want it.

    Args:
        options: those of :func:`.arguments.add_images`, and ``model``.
        model: the model.
        saved: from :func:`demo_checkpoint`.

    Raises:
        ValueError: more than two sides.
    """
    expected = preprocessing(model, options.model)
    if saved is not None:
        side = int(saved["image_size"])
        expected = Preprocessing(
            (side, side), (float(saved["mean"]),), (float(saved["std"]),), expected.interpolation, 1.0
        )
    sides: list[int] = options.size or list(expected.size)
    if len(sides) > 2:
        raise ValueError(f"--size: expected one or two numbers, got {sides}")
    return replace(
        expected,
        size=(sides[0], sides[-1]),
        mean=tuple(options.mean or expected.mean),
        std=tuple(options.std or expected.std),
    )

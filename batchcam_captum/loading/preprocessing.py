"""What a model expects of its images."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn

from .models import parts_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """The arguments of :func:`~batchcam_captum.loading.load_images`."""

    size: tuple[int, int] = (224, 224)  #: (H, W) of the model's input
    mean: tuple[float, ...] = IMAGENET_MEAN  #: of each channel, for values in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: float = 0.875  #: how much of the resized image's side the centre that is cut out has


def preprocessing(model: nn.Module, name: str = "") -> Preprocessing:
    """What the model's weights were trained with, where its library says so; otherwise what is usual for ImageNet.

    Args:
        model: the model.
        name: what it was loaded as, see :func:`~batchcam_captum.loading.load_model`. Only torchvision's models, which say nothing
            of themselves, need it.

    Returns:
        The arguments of :func:`~batchcam_captum.loading.load_images`.
    """
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return _of_timm(config)
    library, plain = parts_of(name)
    if library != "factory" and type(model).__module__.startswith("torchvision."):
        with suppress(Exception):  # no weights of this name: nothing is known
            return _of_torchvision(plain)
    return Preprocessing()


def _of_timm(config: dict[str, Any]) -> Preprocessing:
    usual = Preprocessing()
    channels, height, width = config["input_size"]
    mean, std = (
        tuple(config.get(key) or default) for key, default in (("mean", usual.mean), ("std", usual.std))
    )
    if channels != len(mean):
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    return Preprocessing(
        (height, width),
        mean,
        std,
        config.get("interpolation") or "bicubic",
        float(config.get("crop_pct") or usual.crop),
    )


def _of_torchvision(name: str) -> Preprocessing:
    from torchvision import models

    preset = models.get_model_weights(name).DEFAULT.transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    return Preprocessing(
        (size, size), tuple(preset.mean), tuple(preset.std), preset.interpolation.value, size / resized
    )

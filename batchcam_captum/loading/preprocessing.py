"""What a model expects of its images."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn

from .images import Preprocessing
from .models import parts_of

_CROP = 0.875  # usual for ImageNet


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
    return Preprocessing(crop=_CROP)


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
        float(config.get("crop_pct") or _CROP),
    )


def _of_torchvision(name: str) -> Preprocessing:
    from torchvision import models

    preset = models.get_model_weights(name).DEFAULT.transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    return Preprocessing(
        (size, size), tuple(preset.mean), tuple(preset.std), preset.interpolation.value, size / resized
    )

"""What differs between the libraries where no preset is used: one step of the way from raw cams to pictures at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import normalize, rectify
from batchcam_captum.interop import pytorch_grad_cam_method, to_pytorch_grad_cam, torchcam_method


class Step(NamedTuple):
    """Two ways to make the same maps that differ in one step."""

    name: str
    remedy: str  #: what brings the libraries together
    usual: Tensor  #: (N, 1, H, W) in [0, 1], pytorch-grad-cam's way
    other: Tensor  #: the same, with the other step


def _enlarged(size: tuple[int, int], mode: str = "bilinear", **given: Any) -> Callable[[Tensor], Tensor]:
    return lambda maps: F.interpolate(maps, size, mode=mode, **given)


def _unit(maps: Tensor) -> Tensor:
    return normalize(maps, "minmax")


def steps(model: nn.Module, layer: str, earlier: str, images: Tensor, targets: list[int]) -> Iterator[Step]:
    """Compare, step by step, pytorch-grad-cam's way with others.

    Args:
        model: in eval mode, with BatchNorm.
        layer: the explained layer.
        earlier: another one, with larger maps, for what is done with several.
        images: (N, 3, H, W).
        targets: one class an image.

    Yields:
        A pair of maps a step.
    """
    height, width = images.shape[2:]
    size = (height, width)

    def raw(method: Any = "grad_cam", at: str = layer, of: nn.Module = model) -> Tensor:
        return BatchGradCam(of, at, method=method).attribute(images, target=targets).cpu()

    def preset(cams: Tensor | list[Tensor]) -> Tensor:
        return torch.from_numpy(to_pytorch_grad_cam(cams, size)).unsqueeze(1)

    cams, finer, bilinear = raw(), raw(at=earlier), _enlarged(size)
    positive, usual = rectify(cams), preset(cams)

    yield Step(
        "enlarged by the nearest value, Captum's `interpolate` as it is, instead of bilinearly",
        "`to_captum(cams, size)` does the same, `to_pytorch_grad_cam` is bilinear",
        usual,
        _unit(_enlarged(size, "nearest")(positive)),
    )
    yield Step(
        "enlarged bicubically instead of bilinearly",
        '`to_captum(cams, size, "bicubic")`',
        usual,
        _unit(_enlarged(size, "bicubic")(positive).clamp(min=0)),
    )
    yield Step(
        "enlarged with `align_corners=True`",
        "no library does this by itself",
        usual,
        _unit(_enlarged(size, align_corners=True)(positive)),
    )
    yield Step(
        "scaled to [0, 1] before enlarging, and not once more after it",
        "`to_pytorch_grad_cam` scales twice, `to_torchcam` does not enlarge",
        usual,
        bilinear(_unit(positive)),
    )
    yield Step(
        "no ReLU before min-max",
        "Captum's maps are signed; `to_pytorch_grad_cam` and `to_torchcam` rectify",
        usual,
        _unit(bilinear(cams)),
    )
    yield Step(
        "ReLU after enlarging instead of before",
        "the presets rectify first",
        usual,
        _unit(rectify(bilinear(cams))),
    )
    yield Step(
        "divided by the maximum instead of min-max",
        "the presets take min-max, `functional.normalize` divides by the maximum",
        usual,
        normalize(bilinear(positive), "max"),
    )
    both, scaled = preset([cams, finer]), [bilinear(_unit(rectify(each))) for each in (cams, finer)]
    yield Step(
        "two layers: the larger value, TorchCAM's `fuse_cams`, instead of the mean",
        "`to_pytorch_grad_cam([cams, …], size)` takes the mean",
        both,
        _unit(torch.maximum(*scaled)),
    )
    yield Step(
        "two layers: raw maps added, instead of each scaled first",
        "`to_pytorch_grad_cam([cams, …], size)` scales each first",
        both,
        _unit(bilinear(positive) + bilinear(rectify(finer))),
    )
    training = copy.deepcopy(model)
    for module in training.modules():
        module.training = isinstance(module, nn.BatchNorm2d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one says so
        yield Step(
            "BatchNorm in train mode, which only pytorch-grad-cam switches off",
            "`model.eval()`",
            usual,
            preset(raw(of=training)),
        )
    for label, theirs, name in (
        ("Grad-CAM++: pytorch-grad-cam's 1e-6", pytorch_grad_cam_method, "grad_cam_plus_plus"),
        ("Grad-CAM++: TorchCAM's, which never divides", torchcam_method, "grad_cam_plus_plus"),
        ("XGrad-CAM: pytorch-grad-cam's 1e-7", pytorch_grad_cam_method, "xgrad_cam"),
        ("XGrad-CAM: TorchCAM's 1e-8", torchcam_method, "xgrad_cam"),
    ):
        yield Step(
            f"{label}, instead of the formula as published",
            f'`method={theirs.__name__}("{name}")`',
            preset(raw(theirs(name))),
            preset(raw(name)),
        )

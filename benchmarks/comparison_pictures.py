"""Do the maps agree on real pictures and real weights, and what differs without the presets?

EfficientNet-Lite0 with ImageNet weights, see ``pretrained.py`` for the packages that it needs, and scikit-image's pictures;
nothing is downloaded when it runs.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import Report, Spread, parser, set_tf32, start
from comparison import METHODS, VARIANTS, numbers
from pretrained import EARLIER, LAYER, SIZE, categories, efficientnet_lite0
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import normalize, rectify
from batchcam_captum.interop import pytorch_grad_cam_method, to_pytorch_grad_cam, torchcam_method
from batchcam_captum.interop.peers import OURS, PEERS

PICTURES = ("chelsea", "coffee", "rocket", "stereo_motorcycle", "astronaut")
PEER = "pytorch-grad-cam"  # its maps have the pictures' size
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "comparison-maps.png"


def main() -> None:
    options = start(parser(__doc__.partition("\n")[0], rounds=1))
    set_tf32(False)
    model, (images, shown) = efficientnet_lite0().to(options.device), pictures()
    images = images.to(options.device)
    probabilities = model(images).softmax(1).detach()
    targets = probabilities.argmax(1).tolist()
    report = Report(
        "comparison_pictures",
        options,
        "EfficientNet-Lite0 with its ImageNet weights, scikit-image's pictures, 224 px, the last block, the predicted class.",
        "SSIM and overlap are left out where they are 1.",
    )
    names = categories()
    for row, name in enumerate(PICTURES):
        values, indices = (entry.tolist() for entry in probabilities[row].topk(3))
        best = [
            {"class": index, "name": names[index], "probability": round(value, 3)}
            for index, value in zip(indices, values, strict=True)
        ]
        report.add_case(name, predictions=best)
    grid = _agreements(report, model, images, targets)
    for step in steps(model, images, targets):
        found = numbers(step.other, step.usual, "unit")
        report.add_case(step.name, remedy=step.remedy, step=found)
        report.add_figure(step.name, "largest difference", Spread.exact(found["max"]), reach=None)
    if options.device == "cpu" and not options.quick and PEER in grid:
        save_grid(shown, [names[target] for target in targets], grid, PICTURE)
    report.finish()


def pictures() -> tuple[Tensor, Tensor]:
    """Return the batch for the network, (N, 3, 224, 224) in [-1, 1], and for the figure, (N, 224, 224, 3) in [0, 1]."""
    from skimage import data

    found = []
    for name in PICTURES:
        picture = getattr(data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture
        pixels = torch.from_numpy(picture.copy()).movedim(-1, 0)[None].float()
        scale = SIZE / min(pixels.shape[2:])
        sides = [round(side * scale) for side in pixels.shape[2:]]
        pixels = F.interpolate(pixels, sides, mode="bilinear", antialias=True)
        top, left = ((side - SIZE) // 2 for side in sides)
        found.append(pixels[:, :, top : top + SIZE, left : left + SIZE])
    batch = torch.cat(found)
    return (batch - 127) / 128, (batch.movedim(1, -1) / 255).clamp(0, 1)


def _agreements(report: Report, model: nn.Module, images: Tensor, targets: list[int]) -> dict[str, Tensor]:
    """Compare every method of every peer in float64 and float32; return the Grad-CAM maps in float32 for the figure."""
    grid: dict[str, Tensor] = {}
    for variant in ("float64", "float32"):
        how = VARIANTS[variant]
        converted, batch = copy.deepcopy(model).to(how.dtype), images.to(how.dtype)
        for peer in PEERS.values():
            if peer.version is None:
                continue
            found: dict[str, Any] = {}
            for method in METHODS:
                if method not in peer.classes:
                    continue
                with peer.opened(converted, LAYER, method, None) as call:
                    theirs = call(batch, targets).cpu()
                raw = BatchGradCam(converted, LAYER, method=peer.cam_method(method)).attribute(
                    batch, target=targets
                )
                ours = peer.preset(raw, images.shape[2:]).cpu()
                found[method] = numbers(ours, theirs, peer.scale)
                if variant == "float32" and method == "grad_cam":
                    grid[peer.name] = theirs
                    if peer.name == PEER:
                        grid[OURS.name] = ours
            case = f"{variant}, {peer.name}"
            report.add_case(case, variant=variant, peer=peer.name, maps=found)
            reach = 1e-5 if peer.scale == "raw" else how.reach
            worst = max(entry["max"] for entry in found.values())
            report.add_figure(case, "largest difference", Spread.exact(worst), reach=reach)
    return grid


class Step(NamedTuple):
    """Two ways to make the same maps that differ in one step."""

    name: str
    remedy: str  #: what bridges the difference
    usual: Tensor  #: (N, 1, H, W) in [0, 1], by pytorch-grad-cam's way
    other: Tensor  #: the same with the other step


def steps(model: nn.Module, images: Tensor, targets: list[int]) -> Iterator[Step]:
    """Compare pytorch-grad-cam's way from raw cams to pictures with others, one step at a time."""
    size = tuple(images.shape[2:])

    def raw(method: Any = "grad_cam", at: str = LAYER, of: nn.Module = model) -> Tensor:
        return BatchGradCam(of, at, method=method).attribute(images, target=targets).cpu()

    def preset(cams: Tensor | list[Tensor]) -> Tensor:
        return torch.from_numpy(to_pytorch_grad_cam(cams, size)).unsqueeze(1)

    def enlarged(maps: Tensor, mode: str = "bilinear") -> Tensor:
        return F.interpolate(maps, size, mode=mode)

    def unit(maps: Tensor) -> Tensor:
        return normalize(maps, "minmax")

    cams, finer = raw(), raw(at=EARLIER)
    positive, usual, both = rectify(cams), preset(cams), preset([cams, finer])
    yield Step(
        "enlarged by the nearest value, Captum's `interpolate` as it is, instead of bilinearly",
        "`to_captum(cams, size)` does the same, `to_pytorch_grad_cam` is bilinear",
        usual,
        unit(enlarged(positive, "nearest")),
    )
    yield Step(
        "no ReLU before min-max",
        "Captum's maps are signed; `to_pytorch_grad_cam` and `to_torchcam` rectify",
        usual,
        unit(enlarged(cams)),
    )
    yield Step(
        "divided by the maximum instead of min-max",
        "the presets take min-max, `functional.normalize` divides by the maximum",
        usual,
        normalize(enlarged(positive), "max"),
    )
    yield Step(
        "scaled to [0, 1] before enlarging only",
        "`to_pytorch_grad_cam` scales twice, `to_torchcam` does not enlarge",
        usual,
        enlarged(unit(positive)),
    )
    yield Step(
        "two layers: the larger value, TorchCAM's `fuse_cams`, instead of the mean",
        "`to_pytorch_grad_cam([cams, …], size)` takes the mean",
        both,
        unit(torch.maximum(*(enlarged(unit(rectify(entry))) for entry in (cams, finer)))),
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
    for label, method, name in (
        ("Grad-CAM++: pytorch-grad-cam's 1e-6", pytorch_grad_cam_method, "grad_cam_plus_plus"),
        ("Grad-CAM++: TorchCAM's, which never divides", torchcam_method, "grad_cam_plus_plus"),
        ("XGrad-CAM: pytorch-grad-cam's 1e-7", pytorch_grad_cam_method, "xgrad_cam"),
        ("XGrad-CAM: TorchCAM's 1e-8", torchcam_method, "xgrad_cam"),
    ):
        yield Step(
            f"{label}, instead of the formula as published",
            f'`method={method.__name__}("{name}")`',
            preset(raw(method(name))),
            preset(raw(name)),
        )


def save_grid(shown: Tensor, titles: list[str], maps: dict[str, Tensor], path: Path) -> None:
    """Draw one row per picture: the picture, each library's map over it, and the difference from pytorch-grad-cam's map.

    Args:
        shown: (N, H, W, 3) in [0, 1].
        titles: of the rows.
        maps: name of a library -> its maps, (N, 1, …), resized and scaled to [0, 1] here.
        path: of the PNG, with 256 colors.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    maps = {name: maps[name] for name in dict.fromkeys((OURS.name, PEER, *maps))}
    differences = (maps[OURS.name] - maps[PEER])[:, 0].abs()
    largest = differences.max().item()
    columns = ["", *maps, f"|difference| of the first\ntwo, white: {largest:.1e}"]
    figure = Figure(figsize=(1.4 * len(columns), 1.45 * len(shown) + 0.2), dpi=90, layout="constrained")
    axes = figure.subplots(len(shown), len(columns))
    for column, name in enumerate(columns):
        axes[0, column].set_title(name, fontsize=7)
    for row, picture in enumerate(shown.numpy()):
        axes[row, 0].set_ylabel(titles[row], fontsize=8)
        axes[row, 0].imshow(picture)
        for axis, theirs in zip(axes[row, 1:], maps.values(), strict=False):
            one = F.interpolate(theirs[row : row + 1].float(), shown.shape[1:3], mode="bilinear")
            axis.imshow(picture)
            axis.imshow(normalize(rectify(one), "minmax")[0, 0].numpy(), cmap="turbo", alpha=0.5)
        axes[row, -1].imshow(differences[row].numpy(), cmap="gray", vmin=0, vmax=largest or 1)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    colors = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colors.save(path, optimize=True)


if __name__ == "__main__":
    main()

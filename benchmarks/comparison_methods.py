"""Grad-CAM of one batch by every library of the comparison: image by image, batched, recorded or not, eager and compiled."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from common import Call, Case, Within
from comparison_architectures import tokens
from models import Network, network
from torch import Tensor

from batchcam_captum import BatchGradCam
from batchcam_captum.attribution.split import split_model
from batchcam_captum.functional import head_cams
from batchcam_captum.interop import to_pytorch_grad_cam
from batchcam_captum.interop.peers import PEERS as LIBRARIES

BARE, AGAIN = "bare forward", "bare forward, again"
OURS, OURS_AT_SIZE = "BatchGradCam", "BatchGradCam, pytorch-grad-cam's maps"
PER_IMAGE, BATCHED = "pytorch-grad-cam, image by image", "pytorch-grad-cam, batched"
CAPTUM, TORCHCAM = "Captum", "TorchCAM"
COMPILED_BARE, COMPILED = "bare forward, compiled", "head_cams, compiled"
PEERS = (PER_IMAGE, BATCHED, CAPTUM, TORCHCAM)
#: Image by image the time grows with their number, and from here on says nothing new.
ONE_BY_ONE_UP_TO = 64

#: timm's name -> the layer. A ViT's class token does not look at the patches after the last block.
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "convnextv2_tiny": "stages.3",
    "vit_small_patch16_224": "blocks.10",
}


@dataclass(frozen=True)
class Compared(Network):
    """A network, and Grad-CAM of its batch by each library."""

    reshape: Callable[[Tensor], Tensor] | None = (
        None  #: for tokens; Captum, which takes none, is shown what it makes
    )

    def batch_grad_cam(self) -> Call:
        """This project: raw maps, as Captum's."""
        grad_cam = BatchGradCam(self.model, self.layer, reshape=self.reshape)
        return lambda: grad_cam.attribute(self.images, target=self.labels)

    def at_image_size(self) -> Call:
        """This project, down to the NumPy maps that pytorch-grad-cam returns."""
        raw = self.batch_grad_cam()
        return lambda: to_pytorch_grad_cam(raw(), self.images.shape[2:])

    @contextmanager
    def by(self, peer: str, rows: int | None = None) -> Iterator[Call]:
        """Another library, on the whole batch or ``rows`` images at a time; what it leaves on the model goes with it."""
        targets = self.labels.tolist()
        step = rows or len(targets)
        layer = next(name for name, module in self.model.named_modules() if module is self.layer)
        with LIBRARIES[peer].opened(self.model, layer, "grad_cam", self.reshape) as call:

            def whole() -> None:
                for first in range(0, len(targets), step):
                    chosen = slice(first, first + step)
                    call(self.images[chosen], targets[chosen])

            yield whole

    @cached_property
    def compiled_cams(self) -> Callable[[], Tensor]:
        """The compiled route, one graph from images to cams; the layer is where ``split_model`` splits."""
        trunk, head = split_model(self.model)

        @torch.compile(fullgraph=True, dynamic=False)
        def cams(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                return head_cams(head, trunk(images), labels, reshape=self.reshape).cams

        return lambda: cams(self.images, self.labels)

    def compiled(self) -> dict[str, Case]:
        """The forward and the cams, each compiled whole."""
        forward = torch.compile(self.model, fullgraph=True, dynamic=False)

        def bare() -> None:
            with torch.no_grad():
                forward(self.images)

        return {COMPILED_BARE: bare, COMPILED: self.compiled_cams}

    def cases(self, *, compiled: bool = False) -> dict[str, Case]:
        """Name -> case, the bare forward twice. Image by image only up to :data:`ONE_BY_ONE_UP_TO` images."""
        found: dict[str, Case] = {
            BARE: self.bare_forward,
            AGAIN: self.bare_forward,
            OURS: self.batch_grad_cam(),
            OURS_AT_SIZE: self.at_image_size(),
            CAPTUM: Within(lambda: self.by("Captum")),
            TORCHCAM: Within(lambda: self.by("TorchCAM")),
            BATCHED: Within(lambda: self.by("pytorch-grad-cam")),
        }
        if len(self.images) <= ONE_BY_ONE_UP_TO:
            found[PER_IMAGE] = Within(lambda: self.by("pytorch-grad-cam", 1))
        return found | self.compiled() if compiled else found


def compared(name: str, batch: int, options: argparse.Namespace, *, size: int = 224) -> Compared:
    """A network of :data:`LAYERS` with random weights and a batch for it.

    Args:
        name: timm's.
        batch: N.
        options: ``device``, ``dtype``, ``channels_last``.
        size: height and width of the images.
    """
    made = network(name, batch, options, layer=LAYERS[name], size=size)
    return Compared(**vars(made), reshape=tokens(1) if name.startswith("vit") else None)


def add_variants(made: argparse.ArgumentParser) -> None:
    """Give a script the options of precision, layout and compilation that :func:`suffix` names its result after."""
    made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    made.add_argument("--tf32", action="store_true", help="let the GPU round float32 to TF32")
    made.add_argument("--channels-last", action="store_true", help="the images and the model in that layout")
    made.add_argument("--compiled", action="store_true", help="the compiled route as well")


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may round float32 products and convolutions to TF32; PyTorch's default is convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def suffix(options: argparse.Namespace) -> str:
    """What the files of other precisions, layouts and routes have after the benchmark's name."""
    parts = [options.dtype] * (options.dtype != "float32") + ["tf32"] * options.tf32
    parts += ["channels-last"] * options.channels_last + ["compiled"] * getattr(options, "compiled", False)
    return "".join(f"-{part}" for part in parts)

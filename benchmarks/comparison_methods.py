"""Grad-CAM of one batch by every library of the comparison: image by image, batched, recorded or not, eager and compiled."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from common import Call, Case, Within
from models import Network, network
from torch import Tensor

from batchcam_captum import BatchGradCam
from batchcam_captum.attribution.split import split_model
from batchcam_captum.functional import head_cams
from batchcam_captum.interop import to_pytorch_grad_cam

BARE, AGAIN = "bare forward", "bare forward, again"
OURS, OURS_AT_SIZE = "BatchGradCam", "BatchGradCam, pytorch-grad-cam's maps"
PER_IMAGE, BATCHED = "pytorch-grad-cam, image by image", "pytorch-grad-cam, batched"
CAPTUM, TORCHCAM = "Captum", "TorchCAM"
COMPILED_BARE, COMPILED = "bare forward, compiled", "head_cams, compiled"
PEERS = (PER_IMAGE, BATCHED, CAPTUM, TORCHCAM)

#: timm's name -> the layer. A ViT's class token does not look at the patches after the last block.
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "convnextv2_tiny": "stages.3",
    "vit_small_patch16_224": "blocks.10",
}


def grid_of(tokens: Tensor) -> Tensor:
    """(N, 1 + 14 · 14, C) -> (N, C, 14, 14), for the peers that take a function."""
    patches = tokens[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.unflatten(1, (side, side)).movedim(-1, 1)


@dataclass(frozen=True)
class Compared(Network):
    """A network, and Grad-CAM of its batch by each library."""

    reshape: Callable[[Tensor], Tensor] | None = (
        None  #: for tokens; Captum knows none, and takes them as they are
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
    def pytorch_grad_cam(self, rows: int | None = None) -> Iterator[Call]:
        """Batched, or ``rows`` images at a time."""
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        targets = [ClassifierOutputTarget(label) for label in self.labels.tolist()]
        step = rows or len(targets)

        def call() -> None:
            for first in range(0, len(targets), step):
                chosen = slice(first, first + step)
                cam(input_tensor=self.images[chosen], targets=targets[chosen])

        with GradCAM(model=self.model, target_layers=[self.layer], reshape_transform=self.reshape) as cam:
            yield call
        self.model.zero_grad(set_to_none=True)  # it leaves gradients behind

    @contextmanager
    def torchcam(self) -> Iterator[Call]:
        """The forward belongs to the user there, and to the time here."""
        from torchcam.methods import GradCAM

        classes = self.labels.tolist()
        with GradCAM(self.model, self.layer, reshape_transform=self.reshape) as extractor:
            yield lambda: extractor(classes, self.model(self.images))

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
        """Name -> case, the bare forward twice."""
        found: dict[str, Case] = {
            BARE: self.bare_forward,
            AGAIN: self.bare_forward,
            OURS: self.batch_grad_cam(),
            OURS_AT_SIZE: self.at_image_size(),
            CAPTUM: self.captum(),
            TORCHCAM: Within(self.torchcam),
            BATCHED: Within(self.pytorch_grad_cam),
            PER_IMAGE: Within(lambda: self.pytorch_grad_cam(1)),
        }
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
    return Compared(**vars(made), reshape=grid_of if name.startswith("vit") else None)


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may round float32 products and convolutions to TF32; PyTorch's default is convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def suffix(options: argparse.Namespace) -> str:
    """What the files of other precisions, layouts and routes have after the benchmark's name."""
    parts = [options.dtype] * (options.dtype != "float32") + ["tf32"] * options.tf32
    parts += ["channels-last"] * options.channels_last + ["compiled"] * getattr(options, "compiled", False)
    return "".join(f"-{part}" for part in parts)

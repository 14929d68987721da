"""The networks of the benchmarks, and Grad-CAM of them by each library, as its own documentation says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from common import Call, Case, Within
from torch import Tensor, nn

from batchcam_captum import BatchGradCam

#: timm's name -> its last stage.
LAST_STAGE = {"resnet18": "layer4", "resnet50": "layer4", "convnextv2_tiny": "stages.3"}
SIZE = 224
CLASSES = 1000


@dataclass(frozen=True)
class Network:
    """A model in eval mode, a batch for it, and the layer that is explained."""

    model: nn.Module
    layer: nn.Module
    images: Tensor  #: (N, 3, 224, 224)
    labels: Tensor  #: (N,), integers

    def bare_forward(self) -> None:
        """What nobody can do without: the scores."""
        with torch.no_grad():
            self.model(self.images)

    def batch_grad_cam(self) -> Call:
        """This project."""
        grad_cam = BatchGradCam(self.model, self.layer)
        return lambda: grad_cam.attribute(self.images, target=self.labels)

    def captum(self) -> Call:
        """Captum's LayerGradCam."""
        grad_cam = LayerGradCam(self.model, self.layer)
        return lambda: grad_cam.attribute(self.images, target=self.labels)

    @contextmanager
    def pytorch_grad_cam(self) -> Iterator[Call]:
        """A whole batch at once, one target an image."""
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        targets = [ClassifierOutputTarget(label) for label in self.labels.tolist()]
        with GradCAM(model=self.model, target_layers=[self.layer]) as cam:
            yield lambda: cam(input_tensor=self.images, targets=targets)
        self.model.zero_grad(set_to_none=True)  # it leaves gradients behind

    @contextmanager
    def torchcam(self) -> Iterator[Call]:
        """The forward belongs to the user there, and to the time here."""
        from torchcam.methods import GradCAM

        classes = self.labels.tolist()
        with GradCAM(self.model, self.layer) as extractor:
            yield lambda: extractor(classes, self.model(self.images))

    def methods(self, *, peers: bool = True) -> dict[str, Case]:
        """Name -> case: the bare forward (twice, for the noise), this project, Captum, and the other peers."""
        found: dict[str, Case] = {
            "bare forward": self.bare_forward,
            "bare forward, again": self.bare_forward,
            "BatchGradCam": self.batch_grad_cam(),
            "Captum": self.captum(),
        }
        if peers:
            found |= {
                "pytorch-grad-cam": Within(self.pytorch_grad_cam),
                "TorchCAM": Within(self.torchcam),
            }
        return found


def network(
    name: str, batch: int, options: argparse.Namespace, *, layer: str | None = None, size: int = SIZE
) -> Network:
    """A network with random weights: times do not depend on them.

    Args:
        name: timm's, or ``"torchvision/"`` and torchvision's.
        batch: N.
        options: ``device``; ``dtype`` and ``channels_last`` where the script has them.
        layer: name of the explained layer; None: the last stage.
        size: height and width of the images.
    """
    torch.manual_seed(0)
    dtype = getattr(torch, getattr(options, "dtype", "float32"))
    channels_last = getattr(options, "channels_last", False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    source, _, short = name.rpartition("/")
    made = torchvision.models.get_model(short) if source else timm.create_model(name, num_classes=CLASSES)
    model = made.eval().to(device=options.device, dtype=dtype, memory_format=layout)
    images = torch.randn(batch, 3, size, size).to(device=options.device, dtype=dtype, memory_format=layout)
    labels = (torch.arange(batch) * 37 % CLASSES).to(options.device)
    return Network(model, model.get_submodule(layer or LAST_STAGE[name]), images, labels)

"""The networks of the agreement study: one entry an architecture, with random weights and maps that do not vanish.

The layer is the whole last stage but one, so that a stage of the architecture's own kind lies between it and the scores; in
networks without stages it is all of the features, in flat transformers the first norm of the last block but one, and in ResNet-50
the last stage, which most examples take. No layer was chosen for what it gives. Small images where the architecture takes them.
No downloads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CLASSES = 10
SEED = 0


def tokens(prefix: int) -> Callable[[Tensor], Tensor]:
    """A function (N, prefix + side², C) -> (N, C, side, side), as pytorch-grad-cam's examples have it."""

    def reshape(sequence: Tensor) -> Tensor:
        patches = sequence[:, prefix:]
        side = round(patches.shape[1] ** 0.5)
        return patches.unflatten(1, (side, side)).movedim(-1, 1)

    return reshape


def channels_first(activations: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, C, h, w)."""
    return activations.movedim(-1, 1)


@dataclass(frozen=True)
class Architecture:
    """How a network is made, and what is explained."""

    source: str  #: "timm" or "torchvision"
    model: str
    layer: str
    size: int = 64  #: of the images, in pixels a side
    kwargs: dict[str, Any] = field(default_factory=dict)
    reshape: Callable[[Tensor], Tensor] | None = None
    seed: int = SEED  #: of the weights


def _timm(model: str, layer: str, size: int = 64, **given: Any) -> Architecture:
    return Architecture("timm", model, layer, size, **given)


def _torchvision(model: str, layer: str, size: int = 64, **given: Any) -> Architecture:
    return Architecture("torchvision", model, layer, size, **given)


#: A transformer of timm takes its image size as an argument. Its layer is a norm within a block: the gradient on the way around
#: the blocks ends in a norm, has a mean of zero over the embedding, and would say less. Small layer scales are set to one.
SMALL = {"img_size": 64}
ARCHITECTURES = {
    "VGG-11-BN": _torchvision("vgg11_bn", "features", 96),
    "AlexNet": _torchvision("alexnet", "features", 128),
    "ResNet-18": _timm("resnet18", "layer3"),
    "ResNet-50": _torchvision("resnet50", "layer4", 128),
    "ResNeXt-50": _torchvision("resnext50_32x4d", "layer3"),
    "Wide ResNet-50": _torchvision("wide_resnet50_2", "layer3"),
    "SE-ResNet-18": _timm("seresnet18", "layer3"),
    "DenseNet-121": _torchvision("densenet121", "features.denseblock3"),
    "MobileNetV2": _torchvision("mobilenet_v2", "features.13"),
    "MobileNetV3": _torchvision("mobilenet_v3_small", "features.8"),
    "EfficientNet-B0": _timm("efficientnet_b0", "blocks.5", 128),
    "EfficientNetV2-S": _torchvision("efficientnet_v2_s", "features.5"),
    "MNASNet": _torchvision("mnasnet0_5", "layers.12", 128),
    "RegNet-X": _torchvision("regnet_x_400mf", "trunk_output.block3"),
    "RegNet-Y": _timm("regnety_002", "s3"),
    "ConvNeXt": _timm("convnext_atto", "stages.2", kwargs={"ls_init_value": 1.0}),
    "ConvNeXt-V2": _timm("convnextv2_atto", "stages.2"),
    "Inception-v3": _timm("inception_v3", "Mixed_6e", 107),
    "GoogLeNet": _torchvision(
        "googlenet", "inception4e", kwargs={"aux_logits": False, "init_weights": False}
    ),
    "ShuffleNetV2": _torchvision("shufflenet_v2_x0_5", "stage3"),
    "SqueezeNet": _torchvision("squeezenet1_1", "features"),
    "GhostNet": _timm("ghostnet_050", "blocks.6"),
    "ViT-Ti": _timm(
        "vit_tiny_patch16_224", "blocks.10.norm1", 96, kwargs={"img_size": 96}, reshape=tokens(1)
    ),
    "DeiT-Ti": _timm(
        "deit_tiny_patch16_224", "blocks.10.norm1", 96, kwargs={"img_size": 96}, reshape=tokens(1), seed=1
    ),  # of one seed it would be the ViT above once more
    "DeiT-Ti, distilled": _timm(
        "deit_tiny_distilled_patch16_224", "blocks.10.norm1", 96, kwargs={"img_size": 96}, reshape=tokens(2)
    ),
    "Swin-T": _timm("swin_tiny_patch4_window7_224", "layers.2", kwargs=SMALL, reshape=channels_first),
    "Swin-V2-T": _timm("swinv2_tiny_window8_256", "layers.2", kwargs=SMALL, reshape=channels_first),
    "PVT-v2-B0": _timm("pvt_v2_b0", "stages.2"),
    "CoAtNet": _timm("test_coatnet", "stages.2", kwargs=SMALL),
    "MaxViT": _timm("test_maxvit", "stages.2", kwargs=SMALL),
    "PoolFormer-v2": _timm("poolformerv2_s12", "stages.2"),
    "MobileViT": _timm("mobilevit_xxs", "stages.3"),
}


def built(name: str) -> nn.Module:
    """A network of :data:`ARCHITECTURES` in float32 and eval mode, with strong heads and living BatchNorms."""
    entry = ARCHITECTURES[name]
    torch.manual_seed(entry.seed)
    if entry.source == "timm":
        model = timm.create_model(entry.model, num_classes=CLASSES, **entry.kwargs).eval()
    else:
        model = torchvision.models.get_model(entry.model, num_classes=CLASSES, **entry.kwargs).eval()
    _enliven(model, torch.randn(8, 3, entry.size, entry.size))
    return model


def images_for(name: str, count: int) -> Tensor:
    """(count, 3, size, size), float32: noise that is correlated over places, as pictures are."""
    size = ARCHITECTURES[name].size
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(SEED + 1))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


def converted(model: nn.Module, dtype: torch.dtype, device: str, *, channels_last: bool = False) -> nn.Module:
    """A copy of a model in another precision, place and layout."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    return copy.deepcopy(model).to(device=device, dtype=dtype, memory_format=layout)


@torch.no_grad()
def _enliven(model: nn.Module, images: Tensor) -> None:
    """Large weights in the head, no factors of zero, and BatchNorms with the statistics of some images.

    With those they start with, 0 and 1, the activations of deep networks vanish or explode. Some residual branches and response
    norms begin at zero, and would not be there.
    """
    for head in _heads(model):
        nn.init.normal_(head.weight, std=1.0)
    for key, parameter in model.named_parameters():
        if key.endswith("weight") and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _heads(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """Where the scores come from: the classifier that timm names, or else the last layer with weights."""
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()
        parts = classifier if isinstance(classifier, tuple | list) else [classifier]
        return [m for part in parts for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]

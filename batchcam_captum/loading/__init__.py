"""Load models, checkpoints and images by name, and find layers and devices.

timm, torchvision, Pillow and safetensors are imported where they are used.
"""

from .checkpoints import load_checkpoint
from .devices import check_device, check_dtype
from .images import LoadedImages, Preprocessing, load_images, load_packaged_images, read_image
from .layers import FoundLayer, find_layer
from .models import load_model, preprocessing, source_of

__all__ = [
    "FoundLayer",
    "LoadedImages",
    "Preprocessing",
    "check_device",
    "check_dtype",
    "find_layer",
    "load_checkpoint",
    "load_images",
    "load_model",
    "load_packaged_images",
    "preprocessing",
    "read_image",
    "source_of",
]

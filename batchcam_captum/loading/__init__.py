"""From what a user names to what a command works with: models, checkpoints, layers, images, devices.

Libraries that only some of it needs (timm, torchvision, Pillow, safetensors) are imported where they are used.
"""

from .checkpoints import load_checkpoint
from .devices import check_device, check_dtype
from .images import LoadedImages, Preprocessing, load_images, load_packaged_images, read_image
from .layers import FoundLayer, find_layer
from .models import load_model, source_of
from .preprocessing import preprocessing

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

"""Data sets with a planted shortcut, and the mask of where it is.

:func:`decoy`, :func:`color` and :func:`watermark` plant it in tensors, :class:`ShortcutDataset` in a data set in memory. The
named classes read MNIST and Fashion-MNIST through torchvision, which is imported only then.
"""

from .mnist import ColorMNIST, DecoyFashionMNIST, DecoyMNIST, WatermarkFashionMNIST, WatermarkMNIST
from .shortcut_dataset import Shortcut, ShortcutDataset
from .shortcuts import DECOY_SIDES, class_colors, color, decoy, watermark, watermark_glyphs

__all__ = [
    "DECOY_SIDES",
    "ColorMNIST",
    "DecoyFashionMNIST",
    "DecoyMNIST",
    "Shortcut",
    "ShortcutDataset",
    "WatermarkFashionMNIST",
    "WatermarkMNIST",
    "class_colors",
    "color",
    "decoy",
    "watermark",
    "watermark_glyphs",
]

"""Data sets with a shortcut, each with the mask of where it is.

:func:`decoy`, :func:`color` and :func:`watermark` put it into tensors; :class:`ShortcutDataset` wraps a data set in memory;
the named classes load MNIST and Fashion-MNIST through torchvision, which is imported only there.
"""

from .color import class_colors, color
from .decoy import DECOY_SIDES, decoy
from .named import ColorMNIST, DecoyFashionMNIST, DecoyMNIST, WatermarkFashionMNIST, WatermarkMNIST
from .shortcut import Shortcut, ShortcutDataset
from .watermark import watermark, watermark_glyphs

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

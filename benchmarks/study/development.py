"""A shortcut to develop with, so that those that are reported stay unseen until the recipe is fixed."""

from __future__ import annotations

import torch
from torch import Tensor

_ARM = 2  #: pixels from the centre of a mark to each of its corners


def development_mark(
    images: Tensor, labels: Tensor, *, train: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Paint a diamond at the middle of a random side; its shade is 0.1 + 0.09 · class in training, of a random class otherwise.

    Like the decoys in kind, and of another form, place and range of shades.

    Args:
        images: (N, 1, H, W) in [0, 1].
        labels: (N,), 0 to 9.
        train: whether the shade goes with the label.
        generator: of the draws.

    Returns:
        Images (N, 1, H, W), and masks of the mark (N, 1, H, W), booleans.
    """
    count, height, width = len(images), *images.shape[2:]
    classes = labels if train else torch.randint(10, (count,), generator=generator)
    near, far = _ARM, (height - 1 - _ARM, width - 1 - _ARM)
    centres = torch.tensor(
        [[near, width // 2], [far[0], width // 2], [height // 2, near], [height // 2, far[1]]]
    )
    rows, columns = centres[torch.randint(4, (count,), generator=generator)].unbind(1)
    marked, masks = images.clone(), torch.zeros(images.shape, dtype=torch.bool)
    samples = torch.arange(count)
    for down in range(-_ARM, _ARM + 1):
        for right in range(abs(down) - _ARM, _ARM - abs(down) + 1):
            masks[samples, 0, rows + down, columns + right] = True
    shades = (0.1 + 0.09 * classes).reshape(-1, 1, 1, 1).expand_as(images)
    marked[masks] = shades[masks].to(images.dtype)
    return marked, masks

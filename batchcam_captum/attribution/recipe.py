"""From a layer's activations and gradients to its map: the layout, then the weighting."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..functional import CamMethod, apply_method


class CamOf:
    """Makes maps of one tensor of activations.

    Args:
        activations: as the layer returned them.
        method: the weighting.
        reshape: brings activations, and gradients alike, to (N, C, *spatial).
    """

    def __init__(self, activations: Tensor, method: CamMethod, reshape: Callable[[Tensor], Tensor]) -> None:
        self.method = method
        self.reshape = reshape
        self.activations = reshape(activations)

    def __call__(self, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
        """The maps for these gradients, (N, 1, *spatial); each channel's share, (N, C, *spatial), without the sum."""
        return apply_method(self.method, self.activations, self.reshape(gradients), channel_sum=channel_sum)

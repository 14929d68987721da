"""Grad-CAM's channel weights without the gradient at the layer: from behind a pooling, or behind the first linear layer.

Grad-CAM needs of ∂s/∂A nothing but the sum over the places of each channel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ..functional import full_precision
from .pooling import CLONE, Readers, keeps_sums

#: What flattens the places into features; what multiplies features with a matrix: name -> which of its operands the features are;
#: and what autocast puts in between.
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
_PRODUCTS = {"AddmmBackward0": 1, "MmBackward0": 0}
_CAST = "ToCopyBackward0"


class Shortcut(NamedTuple):
    """Where to take the gradient instead of at the layer."""

    end: GradientEdge  #: the output of a pooling over the places, or of a linear layer over places and channels
    #: (C·P, J), the transposed weight of that linear layer, which has P places to read; None for a pooling.
    matrix: Tensor | None = None

    def channel_weights(self, gradients: Tensor, activations: Tensor) -> Tensor:
        """α_k of Grad-CAM (Selvaraju et al. 2017, eq. 1).

        With a linear layer z_j = Σ_kp W_jkp F_kp the sums over the places are Σ_p ∂s/∂F_kp = Σ_j ∂s/∂z_j Σ_p W_jkp: a product
        with a matrix that is P times smaller than W, forward and backward.

        Args:
            gradients: ∂s/∂ of :attr:`end`: (N, C, *smaller) or (N, C), or (N, J).
            activations: A, (N, C, *spatial).

        Returns:
            (N, C, 1, …), float32 (float64 stays).
        """
        gradients = full_precision(gradients)
        channels = activations.shape[1]
        if self.matrix is not None:
            sums = gradients @ full_precision(self.matrix).unflatten(0, (channels, -1)).sum(1).T
        else:
            sums = gradients.flatten(2).sum(2) if gradients.dim() > 2 else gradients
        weights: Tensor = sums / math.prod(activations.shape[2:])
        return weights.reshape(*activations.shape[:2], *[1] * (activations.dim() - 2))


def find_shortcut(scores: Tensor, activations: Tensor) -> Shortcut | None:
    """Look at what reads a layer: nothing but a pooling over the places, or a linear layer over places and channels, or both.

    Args:
        scores: of a graph with the activations in it.
        activations: (N, C, *spatial), as the layer returned them.

    Returns:
        Where to take the gradient; None where it has to be taken at the layer.
    """
    readers = Readers(scores, activations)
    reader = readers.sole()
    pool = reader if reader is not None and keeps_sums(reader, activations.dim()) else None
    view = readers.sole(pool) if pool is not None else reader
    if view is not None and view.name() in _VIEWS:
        sizes = tuple(view._saved_self_sym_sizes)  # type: ignore[attr-defined]
        features = view
        product = readers.sole(view)
        if product is not None and product.name() == _CAST:
            features, product = product, readers.sole(product)
        matrix = None if product is None else _matrix(product, features)
        if (
            product is not None
            and matrix is not None
            and matrix.device == activations.device
            and sizes[:2] == activations.shape[:2]
            and matrix.shape[0] == math.prod(sizes[1:]) > sizes[1]
        ):
            return Shortcut(GradientEdge(product, 0), matrix)
    return None if pool is None else Shortcut(GradientEdge(pool, 0))


def _matrix(product: Node, features: Node) -> Tensor | None:
    """The matrix (I, J), graph attached, that an operator multiplied features (N, I) with; None where it did something else."""
    position = _PRODUCTS.get(product.name())
    if position is None or getattr(product, "_saved_alpha", 1) != 1:
        return None
    saved = product._raw_saved_mat2  # type: ignore[attr-defined]
    if not _reads(product.next_functions[position][0], features) or saved.unpack_hook is not None:
        return None  # what is kept elsewhere, or computed anew, is not fetched twice
    # As the forward used it: where the parameter's data have been exchanged since, this is still the old one.
    matrix: Tensor | None = product._saved_mat2  # type: ignore[attr-defined]
    if matrix is None or not matrix.requires_grad or type(matrix) is not Tensor:
        return None
    # What gathers its parameters for each module may have given this one back already.
    last = sum((size - 1) * stride for size, stride in zip(matrix.shape, matrix.stride(), strict=True))
    needed = (matrix.storage_offset() + last + 1) * matrix.element_size()
    return matrix if matrix.numel() and matrix.untyped_storage().size() >= needed else None


def _reads(node: Node | None, features: Node) -> bool:
    """Whether an operand is the features, and not another factor that they went into."""
    while node is not None and node is not features and node.name() == CLONE:
        node = node.next_functions[0][0]
    return node is features

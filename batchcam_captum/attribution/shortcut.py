"""Grad-CAM's channel weights without the gradient at the layer: from behind a pooling, or behind the first linear layer.

Grad-CAM needs of ∂s/∂A nothing but the sum over the places of each channel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from ..functional import full_precision
from .pooling import Readers, keeps_sums

#: What flattens the places into features, and what multiplies features with a weight: name -> where its two factors come from.
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
_PRODUCTS = {"AddmmBackward0": (1, 2), "MmBackward0": (0, 1)}
_TRANSPOSE, _LEAF = "TBackward0", "torch::autograd::AccumulateGrad"


class Shortcut(NamedTuple):
    """Where to take the gradient instead of at the layer."""

    end: GradientEdge  #: the output of a pooling over the places, or of a linear layer over places and channels
    weight: Tensor | None = None  #: (J, C·P), of that linear layer, which has P places to read

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
        if self.weight is not None:
            sums = gradients @ full_precision(self.weight).unflatten(1, (channels, -1)).sum(2)
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
        product = readers.sole(view)
        weight = None if product is None else _weight(product, view)
        if (
            product is not None
            and weight is not None
            and len(sizes) > 2
            and sizes[:2] == activations.shape[:2]
            and weight.shape[1] == math.prod(sizes[1:]) > sizes[1]
        ):
            return Shortcut(GradientEdge(product, 0), weight)
    return None if pool is None else Shortcut(GradientEdge(pool, 0))


def _weight(product: Node, features: Node) -> Tensor | None:
    """The parameter (J, I) that an operator multiplies features (N, I) with; None where it does something else."""
    first, second = _PRODUCTS.get(product.name(), (None, None))
    if first is None or second is None or getattr(product, "_saved_alpha", 1) != 1:
        return None
    edges = product.next_functions
    transpose = edges[second][0]
    if not _reads(edges[first][0], features) or transpose is None or transpose.name() != _TRANSPOSE:
        return None
    leaf = transpose.next_functions[0][0]
    weight = leaf.variable if leaf is not None and leaf.name() == _LEAF else None  # type: ignore[attr-defined]
    # What gathers its parameters for each module may have given this one back already.
    held = type(weight) is nn.Parameter and weight.untyped_storage().size() >= weight.nbytes
    return weight if held else None


def _reads(node: Node | None, features: Node) -> bool:
    """Whether an operand is the features, and not another factor that they went into."""
    while node is not None and node is not features and node.name() == "CloneBackward0":
        node = node.next_functions[0][0]
    return node is features

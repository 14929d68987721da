"""Take Grad-CAM's gradient after the operator that reads the layer, where it is smaller.

Of the gradient at the layer Grad-CAM needs only the sum over the places of each channel. After a pooling over the places, or
after the first linear layer of a head that flattens them, that sum follows from a much smaller gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ..functional import full_precision
from .graph import walk

_CLONE = "CloneBackward0"  # what an observer's hook leaves in the graph
_MEAN = "MeanBackward1"  # the mean over axes
#: Each entry of the output passes its gradient on to places whose shares add up to 1 (an average), or to one place (a maximum),
#: so the sum over the places is the same after the pooling and before it.
_SUM_KEEPING = ("MaxPool2DWithIndicesBackward0", "AdaptiveAvgPool2DBackward0")
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
#: Products with a matrix -> which of the operands the features are.
_PRODUCTS = {"AddmmBackward0": 1, "MmBackward0": 0}
_CAST = "ToCopyBackward0"  # of autocast


class Readers:
    """Which operators on the way from the activations to the scores read what.

    Args:
        scores: of a graph with the activations in it.
        activations: as the layer returned them.
    """

    def __init__(self, scores: Tensor, activations: Tensor) -> None:
        self._layer = get_gradient_edge(activations)
        self._of: dict[tuple[Node, int], list[Node]] = {}
        for node in walk([scores.grad_fn], stop=[self._layer.node]):
            for following, position in node.next_functions:
                if following is not None:
                    self._of.setdefault((following, position), []).append(node)

    def sole(self, node: Node | None = None) -> Node | None:
        """Return the only reader of an operator's output, or of the layer's; None if there are several. Clones do not count."""
        edge = (self._layer.node, self._layer.output_nr) if node is None else (node, 0)
        while True:
            nodes = self._of.get(edge, [])
            if len(nodes) != 1:
                return None
            (node,) = nodes
            if node.name() != _CLONE:
                return node
            edge = (node, 0)


class Shortcut(NamedTuple):
    """Where to take the gradient instead of at the layer."""

    end: GradientEdge  #: the output of a pooling over the places, or of a linear layer over places and channels
    #: (C·P, J), the transposed weight of that linear layer, which reads P places; None for a pooling.
    matrix: Tensor | None = None

    def channel_weights(self, gradients: Tensor, activations: Tensor) -> Tensor:
        """Compute α_k of Grad-CAM (Selvaraju et al. 2017, eq. 1).

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
    """Find a pooling over the places, or a linear layer over places and channels, that is all that reads the layer.

    Args:
        scores: of a graph with the activations in it.
        activations: (N, C, *spatial), as the layer returned them.

    Returns:
        Where to take the gradient; None if that is at the layer.
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


def averaged_axes(node: Node, dims: int) -> set[int] | None:
    """Return the axes of which an operator takes the mean, of an input with ``dims`` axes; None for other operators."""
    if node.name() != _MEAN:
        return None
    return {_axis(axis, dims) for axis in node._saved_dim}  # type: ignore[attr-defined]


def keeps_sums(node: Node, dims: int) -> bool:
    """Return True for a pooling after which the gradients' sums over the places are the same as before it.

    Args:
        node: the only reader of activations (N, C, *spatial).
        dims: the number of their axes.
    """
    # With three axes they would take the samples for the channels.
    pools_places = node.name() in _SUM_KEEPING and dims == 4
    return pools_places or averaged_axes(node, dims) == set(range(2, dims))


def _axis(axis: int, dims: int) -> int:
    """Return an axis as the graph saved it: negative ones come back as unsigned 64-bit integers."""
    return axis % dims if axis < 2**63 else (axis - 2**64) % dims


def _matrix(product: Node, features: Node) -> Tensor | None:
    """Return the matrix (I, J), graph attached, that multiplied the features (N, I); None if the operator did something else."""
    position = _PRODUCTS.get(product.name())
    if position is None or getattr(product, "_saved_alpha", 1) != 1:
        return None
    saved = product._raw_saved_mat2  # type: ignore[attr-defined]
    if not _reads(product.next_functions[position][0], features) or saved.unpack_hook is not None:
        return None  # a tensor that is stored elsewhere, or computed anew, is not fetched twice
    # As the forward used it: where the parameter's data have been exchanged since, this is still the old one.
    matrix: Tensor | None = product._saved_mat2  # type: ignore[attr-defined]
    if matrix is None or not matrix.requires_grad or type(matrix) is not Tensor:
        return None
    # FSDP may have freed the gathered matrix already.
    last = sum((size - 1) * stride for size, stride in zip(matrix.shape, matrix.stride(), strict=True))
    needed = (matrix.storage_offset() + last + 1) * matrix.element_size()
    return matrix if matrix.numel() and matrix.untyped_storage().size() >= needed else None


def _reads(node: Node | None, features: Node) -> bool:
    """Return True if an operand is the features, and not another factor that they went into."""
    while node is not None and node is not features and node.name() == _CLONE:
        node = node.next_functions[0][0]
    return node is features

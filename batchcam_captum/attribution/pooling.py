"""A pooling over the places as the one thing that reads a layer: from behind it gradients are smaller."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from .graph import walk

#: What a hook that hands a copy on leaves in the graph; the mean over axes.
CLONE, _MEAN = "CloneBackward0", "MeanBackward1"
#: Each number that these return hands its gradient on to places whose shares add up to 1 (an average), or to one place (a
#: maximum), so the sum over the places is the same behind the pooling and before it.
_SUM_KEEPING = ("MaxPool2DWithIndicesBackward0", "AdaptiveAvgPool2DBackward0")


class Readers:
    """Which operators on the way to the scores read what, from the activations on.

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
        """The only one that reads what an operator returns, clones left out; None where several do.

        Args:
            node: the operator; None: the layer.
        """
        edge = (self._layer.node, self._layer.output_nr) if node is None else (node, 0)
        while True:
            nodes = self._of.get(edge, [])
            if len(nodes) != 1:
                return None
            (node,) = nodes
            if node.name() != CLONE:  # the hook hands a clone on
                return node
            edge = (node, 0)


def sole_reader(scores: Tensor, activations: Tensor) -> Node | None:
    """The only operator on the way to the scores that reads the activations, see :meth:`Readers.sole`."""
    return Readers(scores, activations).sole()


def averaged_axes(node: Node, dims: int) -> set[int] | None:
    """The axes of which an operator takes the mean; None for other operators.

    Args:
        node: of the graph.
        dims: how many axes its input has.
    """
    if node.name() != _MEAN:
        return None
    return {_axis(axis, dims) for axis in node._saved_dim}  # type: ignore[attr-defined]


def keeps_sums(node: Node, dims: int) -> bool:
    """Whether the operator is a pooling behind which the gradients' sums over the places are the same as before it.

    Args:
        node: the only reader of activations (N, C, *spatial).
        dims: how many axes they have.
    """
    # With three axes they would take the samples for the channels.
    pools_places = node.name() in _SUM_KEEPING and dims == 4
    return pools_places or averaged_axes(node, dims) == set(range(2, dims))


def _axis(axis: int, dims: int) -> int:
    """An axis as the graph saved it: negative ones come back as unsigned 64-bit numbers."""
    return axis % dims if axis < 2**63 else (axis - 2**64) % dims

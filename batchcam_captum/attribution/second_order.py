"""Whether gradients can be differentiated again, as differentiable maps and losses on maps need: tried once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError

from .graph import edge_of, node_of, walk


def second_order_problem(
    gradients: Sequence[Tensor | None], activations: Sequence[Tensor | GradientEdge]
) -> str | None:
    """Differentiate gradients once more, down to the activations and the weights after them.

    Args:
        gradients: from ``torch.autograd.grad(scores, activations, create_graph=True)``.
        activations: what the gradients were taken with respect to; nothing before them is differentiated.

    Returns:
        What torch says if an operator has no second derivative, such as "derivative for aten::hardsigmoid_backward is not
        implemented"; None if there is none.

    Raises:
        CheckpointError: a checkpointed part cannot be computed again.
    """
    outputs = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
    if not outputs:
        return None
    edges = [edge_of(each) if isinstance(each, Tensor) else each for each in activations]
    ends = [edge for edge in edges if edge is not None]
    nodes = walk(map(node_of, outputs), stop=[edge.node for edge in ends])
    weights = [GradientEdge(node, 0) for node in nodes if hasattr(node, "variable")]
    try:
        torch.autograd.grad(
            outputs,
            [*ends, *weights],
            list(map(torch.ones_like, outputs)),
            retain_graph=True,
            allow_unused=True,
        )
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        return str(error).split("\n")[0].rstrip(".")
    return None


def check_second_order(gradients: Sequence[Tensor | None], activations: Sequence[Tensor]) -> None:
    """Raise if a loss on maps of these gradients could not be differentiated; see ``second_order_problem``.

    Raises:
        RuntimeError: names the operator as torch does.
    """
    problem = second_order_problem(gradients, activations)
    if problem is not None:
        raise RuntimeError(
            f"layer: expected operators with a second derivative after the layer, as differentiable maps and losses on maps "
            f"need, got: {problem}; choose a later layer (batchcam_captum.check(model, layer, inputs) names the nearest that "
            f"works), or replace the operator"
        )

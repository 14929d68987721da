"""Maps of many classes from one forward: their gradients are taken together."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..functional import (
    CONSTANT_GRADIENT_WEIGHTS,
    CamMethod,
    apply_method,
    class_gradients,
    exact_matmul_dtype,
    full_precision,
    get_method,
    no_autocast,
)
from ..warn import warn_user
from .forward import Forward
from .observer import Tensors
from .shortcut import Readers, averaged_axes

#: All classes; the same ones for every sample; or a row of them for each sample.
Classes = None | Sequence[int] | Tensor | Callable[[Tensor], Tensor]


def class_rows(classes: Classes, rows: slice, samples: int) -> Classes:
    """Return the classes of some rows of a batch.

    Raises:
        ValueError: (N, M) classes with another N than the batch.
    """
    if not isinstance(classes, Tensor) or classes.dim() != 2:
        return classes
    if classes.shape[0] != samples:
        raise _wrong_shape(samples, classes)
    return classes[rows]


def select_classes(scores: Any, classes: Classes) -> Tensor:
    """Check the classes, and return them as one tensor.

    Args:
        scores: what the model returned, (N, K).
        classes: in one of the forms that :meth:`BatchGradCam.attribute_classes` takes.

    Returns:
        (N, M) indices in 0 … K−1; expanded, not copied, if every sample has the same.

    Raises:
        ValueError: scores that are not (N, K), or classes that do not fit them.
        TypeError: scores that are no tensor, or classes that are not integers.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"forward_func: expected a tensor of scores (N, K), got {type(scores).__name__}")
    if scores.dim() != 2:
        raise ValueError(
            f"attribute_classes: expected scores (N, K), got {tuple(scores.shape)}; call attribute once per class"
        )
    samples, size = scores.shape
    if callable(classes) and not isinstance(classes, Tensor):
        classes = classes(scores.detach())
    if classes is None:
        return torch.arange(size, device=scores.device).expand(samples, size)
    if not isinstance(classes, Tensor):
        classes = _as_tensor(classes)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"classes: expected integers, got {classes.dtype}; pass class indices")
    if classes.dim() == 1:
        classes = classes.expand(samples, -1)
    if classes.dim() != 2 or classes.shape[0] != samples or not classes.shape[1]:
        raise _wrong_shape(samples, classes)
    classes = classes.to(scores.device, torch.long)
    outside = (classes < -size) | (classes >= size)
    if bool(outside.any()):
        raise ValueError(
            f"classes: expected indices from {-size} to {size - 1}, got {int(classes[outside][0])}; the model returns {size} "
            f"scores"
        )
    return classes.remainder(size)


def _wrong_shape(samples: int, classes: Tensor) -> ValueError:
    return ValueError(
        f"classes: expected M indices, (M,), or a row of them for each sample, ({samples}, M), got shape "
        f"{tuple(classes.shape)}"
    )


def _as_tensor(classes: Any) -> Tensor:
    """Turn a sequence of integers, or an array, into a tensor."""
    if hasattr(classes, "__array__"):
        return torch.as_tensor(classes)
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise TypeError(
            f"classes: expected None, a sequence of integers or a tensor, got {type(classes).__name__}; a single class "
            f"is [{classes}]"
        )
    try:
        indices = [operator.index(entry) for entry in classes if not isinstance(entry, bool)]
    except TypeError:
        indices = []
    if len(indices) != len(classes):
        kinds = sorted({type(entry).__name__ for entry in classes})
        raise TypeError(f"classes: expected integers, got {', '.join(kinds)}; pass class indices")
    return torch.tensor(indices, dtype=torch.long)


@torch.no_grad()
def class_cams(
    forward: Forward,
    scores: Tensor,
    classes: Tensor,
    method: str | CamMethod,
    reshapes: Sequence[tuple[Callable[[Tensor], Tensor], ...]],
    classes_per_chunk: int | None,
) -> list[Tensors]:
    """Return the maps of the classes.

    Args:
        forward: a forward with its graph.
        scores: (N, K), of that graph.
        classes: (N, M), from :func:`select_classes`.
        method: the weighting.
        reshapes: for each tensor of each layer what brings it to (N, C, *spatial).
        classes_per_chunk: how many classes are differentiated together; None chooses.

    Returns:
        For each layer its tensors' maps, (N, M, *spatial), detached.

    Raises:
        RuntimeError: the scores do not depend on the activations.
    """
    method, tensors = get_method(method), forward.tensors
    weights_of = next((each for known, each in CONSTANT_GRADIENT_WEIGHTS.items() if known is method), None)
    if weights_of is not None and len(tensors) == 1 and not forward.hooked:
        pooled = pooled_edge(scores, tensors[0])
        if pooled is not None and _keeps_channels(pooled, tensors[0], reshapes[0][0]):
            activations = reshapes[0][0](tensors[0].detach())
            return [(_pooled_cams(pooled, scores, classes, activations, weights_of, classes_per_chunk),)]
    activations_of = forward.gathered([tensor.detach() for tensor in tensors])
    parts: list[list[list[Tensor]]] = [[[] for _ in row] for row in reshapes]
    for chunk in class_gradients(
        scores,
        classes,
        tensors,
        numbers_per_class=max(tensor.numel() for tensor in tensors),
        chunk_size=classes_per_chunk,
        warn=warn_user,
    ):
        for gradients in zip(*chunk, strict=True):  # one class at a time
            for layer in zip(reshapes, activations_of, forward.gathered(gradients), parts, strict=True):
                for rearrange, activation, gradient, part in zip(*layer, strict=True):
                    part.append(apply_method(method, rearrange(activation), rearrange(gradient)))
    return [tuple(torch.cat(part, dim=1) for part in row) for row in parts]


class PooledEdge(NamedTuple):
    """Where the head's global average pooling ends in the graph."""

    edge: GradientEdge
    places: int  #: how many places it averages
    kept: int  #: the axis beside the samples' that it keeps


def pooled_edge(scores: Tensor, activations: Tensor) -> PooledEdge | None:
    """Find a global average pooling that all paths from the activations to the scores begin with.

    Args:
        scores: of a graph with the activations in it.
        activations: (N, C, *spatial), or another layout with one axis of channels.

    Returns:
        None if something else reads the activations.
    """
    node = Readers(scores, activations).sole()
    averaged = None if node is None else averaged_axes(node, activations.dim())
    if node is None or averaged is None:
        return None
    kept = set(range(1, activations.dim())) - averaged
    if 0 in averaged or len(kept) != 1:
        return None
    places = math.prod(activations.shape[axis] for axis in averaged)
    return PooledEdge(GradientEdge(node, 0), places, *kept)


def _keeps_channels(pooled: PooledEdge, activations: Tensor, rearrange: Callable[[Tensor], Tensor]) -> bool:
    """Return True if the axis that the pooling keeps is the one that the reshape makes the channels."""
    shape = [1] * activations.dim()
    shape[pooled.kept] = channels = activations.shape[pooled.kept]
    numbers = torch.arange(channels, dtype=torch.float)
    found = rearrange(numbers.reshape(shape).expand(activations.shape))
    if found.shape[1] != channels:
        return False
    return torch.equal(found, numbers.reshape(-1, *[1] * (found.dim() - 2)).expand(found.shape))


def _pooled_cams(
    pooled: PooledEdge,
    scores: Tensor,
    classes: Tensor,
    activations: Tensor,
    weights_of: Callable[[Tensor], Tensor],
    classes_per_chunk: int | None,
) -> Tensor:
    """Compute Σ_k w_k A_k as a matrix product for all classes; the gradient is the same at every place."""
    activations = full_precision(activations)
    exact = exact_matmul_dtype(activations)
    by_place = activations.to(exact).flatten(2)
    parts: list[Tensor] = []
    for (chunk,) in class_gradients(
        scores,
        classes,
        [pooled.edge],
        numbers_per_class=activations.shape[0] * activations.shape[1],
        chunk_size=classes_per_chunk,
        warn=warn_user,
    ):
        slopes = full_precision(chunk.reshape(len(chunk), *activations.shape[:2])) / pooled.places
        with no_autocast(slopes):
            weights = weights_of(slopes.flatten(0, 1)).unflatten(0, slopes.shape[:2]).transpose(0, 1)
            maps = weights.to(exact) @ by_place
        parts.append(maps.unflatten(2, activations.shape[2:]).to(activations.dtype))
    return torch.cat(parts, dim=1)

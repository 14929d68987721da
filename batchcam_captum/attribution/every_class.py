"""The maps of many classes from one forward: their gradients are taken together."""

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
    class_gradients,
    exact_matmul_dtype,
    full_precision,
    no_autocast,
)
from ..warn import warn_user
from .engine import Forward, Tensors
from .pooling import averaged_axes, sole_reader
from .recipe import CamOf

#: All classes; the same ones for every sample; or a row of them for each sample.
Classes = None | Sequence[int] | Tensor | Callable[[Tensor], Tensor]
#: (activations, position of their layer) -> what makes maps of them.
CamMaker = Callable[..., CamOf]


def class_rows(classes: Classes, rows: slice, samples: int) -> Classes:
    """Those classes that belong to some rows of a batch.

    Raises:
        ValueError: rows of classes, but not one for each sample.
    """
    if not isinstance(classes, Tensor) or classes.dim() != 2:
        return classes
    if classes.shape[0] != samples:
        raise _wrong_shape(samples, classes)
    return classes[rows]


def select_classes(scores: Any, classes: Classes) -> Tensor:
    """Check the classes, and bring them to one form.

    Args:
        scores: what the model returned, (N, K).
        classes: see :meth:`BatchGradCam.attribute_classes`.

    Returns:
        (N, M) indices in 0 … K−1; expanded, not copied, where every sample has the same.

    Raises:
        ValueError: scores that are not (N, K), or classes that do not fit them.
        TypeError: scores that are no tensor, or classes that are no integers.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"forward_func: expected a tensor of scores (N, K), got {type(scores).__name__}")
    if scores.dim() != 2:
        raise ValueError(
            f"attribute_classes: expected scores (N, K), got {tuple(scores.shape)}; call attribute with a target for "
            f"each class"
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
    """A tensor of a sequence of integers, or of an array."""
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
    forward: Forward, scores: Tensor, classes: Tensor, cam_of: CamMaker, classes_per_chunk: int | None
) -> list[Tensors]:
    """The maps of the classes.

    Args:
        forward: a forward with its graph.
        scores: (N, K), of that graph.
        classes: (N, M), see :func:`select_classes`.
        cam_of: makes maps of a layer's activations.
        classes_per_chunk: how many classes are differentiated together; None chooses.

    Returns:
        For each layer its tensors' maps, (N, M, *spatial), detached.

    Raises:
        RuntimeError: the scores do not depend on the activations.
    """
    tensors = forward.tensors
    makers = [
        [cam_of(activation.detach(), position=position) for activation in row]
        for position, row in enumerate(forward.gathered(tensors))
    ]
    if len(tensors) == 1 and not forward.hooked:
        maker = makers[0][0]
        weights_of = next((w for m, w in CONSTANT_GRADIENT_WEIGHTS.items() if m is maker.method), None)
        pooled = None if weights_of is None else pooled_edge(scores, tensors[0])
        if weights_of and pooled and _keeps_channels(pooled, tensors[0], maker):
            return [(_pooled_cams(pooled, scores, classes, maker, weights_of, classes_per_chunk),)]
    parts: list[list[list[Tensor]]] = [[[] for _ in row] for row in makers]
    for chunk in class_gradients(
        scores,
        classes,
        tensors,
        numbers_per_class=max(tensor.numel() for tensor in tensors),
        chunk_size=classes_per_chunk,
        warn=warn_user,
    ):
        for gradients in zip(*chunk, strict=True):
            for row, of_layer, of_maps in zip(forward.gathered(gradients), makers, parts, strict=True):
                for gradient, maker, part in zip(row, of_layer, of_maps, strict=True):
                    part.append(maker(gradient))
    return [tuple(torch.cat(part, dim=1) for part in row) for row in parts]


class PooledEdge(NamedTuple):
    """Where the head's global average pooling ends in the graph."""

    edge: GradientEdge
    places: int  #: how many places it averages
    kept: int  #: the one axis beside the samples' that it leaves


def pooled_edge(scores: Tensor, activations: Tensor) -> PooledEdge | None:
    """Find a global average pooling that all paths from the activations to the scores begin with.

    Args:
        scores: of a graph with the activations in it.
        activations: (N, C, *spatial), or another layout with one axis of channels.

    Returns:
        None where the activations go anywhere else, or through anything else first.
    """
    node = sole_reader(scores, activations)
    averaged = None if node is None else averaged_axes(node, activations.dim())
    if node is None or averaged is None:
        return None
    kept = set(range(1, activations.dim())) - averaged
    if 0 in averaged or len(kept) != 1:
        return None
    places = math.prod(activations.shape[axis] for axis in averaged)
    return PooledEdge(GradientEdge(node, 0), places, *kept)


def _keeps_channels(pooled: PooledEdge, activations: Tensor, maker: CamOf) -> bool:
    """Whether the axis that the pooling leaves is the one that the reshape makes the channels of."""
    shape = [1] * activations.dim()
    shape[pooled.kept] = channels = activations.shape[pooled.kept]
    numbers = torch.arange(channels, dtype=torch.float)
    found = maker.reshape(numbers.reshape(shape).expand(activations.shape))
    if found.shape[1] != channels:
        return False
    return torch.equal(found, numbers.reshape(-1, *[1] * (found.dim() - 2)).expand(found.shape))


def _pooled_cams(
    pooled: PooledEdge,
    scores: Tensor,
    classes: Tensor,
    maker: CamOf,
    weights_of: Callable[[Tensor], Tensor],
    classes_per_chunk: int | None,
) -> Tensor:
    """Σ_k w_k A_k as a matrix product for all classes; the gradient is the same at every place."""
    shown = full_precision(maker.activations)
    exact = exact_matmul_dtype(shown)
    by_place = shown.to(exact).flatten(2)
    parts: list[Tensor] = []
    for (chunk,) in class_gradients(
        scores,
        classes,
        [pooled.edge],
        numbers_per_class=shown.shape[0] * shown.shape[1],
        chunk_size=classes_per_chunk,
        warn=warn_user,
    ):
        slopes = full_precision(chunk.reshape(len(chunk), *shown.shape[:2])) / pooled.places
        with no_autocast(slopes):
            weights = weights_of(slopes.flatten(0, 1)).unflatten(0, slopes.shape[:2]).transpose(0, 1)
            maps = weights.to(exact) @ by_place
        parts.append(maps.unflatten(2, shown.shape[2:]).to(shown.dtype))
    return torch.cat(parts, dim=1)

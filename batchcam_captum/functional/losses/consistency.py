"""Attention consistency: the cam of a transformed image is the transformed cam of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..distance import l2_distance
from ..maps import peak
from ..precision import full_precision, no_autocast
from ..reduce import Reduction, reduce
from .comparison import check_cams, check_counted, without

TransformName = Literal["hflip", "vflip", "rot90"]
#: (N, 1, *spatial) -> (N, 1, *spatial): what was done to the images, done to maps.
Transform = Callable[[Tensor], Tensor]
ConsistencyNormalization = Literal["max", "none"]

_DIMENSIONS = {"hflip": 1, "vflip": 2, "rot90": 2}


def consistency_loss(
    cams: Tensor,
    *,
    transform: TransformName | Transform = "hflip",
    normalization: ConsistencyNormalization = "max",
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Attention consistency: the cam of a transformed image is to be the transformed cam of the image.

    .. math:: \mathrm{mean}\, \left(C(Tx) - T\, C(x)\right)^2

    (Guo et al. 2019, "Visual Attention Consistency under Image Transforms", whose batch, too, holds both views. That each cam is
    divided by its largest absolute value is ours: without it the loss falls as the cams shrink.) The signed cams are compared, so
    a dead cam learns like any other. In [0, 4] with ``normalization="max"``; two all-zero cams give 0.

    Args:
        cams: C, (2N, 1, *spatial), raw and signed: of the N images, then of the same images transformed, in the same order.
        transform: T, ``"hflip"`` (the last dimension reversed), ``"vflip"`` (the last but one), ``"rot90"`` (as
            ``torch.rot90(images, 1, (-2, -1))``), or a callable (N, 1, *spatial) -> (N, 1, *spatial) on maps.
        normalization: ``"max"``, or ``"none"`` for the raw cams.
        reduction: over the pairs.
        counted: (2N,) booleans; a pair counts if both of its views do. Default: all.
        sample_weights: (2N,), at least 0; a pair has the lower weight of its views. Default: all alike.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,), one number a pair, for ``reduction="none"``. An empty batch gives a zero that is connected to the
        graph.

    Raises:
        ValueError: an odd number of cams, an unknown transform, or one that changes the maps' shape.
        TypeError: cams that are not floating.
    """
    check_cams(cams)
    check_transform(transform)
    check_consistency_normalization(normalization)
    if cams.shape[0] % 2:
        raise ValueError(
            f"cams: expected an even number, those of the images and then those of the transformed images, got {cams.shape[0]}; "
            f"pass torch.cat([images, transformed]) to the model, and the labels twice"
        )
    counted = check_counted(cams, counted, sample_weights, checks)
    both = torch.stack(counted.chunk(2)).all(0)
    with no_autocast(cams):
        signed = without(full_precision(cams), both.repeat(2))
        if normalization == "max":
            signed = _over_peak(signed)
        plain, transformed = signed.chunk(2)
        expected = _transformed(plain, transform)
        if expected.shape != transformed.shape:
            raise ValueError(
                f"transform: expected maps of the shape of those of the second view {tuple(transformed.shape)}, got "
                f"{tuple(expected.shape)}; turn square images only, or pass a callable that keeps the shape"
            )
        weights = None if sample_weights is None else torch.stack(sample_weights.chunk(2)).amin(0)
        return reduce(l2_distance(transformed, expected), reduction, both, weights)


def check_transform(transform: TransformName | Transform) -> None:
    """Raise a ``ValueError`` unless the transform is known, or a callable."""
    if not callable(transform) and transform not in get_args(TransformName):
        raise ValueError(
            f"transform: expected 'hflip', 'vflip', 'rot90' or a callable on maps, got {transform!r}"
        )


def check_consistency_normalization(normalization: str) -> None:
    """Raise a ``ValueError`` unless ``normalization`` is one of the known ones."""
    if normalization not in get_args(ConsistencyNormalization):
        raise ValueError(f"normalization: expected 'max' or 'none', got {normalization!r}")


def _transformed(maps: Tensor, transform: TransformName | Transform) -> Tensor:
    if callable(transform):
        return transform(maps)
    if maps.dim() - 2 < _DIMENSIONS[transform]:
        raise ValueError(
            f"transform: expected cams with at least {_DIMENSIONS[transform]} spatial dimensions for {transform!r}, got "
            f"{tuple(maps.shape)}"
        )
    if transform == "rot90":
        return maps.rot90(1, (-2, -1))
    return maps.flip(-1 if transform == "hflip" else -2)


def _over_peak(cams: Tensor) -> Tensor:
    """C / max |C|; zero, with a zero gradient, where there is nothing to divide by."""
    scale = peak(cams)
    zero = scale.detach() < torch.finfo(cams.dtype).tiny
    return cams.masked_fill(zero, 0) / scale.masked_fill(zero, 1)

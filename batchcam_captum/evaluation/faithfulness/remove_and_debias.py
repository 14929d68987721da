"""ROAD: the target's score after the most, and after the least important pixels are replaced by their surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...attribution.chunks import row_chunks
from ...functional import pixel_ranks
from ...functional.metrics.common import is_number
from .imputation import linear_imputation
from .scoring import (
    Model,
    Score,
    Targets,
    TargetScores,
    check_common,
    check_number,
    finite,
    heatmaps,
    measuring,
)

#: The shares that are removed where nothing else is said.
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class RoadScores(NamedTuple):
    """What :func:`road` returns."""

    combined: Tensor  #: (N,), the mean over the percentiles of (lerf − morf) / 2; larger is better
    morf: Tensor  #: (N, L), the score with the most relevant pixels removed first; smaller is better
    lerf: Tensor  #: (N, L), the score with the least relevant pixels removed first; larger is better
    percentiles: tuple[float, ...]  #: L, how many per cent of the pixels are removed


def check_road_options(
    percentiles: object, noise: float, score: str, batch_size: int, seed: int
) -> tuple[float, ...]:
    """Check the options of :func:`road`, and give the percentiles.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.
    """
    if not isinstance(percentiles, Sequence) or isinstance(percentiles, str):
        raise TypeError(
            f"percentiles: expected numbers between 0 and 100, got {percentiles!r}; pass a list, such as [20, 50, 80]"
        )
    if not percentiles or not all(
        is_number(percentile) and 0 < percentile < 100 for percentile in percentiles
    ):
        raise ValueError(f"percentiles: expected numbers between 0 and 100, got {tuple(percentiles)}")
    check_number("noise", noise, zero=True)
    check_common(score, batch_size, seed)
    return tuple(percentiles)


def road(
    model: Model,
    images: Tensor,
    cams: Tensor,
    targets: Targets,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = 0.01,
    score: Score = "probability",
    batch_size: int = 256,
    seed: int = 0,
) -> RoadScores:
    """Remove and debias: replace the most and the least important pixels by their surroundings, and compare the target's scores.

    Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods". A hole has a shape, and the
    shape alone may tell the class; a pixel that is replaced by the mean of its neighbours, with a little noise, leaves none. Most
    relevant first (MoRF) and least relevant first (LeRF) then agree, and their difference is the measure, as in
    ``pytorch_grad_cam.metrics.road.ROADCombined``.

    It is computed here, not there: that solves a sparse system an image on the CPU, draws from the global random state, and
    removes the whole image where more than the percentile of the pixels are equal, as in a rectified cam.

    The model runs ``2 · len(percentiles)`` times a batch, in the mode it is in; nothing of it changes.

    Args:
        model: images (N, C, H, W) -> scores (N, K) before any softmax.
        images: (N, C, H, W), as the model takes them.
        cams: (N, 1, h, w), signed, of any size; resized bilinearly to the images.
        targets: class indices, one for all or one an image.
        percentiles: how many per cent of the pixels are removed, each more than 0 and less than 100. pytorch-grad-cam's
            percentile says what is kept: 90 there is 10 here.
        noise: standard deviation of what is added to the replaced pixels, in the units of the images.
        score: ``"probability"``, the softmax's; or ``"logit"``, which has no bounds.
        batch_size: how many images go through the model at a time; bounds the memory.
        seed: of the noise, and of the order of pixels of equal value, both of which all images share: the value of a map with
            many ties, such as an all-zero one, moves with the seed, and more images do not average that out. Take several seeds
            to see by how much.

    Returns:
        The combined scores (N,), in [−0.5, 0.5] for probabilities; **larger is better**. An all-zero cam, or one that is dead
        and rectified, gets what a random order of pixels gets, 0 on average.

    Raises:
        TypeError: images, cams or targets of a wrong kind.
        ValueError: shapes, targets or options that do not fit; cams that are not finite; scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    percentiles = check_road_options(percentiles, noise, score, batch_size, seed)
    maps = heatmaps(images, cams)
    if images.dim() != 4:
        raise ValueError(
            f"images: expected (N, C, H, W), got {tuple(images.shape)}; the surroundings of a pixel are defined for two "
            f"dimensions, use insertion and deletion"
        )
    scores = TargetScores(model, targets, images, score)
    pixels = images.shape[2:].numel()
    counts = [min(max(round(percentile * pixels / 100), 1), pixels - 1) for percentile in percentiles]
    # Drawn on the CPU, once for all images: the same on every device, and in whatever batches the images come.
    patterns = noise * torch.randn(
        2, len(counts), 1, *images.shape[1:], generator=torch.Generator().manual_seed(seed)
    )
    patterns = patterns.to(maps)
    values = maps.new_zeros(2, len(images), len(counts))
    with measuring(model, images):
        for rows in row_chunks(len(images), batch_size):
            if rows.start == rows.stop:
                continue
            present = images[rows]
            ranks = pixel_ranks(maps[rows], seed=seed).reshape(-1, 1, *images.shape[2:])
            for level, count in enumerate(counts):
                for order, removed in enumerate((ranks < count, ranks >= pixels - count)):
                    imputed = linear_imputation(present, removed) + removed * patterns[order, level]
                    values[order, rows, level] = scores(imputed.to(images.dtype), rows).to(values.dtype)
    morf, lerf = finite(values, "road")
    return RoadScores(((lerf - morf) / 2).mean(1), morf, lerf, percentiles)

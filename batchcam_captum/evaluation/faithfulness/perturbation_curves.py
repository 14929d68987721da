"""Insertion and deletion: how the target's score follows when pixels come or go in the order of a cam."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...attribution.chunks import row_chunks
from ...functional import area_under_curve, pixel_ranks
from ...functional.metrics.common import check_whole
from .fills import Fill, check_fill, filled_images
from .scoring import (
    Model,
    Score,
    Targets,
    TargetScores,
    check_common,
    finite,
    heatmaps,
    measuring,
)


class PerturbationCurves(NamedTuple):
    """What insertion and deletion return."""

    auc: Tensor  #: (N,), the area under each curve over the share of pixels, by the trapezoidal rule
    curves: Tensor  #: (N, steps + 1), the target's score after each step
    fractions: Tensor  #: (steps + 1,), the share of pixels inserted or deleted, from 0 to 1


#: As many as there are rows in MNIST; a step of 28 × 28 pixels then is a row's worth.
_STEPS = 28


def check_curve_options(
    steps: int | None, name: str, fill: object, score: str, batch_size: int, seed: int
) -> None:
    """Check the options of both curves, as far as they do not depend on the images.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.
    """
    if steps is not None:
        check_whole("steps", steps, 1)
    check_fill(name, fill)
    check_common(score, batch_size, seed)


def insertion_curve(
    model: Model,
    images: Tensor,
    cams: Tensor,
    targets: Targets,
    *,
    steps: int | None = None,
    start: Fill | Tensor = "blur",
    score: Score = "probability",
    batch_size: int = 256,
    seed: int = 0,
) -> PerturbationCurves:
    """Put the pixels back into a blurred image, the most important first, and follow the target's probability.

    Petsiuk, Das and Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models". A high
    area says that the cam's strongest pixels are enough for the model. It says nothing where the model is sure of the start
    already: look at the curves.

    The curve depends on the model's confidence, too, so between two models it compares models and maps together. The model runs
    ``steps + 1`` times a batch, in the mode it is in; nothing of it changes.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax.
        images: (N, C, *spatial), as the model takes them, with 1 to 3 spatial dimensions.
        cams: (N, 1, *spatial), signed, of any size; resized linearly to the images. The sign counts: pass ``rectify(cams)`` to
            have only what the relu keeps put in order.
        targets: class indices, one for all or one an image.
        steps: in how many equal parts the pixels are inserted. Default: 28, or as many as there are pixels.
        start: what there is at first, see :func:`~batchcam_captum.evaluation.faithfulness.fills.filled_images`. The blur, as in
            the paper, leaves no edges that the first pixels would make.
        score: ``"probability"``, the softmax's, as in the paper; or ``"logit"``, which has no bounds.
        batch_size: how many images go through the model at a time; bounds the memory.
        seed: of the order of pixels of equal value, one order for all images: the value of a map with many ties, such as an
            all-zero one, moves with the seed, and more images do not average that out. Take several seeds to see by how much.

    Returns:
        Areas (N,), in [0, 1] for probabilities; **larger is better**. An all-zero cam, or one that is dead and rectified, gets
        what a random order of pixels gets.

    Raises:
        TypeError: images, cams or targets of a wrong kind.
        ValueError: shapes, targets or options that do not fit; cams that are not finite; scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    check_curve_options(steps, "start", start, score, batch_size, seed)
    return _curves(model, images, cams, targets, steps, start, score, batch_size, seed, insert=True)


def deletion_curve(
    model: Model,
    images: Tensor,
    cams: Tensor,
    targets: Targets,
    *,
    steps: int | None = None,
    fill: Fill | Tensor = "zero",
    score: Score = "probability",
    batch_size: int = 256,
    seed: int = 0,
) -> PerturbationCurves:
    """Remove an image's pixels, the most important first, and follow the target's probability.

    Petsiuk, Das and Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models". A low
    area says that the model needs the cam's strongest pixels. Holes are images that the model has never seen, so a low area
    may also come from a fragile model; :func:`~batchcam_captum.evaluation.faithfulness.road` fills them plausibly.

    Args:
        model: see :func:`insertion_curve`.
        images: see :func:`insertion_curve`.
        cams: see :func:`insertion_curve`.
        targets: see :func:`insertion_curve`.
        steps: in how many equal parts the pixels are removed. Default: 28, or as many as there are pixels.
        fill: what a removed pixel becomes, see :func:`~batchcam_captum.evaluation.faithfulness.fills.filled_images`. Zero, as in
            the paper. On images whose background is zero the removal of background changes nothing.
        score: see :func:`insertion_curve`.
        batch_size: see :func:`insertion_curve`.
        seed: see :func:`insertion_curve`.

    Returns:
        Areas (N,), in [0, 1] for probabilities; **smaller is better**. An all-zero cam, or one that is dead and rectified, gets
        what a random order of pixels gets.

    Raises:
        TypeError: see :func:`insertion_curve`.
        ValueError: see :func:`insertion_curve`.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    check_curve_options(steps, "fill", fill, score, batch_size, seed)
    return _curves(model, images, cams, targets, steps, fill, score, batch_size, seed, insert=False)


def _curves(
    model: Model,
    images: Tensor,
    cams: Tensor,
    targets: Targets,
    steps: int | None,
    fill: Fill | Tensor,
    score: Score,
    batch_size: int,
    seed: int,
    *,
    insert: bool,
) -> PerturbationCurves:
    maps = heatmaps(images, cams)
    pixels = images.shape[2:].numel()
    if steps is None:
        steps = min(_STEPS, pixels)
    if steps > pixels:
        raise ValueError(
            f"steps: expected 1 to {pixels}, the number of pixels, got {steps}; pass fewer steps"
        )
    # Rounded as whole numbers, so that the last step is all of them.
    counts = [(2 * step * pixels + steps) // (2 * steps) for step in range(steps + 1)]
    fractions = torch.tensor(counts, dtype=maps.dtype, device=maps.device) / pixels
    scores = TargetScores(model, targets, images, score)
    curves = maps.new_zeros(len(images), steps + 1)
    with measuring(model, images):
        for rows in row_chunks(len(images), batch_size):
            if rows.start == rows.stop:
                continue
            present = images[rows]
            absent = filled_images(present, fill, "start" if insert else "fill")
            first, then = (absent, present) if insert else (present, absent)
            ranks = pixel_ranks(maps[rows], seed=seed).reshape(-1, 1, *images.shape[2:])
            for step, count in enumerate(counts):
                curves[rows, step] = scores(torch.where(ranks < count, then, first), rows).to(curves.dtype)
    curves = finite(curves, "insertion" if insert else "deletion")
    return PerturbationCurves(area_under_curve(curves, fractions), curves, fractions)

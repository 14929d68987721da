"""Insertion, deletion and ROAD: how the target's score changes when pixels are replaced in the order of a cam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional import area_under_curve, full_precision, pixel_ranks
from ...functional.checks import check_integer, check_number
from ...functional.distance import blur, gaussian_weights
from .scores import Model, Score, Targets, TargetScores, chunks, heatmaps, measuring

#: What replaces a removed pixel, see :func:`filled_images`.
Fill = Literal["zero", "mean", "blur"]

#: With 28 rows of pixels, as in MNIST, a step is one row's worth.
_STEPS = 28
#: Conjugate gradients stop at this size of the residual, relative to the first one; the noise of ROAD is far larger.
_TOLERANCE = 1e-6
#: Reading the residual makes a GPU wait, so it is read every few iterations.
_UNREAD_ITERATIONS = 16


class PerturbationCurves(NamedTuple):
    """The result of :func:`insertion_curve` and :func:`deletion_curve`."""

    auc: Tensor  #: (N,), the area under each curve over the share of pixels, by the trapezoidal rule
    curves: Tensor  #: (N, steps + 1), the target's score after each step
    fractions: Tensor  #: (steps + 1,), the share of pixels inserted or deleted, from 0 to 1


class RoadScores(NamedTuple):
    """The result of :func:`road`."""

    combined: Tensor  #: (N,), the mean over the percentiles of (lerf − morf) / 2; larger is better
    morf: Tensor  #: (N, L), the score with the most relevant pixels removed first; smaller is better
    lerf: Tensor  #: (N, L), the score with the least relevant pixels removed first; larger is better
    percentiles: tuple[float, ...]  #: L, how many percent of the pixels are removed


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
    """Insert the pixels into a blurred image, the most important first, and record the target's probability.

    Petsiuk, Das and Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models". A large area means that
    the cam's strongest pixels suffice for the model. It means nothing where the model is already sure of the start: look at the
    curves. The curve depends on the model's confidence as well, so between two models it compares models and maps together.

    The model runs ``steps + 1`` times per batch, in the mode it is in; nothing of it changes.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax.
        images: (N, C, *spatial), as the model takes them, with 1 to 3 spatial dimensions.
        cams: (N, 1, *spatial), signed, of any size; resized linearly to the images. The sign counts: pass ``rectify(cams)`` to
            rank only what the relu keeps.
        targets: class indices, one for all or one per image.
        steps: number of equal parts in which the pixels are inserted. Default: 28, or the number of pixels if that is less.
        start: the image before the first pixel, see :func:`filled_images`. The blur, as in the paper, has no edges.
        score: ``"probability"``, the softmax's, as in the paper; or ``"logit"``, which has no bounds.
        batch_size: how many images go through the model at a time; bounds the memory.
        seed: of the order of pixels of equal value, one order for all images. The value of a map with many ties, such as an
            all-zero one, depends on the seed, and more images do not average that out: use several seeds to see by how much.

    Returns:
        Areas (N,), in [0, 1] for probabilities; **larger is better**. An all-zero cam, or a dead one that is rectified, gets the
        value of a random order of pixels.

    Raises:
        TypeError: images, cams, targets or options of a wrong kind.
        ValueError: shapes, targets or options that do not fit; images, cams or scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    maps = heatmaps(images, cams)
    first = filled_images(images, start, "start")
    return _curves(
        model, maps, targets, first, images, steps=steps, score=score, batch_size=batch_size, seed=seed
    )


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
    """Remove the pixels of an image, the most important first, and record the target's probability.

    Petsiuk, Das and Saenko 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models". A small area means that
    the model needs the cam's strongest pixels. The model has never seen images with holes, so a small area may also come from a
    fragile model; :func:`road` fills the holes plausibly.

    The model runs ``steps + 1`` times per batch, in the mode it is in; nothing of it changes.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax.
        images: (N, C, *spatial), as the model takes them, with 1 to 3 spatial dimensions.
        cams: (N, 1, *spatial), signed, of any size; resized linearly to the images. The sign counts: pass ``rectify(cams)`` to
            rank only what the relu keeps.
        targets: class indices, one for all or one per image.
        steps: number of equal parts in which the pixels are removed. Default: 28, or the number of pixels if that is less.
        fill: what replaces a removed pixel, see :func:`filled_images`. Zero, as in the paper. Removing a background that
            is zero already changes nothing.
        score: ``"probability"``, the softmax's, as in the paper; or ``"logit"``, which has no bounds.
        batch_size: how many images go through the model at a time; bounds the memory.
        seed: of the order of pixels of equal value, one order for all images. The value of a map with many ties, such as an
            all-zero one, depends on the seed, and more images do not average that out: use several seeds to see by how much.

    Returns:
        Areas (N,), in [0, 1] for probabilities; **smaller is better**. An all-zero cam, or a dead one that is rectified, gets the
        value of a random order of pixels.

    Raises:
        TypeError: images, cams, targets or options of a wrong kind.
        ValueError: shapes, targets or options that do not fit; images, cams or scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    maps = heatmaps(images, cams)
    last = filled_images(images, fill)
    return _curves(
        model, maps, targets, images, last, steps=steps, score=score, batch_size=batch_size, seed=seed
    )


def _curves(
    model: Model,
    maps: Tensor,
    targets: Targets,
    first: Tensor,
    last: Tensor,
    *,
    steps: int | None,
    score: Score,
    batch_size: int,
    seed: int,
) -> PerturbationCurves:
    """Replace the pixels of ``first`` by those of ``last``, step by step."""
    pixels = maps.shape[2:].numel()
    steps = min(_STEPS, pixels) if steps is None else steps
    check_integer("steps", steps, 1)
    if steps > pixels:
        raise ValueError(f"steps: expected 1 to {pixels}, the number of pixels, got {steps}")
    # In integers, so that the last step is all pixels.
    counts = [(2 * step * pixels + steps) // (2 * steps) for step in range(steps + 1)]
    fractions = torch.tensor(counts, dtype=maps.dtype, device=maps.device) / pixels
    scores = TargetScores(model, targets, first, score)
    curves = maps.new_zeros(len(maps), steps + 1)
    with measuring(model, first):
        for rows in chunks(len(maps), batch_size):
            ranks = pixel_ranks(maps[rows], seed=seed).reshape(-1, 1, *maps.shape[2:])
            for step, count in enumerate(counts):
                changed = torch.where(ranks < count, last[rows], first[rows])
                curves[rows, step] = scores(changed, rows).to(curves)
    return PerturbationCurves(area_under_curve(curves, fractions), curves, fractions)


def road(
    model: Model,
    images: Tensor,
    cams: Tensor,
    targets: Targets,
    *,
    percentiles: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    noise: float = 0.01,
    score: Score = "probability",
    batch_size: int = 256,
    seed: int = 0,
) -> RoadScores:
    """Remove and debias: replace the most and the least important pixels by their surroundings, and compare the target's scores.

    Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods". A hole has a shape, and the shape
    alone may reveal the class; a pixel that is replaced by the mean of its neighbors, with a little noise, leaves none. Most
    relevant first (MoRF) and least relevant first (LeRF) then agree, and their difference is the measure, as in
    ``pytorch_grad_cam.metrics.road.ROADCombined``, which solves one sparse system per image on the CPU, draws from the global
    random state, and removes the whole image where more pixels are equal than the percentile asks for, as in a rectified cam.

    The model runs ``2 · len(percentiles)`` times per batch, in the mode it is in; nothing of it changes.

    Args:
        model: images (N, C, H, W) -> scores (N, K) before any softmax.
        images: (N, C, H, W), as the model takes them.
        cams: (N, 1, h, w), signed, of any size; resized bilinearly to the images.
        targets: class indices, one for all or one per image.
        percentiles: how many percent of the pixels are removed, each more than 0 and less than 100. pytorch-grad-cam's
            percentile says what is kept: 90 there is 10 here.
        noise: standard deviation of what is added to the replaced pixels, in the units of the images.
        score: ``"probability"``, the softmax's; or ``"logit"``, which has no bounds.
        batch_size: how many images go through the model at a time; bounds the memory.
        seed: of the noise and of the order of pixels of equal value, both shared by all images. The value of a map with many
            ties, such as an all-zero one, depends on the seed, and more images do not average that out: use several seeds to see
            by how much.

    Returns:
        The combined scores (N,), in [−0.5, 0.5] for probabilities; **larger is better**. An all-zero cam, or a dead one that is
        rectified, gets the value of a random order of pixels, 0 on average.

    Raises:
        TypeError: images, cams, targets or options of a wrong kind.
        ValueError: shapes, targets or options that do not fit; images, cams or scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    if not isinstance(percentiles, list | tuple) or not percentiles:
        raise TypeError(f"percentiles: expected a list of numbers, such as [20, 50, 80], got {percentiles!r}")
    for percentile in percentiles:
        check_number("percentiles", percentile, below=100)
    check_number("noise", noise, zero=True)
    maps = heatmaps(images, cams)
    if images.dim() != 4:
        raise ValueError(
            f"images: expected (N, C, H, W), got {tuple(images.shape)}; imputation needs two dimensions, use deletion_curve"
        )
    scores = TargetScores(model, targets, images, score)
    pixels = images.shape[2:].numel()
    counts = [min(max(round(percentile * pixels / 100), 1), pixels - 1) for percentile in percentiles]
    # Drawn on the CPU, once for all images: the same on every device and for every batch size.
    generator = torch.Generator().manual_seed(seed)
    patterns = noise * torch.randn(2, len(counts), 1, *images.shape[1:], generator=generator).to(maps)
    values = maps.new_zeros(2, len(images), len(counts))
    with measuring(model, images):
        for rows in chunks(len(images), batch_size):
            ranks = pixel_ranks(maps[rows], seed=seed).reshape(-1, 1, *images.shape[2:])
            for level, count in enumerate(counts):
                for order, removed in enumerate((ranks < count, ranks >= pixels - count)):
                    imputed = linear_imputation(images[rows], removed) + removed * patterns[order, level]
                    values[order, rows, level] = scores(imputed.to(images.dtype), rows).to(values)
    morf, lerf = values
    return RoadScores(((lerf - morf) / 2).mean(1), morf, lerf, tuple(percentiles))


def filled_images(images: Tensor, fill: Fill | Tensor, name: str = "fill") -> Tensor:
    """Return images of which everything is removed.

    Args:
        images: (N, C, *spatial).
        fill: ``"zero"``, 0 in the units that the model sees: black for raw images, the training set's mean for standardized
            ones; ``"mean"``, each image's own mean of each channel; ``"blur"``, a Gaussian blur with σ = 5 pixels; or a tensor
            that broadcasts to one image (C, *spatial), such as the value of black after a standardization, (C, 1, 1).
        name: of the argument, for the error.

    Returns:
        (N, C, *spatial), of the images' type and device.

    Raises:
        ValueError: an unknown name, or a tensor that does not broadcast.
    """
    if isinstance(fill, Tensor):
        try:
            return fill.to(images).expand_as(images)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected a tensor that broadcasts to {tuple(images.shape[1:])}, got {tuple(fill.shape)}"
            ) from error
    if fill not in get_args(Fill):
        raise ValueError(f"{name}: expected 'zero', 'mean', 'blur' or a tensor, got {fill!r}")
    if fill == "zero":
        return torch.zeros_like(images)
    if fill == "mean":
        return images.mean(tuple(range(2, images.dim())), keepdim=True).expand_as(images)
    # 11 pixels wide, as in RISE's notebook for images of 224 pixels; less where a side is shorter. Edges are mirrored.
    radius = min(5, *(side - 1 for side in images.shape[2:]))
    if not radius or not len(images):
        return images
    padded = F.pad(full_precision(images), [radius] * 2 * (images.dim() - 2), mode="reflect")
    return blur(padded, gaussian_weights(2 * radius + 1, 5.0)).to(images.dtype)


def linear_imputation(images: Tensor, removed: Tensor) -> Tensor:
    """Replace removed pixels by the weighted mean of their neighbors, whether those are known or replaced themselves.

    Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods": weights of 1/6 for the four
    direct neighbors and 1/12 for the diagonal ones, scaled up at the edges. This is a sparse linear system for each channel,
    symmetric and positive definite as long as one pixel is known, so conjugate gradients solve the systems of a whole batch at
    once on its device.

    Args:
        images: (N, C, H, W).
        removed: (N, 1, H, W) booleans; at least one pixel of each image is not removed.

    Returns:
        (N, C, H, W), float32 (float64 stays); known pixels are those of ``images``.
    """
    images = full_precision(images)
    if not images.numel():
        return images
    missing = removed.to(images.dtype)
    known = images * (1 - missing)
    degree = _neighbors(torch.ones_like(images[:1, :1]))

    def system(values: Tensor) -> Tensor:
        return missing * (degree * values - _neighbors(values))

    # A start at the mean leaves nothing to solve for a constant image.
    filled = missing * known.sum((2, 3), keepdim=True) / (1 - missing).sum((2, 3), keepdim=True)
    residual = missing * _neighbors(known) - system(filled)
    direction = residual
    energy = _dot(residual, residual)
    enough = (_TOLERANCE**2 * energy).clamp(min=torch.finfo(images.dtype).tiny)
    for iteration in range(20 * sum(images.shape[2:])):
        active = energy > enough
        if iteration % _UNREAD_ITERATIONS == 0 and not bool(active.any()):
            break
        # A solved system stops: its numbers are rounding errors divided by each other.
        image = system(direction)
        length = torch.where(active, energy / _dot(direction, image), 0)
        filled = filled + length * direction
        residual = residual - length * image
        next_energy = torch.where(active, _dot(residual, residual), energy)
        direction = residual + torch.where(active, next_energy / energy, 0) * direction
        energy = next_energy
    return torch.where(removed, filled, images)


def _neighbors(values: Tensor) -> Tensor:
    """Return the weighted sum of each pixel's neighbors and itself, with nothing beyond the edges.

    The weights are (1, 2, 1) ⊗ (1, 2, 1) / 12: those of the paper, and 1/3 for the pixel itself, which cancels, as it counts in
    the degree too. Sums of shifted slices instead of a convolution, which a GPU would round to TF32.
    """
    padded = F.pad(values, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 12


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Return one number per system: (N, C, H, W) twice -> (N, C, 1, 1)."""
    return (first * second).sum((2, 3), keepdim=True)

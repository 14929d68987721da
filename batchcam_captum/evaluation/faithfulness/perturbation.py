"""Infidelity and maximum sensitivity: what a cam predicts of a change of the image, and how far a change moves the cam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...attribution import BatchGradCam
from ...functional import Normalization, dead_cams, exact_matmul_dtype, full_precision, prepare
from ...functional.checks import check_choice, check_integer, check_number
from .curves import Fill, filled_images
from .scores import (
    Model,
    Score,
    Targets,
    TargetScores,
    check_images,
    chunks,
    heatmaps,
    measuring,
    target_indices,
    warn_if_training,
)

#: Images and class indices -> cams (N, 1, *spatial), signed.
Explain = Callable[[Tensor, Tensor], Tensor]
#: What :func:`infidelity` does to images: a square is removed, or Gaussian noise is added.
Perturbation = Literal["square", "noise"]


class Sensitivity(NamedTuple):
    """The result of :func:`max_sensitivity`."""

    values: Tensor  #: (N,), at least 0; smaller is better
    dead: Tensor  #: (N,) booleans: the cam of the image itself is dead, so its value says nothing


def infidelity(
    model: Model,
    images: Tensor,
    cams: Tensor,
    targets: Targets,
    *,
    perturbation: Perturbation = "square",
    side: float = 0.25,
    fill: Fill | Tensor = "zero",
    noise_std: float = 0.1,
    samples: int = 32,
    normalize: bool = True,
    relative: bool = False,
    score: Score = "logit",
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """Return how badly a cam predicts the effect of a change of the image on the target's score.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations": E_I (Iᵀ Φ − (f(x) − f(x'_I)))², with Φ the cam resized
    to the image, one value per pixel for all channels. By default I is a square at a random place, as in the authors' square
    removal: 1 inside and 0 outside, and x'_I the image with ``fill`` inside. A cam says how much a place matters, not how the
    score follows a pixel's value, so its prediction for a removal is its sum over the square, not multiplied by the input.
    Values are those of ``captum.metrics.infidelity`` with such pairs of I and x'_I and ``multiply_by_inputs=False``.

    With ``"noise"`` I is independent Gaussian noise in every pixel, and x'_I = x − I, whose effect a gradient predicts. Noise
    averages out within the pixels of a map that is coarser than the image, so it hardly distinguishes coarse maps: use it for
    maps of the input's size.

    Measured with ``relative=True`` on a small CNN and 256 images of MNIST, squares give HiResCAM 0.26, Grad-CAM 0.47, a constant
    map 0.58, another image's Grad-CAM 0.61, shuffled pixels 0.68 and white noise 0.93; noise gives HiResCAM 0.96, Grad-CAM 0.98
    and all the others 0.97. Any positive map predicts the mean drop, so compare with the value of the constant map.

    All images share the places or the noise, so an image's value does not depend on the rest of the batch, and two maps of one
    model are compared on the same changes. The model runs ``samples + 1`` times per image, in the mode it is in; nothing of it
    changes.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax.
        images: (N, C, *spatial), as the model takes them.
        cams: (N, 1, *spatial), signed, of any size; resized linearly to the images.
        targets: class indices, one for all or one per image.
        perturbation: ``"square"`` or ``"noise"``.
        side: of the square, as a share of each side of the image, more than 0 and less than 1; at least one pixel.
        fill: what replaces the square, see :func:`filled_images`.
        noise_std: standard deviation of the noise, in the units of the images: a tenth of the range of images in [0, 1]. Use
            more for standardized images.
        samples: how many perturbations per image.
        normalize: multiply each cam by its optimal factor (Captum's ``normalize``), as the scale of a cam means nothing. The
            factor may be negative: a cam and its negative get the same value.
        relative: divide by E (f(x) − f(x'_I))², the value of the zero map: the share of the change that the cam does not predict.
            Scores of differently trained models differ in scale, so use this to compare models.
        score: ``"logit"``, as in the paper, or ``"probability"``.
        batch_size: how many perturbed images go through the model at a time; bounds the memory.
        seed: of the places or the noise: one draw for all images, so more images do not average it out, but more samples do.

    Returns:
        (N,), at least 0; **smaller is better**. In the units of the score squared; with ``relative`` in [0, 1] if normalized, and
        without a bound otherwise. An all-zero cam gets E (f(x) − f(x'_I))², with ``relative`` 1: the maximum for a normalized
        cam. As the factor is fitted to the perturbations, an uninformative normalized map gets about 1 − 1 / ``samples`` of
        that. Where no perturbation changes the score, ``relative`` gives 0.

    Raises:
        TypeError: images, cams, targets or options of a wrong kind.
        ValueError: shapes, targets or options that do not fit; images, cams or scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    check_choice("perturbation", perturbation, Perturbation)
    check_number("side", side, below=1)
    check_number("noise_std", noise_std)
    check_integer("samples", samples, 1)
    maps = heatmaps(images, cams)
    scores = TargetScores(model, targets, images, score)
    remove = perturbation == "square"
    changes = (
        _squares(samples, images, side, seed)
        if remove
        else noise_std * _noise(torch.randn, samples, images, seed)
    )
    # One value per pixel: a square counts once for all channels, noise in each of them.
    exact = exact_matmul_dtype(maps)
    predicted = (maps.flatten(1).to(exact) @ changes.sum(1).flatten(1).to(exact).T).to(maps.dtype)
    actual = torch.zeros_like(predicted)
    with measuring(model, images):
        for rows in chunks(len(images), batch_size):
            present = images[rows].unsqueeze(1)
            absent = filled_images(images[rows], fill).unsqueeze(1) if remove else present
            before = scores(images[rows], rows).unsqueeze(1)
            at_once = max(batch_size // len(present), 1)
            for part in range(0, samples, at_once):
                change = changes[part : part + at_once]
                changed = torch.where(change > 0, absent, present) if remove else present - change
                after = scores(changed.flatten(0, 1), rows).reshape(len(present), -1)
                actual[rows, part : part + at_once] = (before - after).to(actual)
    if normalize:
        squares = predicted.square().sum(1, keepdim=True)
        predicted = (
            predicted * (predicted * actual).sum(1, keepdim=True) / squares.masked_fill(squares == 0, 1)
        )
    values = (predicted - actual).square().mean(1)
    if not relative:
        return values
    largest = actual.square().mean(1)
    return (values / largest.masked_fill(largest == 0, 1)).masked_fill(largest == 0, 0)


def max_sensitivity(
    explain: BatchGradCam | Explain,
    images: Tensor,
    targets: Targets,
    *,
    radius: float = 0.02,
    samples: int = 10,
    normalize: Normalization | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> Sensitivity:
    """Return how far a small change of the image moves the cam, at most.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations": the largest ‖Φ(x + δ) − Φ(x)‖ over random δ with
    |δ| <= radius in every pixel, divided by ‖Φ(x)‖. Values are those of ``captum.metrics.sensitivity_max`` for cams handed over
    as a tuple of one tensor.

    **A dead cam looks perfectly stable**: report the share of dead cams, ``dead.float().mean()``, as well. All images share the
    perturbations, so an image's value does not depend on the rest of the batch.

    Args:
        explain: a :class:`~batchcam_captum.BatchGradCam` of a single layer; or a function of images and class indices (n,) that
            returns cams (n, 1, *spatial).
        images: (N, C, *spatial), as the model takes them.
        targets: class indices, one for all or one per image.
        radius: the largest change of a pixel, in the units of the images.
        samples: how many perturbations per image.
        normalize: rectify each cam and normalize it, see :func:`~batchcam_captum.functional.prepare`, before it is compared; a
            dead cam is then the zero map. None: the signed cams as they are, as in Captum.
        batch_size: how many perturbed images are explained at a time; bounds the memory.
        seed: of the perturbations, one draw for all images: more images do not average it out.

    Returns:
        Values (N,), at least 0, without an upper bound; **smaller is better**. An image with an all-zero cam gets the norm of the
        perturbed cams, without division.

    Raises:
        TypeError: images, targets or options of a wrong kind, or something other than one cam per image.
        ValueError: shapes, targets or options that do not fit; images or cams that are not finite.

    Warns:
        UserWarning: a BatchNorm of the explained model uses the statistics of its batch, or a Dropout is active.
    """
    if not isinstance(explain, BatchGradCam) and not callable(explain):
        raise TypeError(
            f"explain: expected a BatchGradCam or a function of images and class indices, got {type(explain).__name__}"
        )
    check_number("radius", radius)
    check_integer("samples", samples, 1)
    check_images(images)
    indices = target_indices(targets, images)
    if isinstance(explain, BatchGradCam):
        warn_if_training(explain.forward_func)
    changes = radius * (2 * _noise(torch.rand, samples, images, seed) - 1)
    values, dead = [images.new_zeros(0)], [torch.zeros(0, dtype=torch.bool, device=images.device)]
    for rows in chunks(len(images), batch_size):
        present, classes = images[rows], indices[rows]
        cams = single_cams(explain, present, classes)
        dead.append(dead_cams(cams))
        rows_of_maps = (cams if normalize is None else prepare(cams, normalize).maps).flatten(1).unsqueeze(1)
        at_once = max(batch_size // len(present), 1)
        moved = []
        for change in changes.split(at_once):
            changed = (present.unsqueeze(1) + change).flatten(0, 1)
            cams = single_cams(explain, changed, classes.repeat_interleave(len(change)))
            maps = cams if normalize is None else prepare(cams, normalize).maps
            moved.append((maps.reshape(len(present), len(change), -1) - rows_of_maps).norm(dim=2))
        norms = rows_of_maps.norm(dim=2)
        values.append((torch.cat(moved, 1) / norms.masked_fill(norms == 0, 1)).amax(1))
    return Sensitivity(torch.cat(values), torch.cat(dead))


def single_cams(explain: BatchGradCam | Explain, images: Tensor, targets: Tensor) -> Tensor:
    """Return finite cams (N, 1, *spatial) in float32 (float64 stays), without a graph.

    Raises:
        TypeError: not one tensor.
        ValueError: another shape, or cams that are not finite.
    """
    cams = (
        explain.attribute(images, target=targets)
        if isinstance(explain, BatchGradCam)
        else explain(images, targets)
    )
    if not isinstance(cams, Tensor):
        raise TypeError(
            f"explain: expected one tensor of cams, got {type(cams).__name__}; measure one layer at a time"
        )
    if cams.dim() < 3 or cams.shape[:2] != (len(images), 1):
        raise ValueError(f"explain: expected cams ({len(images)}, 1, *spatial), got {tuple(cams.shape)}")
    cams = full_precision(cams.detach())
    if not bool(cams.isfinite().all()):
        raise ValueError("explain: expected finite cams, got NaN or infinity; check the model's weights")
    return cams


def _squares(samples: int, images: Tensor, side: float, seed: int) -> Tensor:
    """Return (samples, 1, *spatial), 1 inside a square and 0 outside; drawn on the CPU, every place is equally likely."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.ones(samples, 1, *images.shape[2:])
    for dim, size in enumerate(images.shape[2:], start=2):
        length = max(round(side * size), 1)
        start = torch.randint(size - length + 1, (samples, 1), generator=generator)
        places = torch.arange(size)
        inside = (places >= start) & (places < start + length)
        squares = squares * inside.reshape(samples, *[1] * (dim - 1), size, *[1] * (images.dim() - dim - 1))
    return squares.to(images)


def _noise(draw: Callable[..., Tensor], samples: int, images: Tensor, seed: int) -> Tensor:
    """Return (samples, C, *spatial), drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return draw(samples, *images.shape[1:], generator=generator).to(images)

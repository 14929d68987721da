"""Captum's infidelity and maximum sensitivity, with cams, seeds, and without their traps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ...attribution import BatchGradCam, _captum
from ...attribution.chunks import row_chunks
from ...functional import Normalization, dead_cams, full_precision, prepare
from ...functional.maps import check_normalization
from ...functional.metrics.common import check_whole
from .fills import Fill, check_fill, filled_images
from .scoring import (
    Model,
    Score,
    Targets,
    TargetScores,
    check_batch_size,
    check_common,
    check_images,
    check_number,
    finite,
    heatmaps,
    measuring,
    target_indices,
    warn_of_dropout,
)

#: Images and class indices -> cams (N, 1, *spatial), signed.
Explain = Callable[[Tensor, Tensor], Tensor]
#: What :func:`infidelity` does to images: a square that is removed, or Gaussian noise.
Perturbation = Literal["square", "noise"]


class Sensitivity(NamedTuple):
    """What :func:`max_sensitivity` returns."""

    values: Tensor  #: (N,), at least 0; smaller is better
    dead: Tensor  #: (N,) booleans: the cam of the image itself is dead, so its value praises nothing


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
    """How badly a cam predicts what a change of the image does to the target's score.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations": E_I (Iᵀ Φ − (f(x) − f(x'_I)))², with Φ the
    cam resized to the image, one value a pixel for all channels. By default I is a square at a random place, as in the authors'
    square removal: 1 inside and 0 outside, and x'_I the image with ``fill`` inside. A cam says how much a place matters, not
    how the score follows a pixel's value, so what it predicts of a removal is its sum over the square; nothing is multiplied by
    the input. Computed by ``captum.metrics.infidelity`` with such pairs of I and x'_I (``multiply_by_inputs=False``).

    With ``"noise"`` I is independent Gaussian noise in every pixel, and x'_I = x − I, which a cam predicts as a gradient would.
    Such noise averages out within the pixels of a map that is coarser than the image, so it hardly tells one coarse map from
    another: take it for maps of the input's size.

    Measured with ``relative=True`` on a small CNN and 256 images of MNIST, squares give HiResCAM 0.26, Grad-CAM 0.47, a constant
    map 0.58, another image's Grad-CAM 0.61, shuffled pixels 0.68 and white noise 0.93; noise gives HiResCAM 0.96, Grad-CAM
    0.98 and all the others 0.97. Any positive map predicts the mean drop, so compare with the
    constant map's value.

    All images share the places, or the noise, so that an image's value does not depend on the batch, and two maps of one model
    are compared on the same changes. The model stays in its mode; nothing of it changes.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax.
        images: (N, C, *spatial), as the model takes them.
        cams: (N, 1, *spatial), signed, of any size; resized linearly to the images.
        targets: class indices, one for all or one an image.
        perturbation: ``"square"`` or ``"noise"``.
        side: of the square, as a share of each side of the image, in (0, 1); at least one pixel. For ``"square"`` alone.
        fill: what the square becomes, see :func:`~batchcam_captum.evaluation.faithfulness.fills.filled_images`. For ``"square"``
            alone.
        noise_std: standard deviation of the noise, in the units of the images: a tenth of the range of images in [0, 1]. Take
            more for standardised images. For ``"noise"`` alone.
        samples: how many perturbations an image.
        normalize: multiply each cam by the factor that suits it best (Captum's ``normalize``), as the scale of a cam means
            nothing. The factor may be negative: a cam and its negative get the same.
        relative: divide by E (f(x) − f(x'_I))², which is what the zero map gets: the share of the change that the cam does not
            predict. Scores of differently trained models differ in scale, so compare models by this one. Costs a second run.
        score: ``"logit"``, as in the paper, or ``"probability"``.
        batch_size: how many perturbed images go through the model at a time; bounds the memory.
        seed: of the places, or of the noise: one draw for all images, so more images do not average it out, but more samples do.

    Returns:
        (N,), at least 0; **smaller is better**. In the units of the score squared; with ``relative`` 0 to 1 if normalised, and
        without a bound otherwise. An all-zero cam gets E (f(x) − f(x'_I))², with ``relative`` 1: the most that a normalised cam
        can get. As the factor is fitted to the perturbations, a normalised map that knows nothing gets about 1 − 1 / ``samples``
        of that. Where no perturbation changes the score, ``relative`` gives 0.

    Raises:
        TypeError: images, cams, targets or options of a wrong kind.
        ValueError: shapes, targets or options that do not fit; images or cams that are not finite; scores that are not finite.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    check_infidelity_options(perturbation, side, fill, noise_std, samples, score, batch_size, seed)
    maps = heatmaps(images, cams).to(images.dtype)
    scores = TargetScores(model, targets, images, score)
    if perturbation == "square":
        changes = _squares(samples, images, side, seed)
    else:
        changes = noise_std * _noise(torch.randn, samples, images, seed)
    values = []
    with measuring(model, images):
        for rows in _whole_images(images, samples, batch_size):
            present = images[rows]
            absent = filled_images(present, fill) if perturbation == "square" else None

            def of(
                attributions: Tensor,
                present: Tensor = present,
                absent: Tensor | None = absent,
                rows: slice = rows,
            ) -> Tensor:
                perturbations = _Perturbations(changes, len(present))

                def perturb(repeated: Tensor) -> tuple[Tensor, Tensor]:
                    change = perturbations.next(repeated)
                    if absent is None:
                        return change, repeated - change
                    filled = absent.repeat_interleave(len(repeated) // len(absent), dim=0)
                    # Captum sums over the channels, too, and a pixel's importance is to count once.
                    return change.expand_as(repeated) / repeated.shape[1], torch.where(
                        change > 0, filled, repeated
                    )

                found: Tensor = _captum.infidelity(
                    lambda repeated: scores(repeated, rows),
                    perturb,
                    present,
                    attributions.expand_as(present),
                    n_perturb_samples=samples,
                    max_examples_per_batch=_at_a_time(present, samples, batch_size),
                    normalize=normalize,
                )
                return found

            value = of(maps[rows])
            if relative:
                of_nothing = of(torch.zeros_like(maps[rows]))
                unmoved = of_nothing == 0
                value = value.masked_fill(unmoved, 0) / of_nothing.masked_fill(unmoved, 1)
            # The expanded square of the normalised form may round to less than nothing.
            values.append(value.clamp(min=0))
    return finite(torch.cat(values) if values else maps.new_zeros(0), "infidelity")


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
    """How far a small change of the image moves the cam, at most.

    Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations": the largest ‖Φ(x + δ) − Φ(x)‖ over random δ
    with |δ| <= radius in every pixel, divided by ‖Φ(x)‖. Computed by ``captum.metrics.sensitivity_max``, which takes a
    plain tensor of cams for a tuple of single ones; here it gets a tuple.

    **A dead cam looks perfectly stable**: report the share of dead cams, ``dead.float().mean()``, beside it. All images share
    the perturbations, so that an image's value does not depend on the batch.

    Args:
        explain: a :class:`~batchcam_captum.BatchGradCam` of a single layer; or a function of images and class indices (n,) that
            returns cams (n, 1, *spatial), and sees to it that nothing changes.
        images: (N, C, *spatial), as the model takes them.
        targets: class indices, one for all or one an image.
        radius: the largest change of a pixel, in the units of the images.
        samples: how many perturbations an image.
        normalize: rectify each cam and bring it to a common scale before it is compared, as
            :func:`~batchcam_captum.functional.prepare` does; a dead cam is the zero map then. None: the signed cams as they are,
            which is what Captum measures.
        batch_size: how many perturbed images are explained at a time; bounds the memory.
        seed: of the perturbations, one draw for all images: more images do not average it out.

    Returns:
        Values (N,), at least 0, without an upper bound; **smaller is better**. An image whose cam is all-zero gets the norm of
        the perturbed cams, not divided by anything: 0 where they are all-zero as well.

    Raises:
        TypeError: images or targets of a wrong kind, or something else than a single cam an image.
        ValueError: shapes, targets or options that do not fit; images or cams that are not finite.

    Warns:
        UserWarning: a Dropout of the ``BatchGradCam``'s model is active.
    """
    check_sensitivity_options(explain, radius, samples, normalize, batch_size, seed)
    check_images(images)
    indices = target_indices(targets, images)
    noise = radius * (2 * _noise(torch.rand, samples, images, seed) - 1)
    make = _explain_with(explain)
    if isinstance(explain, BatchGradCam):
        warn_of_dropout(explain.forward_func)

    def maps_of(images: Tensor, target: Tensor) -> Tensor:
        return _checked_cams(make(images, target), len(images))

    values, dead = [], []
    for rows in _whole_images(images, samples, batch_size):
        present = images[rows]
        perturbations = _Perturbations(noise, len(present))

        def explained(
            inputs: Tensor | tuple[Tensor, ...], target: Tensor, present: Tensor = present
        ) -> tuple[Tensor]:
            unperturbed = isinstance(inputs, tuple)  # Captum's first call alone
            cams = maps_of(inputs[0] if isinstance(inputs, tuple) else inputs, target)
            if unperturbed:
                dead.append(dead_cams(cams))
            return (cams if normalize is None else prepare(cams, normalize).maps,)

        values.append(
            _captum.sensitivity_max(
                explained,
                present,
                perturbations.add,
                n_perturb_samples=samples,
                max_examples_per_batch=_at_a_time(present, samples, batch_size),
                target=indices[rows],
            )
        )
    if not values:
        return Sensitivity(images.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=images.device))
    return Sensitivity(torch.cat(values), torch.cat(dead))


def check_sensitivity_options(
    explain: object, radius: float, samples: int, normalize: str | None, batch_size: int, seed: int
) -> None:
    """Check what :func:`max_sensitivity` is given beside images and targets.

    Raises:
        TypeError: something of another kind.
        ValueError: an option out of range, or several layers.
    """
    if isinstance(explain, BatchGradCam):
        if len(explain.layers) != 1:
            raise ValueError(
                f"explain: expected one layer, got {len(explain.layers)}; measure the layers one after the other"
            )
    elif not callable(explain):
        raise TypeError(
            f"explain: expected a BatchGradCam or a function of images and class indices, got {type(explain).__name__}"
        )
    check_number("radius", radius)
    check_whole("samples", samples, 1)
    if normalize is not None:
        check_normalization(normalize)
    check_batch_size(batch_size)
    check_whole("seed", seed)


def _explain_with(explain: BatchGradCam | Explain) -> Explain:
    if isinstance(explain, BatchGradCam):
        return lambda images, target: explain.attribute(images, target=target)
    return explain


def _checked_cams(cams: object, samples: int) -> Tensor:
    if not isinstance(cams, Tensor):
        raise TypeError(f"explain: expected a tensor of cams, got {type(cams).__name__}; pick one of them")
    if cams.dim() < 3 or cams.shape[:2] != (samples, 1):
        raise ValueError(f"explain: expected cams ({samples}, 1, *spatial), got {tuple(cams.shape)}")
    cams = full_precision(cams.detach())
    if not bool(cams.isfinite().all()):
        raise ValueError("explain: expected finite cams, got NaN or infinity; look at the model's weights")
    return cams.contiguous()


def check_infidelity_options(
    perturbation: str,
    side: float,
    fill: object,
    noise_std: float,
    samples: int,
    score: str,
    batch_size: int,
    seed: int,
) -> None:
    """Check the options of :func:`infidelity`.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.
    """
    if perturbation not in get_args(Perturbation):
        raise ValueError(f"perturbation: expected 'square' or 'noise', got {perturbation!r}")
    check_number("side", side)
    if side >= 1:
        raise ValueError(
            f"side: expected a share of the image's side, more than 0 and less than 1, got {side}"
        )
    check_fill("fill", fill)
    check_number("noise_std", noise_std)
    check_whole("samples", samples, 1)
    check_common(score, batch_size, seed)


def _squares(samples: int, images: Tensor, side: float, seed: int) -> Tensor:
    """(samples, 1, *spatial), 1 inside a square and 0 outside; drawn on the CPU, any place within the image as likely."""
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
    """(samples, C, *spatial), drawn on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return draw(samples, *images.shape[1:], generator=generator).to(images)


def _whole_images(images: Tensor, samples: int, batch_size: int) -> list[slice]:
    """Captum repeats images ``samples`` times: as many of them as fit a batch, at least one."""
    if not len(images):
        return []
    return row_chunks(len(images), max(batch_size // samples, 1))


def _at_a_time(images: Tensor, samples: int, batch_size: int) -> int | None:
    """Captum's ``max_examples_per_batch``, of which it warns where it changes nothing."""
    return None if len(images) * samples <= batch_size else batch_size


class _Perturbations:
    """Hands out the perturbations in the order in which Captum asks for them: some for each image, image by image."""

    def __init__(self, noise: Tensor, images: int) -> None:
        self._noise, self._images, self._used = noise, images, 0

    def next(self, repeated: Tensor) -> Tensor:
        """Images, each repeated n times in a row -> the next n perturbations, for each image the same."""
        each = len(repeated) // self._images
        part = self._noise[self._used : self._used + each]
        self._used += each
        return part.repeat(self._images, *[1] * (part.dim() - 1))

    def add(self, repeated: Tensor) -> Tensor:
        """Those images with the next perturbations."""
        return repeated + self.next(repeated)

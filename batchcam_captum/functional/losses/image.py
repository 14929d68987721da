"""The image loss: each cam against its own image."""

from __future__ import annotations

from torch import Tensor

from ..checks import ValueChecks
from ..distance import Distance
from ..maps import Normalization, prepare
from ..precision import no_autocast
from ..reduce import Reduction, check_reduction, reduce
from .comparison import (
    ImageResolution,
    check_cams,
    check_counted,
    check_resolution,
    compared,
    fit,
    revived,
    without,
)


def image_loss(
    cams: Tensor,
    images: Tensor,
    *,
    distance: str | Distance = "l2",
    normalization: Normalization = "max",
    resolution: ImageResolution = "map",
    revive: bool = True,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Each image's cam against the image itself: the authors' term before Batch-CAM.

    .. math:: \frac{1}{N} \sum_i D(M_i, x_i), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    Args:
        cams: see :func:`prototype_loss`.
        images: x, (N, 1, *spatial) in [0, 1], of any size, see :func:`~batchcam_captum.functional.image_maps`.
        distance: see :func:`prototype_loss`.
        normalization: see :func:`prototype_loss`.
        resolution: ``"map"`` compares at the cams' size, ``"image"`` at the images'.
        revive: see :func:`prototype_loss`, with the image in the place of the prototype.
        reduction: over the samples.
        counted: (N,) booleans, which samples count. Default: all.
        sample_weights: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: see :func:`prototype_loss`; or not one image a cam.
    """
    check_cams(cams)
    if images.shape[:2] != cams.shape[:2] or images.dim() != cams.dim():
        raise ValueError(
            f"images: expected one image of one channel for each of the cams {tuple(cams.shape)}, got {tuple(images.shape)}; "
            f"see functional.image_maps"
        )
    check_reduction(reduction)
    check_resolution(resolution, ImageResolution)
    counted = check_counted(cams, counted, sample_weights, checks)
    with no_autocast(cams):
        cams = without(cams, counted)
        prepared = prepare(cams, normalization)
        maps, images = fit(prepared.maps, images, "map" if resolution == "map" else "prototype", "images")
        values = compared(maps, images, distance, prepared.dead if revive else ~counted)
        if revive:
            values = revived(values, cams, images, prepared.dead)
        return reduce(values, reduction, counted, sample_weights)

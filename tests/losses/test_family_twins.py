"""The loss family against its slow twins, in float64, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import functional
from tests import reference_losses as twins

K = 4
HARD = torch.tensor([0, 1, 1, 1, 3, 3, -100])  # class 2 is absent, the last sample ignored
REDUCTIONS = ("none", "mean", "sum")


def cams_of(channels=1, shape=(5, 6)):
    """Seven cams, the first and the third dead."""
    cams = torch.randn(7, channels, *shape, dtype=torch.float64)
    cams[0] = -cams[0].abs() - 0.1
    cams[2] = -cams[2].abs() - 0.1
    return cams.requires_grad_()


def labels_of(kind):
    if kind == "hard":
        return HARD
    if kind == "several":
        labels = (torch.rand(7, K) > 0.5).double()
        labels[:, 1], labels[3] = 1, 0  # the fourth sample is ignored
        return labels
    soft = torch.rand(7, K, dtype=torch.float64)
    return soft / soft.sum(1, keepdim=True)


def weights_of(weighted):
    return torch.tensor([0.5, 2, 1, 0, 3, 0.25, 1], dtype=torch.float64) if weighted else None


def compare(fast, slow, cams, weights, over_classes=False):
    """Every reduction, and the gradient of the sum of all entries."""
    listed = [1.0] * 7 if weights is None else weights.tolist()
    if over_classes:
        listed = [1.0] * K
    elif weights is not None:
        slow = [None if w == 0 else loss for w, loss in zip(listed, slow, strict=True)]
    for reduction in REDUCTIONS:
        value, expected = fast(reduction), twins.reduced(slow, listed, reduction)
        assert_close(value, expected, rtol=1e-11, atol=1e-12)
        assert value.abs().sum() > 0
        first, second = (torch.autograd.grad(v.sum(), cams, retain_graph=True)[0] for v in (value, expected))
        assert first.abs().max() > 0
        assert_close(first, second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("labels", ["hard", "soft", "several"])
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("distance", ["l1", "cosine", "ssim"])
def test_prototype_loss(distance, revive, several, labels, weighted):
    cams, prototypes = cams_of(), torch.rand(K, several, 9, 8, dtype=torch.float64)
    labels, weights = labels_of(labels), weights_of(weighted)
    slow = twins.prototype_losses(cams, labels, prototypes, distance, revive=revive)
    options = {"distance": distance, "revive": revive, "sample_weights": weights}

    def fast(reduction):
        return functional.prototype_loss(cams, labels, prototypes, reduction=reduction, **options)

    compare(fast, slow, cams, weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("labels", ["hard", "soft", "several"])
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
def test_batch_cam_loss(resolution, revive, several, labels, weighted):
    cams, prototypes = cams_of(), torch.rand(K, several, 9, 8, dtype=torch.float64)
    labels, weights = labels_of(labels), weights_of(weighted)
    listed = [1.0] * 7 if weights is None else weights.tolist()
    slow = twins.batch_cam_losses(cams, labels, prototypes, listed, resolution=resolution, revive=revive)
    options = {"resolution": resolution, "revive": revive, "sample_weights": weights}

    def fast(reduction):
        return functional.batch_cam_loss(cams, labels, prototypes, reduction=reduction, **options)

    compare(fast, slow, cams, weights, over_classes=True)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_batch_cam_loss_of_more_classes_than_samples(weighted):
    cams, prototypes = cams_of(), torch.rand(9, 2, 9, 8, dtype=torch.float64)
    weights = weights_of(weighted)
    listed = [1.0] * 7 if weights is None else weights.tolist()
    slow = twins.batch_cam_losses(cams, HARD, prototypes, listed)
    expected = twins.reduced(slow, [1.0] * 9, "none")
    fast = functional.batch_cam_loss(cams, HARD, prototypes, reduction="none", sample_weights=weights)
    assert_close(fast, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("labels", ["hard", "soft", "several"])
@pytest.mark.parametrize("several", [1, 3])
def test_contrastive_loss(several, labels, weighted):
    cams, prototypes = cams_of(), torch.rand(K, several, 9, 8, dtype=torch.float64)
    labels, weights = labels_of(labels), weights_of(weighted)
    slow = twins.contrastive_losses(cams, labels, prototypes)

    def fast(reduction):
        return functional.prototype_contrastive_loss(
            cams, labels, prototypes, reduction=reduction, sample_weights=weights
        )

    compare(fast, slow, cams, weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("labels", ["hard", "soft", "several"])
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("normalization", ["none", "share"])
def test_foreground_loss(normalization, several, labels, weighted):
    cams, prototypes = cams_of(), torch.rand(K, several, 9, 8, dtype=torch.float64) * 0.9
    labels, weights = labels_of(labels), weights_of(weighted)
    slow = twins.foreground_losses(cams, labels, prototypes, normalization)

    def fast(reduction):
        return functional.foreground_loss(
            cams, labels, prototypes, normalization=normalization, reduction=reduction, sample_weights=weights
        )

    compare(fast, slow, cams, weights)


MASK_LOSSES = {
    "energy": functional.energy_loss,
    "rrr_cam": functional.rrr_cam_loss,
    "gradia": functional.gradia_loss,
    "hint": functional.hint_loss,
}


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("resolution", ["map", "mask"])
@pytest.mark.parametrize(
    ("kind", "normalization"),
    [
        ("energy", "max"),  # it has no normalization
        *[(kind, how) for kind in ("rrr_cam", "gradia", "hint") for how in ("max", "minmax", "none")],
    ],
)
def test_losses_against_masks(kind, normalization, resolution, revive, weighted):
    cams, masks = cams_of(), torch.rand(7, 1, 9, 10, dtype=torch.float64) * 0.8
    masks[3] = 0  # no annotation
    masks[4] = 0
    masks[4, :, 3, 4] = 1  # less than a pixel of the map
    weights = weights_of(weighted)
    slow = twins.mask_losses(kind, cams, masks, normalization, resolution, revive)
    options = {} if kind == "energy" else {"normalization": normalization}
    options |= {"resolution": resolution, "revive": revive, "sample_weights": weights}

    def fast(reduction):
        return MASK_LOSSES[kind](cams, masks, reduction=reduction, **options)

    compare(fast, slow, cams, weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("normalization", ["max", "minmax", "none"])
@pytest.mark.parametrize(("threshold", "sharpness"), [(0.5, 10.0), (0.0, 1.0), (0.9, 50.0)])
def test_separability_loss(threshold, sharpness, normalization, revive, weighted):
    cams = cams_of(2)
    with torch.no_grad():
        cams[1, 0], cams[3, 1] = -1, -1  # only one of the two is dead
    weights = weights_of(weighted)
    slow = twins.separability_losses(cams, threshold, sharpness, normalization, revive)
    options = {"threshold": threshold, "sharpness": sharpness, "normalization": normalization}

    def fast(reduction):
        return functional.separability_loss(
            cams, revive=revive, reduction=reduction, sample_weights=weights, **options
        )

    compare(fast, slow, cams, weights)


@pytest.mark.parametrize("shape", [(12,), (5, 6), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("normalization", ["max", "minmax", "none"])
def test_total_variation_loss(normalization, revive, weighted, shape):
    cams, weights = cams_of(shape=shape), weights_of(weighted)
    slow = twins.total_variation_losses(cams, normalization, revive)

    def fast(reduction):
        return functional.total_variation_loss(
            cams, normalization=normalization, revive=revive, reduction=reduction, sample_weights=weights
        )

    compare(fast, slow, cams, weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("normalization", ["max", "none"])
@pytest.mark.parametrize("transform", ["hflip", "vflip", "rot90"])
def test_consistency_loss(transform, normalization, weighted):
    cams = torch.randn(14, 1, 5, 5, dtype=torch.float64)
    cams[3] = 0
    cams.requires_grad_()
    weights = weights_of(weighted)
    slow = twins.consistency_losses(cams, transform, normalization)
    of_views = None if weights is None else torch.cat([weights, weights + (weights > 0)])

    def fast(reduction):
        return functional.consistency_loss(
            cams,
            transform=transform,
            normalization=normalization,
            reduction=reduction,
            sample_weights=of_views,
        )

    compare(fast, slow, cams, weights)


@pytest.mark.parametrize("shape", [(12,), (5, 6), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("kind", [*MASK_LOSSES, "foreground"])
def test_losses_take_one_two_and_three_dimensions(kind, shape):
    cams = cams_of(shape=shape)
    masks = torch.rand(7, 1, *[2 * side for side in shape], dtype=torch.float64)
    if kind == "foreground":
        fast = functional.foreground_loss(cams, torch.arange(7), masks)
        slow = twins.foreground_losses(cams, torch.arange(7), masks)
    else:
        fast, slow = MASK_LOSSES[kind](cams, masks), twins.mask_losses(kind, cams, masks)
    assert_close(fast, twins.reduced(slow, [1.0] * 7, "mean"), rtol=1e-11, atol=1e-12)


def test_consistency_takes_a_callable_and_other_numbers_of_dimensions():
    line, volume = torch.randn(4, 1, 9), torch.randn(4, 1, 4, 5, 6)
    moved = torch.cat([line[:2], line[:2].roll(3, -1)])
    assert functional.consistency_loss(moved, transform=lambda maps: maps.roll(3, -1)) == 0
    assert functional.consistency_loss(moved) > 0
    assert functional.consistency_loss(torch.cat([volume[:2], volume[:2].flip(-2)]), transform="vflip") == 0
    turned = torch.cat([volume[:2, :, :, :, :5], volume[:2, :, :, :, :5].rot90(1, (-2, -1))])
    assert functional.consistency_loss(turned, transform="rot90") == 0
    assert functional.consistency_loss(turned, transform="vflip") > 0

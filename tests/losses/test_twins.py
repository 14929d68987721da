"""Every loss against its slow twin in float64: values of each reduction, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes, functional
from batchcam_captum.losses import LOSSES
from tests import reference as twins

K = 4
HARD = torch.tensor([0, 1, 1, 1, 3, 3, -100])  # class 2 is absent, the last sample ignored
WEIGHTS = torch.tensor([0.5, 2, 1, 0, 3, 0.25, 1], dtype=torch.float64)

weighted = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
revived = pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
labeled = pytest.mark.parametrize("labels", ["hard", "soft", "several"])
normalized = pytest.mark.parametrize("normalization", ["max", "minmax", "none"])
shapes = pytest.mark.parametrize("shape", [(12,), (5, 6), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
AGAINST_PROTOTYPES = {
    "prototype": (functional.prototype_loss, twins.prototype_losses),
    "batch_cam": (functional.batch_cam_loss, twins.batch_cam_losses),
}


def cams_of(channels=1, shape=(5, 6), n=7):
    """Cams, the first and the third of them dead."""
    cams = torch.randn(n, channels, *shape, dtype=torch.float64)
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


def maps_of(several=1, shape=(9, 8)):
    return torch.rand(K, several, *shape, dtype=torch.float64)


def compare(fast, slow, cams, weights=None):
    """Every reduction, and the gradient of the sum of all entries."""
    if weights is not None:
        slow = [None if w == 0 else loss for w, loss in zip(weights.tolist(), slow, strict=True)]
        weights = weights.tolist()
    for reduction in ("none", "mean", "sum"):
        value, expected = fast(reduction), twins.reduced(slow, reduction, weights)
        assert_close(value, expected, rtol=1e-11, atol=1e-12)
        assert value.abs().sum() > 0
        first, second = (torch.autograd.grad(v.sum(), cams, retain_graph=True)[0] for v in (value, expected))
        assert first.abs().max() > 0
        assert_close(first, second, rtol=1e-9, atol=1e-11)


def compare_with_prototypes(kind, cams, labels, prototypes, weights=None, **options):
    function, twin = AGAINST_PROTOTYPES[kind]
    if kind == "batch_cam" and weights is not None:
        slow, over = twin(cams, labels, prototypes, weights=weights.tolist(), **options), None
    else:
        slow, over = twin(cams, labels, prototypes, **options), weights
    options |= {"sample_weights": weights}
    compare(lambda r: function(cams, labels, prototypes, reduction=r, **options), slow, cams, over)


@weighted
@labeled
@pytest.mark.parametrize("several", [1, 3])
@revived
@pytest.mark.parametrize("distance", ["l1", "cosine"])
@pytest.mark.parametrize("kind", AGAINST_PROTOTYPES)
def test_prototypes(kind, distance, revive, several, labels, weights):
    compare_with_prototypes(
        kind, cams_of(), labels_of(labels), maps_of(several), weights, distance=distance, revive=revive
    )


@revived
@pytest.mark.parametrize("distance", ["l2", "ssim"])
@pytest.mark.parametrize("kind", AGAINST_PROTOTYPES)
def test_prototypes_by_each_distance(kind, distance, revive):
    compare_with_prototypes(kind, cams_of(), HARD, maps_of(), distance=distance, revive=revive)


@normalized
@pytest.mark.parametrize("kind", AGAINST_PROTOTYPES)
def test_prototypes_with_each_normalization(kind, normalization):
    cams = (cams_of() + 1).detach().requires_grad_()  # maps without a zero, so that "minmax" is not "max"
    compare_with_prototypes(kind, cams, HARD, maps_of(), normalization=normalization)


@shapes
@pytest.mark.parametrize("kind", AGAINST_PROTOTYPES)
def test_prototypes_of_each_number_of_dimensions(kind, shape):
    maps = maps_of(shape=[side + 3 for side in shape])
    compare_with_prototypes(kind, cams_of(shape=shape), HARD, maps, distance="ssim")


@weighted
def test_batch_cam_with_more_classes_than_samples(weights):
    cams, prototypes = cams_of(), torch.rand(40, 2, 9, 8, dtype=torch.float64)
    labels, calls = torch.tensor([17, 30, 30, 17, 8, 8, -100]), []

    def counting(first, second):
        calls.append(len(first))
        return (first - second).abs().flatten(1).mean(1)

    listed = None if weights is None else weights.tolist()
    slow = twins.batch_cam_losses(cams, labels, prototypes, weights=listed)
    options = {"sample_weights": weights, "distance": counting}
    compare(lambda r: functional.batch_cam_loss(cams, labels, prototypes, reduction=r, **options), slow, cams)
    assert calls == [2 * 7] * 3, "the cost does not grow with the number of classes"


@weighted
@labeled
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("unseen", [False, True])
def test_prototype_contrastive(unseen, several, labels, weights):
    cams, prototypes, labels = cams_of(), maps_of(several), labels_of(labels)
    seen = torch.tensor([True, True, not unseen, True])
    if unseen:
        prototypes[2] = 0
        labels = labels if labels.dim() == 1 else labels * seen
    options = {"temperature": 0.3, "seen": seen}
    slow = twins.contrastive_losses(cams, labels, prototypes, **options)
    options |= {"sample_weights": weights}

    def fast(reduction):
        return functional.prototype_contrastive_loss(cams, labels, prototypes, reduction=reduction, **options)

    compare(fast, slow, cams, weights)


@weighted
@labeled
@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("normalization", ["none", "share"])
def test_foreground(normalization, several, labels, weights):
    cams, prototypes, labels = cams_of(), maps_of(several) * 0.9, labels_of(labels)
    slow = twins.foreground_losses(cams, labels, prototypes, normalization)
    options = {"normalization": normalization, "sample_weights": weights}
    compare(
        lambda r: functional.foreground_loss(cams, labels, prototypes, reduction=r, **options),
        slow,
        cams,
        weights,
    )


@revived
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_image(distance, revive):
    cams, images = cams_of(), torch.rand(7, 1, 9, 8, dtype=torch.float64)
    options = {"distance": distance, "revive": revive}
    slow = twins.image_losses(cams, images, distance, revive)
    compare(lambda r: functional.image_loss(cams, images, reduction=r, **options), slow, cams)


MASK_LOSSES = {
    "energy": functional.energy_loss,
    "rrr_cam": functional.rrr_cam_loss,
    "gradia": functional.gradia_loss,
    "hint": functional.hint_loss,
}


@weighted
@revived
@pytest.mark.parametrize("kind", MASK_LOSSES)
def test_masks(kind, revive, weights):
    cams, masks = cams_of(), torch.rand(7, 1, 9, 10, dtype=torch.float64) * 0.8
    masks[3] = 0  # not annotated
    masks[4] = 0
    masks[4, :, 3, 4] = 1  # smaller than a pixel of the map
    slow = twins.mask_losses(kind, cams, masks, revive)
    options = {"revive": revive, "sample_weights": weights}
    compare(lambda r: MASK_LOSSES[kind](cams, masks, reduction=r, **options), slow, cams, weights)


@shapes
@pytest.mark.parametrize("kind", [*MASK_LOSSES, "foreground"])
def test_masks_of_each_number_of_dimensions(kind, shape):
    cams, masks = cams_of(shape=shape), torch.rand(7, 1, *[2 * side for side in shape], dtype=torch.float64)
    labels = torch.arange(7)
    if kind == "foreground":
        slow = twins.foreground_losses(cams, labels, masks)
        compare(lambda r: functional.foreground_loss(cams, labels, masks, reduction=r), slow, cams)
    else:
        slow = twins.mask_losses(kind, cams, masks)
        compare(lambda r: MASK_LOSSES[kind](cams, masks, reduction=r), slow, cams)


@weighted
@revived
@pytest.mark.parametrize(("threshold", "sharpness"), [(0.5, 10.0), (0.0, 1.0), (0.9, 50.0)])
def test_separability(threshold, sharpness, revive, weights):
    cams = cams_of(2)
    with torch.no_grad():
        cams[1, 0], cams[3, 1] = -1, -1  # only one of the two is dead
    slow = twins.separability_losses(cams, threshold, sharpness, revive)
    options = {"threshold": threshold, "sharpness": sharpness}
    options |= {"revive": revive, "sample_weights": weights}
    compare(lambda r: functional.separability_loss(cams, reduction=r, **options), slow, cams, weights)


@shapes
@weighted
@revived
def test_total_variation(revive, weights, shape):
    cams = cams_of(shape=shape)
    slow = twins.total_variation_losses(cams, revive)
    options = {"revive": revive, "sample_weights": weights}
    compare(lambda r: functional.total_variation_loss(cams, reduction=r, **options), slow, cams, weights)


@weighted
@pytest.mark.parametrize("transform", ["hflip", lambda maps: maps.rot90(1, (-2, -1))], ids=["hflip", "rot90"])
def test_consistency(transform, weights):
    cams = torch.randn(14, 1, 5, 5, dtype=torch.float64)
    cams[3] = 0
    cams.requires_grad_()
    slow = twins.consistency_losses(cams, transform)
    of_views = None if weights is None else torch.cat([weights, weights + (weights > 0)])
    options = {"transform": transform, "sample_weights": of_views}
    compare(lambda r: functional.consistency_loss(cams, reduction=r, **options), slow, cams, weights)


@pytest.mark.parametrize("kind", ["prototype", "batch_cam", "prototype_contrastive", "foreground"])
def test_modules_are_their_functions_on_their_prototypes(kind):
    """At two sizes in turn, before and after the prototypes change: what a loss keeps of them is never old."""
    prototypes = ClassPrototypes(K)
    options = {"ignore_index": 1, "reduction": "sum"}
    loss, function = LOSSES[kind](prototypes, **options), getattr(functional, f"{kind}_loss")
    values = []
    for seen in (K - 1, K):
        prototypes.update(torch.rand(24, 1, 12, 12), torch.arange(24) % seen)
        for size in ((6, 6), (4, 4), (6, 6)):
            cams, labels = torch.randn(7, 1, *size), HARD.clamp(0, seen - 1)
            maps = prototypes.maps(None if kind == "prototype_contrastive" else size)
            expected = function(cams, labels, maps, seen=prototypes.seen, **options)
            assert_close(loss(cams, labels), expected, rtol=1e-5, atol=1e-6)
            values.append(float(expected))
    assert len(set(values)) == 6

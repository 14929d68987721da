"""Every loss against its slow twin, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, PrototypeContrastiveLoss, PrototypeLoss, functional
from tests import reference

K = 4
FUNCTIONS = {"prototype": functional.prototype_loss, "batch_cam": functional.batch_cam_loss}
TWINS = {"prototype": reference.prototype_losses, "batch_cam": reference.batch_cam_losses}
MODULES = {"prototype": PrototypeLoss, "batch_cam": BatchCamLoss}
HARD = torch.tensor([0, 1, 1, 1, 3, 3, -100])  # class 2 is absent, the last sample ignored


def batch(dtype=torch.float64):
    """Seven cams of 5×6, two of them dead (one in a class of its own kind, one among living), and prototypes of 9×8."""
    cams = torch.randn(7, 1, 5, 6, dtype=dtype)
    cams[0] = -cams[0].abs() - 0.1
    cams[2] = -cams[2].abs() - 0.1
    return cams, torch.rand(K, 1, 9, 8, dtype=dtype)


def labels_of(kind, dtype=torch.float64):
    if kind == "hard":
        return HARD
    soft = torch.rand(7, K, dtype=dtype)
    soft[:, 2] = 0
    return soft / soft.sum(1, keepdim=True)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
@pytest.mark.parametrize("loss", FUNCTIONS)
def test_loss_equals_its_twin(loss, distance, resolution, revive, labels):
    cams, prototypes = batch()
    labels = labels_of(labels)
    cams.requires_grad_()
    options = {"distance": distance, "resolution": resolution, "revive": revive}
    slow = TWINS[loss](cams, labels, prototypes, **options)
    for reduction in ("none", "mean", "sum"):
        fast = FUNCTIONS[loss](cams, labels, prototypes, **options, reduction=reduction)
        expected = reference.reduced(slow, reduction)
        assert_close(fast, expected, rtol=1e-11, atol=1e-12)
    assert_close(
        torch.autograd.grad(fast, cams)[0], torch.autograd.grad(expected, cams)[0], rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("normalization", ["max", "minmax", "none"])
@pytest.mark.parametrize("loss", FUNCTIONS)
def test_each_normalization_equals_its_twin(loss, normalization):
    cams, prototypes = batch()
    cams = cams + 1  # some maps without a zero, so that "minmax" differs from "max"
    fast = FUNCTIONS[loss](cams, HARD, prototypes, normalization=normalization)
    slow = reference.reduced(TWINS[loss](cams, HARD, prototypes, normalization=normalization), "mean")
    assert_close(fast, slow, rtol=1e-12, atol=0)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("unseen", [False, True], ids=["all seen", "one unseen"])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
def test_contrastive_loss_equals_its_twin(resolution, unseen, labels):
    cams, prototypes = batch()
    cams.requires_grad_()
    labels = labels_of(labels)
    seen = torch.tensor([True, True, not unseen, True])
    if unseen:
        prototypes[2] = 0
    slow = reference.contrastive_losses(cams, labels, prototypes, 0.3, resolution, seen)
    for reduction in ("none", "mean", "sum"):
        fast = functional.prototype_contrastive_loss(
            cams, labels, prototypes, seen=seen, temperature=0.3, resolution=resolution, reduction=reduction
        )
        expected = reference.reduced(slow, reduction)
        assert_close(fast, expected, rtol=1e-11, atol=1e-12)
    assert_close(torch.autograd.grad(fast, cams)[0], torch.autograd.grad(expected, cams)[0])


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("resolution", ["map", "image"])
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_image_loss_equals_its_twin(distance, resolution, revive):
    cams, _ = batch()
    images = torch.rand(7, 1, 9, 8, dtype=torch.float64)
    options = {"distance": distance, "resolution": resolution, "revive": revive}
    slow = reference.image_losses(cams, images, **options)
    for reduction in ("none", "mean", "sum"):
        fast = functional.image_loss(cams, images, **options, reduction=reduction)
        assert_close(fast, reference.reduced(slow, reduction), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("resolution", ["map", "prototype"])
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
@pytest.mark.parametrize("loss", MODULES)
def test_module_equals_the_twin_on_its_prototypes(loss, distance, resolution):
    cams, prototypes = batch(torch.float32)
    module = MODULES[loss](prototypes, distance=distance, resolution=resolution)
    ranges = prototypes.amin((1, 2, 3), True), prototypes.amax((1, 2, 3), True)
    maps = ((prototypes - ranges[0]) / (ranges[1] - ranges[0])).double()
    slow = reference.reduced(TWINS[loss](cams.double(), HARD, maps, distance, resolution), "mean")
    assert_close(module(cams, HARD).double(), slow, rtol=1e-5, atol=1e-6)
    assert_close(
        module.evaluate(cams, HARD).dead_fraction, torch.tensor(2 / 6)
    )  # of those that are not ignored


def test_contrastive_module_leaves_unseen_classes_out():
    from batchcam_captum import ClassPrototypes

    cams, _ = batch(torch.float32)
    prototypes = ClassPrototypes(K)
    prototypes.update(torch.rand(6, 1, 9, 8), torch.tensor([0, 0, 1, 1, 3, 3]))
    slow = reference.contrastive_losses(cams.double(), HARD, prototypes.maps().double(), seen=prototypes.seen)
    assert_close(
        PrototypeContrastiveLoss(prototypes)(cams, HARD).double(),
        reference.reduced(slow, "mean"),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", [(12,), (5, 6), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("loss", FUNCTIONS)
def test_losses_take_one_two_and_three_dimensions(loss, shape):
    cams = torch.randn(4, 1, *shape, dtype=torch.float64)
    prototypes = torch.rand(3, 1, *[side + 3 for side in shape], dtype=torch.float64)
    labels = torch.tensor([0, 2, 2, 1])
    fast = FUNCTIONS[loss](cams, labels, prototypes, distance="ssim")
    slow = reference.reduced(TWINS[loss](cams, labels, prototypes, "ssim"), "mean")
    assert_close(fast, slow, rtol=1e-11, atol=1e-12)

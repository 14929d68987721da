"""Gradients of the losses: checked numerically, against a loop over samples, and where cams are dead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum.functional import (
    activation_gradients,
    batch_cam_loss,
    dead_cams,
    grad_cam,
    image_loss,
    prototype_contrastive_loss,
    prototype_loss,
)
from tests import reference

K = 3
LABELS = torch.tensor([0, 1, 1])


def head(activations, kernel, weight):
    """A curved head, so that ∂s/∂A depends on A and on both weights."""
    hidden = F.softplus(F.conv2d(torch.tanh(activations), kernel))
    return torch.tanh(hidden).flatten(1) @ weight


def parts():
    activations = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    kernel = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    weight = torch.randn(2 * 4 * 4, K, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (activations, kernel, weight))


LOSSES = {
    **{
        f"{loss.__name__}-{distance}": lambda cams, maps, loss=loss, distance=distance: loss(
            cams, LABELS, maps, distance=distance
        )
        for loss in (prototype_loss, batch_cam_loss)
        for distance in ("l1", "l2", "ssim", "cosine")
    },
    "contrastive": lambda cams, maps: prototype_contrastive_loss(cams, LABELS, maps),
    "image": lambda cams, maps: image_loss(cams, maps),
    "prototype_loss-enlarged": lambda cams, maps: prototype_loss(cams, LABELS, maps, resolution="prototype"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_reaches_activations_and_head(loss):
    maps = torch.rand(K, 1, 7, 7, dtype=torch.float64)

    def checked(activations, kernel, weight):
        selected = head(activations, kernel, weight).gather(1, LABELS.unsqueeze(1)).squeeze(1)
        (gradients,) = activation_gradients(selected, [activations], create_graph=True)
        return loss(grad_cam(activations, gradients), maps)

    assert torch.autograd.gradcheck(checked, parts())


@pytest.mark.parametrize("loss", ["prototype", "batch_cam"])
def test_cam_loss_alone_gives_the_head_the_gradient_of_a_loop_over_samples(loss):
    maps = torch.rand(K, 1, 5, 5, dtype=torch.float64)
    activations, kernel, weight = parts()
    selected = head(activations, kernel, weight).gather(1, LABELS.unsqueeze(1)).squeeze(1)
    (gradients,) = activation_gradients(selected, [activations], create_graph=True)
    function = {"prototype": prototype_loss, "batch_cam": batch_cam_loss}[loss]
    fast = torch.autograd.grad(function(grad_cam(activations, gradients), LABELS, maps), (kernel, weight))

    cams = []
    for activation, label in zip(activations, LABELS, strict=True):
        sample = activation.detach()[None].requires_grad_()
        cams.append(reference.cam_of(sample, head(sample, kernel, weight)[0, label]))
    twin = {"prototype": reference.prototype_losses, "batch_cam": reference.batch_cam_losses}[loss]
    value = reference.reduced(twin(torch.cat(cams), LABELS, maps), "mean")
    for quick, slow in zip(fast, torch.autograd.grad(value, (kernel, weight)), strict=True):
        assert quick.abs().max() > 1e-3
        assert_close(quick, slow, rtol=1e-9, atol=1e-12)


def dead_batch():
    cams = torch.randn(3, 1, 5, 5)
    cams[1] = -torch.rand(1, 5, 5) - 0.1
    return cams


WITH_REVIVE = {
    "prototype": lambda cams, maps, revive: prototype_loss(cams, LABELS, maps, revive=revive),
    "batch_cam": lambda cams, maps, revive: batch_cam_loss(cams, LABELS, maps, revive=revive),
    "image": lambda cams, maps, revive: image_loss(cams, maps, revive=revive),
}


@pytest.mark.parametrize("loss", WITH_REVIVE.values(), ids=WITH_REVIVE)
def test_dead_cam_comes_alive_and_strict_mode_leaves_it_dead(loss):
    cams, maps = dead_batch().requires_grad_(), torch.rand(K, 1, 5, 5)
    assert dead_cams(cams).tolist() == [False, True, False]
    (strict,) = torch.autograd.grad(loss(cams, maps, False), cams)
    assert strict[1].abs().max() == 0
    assert strict[0].abs().max() > 0
    before = loss(cams, maps, True)
    for step in range(20):
        (gradient,) = torch.autograd.grad(loss(cams, maps, True), cams)
        if not dead_cams(cams)[1]:
            break
        assert gradient[1].abs().max() > 0
        cams = (cams - gradient / gradient[1].norm()).detach().requires_grad_()
        if step == 0:
            only_dead_moved = torch.cat([dead_batch()[:0], cams.detach()])
            assert loss(only_dead_moved, maps, True) < before
    assert not dead_cams(cams)[1]


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("loss", WITH_REVIVE.values(), ids=WITH_REVIVE)
@pytest.mark.parametrize(
    "cams", [torch.zeros(3, 1, 5, 5), -torch.rand(3, 1, 5, 5)], ids=["all zero", "all negative"]
)
def test_all_dead_gives_a_finite_loss_and_gradient(cams, loss, revive):
    cams = cams.clone().requires_grad_()
    value = loss(cams, torch.rand(K, 1, 5, 5), revive)
    value.backward()
    assert value > 0
    assert cams.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1e-5, 1e6])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_loss_does_not_depend_on_the_scale_of_the_cams(loss, scale):
    cams, maps = dead_batch(), torch.rand(K, 1, 5, 5)
    scaled = (cams * scale).requires_grad_()
    value = loss(scaled, maps)
    assert_close(value, loss(cams, maps), rtol=1e-4, atol=1e-5)
    value.backward()
    assert scaled.grad.isfinite().all()
    assert scaled.grad.abs().max() > 0


def test_flat_cam_gives_log_k_and_no_gradient():
    cams = torch.full((2, 1, 5, 5), 0.3).requires_grad_()
    loss = prototype_contrastive_loss(cams, torch.tensor([0, 2]), torch.rand(K, 1, 5, 5), reduction="none")
    assert_close(loss, torch.full((2,), float(K)).log())
    loss.sum().backward()
    assert cams.grad.abs().max() == 0


def test_contrastive_loss_does_not_see_what_all_prototypes_share():
    cams, maps = torch.randn(3, 1, 5, 5), torch.rand(K, 1, 5, 5)
    maps /= maps.amax((1, 2, 3), True)
    shared = torch.cat([maps * 0.5, torch.zeros(K, 1, 1, 5)], dim=2)
    shared[:, :, -1] = 1.0  # the same bright line in every prototype sets every maximum
    lone = F.pad(maps, (0, 0, 0, 1)) * 0.5
    wide = F.pad(cams, (0, 0, 0, 1))

    def centred(prototypes):
        flat = prototypes.flatten(1)
        return flat - flat.mean(0)

    assert_close(centred(shared), centred(lone))
    expected = F.cross_entropy(
        F.normalize((wide - wide.mean((1, 2, 3), True)).flatten(1)) @ F.normalize(centred(lone)).T / 0.1,
        LABELS,
    )
    assert_close(prototype_contrastive_loss(wide, LABELS, shared), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_cams_give_a_float32_loss(loss, dtype):
    cams, maps = dead_batch().to(dtype), torch.rand(K, 1, 5, 5)
    value = loss(cams, maps)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(cams.float(), maps))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_autocast_changes_nothing(loss):
    cams, maps = dead_batch(), torch.rand(K, 1, 5, 5)
    expected = loss(cams, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(cams, maps), expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_cams_too_small_to_divide_by_give_no_gradient_that_is_not_finite(loss):
    cams = (torch.randn(len(LABELS), 1, 6, 6) * 1e-40).requires_grad_()
    value = loss(cams, torch.rand(K, 1, 9, 9))
    value.sum().backward()
    assert value.isfinite().all()
    assert cams.grad.isfinite().all()

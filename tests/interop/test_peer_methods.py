"""Each peer's weighting, given the same activations and gradients, against that peer's own code."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import CAM_METHODS, grad_cam_plus_plus
from batchcam_captum.interop import PEERS, pytorch_grad_cam_method, torchcam_method
from tests.models import SmallCnn

PYTORCH_GRAD_CAM = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "xgrad_cam": "XGradCAM",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "grad_cam_elementwise": "GradCAMElementWise",
}
TORCHCAM = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMpp",
    "xgrad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
}
# Float32: the order of the sums differs.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def pair(kind: str, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Activations and gradients."""
    activations, gradients = torch.rand(3, 6, *size, dtype=dtype), torch.randn(3, 6, *size, dtype=dtype)
    if kind == "behind_relu":
        activations, gradients = (activations - 0.7).relu(), gradients * (activations > 0.7)
        activations[:, 2] = 0
    elif kind == "faint":  # what the epsilons decide
        activations, gradients = 1e-6 * activations, 1e-3 * gradients
    return activations, gradients


def by_pytorch_grad_cam(name: str, activations: Tensor, gradients: Tensor) -> Tensor:
    peer = pytest.importorskip("pytorch_grad_cam")
    model = nn.Conv2d(1, 1, 1)
    cam = getattr(peer, PYTORCH_GRAD_CAM[name])(model, [model])
    raw = cam.get_cam_image(None, model, [], activations.numpy(), gradients.numpy(), False)
    return torch.from_numpy(raw).unsqueeze(1)


def by_torchcam(name: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """Rectified, as it always does."""
    peer = pytest.importorskip("torchcam.methods")
    with getattr(peer, TORCHCAM[name])(nn.Sequential(nn.Identity()), "0") as extractor:
        extractor._backprop = lambda *_, **__: None
        extractor.hook_a, extractor.hook_g = [activations.clone()], [gradients.clone()]
        return extractor.compute_cams(0, torch.zeros(3, 1), normalized=False)[0].unsqueeze(1)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    peak = expected.abs().max()
    assert peak > 0
    assert (actual - expected).abs().max() <= TOLERANCE[actual.dtype] * peak


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["plain", "behind_relu", "faint"])
@pytest.mark.parametrize("size", [(5, 4), (3, 2, 4)], ids=["2d", "3d"])
@pytest.mark.parametrize("name", PYTORCH_GRAD_CAM)
def test_pytorch_grad_cam(name: str, size: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    given = pair(kind, size, dtype)
    assert_near(pytorch_grad_cam_method(name)(*given), by_pytorch_grad_cam(name, *given))


@pytest.mark.parametrize("name", PYTORCH_GRAD_CAM)
def test_pytorch_grad_cam_where_float32_sums_depend_on_their_order(name: str) -> None:
    """On the CPU to the last bit; differentiable maps are torch's sums, and in float64 the same."""
    method = pytorch_grad_cam_method(name)
    activations, gradients = pair("plain", (5, 4), torch.float32)
    # Channels that nearly cancel.
    gradients[:, 1::2] = -gradients[:, ::2] * (1 + 1e-6)
    activations[:, 1::2] = activations[:, ::2]
    assert torch.equal(method(activations, gradients), by_pytorch_grad_cam(name, activations, gradients))
    precise = activations.double(), gradients.double().requires_grad_()
    by_torch = method(*precise)
    assert by_torch.requires_grad
    torch.testing.assert_close(
        by_torch.detach(), method(precise[0], precise[1].detach()), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["plain", "behind_relu", "faint"])
@pytest.mark.parametrize("size", [(7,), (5, 4), (3, 2, 4)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("name", TORCHCAM)
def test_torchcam(name: str, size: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    given = pair(kind, size, dtype)
    assert_near(torchcam_method(name)(*given).relu(), by_torchcam(name, *given))


@pytest.mark.parametrize("name", TORCHCAM)
def test_torchcam_leaves_out_what_is_not_a_number(name: str) -> None:
    activations, gradients = pair("plain", (5, 4), torch.float64)
    gradients[:, 1, 2] = torch.nan
    activations[:, 3, 0, 0] = torch.nan
    expected = by_torchcam(name, activations, gradients)
    assert not expected.isnan().any()
    assert_near(torchcam_method(name)(activations, gradients).relu(), expected)


def test_torchcam_grad_cam_plus_plus_never_divides() -> None:
    """The quirk itself: neither the paper's weights nor, with its epsilon, those that its code spells out."""
    activations, gradients = pair("plain", (5, 4), torch.float64)
    weights = (gradients.square() * gradients.relu()).sum((2, 3), keepdim=True)
    by_cubes = (weights * activations).sum(1, keepdim=True).relu()
    theirs = by_torchcam("grad_cam_plus_plus", activations, gradients)
    torch.testing.assert_close(theirs, by_cubes)
    divided = grad_cam_plus_plus(activations, gradients, eps=1e-8).relu()
    scaled = divided / divided.max() - theirs / theirs.max()
    assert scaled.abs().max() > 0.01, "after scaling the two would look alike"


@pytest.mark.parametrize("name", ["grad_cam_plus_plus", "xgrad_cam"])
def test_the_epsilons_of_pytorch_grad_cam_make_a_difference(name: str) -> None:
    given = pair("faint", (5, 4), torch.float64)
    with_eps, without = pytorch_grad_cam_method(name)(*given), CAM_METHODS[name](*given)
    assert (with_eps - without).abs().max() > 0.01 * without.abs().max()


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_weighting_of_a_peer(peer: Any) -> None:
    activations, gradients = pair("plain", (5, 4), torch.float32)
    for name in peer.methods:
        method = peer.cam_method(name)
        cams = method(activations, gradients)
        shares = method(activations, gradients, channel_sum=False)
        assert shares.shape == activations.shape
        torch.testing.assert_close(shares.sum(1, keepdim=True), cams)
        halved = method(activations.half(), gradients.half())
        assert halved.dtype == torch.float32
        with pytest.raises(ValueError, match="of one shape"):
            method(activations, gradients[:, :2])


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_they_serve_an_attribution_object_that_is_copied_and_stored(peer: Any) -> None:
    images = torch.rand(2, 3, 12, 12)
    for name in peer.methods:
        grad_cam = BatchGradCam(SmallCnn(), "layer", method=peer.cam_method(name))
        cams = grad_cam.attribute(images, target=[1, 2])
        for twin in (copy.deepcopy(grad_cam), pickle.loads(pickle.dumps(grad_cam))):
            assert torch.equal(twin.attribute(images, target=[1, 2]), cams)


CHOICES: dict[str, Callable[[str], Any]] = {
    "pytorch-grad-cam": pytorch_grad_cam_method,
    "TorchCAM": torchcam_method,
    "Captum": PEERS["Captum"].cam_method,
}


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_a_weighting_that_it_has_not(choose: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"method: expected .*'grad_cam'.* got 'score_cam'"):
        choose("score_cam")

"""The peers, called in one way, beside this package's cams with their presets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from batchcam_captum import BatchGradCam
from batchcam_captum.interop.peers import OURS, PEERS, Peer
from tests.interop.networks import NETWORKS, Network, network
from tests.models import SmallCnn

installed = {name: peer for name, peer in PEERS.items() if peer.version}
every_peer = pytest.mark.parametrize("peer", installed.values(), ids=installed)
CLASSES = [4, 1]
#: On maps in [0, 1], or relative to the peak of a raw map.
TOLERANCE = {torch.float64: 5e-7, torch.float32: 1e-5}


@pytest.fixture(scope="module", params=NETWORKS)
def known(request: pytest.FixtureRequest) -> Network:
    return network(request.param, samples=2)


def error_of(peer: Peer, ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; of raw maps relative to the smallest peak."""
    assert ours.shape == theirs.shape
    peaks = theirs.abs().amax(tuple(range(1, theirs.dim())))
    # A unit map without positive values is zero in both; but not for every image.
    assert peaks.max() > 0.9 if peer.scale == "unit" else peaks.min() > 1e-5, "a blank map shows nothing"
    difference = (ours - theirs).abs().max().item()
    return difference if peer.scale == "unit" else difference / peaks.min().item()


@every_peer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cams_with_the_preset_are_theirs(known: Network, dtype: torch.dtype, peer: Peer) -> None:
    model, layers, images, reshape = known.to(dtype)
    for method in peer.classes:
        with peer.opened(model, layers[-1], method, reshape) as call:
            theirs = call(images, CLASSES)
            assert torch.equal(call(images, CLASSES), theirs), "several calls"
        assert not theirs.requires_grad
        grad_cam = BatchGradCam(model, layers[-1], method=peer.cam_method(method), reshape=reshape)
        ours = peer.preset(grad_cam.attribute(images, target=CLASSES), images.shape[2:])
        assert error_of(peer, ours, theirs) <= TOLERANCE[dtype], method
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["Captum", "TorchCAM"])
def test_signals(name: str) -> None:
    peer = installed[name]
    model, images = SmallCnn(1).double().eval(), torch.rand(1, 3, 12, dtype=torch.float64)
    with peer.opened(model, "layer", "grad_cam", None) as call:
        theirs = call(images, [3])
    cams = BatchGradCam(model, "layer", method=peer.cam_method("grad_cam")).attribute(images, target=[3])
    assert error_of(peer, peer.preset(cams, images.shape[2:]), theirs) <= 5e-7


@every_peer
def test_an_exception_of_the_block_removes_the_hooks(peer: Peer) -> None:
    model = SmallCnn().eval()

    def use() -> Any:
        with peer.opened(model, "layer", "grad_cam", None) as call:
            call(torch.rand(2, 3, 12, 11), [3, 1])
            raise IndexError("of the block")  # pytorch-grad-cam's own context would swallow it

    with pytest.raises(IndexError, match="of the block"):
        use()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_ours_is_the_attribution() -> None:
    model, layers, images, reshape = network("vit", samples=2)
    for method in OURS.classes:
        grad_cam = BatchGradCam(model, layers[0], method=OURS.cam_method(method), reshape=reshape)
        with OURS.opened(model, layers[0], method, reshape) as call:
            cams = call(images, CLASSES)
        assert torch.equal(cams, grad_cam.attribute(images, target=CLASSES))
        assert OURS.preset(cams, (64, 96)) is cams
    assert OURS.version


def test_the_layer_of_captum_goes_on_with_its_own_output() -> None:
    """Where Captum is shown reshaped maps, the scores are those without."""
    model, layers, images, reshape = network("vit", samples=2)
    seen = []
    with torch.no_grad():
        scores = model(images)
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    with installed["Captum"].opened(model, layers[0], "grad_cam", reshape) as call:
        call(images, CLASSES)
    handle.remove()
    assert torch.equal(seen[0], scores)

"""The adapter, the presets and the comparison on a GPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from batchcam_captum import BatchGradCam, interop
from batchcam_captum.interop.compare import compare
from batchcam_captum.interop.peers import PEERS
from tests.models import SmallCnn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CLASSES = ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any, torch.Tensor]:
    """A model in float64 on the CPU, the same on the GPU, and images on the CPU."""
    torch.manual_seed(3)
    model = SmallCnn().double().eval()
    return model, copy.deepcopy(model).cuda(), torch.rand(3, 3, 16, 14, dtype=torch.float64)


@pytest.mark.parametrize("smooth", [{}, {"aug_smooth": True}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_the_adapter_gives_the_maps_of_the_cpu(name: str, smooth: dict[str, bool], pair: Any) -> None:
    on_cpu, on_gpu, images = pair
    make = getattr(interop, name)
    expected = make(on_cpu, ["layer"])(images, [0, 2, 1], **smooth)
    found = make(on_gpu, ["layer"])(images, [0, 2, 1], **smooth)  # brings the images over, as the peer does
    assert isinstance(found, np.ndarray)
    assert expected.max() > 0.3
    np.testing.assert_allclose(found, expected, atol=5e-7)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_the_peers_agree_there(peer: Any, pair: Any) -> None:
    if peer.version is None:
        pytest.skip(f"{peer.name} is not installed")
    _, model, images = pair
    images = images.cuda()
    with peer.opened(model, "layer", "grad_cam", None) as call:
        theirs = call(images, [0, 2, 1])
    cams = BatchGradCam(model, "layer", method=peer.cam_method("grad_cam")).attribute(
        images, target=[0, 2, 1]
    )
    assert cams.is_cuda
    preset = peer.preset(cams, images.shape[2:])
    peak = theirs.abs().max().cpu() if peer.scale == "raw" else 1
    assert (preset.cpu() - theirs.cpu()).abs().max() / peak <= 5e-7


def test_compare_measures_there(pair: Any) -> None:
    _, model, images = pair
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = compare(model, "layer", images.cuda(), batch_sizes=(1, 2), repeats=2)
    assert found.environment["device"].startswith("cuda")
    assert all(cost.peak_bytes for cost in found.costs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

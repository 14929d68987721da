"""The adapter needs no pytorch-grad-cam: it is BatchGradCam and a preset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from batchcam_captum import BatchGradCam, interop
from batchcam_captum.interop import pytorch_grad_cam_method, to_pytorch_grad_cam
from batchcam_captum.interop.eigen import first_component
from tests.models import SmallCnn

METHODS = {
    "GradCAM": "grad_cam",
    "GradCAMPlusPlus": "grad_cam_plus_plus",
    "XGradCAM": "xgrad_cam",
    "HiResCAM": "hires_cam",
    "LayerCAM": "layer_cam",
    "GradCAMElementWise": "grad_cam_elementwise",
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_summed(name: str, dims: int) -> None:
    if dims == 3:
        pytest.importorskip("scipy")
    model, images = SmallCnn(dims).eval(), torch.randn(3, 3, *[11] * dims)
    layers = [model.stem, model.layer]
    method = pytorch_grad_cam_method(METHODS[name])
    cams = BatchGradCam(model, layers, method=method).attribute(images, target=[4, 1, 0])
    expected = to_pytorch_grad_cam(cams, images.shape[2:])
    assert expected.max() > 0.9
    np.testing.assert_array_equal(getattr(interop, name)(model, layers)(images, [4, 1, 0]), expected)


def principal(shares: Tensor) -> Tensor:
    """By the eigenvectors of the covariance, in double precision; the sign is free."""
    rows = shares.double().flatten(2).transpose(1, 2)
    rows = rows - rows.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)
    return (rows @ vectors[..., -1:]).transpose(1, 2).reshape(len(shares), 1, *shares.shape[2:])


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (2, 40, 3, 3), (3, 6, 2, 3, 4), (1, 1, 4, 4)])
def test_first_component(shape: tuple[int, ...]) -> None:
    shares = torch.randn(shape)
    found, expected = first_component(shares).double(), principal(shares)
    assert found.shape == (shape[0], 1, *shape[2:])
    signs = (found * expected).flatten(1).sum(1).sign().reshape(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(found, signs * expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(found, first_component(shares).double())


def test_what_is_no_number_counts_as_zero_and_constants_have_no_component() -> None:
    shares = torch.randn(1, 4, 3, 3)
    holed = shares.clone()
    holed[0, 2, 1, 1] = torch.nan
    zeroed = holed.nan_to_num(0)
    assert torch.equal(first_component(holed), first_component(zeroed))
    assert not torch.equal(first_component(holed), first_component(shares))
    assert holed.isnan().sum() == 1, "the caller's tensor is left alone"
    assert not first_component(torch.ones(1, 4, 3, 3)).any()


@pytest.mark.parametrize("name", [*METHODS, "EigenCAM", "EigenGradCAM"])
def test_projected_maps_of_a_model_in_train_mode(name: str) -> None:
    model, images = SmallCnn(norm=True, dropout=0.5).train(), torch.randn(3, 3, 16, 14)
    cam = getattr(interop, name)(model, ["layer"])
    maps = cam(images, eigen_smooth=True)
    assert model.training
    assert model.stem[1].training
    model.eval()
    np.testing.assert_array_equal(cam(images, model(images).argmax(1), eigen_smooth=True), maps)
    assert maps.shape == (3, 16, 14)
    assert maps.reshape(3, -1).max(1).min() > 0.9

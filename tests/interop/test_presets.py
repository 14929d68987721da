"""Each weighting and each preset gives what the peer's own code gives for the same tensors."""

from __future__ import annotations

import itertools
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import CAM_METHODS, grad_cam_plus_plus
from batchcam_captum.interop import (
    fuse_as_torchcam,
    pytorch_grad_cam_method,
    to_captum,
    to_pytorch_grad_cam,
    to_torchcam,
    torchcam_method,
)
from batchcam_captum.interop.peers import PEERS
from tests.models import SmallCnn

MAPS = {
    "signed": lambda size: torch.randn(3, 1, *size),
    "one_image": lambda size: torch.randn(1, 1, *size),
    "positive": lambda size: torch.rand(2, 1, *size) + 1,
    "negative": lambda size: -torch.rand(2, 1, *size) - 0.1,
    "all_zero": lambda size: torch.zeros(2, 1, *size),
    "constant": lambda size: torch.full((2, 1, *size), 3.0),
    "large": lambda size: 1e6 * torch.randn(2, 1, *size),
    # The peers' epsilons are absolute: such maps stay faint.
    "vanishing": lambda size: 1e-7 * torch.randn(2, 1, *size),
    "all_but_gone": lambda size: 1e-13 * torch.randn(2, 1, *size),
    "not_a_number": lambda size: torch.randn(2, 1, *size).index_fill(0, torch.tensor(1), torch.nan),
}
SIZES = {
    "larger": ((7, 7), (224, 224)),
    "no_multiple": ((7, 9), (50, 37)),
    "large_map": ((35, 41), (299, 301)),
    "smaller": ((30, 20), (11, 7)),
    "half": ((20, 28), (10, 14)),
    "one_larger_one_smaller": ((5, 20), (40, 9)),
    "unchanged": ((6, 5), (6, 5)),
    "one_place": ((1, 1), (4, 6)),
    "one_row": ((1, 7), (9, 9)),
}
TOLERANCE = 5e-7
#: Every kind but the last, in both precisions.
FINITE = list(itertools.product(list(MAPS)[:-1], (torch.float64, torch.float32)))


def by_pytorch_grad_cam(layers: list[Tensor], size: tuple[int, ...]) -> np.ndarray:
    """The peer's own code from the raw maps on; no model is asked."""
    peer = pytest.importorskip("pytorch_grad_cam")
    raw = iter(layers)

    class Given(peer.base_cam.BaseCAM):  # type: ignore[misc, name-defined]
        def get_cam_image(self, *_: Any) -> np.ndarray:
            return next(raw).squeeze(1).numpy()

    model = nn.Conv2d(1, 1, 1)
    cam = Given(model, [model] * len(layers))
    images = torch.zeros(len(layers[0]), 3, *size)
    return cam.aggregate_multi_layers(cam.compute_cam_per_layer(images, [], False))


def by_torchcam(cams: Tensor, normalized: bool) -> Tensor:
    """The same for TorchCAM: one channel of weight one."""
    gradient = pytest.importorskip("torchcam.methods.gradient")

    class Given(gradient._GradCAM):  # type: ignore[misc, name-defined]
        def _get_weights(self, *_: Any) -> list[Tensor]:
            return [torch.ones(len(cams), 1, dtype=cams.dtype)]

    with Given(nn.Sequential(nn.Identity()), "0") as extractor:
        extractor.hook_a = [cams.clone()]
        return extractor.compute_cams(0, None, normalized)[0]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_pytorch_grad_cam(sizes: Any) -> None:
    old, new = sizes
    for kind, dtype in FINITE:
        cams = MAPS[kind](old).to(dtype)
        expected = by_pytorch_grad_cam([cams], new)
        actual = to_pytorch_grad_cam(cams, new)
        assert isinstance(actual, np.ndarray)
        assert actual.dtype == expected.dtype == np.float32
        assert actual.shape == expected.shape == (len(cams), *new)
        assert np.abs(actual - expected).max() <= TOLERANCE, (kind, dtype)
        assert actual.min() >= 0
        assert actual.max() <= 1
        if kind in ("negative", "all_zero", "constant"):
            assert not actual.any()
        elif min(old) > 1:
            assert actual.max() > 0.3


def test_nan_stays_in_its_own_map() -> None:
    cams = MAPS["not_a_number"]((6, 5))
    expected, actual = by_pytorch_grad_cam([cams], (12, 11)), to_pytorch_grad_cam(cams, (12, 11))
    assert np.isnan(expected[1]).all()
    assert np.isnan(actual[1]).all()
    assert np.abs(actual[0] - expected[0]).max() <= 5e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_pytorch_grad_cam_with_several_layers(dtype: torch.dtype) -> None:
    # One of them is dead for the first image: it counts in the mean all the same.
    layers = [torch.randn(3, 1, *size, dtype=dtype) for size in ((7, 9), (14, 18), (40, 30))]
    layers[1][0] = -layers[1][0].abs()
    expected = by_pytorch_grad_cam(layers, (33, 47))
    assert np.abs(to_pytorch_grad_cam(layers, (33, 47)) - expected).max() <= TOLERANCE
    alone = to_pytorch_grad_cam(layers[0], (33, 47))
    assert np.abs(alone - expected).max() > 0.1, "the other layers count for nothing"


VOLUMES = {
    "larger": ((4, 5, 3), (9, 11, 6)),
    "smaller": ((9, 8, 7), (4, 5, 6)),
    "mixed": ((3, 8, 5), (7, 4, 5)),
    "unchanged": ((4, 4, 4), (4, 4, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", VOLUMES.values(), ids=VOLUMES)
def test_pytorch_grad_cam_of_volumes(sizes: Any, dtype: torch.dtype) -> None:
    old, new = sizes
    layers = [torch.randn(2, 1, *old, dtype=dtype), torch.randn(2, 1, *old, dtype=dtype)]
    for given in (layers[:1], layers):
        expected = by_pytorch_grad_cam(given, new)
        assert expected.shape == (2, *new)
        assert np.abs(to_pytorch_grad_cam(given, new) - expected).max() <= TOLERANCE


def test_splines_below_zero_are_cut_off() -> None:
    """What the second rectification is for: without it the last min-max would lift the ground."""
    from scipy.ndimage import zoom

    cams = torch.zeros(1, 1, 5, 5, 5)
    cams[..., 2, 2, 2] = 1
    assert zoom(cams[0, 0].numpy(), 2).min() < -0.01
    assert (to_pytorch_grad_cam(cams, (10, 10, 10)) == 0).mean() > 0.3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    cams = torch.randn(2, 1, 6, 5).to(dtype)
    whole = cams.float()
    assert np.array_equal(to_pytorch_grad_cam(cams, (9, 9)), to_pytorch_grad_cam(whole, (9, 9)))
    torch.testing.assert_close(to_torchcam(cams), to_torchcam(whole), rtol=0, atol=0)
    # An epsilon of 1e-8 is zero in float16.
    assert not to_torchcam([torch.zeros(2, 1, 3, 3).to(dtype)])[0].any()


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("size", [(9,), (7, 5), (4, 3, 5)], ids=["1d", "2d", "3d"])
def test_torchcam(size: tuple[int, ...], normalized: bool) -> None:
    for kind, dtype in FINITE:
        cams = MAPS[kind](size).to(dtype)
        expected = by_torchcam(cams, normalized)
        (actual,) = to_torchcam(cams, normalized)
        assert actual.shape == (len(cams), *size)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7 if normalized else 0)


@pytest.mark.parametrize("size", [None, (12, 13)], ids=["largest", "given"])
@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM"])
@pytest.mark.parametrize(
    "sizes", [((7, 9), (14, 8)), ((3, 4, 5), (6, 2, 5)), ((7, 9),)], ids=["2d", "3d", "one"]
)
def test_torchcam_fuses_several_layers(sizes: Any, name: str, size: Any) -> None:
    peer = getattr(pytest.importorskip("torchcam.methods"), name)
    maps = to_torchcam([torch.randn(2, 1, *one) for one in sizes])
    if size and len(sizes[0]) == 3:
        size = (*size, 4)
    expected = peer.fuse_cams([layer.clone() for layer in maps], size)
    method = {"GradCAM": "grad_cam", "LayerCAM": "layer_cam"}[name]
    torch.testing.assert_close(fuse_as_torchcam(maps, size, method=method), expected, rtol=0, atol=1e-6)


MODES = [
    ((9,), 20, "nearest"),
    ((9,), (20,), "linear"),
    ((9,), (4,), "area"),
    ((7, 5), (30, 21), "nearest"),
    ((7, 5), 13, "nearest"),
    ((7, 5), (30, 21), "bilinear"),
    ((7, 5), (30, 21), "bicubic"),
    ((7, 5), (3, 4), "area"),
    ((7, 5), (30, 21), "nearest-exact"),
    ((3, 4, 5), (6, 9, 5), "trilinear"),
    ((3, 4, 5), 7, "nearest"),
]


@pytest.mark.parametrize(("old", "size", "mode"), MODES)
def test_captum(old: Any, size: Any, mode: str) -> None:
    cams = torch.randn(2, 1, *old)
    expected = LayerAttribution.interpolate(cams, size, mode)
    torch.testing.assert_close(to_captum(cams, size, mode), expected, rtol=0, atol=0)


def test_captum_without_arguments() -> None:
    cams = torch.randn(2, 1, 4, 3)
    assert torch.equal(to_captum(cams), cams)
    assert torch.equal(to_captum(cams, (8, 9)), LayerAttribution.interpolate(cams, (8, 9)))


def test_no_images() -> None:
    for spatial in ((4, 3), (2, 4, 3)):
        none = torch.zeros(0, 1, *spatial)
        size = tuple(2 * s for s in spatial)
        pictures = to_pytorch_grad_cam(none, size)
        assert (pictures.shape, pictures.dtype) == ((0, *size), np.float32)
        assert to_torchcam(none)[0].shape == (0, *spatial)


def test_cams_with_a_graph_are_taken_and_not_changed() -> None:
    cams = torch.randn(2, 1, 4, 3, requires_grad=True)
    before = cams.detach().clone()
    assert isinstance(to_pytorch_grad_cam(cams, (8, 6)), np.ndarray)
    assert not to_torchcam(cams)[0].requires_grad
    assert not to_torchcam(cams, normalized=False)[0].requires_grad
    assert not to_captum(cams, (8, 6)).requires_grad
    assert torch.equal(cams, before)


def test_one_size_for_all_sides() -> None:
    for spatial in ((4, 3), (2, 4, 3)):
        cams, size = torch.randn(2, 1, *spatial), (6,) * len(spatial)
        np.testing.assert_array_equal(to_pytorch_grad_cam(cams, 6), to_pytorch_grad_cam(cams, size))
        layers = to_torchcam([cams, cams.flip(2)])
        assert torch.equal(fuse_as_torchcam(layers, 6), fuse_as_torchcam(layers, size))


@pytest.mark.parametrize(
    ("cams", "size"),
    [
        (torch.rand(2, 1, 5), (5,)),
        (torch.rand(2, 1, 5, 5), (5, 5, 5)),
        (torch.rand(2, 1, 5, 5), (5, 0)),
        (torch.rand(2, 5, 5), (5, 5)),
        (torch.rand(2, 3, 5, 5), (5, 5)),
        ([torch.rand(2, 1, 5, 5), torch.rand(3, 1, 5, 5)], (5, 5)),
        ([torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5, 5)], (5, 5)),
        ([], (5, 5)),
        ([np.zeros((2, 1, 5, 5))], (5, 5)),
    ],
    ids=["signal", "size", "no_size", "no_channel", "channels", "counts", "dimensions", "nothing", "array"],
)
def test_cams_that_do_not_fit(cams: Any, size: Any) -> None:
    with pytest.raises(ValueError, match=r"cams \(N, 1, "):
        to_pytorch_grad_cam(cams, size)


def test_bad_input() -> None:
    maps = to_torchcam([torch.rand(2, 1, 5, 5), torch.rand(2, 1, 7, 5)])
    for error, match, call in (
        (ValueError, r"\(2, 3, 5, 5\)", lambda: to_torchcam(torch.rand(2, 3, 5, 5))),
        (ValueError, r"\(2, 5\)", lambda: to_captum(torch.rand(2, 5))),
        (ValueError, "size", lambda: to_captum(torch.rand(2, 1, 5, 5), (4,))),
        (ValueError, "method", lambda: fuse_as_torchcam(maps, method="LayerCAM")),
        (ValueError, "size", lambda: fuse_as_torchcam(maps, (4,))),
        (ValueError, "maps", lambda: fuse_as_torchcam([])),
        (ValueError, "maps", lambda: fuse_as_torchcam(to_torchcam([torch.randn(2, 1, 9)] * 2))),
        (TypeError, "maps", lambda: fuse_as_torchcam(torch.rand(2, 2, 5, 5))),  # type: ignore[arg-type]
        (ValueError, "method", lambda: pytorch_grad_cam_method("score_cam")),
        (ValueError, "method", lambda: torchcam_method("hires_cam")),
    ):
        with pytest.raises(error, match=match):
            call()


def test_volumes_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ModuleNotFoundError, match=r"scipy.*batchcam-captum\[compare\]"):
        to_pytorch_grad_cam(torch.rand(1, 1, 2, 2, 2), (4, 4, 4))


# Weightings

PYTORCH_GRAD_CAM = PEERS["pytorch-grad-cam"].classes
TORCHCAM = PEERS["TorchCAM"].classes
# Sums of float32 depend on their order.
METHOD_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
KINDS = ["plain", "behind_relu", "faint"]


def pair(kind: str, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Activations and gradients."""
    activations, gradients = torch.rand(3, 6, *size, dtype=dtype), torch.randn(3, 6, *size, dtype=dtype)
    if kind == "behind_relu":
        activations, gradients = (activations - 0.7).relu(), gradients * (activations > 0.7)
        activations[:, 2] = 0
    elif kind == "faint":  # what the epsilons decide
        activations, gradients = 1e-6 * activations, 1e-3 * gradients
    return activations, gradients


def pytorch_grad_cam_weighting(name: str, activations: Tensor, gradients: Tensor) -> Tensor:
    peer = pytest.importorskip("pytorch_grad_cam")
    model = nn.Conv2d(1, 1, 1)
    cam = getattr(peer, PYTORCH_GRAD_CAM[name])(model, [model])
    raw = cam.get_cam_image(None, model, [], activations.numpy(), gradients.numpy(), False)
    return torch.from_numpy(raw).unsqueeze(1)


def torchcam_weighting(name: str, activations: Tensor, gradients: Tensor) -> Tensor:
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
    assert (actual - expected).abs().max() <= METHOD_TOLERANCE[actual.dtype] * peak


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PYTORCH_GRAD_CAM)
def test_weightings_of_pytorch_grad_cam(name: str, kind: str, dtype: torch.dtype) -> None:
    for size in ((5, 4), (3, 2, 4)):
        given = pair(kind, size, dtype)
        assert_near(pytorch_grad_cam_method(name)(*given), pytorch_grad_cam_weighting(name, *given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TORCHCAM)
def test_weightings_of_torchcam(name: str, kind: str, dtype: torch.dtype) -> None:
    for size in ((7,), (5, 4), (3, 2, 4)):
        given = pair(kind, size, dtype)
        assert_near(torchcam_method(name)(*given).relu(), torchcam_weighting(name, *given))
    activations, gradients = pair("plain", (5, 4), dtype)
    gradients[:, 1, 2] = torch.nan
    expected = torchcam_weighting(name, activations, gradients)
    assert not expected.isnan().any()
    assert_near(torchcam_method(name)(activations, gradients).relu(), expected)


def test_torchcam_does_not_divide_in_grad_cam_plus_plus() -> None:
    given = pair("plain", (5, 4), torch.float64)
    theirs = torchcam_weighting("grad_cam_plus_plus", *given)
    divided = grad_cam_plus_plus(*given, eps=1e-8).relu()
    assert (divided / divided.max() - theirs / theirs.max()).abs().max() > 0.01


@pytest.mark.parametrize("name", ["grad_cam_plus_plus", "xgrad_cam"])
def test_the_epsilons_of_pytorch_grad_cam_matter(name: str) -> None:
    given = pair("faint", (5, 4), torch.float64)
    with_eps, without = pytorch_grad_cam_method(name)(*given), CAM_METHODS[name](*given)
    assert (with_eps - without).abs().max() > 0.01 * without.abs().max()


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_weightings_serve_an_attribution_that_is_pickled(peer: Any) -> None:
    activations, gradients = pair("plain", (5, 4), torch.float32)
    images = torch.rand(2, 3, 12, 12)
    for name in peer.classes:
        method = peer.cam_method(name)
        contributions = method(activations, gradients, channel_sum=False)
        assert contributions.shape == activations.shape
        torch.testing.assert_close(contributions.sum(1, keepdim=True), method(activations, gradients))
        assert method(activations.half(), gradients.half()).dtype == torch.float32
        with pytest.raises(ValueError, match="shape"):
            method(activations, gradients[:, :2])
        grad_cam = BatchGradCam(SmallCnn(), "layer", method=method)
        cams = grad_cam.attribute(images, target=[1, 2])
        twin = pickle.loads(pickle.dumps(grad_cam))
        assert torch.equal(twin.attribute(images, target=[1, 2]), cams)


def test_a_differentiable_map_of_a_peers_weighting_trains_the_head() -> None:
    model = SmallCnn()
    for method in (pytorch_grad_cam_method("grad_cam_plus_plus"), torchcam_method("xgrad_cam")):
        model.zero_grad()
        grad_cam = BatchGradCam(model, "layer", method=method)
        grad_cam.attribute(
            torch.rand(2, 3, 12, 12), target=[1, 2], differentiable=True
        ).square().sum().backward()
        assert model.head.weight.grad.abs().max() > 0

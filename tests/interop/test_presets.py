"""Each preset does to a raw map what the peer's own code does to it, whatever the map and the size."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from batchcam_captum.interop import fuse_as_torchcam, to_captum, to_pytorch_grad_cam, to_torchcam

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", [name for name in MAPS if name != "not_a_number"])
def test_pytorch_grad_cam(kind: str, sizes: Any, dtype: torch.dtype) -> None:
    old, new = sizes
    cams = MAPS[kind](old).to(dtype)
    expected = by_pytorch_grad_cam([cams], new)
    actual = to_pytorch_grad_cam(cams, new)
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape == (len(cams), *new)
    assert np.abs(actual - expected).max() <= TOLERANCE
    assert actual.min() >= 0
    assert actual.max() <= 1
    if kind in ("negative", "all_zero", "constant"):
        assert not actual.any()
    elif min(old) > 1:
        assert actual.max() > 0.3


def test_pytorch_grad_cam_hands_on_what_is_not_a_number_and_spoils_no_other_map() -> None:
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


def test_splines_overshoot_below_zero_and_are_cut_off() -> None:
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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(9,), (7, 5), (4, 3, 5)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("kind", [name for name in MAPS if name != "not_a_number"])
def test_torchcam(kind: str, size: tuple[int, ...], dtype: torch.dtype, normalized: bool) -> None:
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


def test_torchcam_fuses_no_signals() -> None:
    peer = pytest.importorskip("torchcam.methods").GradCAM
    signals = to_torchcam([torch.randn(2, 1, 9), torch.randn(2, 1, 5)])
    with pytest.raises(ValueError, match="align_corners"):
        peer.fuse_cams(signals)
    for maps in (signals, []):
        with pytest.raises(ValueError, match="fuse_as_torchcam: expected maps"):
            fuse_as_torchcam(maps)


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("old", "size", "mode"), MODES)
def test_captum(old: Any, size: Any, mode: str, dtype: torch.dtype) -> None:
    cams = torch.randn(2, 1, *old, dtype=dtype)
    expected = LayerAttribution.interpolate(cams, size, mode)
    torch.testing.assert_close(to_captum(cams, size, mode), expected, rtol=0, atol=0)
    assert to_captum(cams[:0], size, mode).shape == (0, *expected.shape[1:])


def test_captum_without_a_size_is_the_raw_map() -> None:
    cams = torch.randn(2, 1, 4, 3)
    assert torch.equal(to_captum(cams), cams)


def test_interpolating_by_captum_defaults_to_the_nearest_place() -> None:
    cams = torch.randn(2, 1, 4, 3)
    assert torch.equal(to_captum(cams, (8, 9)), LayerAttribution.interpolate(cams, (8, 9)))


def test_no_images() -> None:
    for spatial in ((4, 3), (2, 4, 3)):
        none = torch.zeros(0, 1, *spatial)
        size = tuple(2 * s for s in spatial)
        pictures = to_pytorch_grad_cam(none, size)
        assert (pictures.shape, pictures.dtype) == ((0, *size), np.float32)
        assert to_torchcam(none)[0].shape == (0, *spatial)


def test_maps_with_a_graph_are_taken_and_left_as_they_were() -> None:
    cams = torch.randn(2, 1, 4, 3, requires_grad=True)
    before = cams.detach().clone()
    assert isinstance(to_pytorch_grad_cam(cams, (8, 6)), np.ndarray)
    assert not to_torchcam(cams)[0].requires_grad
    assert not to_torchcam(cams, normalized=False)[0].requires_grad
    assert not to_captum(cams, (8, 6)).requires_grad
    assert torch.equal(cams, before)


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
    with pytest.raises(ValueError, match=r"to_pytorch_grad_cam: expected cams \(N, 1, "):
        to_pytorch_grad_cam(cams, size)


def test_what_torchcam_and_captum_cannot_be_given() -> None:
    with pytest.raises(ValueError, match=r"to_torchcam: expected cams .* got \(2, 3, 5, 5\)"):
        to_torchcam(torch.rand(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"to_captum: expected cams .* got \(2, 5\)"):
        to_captum(torch.rand(2, 5))
    with pytest.raises(ValueError, match=r"to_captum: expected one size .* got \(4,\)"):
        to_captum(torch.rand(2, 1, 5, 5), (4,))


def test_one_size_for_all_sides() -> None:
    for spatial in ((4, 3), (2, 4, 3)):
        cams, size = torch.randn(2, 1, *spatial), (6,) * len(spatial)
        np.testing.assert_array_equal(to_pytorch_grad_cam(cams, 6), to_pytorch_grad_cam(cams, size))
        np.testing.assert_array_equal(to_pytorch_grad_cam(cams, np.int64(6)), to_pytorch_grad_cam(cams, size))
        layers = to_torchcam([cams, cams.flip(2)])
        assert torch.equal(fuse_as_torchcam(layers, 6), fuse_as_torchcam(layers, size))


@pytest.mark.parametrize("size", [(6.0, 6.0), 6.0, "66", None, (6, None)], ids=str)
def test_sizes_that_are_no_integers(size: Any) -> None:
    cams = torch.rand(2, 1, 5, 5)
    calls = [lambda: to_pytorch_grad_cam(cams, size), lambda: to_captum(cams, size)]
    calls.append(lambda: fuse_as_torchcam(to_torchcam([cams, cams]), size))
    for call in calls[: 1 if size is None else 3]:
        with pytest.raises(
            TypeError, match=r"expected a size of integers, one for each of 2 spatial .*; pass"
        ):
            call()


def test_what_cannot_be_fused() -> None:
    maps = to_torchcam([torch.rand(2, 1, 5, 5), torch.rand(2, 1, 7, 5)])
    with pytest.raises(ValueError, match=r"expected one that TorchCAM has \('grad_cam'.*, got 'LayerCAM'"):
        fuse_as_torchcam(maps, method="LayerCAM")
    with pytest.raises(
        TypeError, match=r"a list of maps, one entry a layer, got a tensor \(2, 2, 5, 5\); pass"
    ):
        fuse_as_torchcam(torch.rand(2, 2, 5, 5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected one size for each side .* got \(4,\)"):
        fuse_as_torchcam(maps, (4,))


def test_volumes_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ModuleNotFoundError, match=r"volumes needs scipy.*install batchcam-captum\[compare\]"):
        to_pytorch_grad_cam(torch.rand(1, 1, 2, 2, 2), (4, 4, 4))

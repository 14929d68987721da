"""Tokens on a grid, channels in front, and the grid that an input's size implies."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum.functional import TokenGrid, channels_last_to_first, infer_grid, tokens_to_grid
from batchcam_captum.functional.layout import has_one_stride_per_frame, is_downsampled


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 4)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_every_token_comes_to_its_place(grid, prefix):
    places = torch.cartesian_prod(*[torch.arange(side) for side in grid]).reshape(-1, len(grid)).tolist()
    tokens = torch.randn(2, prefix + len(places), 5, requires_grad=True)
    maps = tokens_to_grid(tokens, grid, prefix)
    assert maps.shape == (2, 5, *grid)
    for number, place in enumerate(places):
        assert torch.equal(maps[:, :, *place], tokens[:, prefix + number])
    (by,) = torch.autograd.grad(maps.sum(), tokens)
    assert torch.equal(by, (torch.arange(by.shape[1]) >= prefix).float()[:, None].expand_as(by))


@pytest.mark.parametrize(
    ("shape", "grid", "prefix"),
    [((2, 17, 3), (4, 4), 0), ((2, 16, 3), (4, 4), -1), ((2, 3, 4, 4), (4, 4), 0)],
)
def test_tokens_that_do_not_fit(shape, grid, prefix):
    with pytest.raises(ValueError, match="tokens: expected"):
        tokens_to_grid(torch.rand(shape), grid, prefix)


@pytest.mark.parametrize("spatial", [(7,), (3, 4), (2, 3, 4)])
def test_channels_last_to_first(spatial):
    tensor = torch.randn(2, *spatial, 5)
    moved = channels_last_to_first(tensor)
    assert moved.shape == (2, 5, *spatial)
    for channel in range(5):
        assert torch.equal(moved[:, channel], tensor[..., channel])


def test_channels_last_without_places():
    with pytest.raises(ValueError, match="channels_last_to_first: expected"):
        channels_last_to_first(torch.rand(2, 5))


@pytest.mark.parametrize(
    ("length", "input_size", "grid", "prefix"),
    [
        (196, (224, 224), (14, 14), 0),
        (197, (224, 224), (14, 14), 1),
        (198, (224, 224), (14, 14), 2),
        (201, (224, 224), (14, 14), 5),
        (261, (224, 224), (16, 16), 5),  # 14 px patches, class and four registers
        (1370, (518, 518), (37, 37), 1),
        (577, (384, 384), (24, 24), 1),
        (17, (64, 64), (4, 4), 1),
        (25, (64, 96), (4, 6), 1),
        (25, (96, 64), (6, 4), 1),
        (37, (100, 100), (6, 6), 1),  # 16 px patches, the rest cut off
        (100, (400,), (100,), 0),
    ],
)
def test_grids_of_known_transformers(length, input_size, grid, prefix):
    assert infer_grid(length, input_size, prefix) == TokenGrid(grid, prefix)
    if len(input_size) > 1:
        assert infer_grid(length, input_size) == TokenGrid(grid, prefix)


def test_several_grids_are_listed():
    with pytest.raises(ValueError, match=r"25 places after 3 .* or 20 places after 8 "):
        infer_grid(28, (100,))
    assert infer_grid(28, (100,), prefix=3) == TokenGrid((25,), 3)


@pytest.mark.parametrize(
    ("length", "input_size", "prefix"),
    [(180, (224, 224), None), (197, (224, 224), 2), (1, (224, 224), None), (5, (), None), (0, (8, 8), None)],
)
def test_no_grid(length, input_size, prefix):
    with pytest.raises(
        ValueError,
        match=r"tokens: expected.*no grid",
    ):
        infer_grid(length, input_size, prefix)


@pytest.mark.parametrize(
    ("spatial", "input_size", "fits"),
    [
        ((7, 7), (224, 224), True),
        ((2, 3), (64, 96), True),
        ((3, 2), (64, 96), False),
        ((4, 6), (50, 75), True),  # rounded up and down
        ((12, 10), (16, 14), True),  # 5x5 without padding
        ((8, 12), (16, 14), False),
        ((4, 4), (28, 28), True),  # two 5x5 without padding, each pooled
        ((49, 16), (224, 224), False),
        ((225, 225), (224, 224), True),  # an even kernel's padding
        ((448, 448), (224, 224), False),
        ((7, 7), (224,), False),
        ((), (), False),
        ((4, 6, 2), (32, 48, 16), True),
        ((4, 2, 6), (32, 48, 16), False),
    ],
)
def test_is_downsampled(spatial, input_size, fits):
    assert is_downsampled(spatial, input_size) is fits


@pytest.mark.parametrize("prefix", [None, 1])
def test_the_number_of_a_videos_tokens_does_not_say_how_they_lie(prefix):
    """MViT has 8 x 14 x 14 patches and a class token; cubes of 8 would give 2 x 28 x 28 and one."""
    with pytest.raises(ValueError, match="tokens: expected"):
        infer_grid(1569, (16, 224, 224), prefix)


@pytest.mark.parametrize(
    ("spatial", "input_size", "fits"),
    [
        ((4, 32), (64, 128), True),  # strides 16 and 4, as in text recognition
        ((4, 33), (64, 128), False),
        ((2, 4, 4), (8, 64, 64), True),
        ((32, 8), (96, 64), False),  # strides 3 and 8
        ((4, 4, 384), (8, 64, 64), False),
        ((197, 64), (240, 240), False),  # tokens of a head
    ],
)
def test_one_stride_an_axis(spatial, input_size, fits):
    assert is_downsampled(spatial, input_size, anisotropic=True) is fits
    assert not is_downsampled(spatial, input_size)


@pytest.mark.parametrize(
    ("spatial", "fits"),
    [
        ((2, 4, 4), True),
        ((8, 4, 4), True),
        ((4, 4, 4), True),
        ((4, 4, 8), False),
        ((4, 4, 384), False),
        ((4, 4), False),
    ],
)
def test_one_stride_a_frame(spatial, fits):
    assert has_one_stride_per_frame(spatial, (8, 64, 64), padded=True) is fits

"""The shortcuts themselves: pixels computed by hand, and how their draws are distributed."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum.datasets import class_colors, color, decoy, watermark, watermark_glyphs

LABELS = torch.arange(2000) % 10
IMAGES = torch.randint(
    1, 200, (2000, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled_shades(images, masks):
    """The one shade inside each image's mask."""
    inside = [image[mask] for image, mask in zip(images, masks, strict=True)]
    assert all((values == values[0]).all() for values in inside)
    return torch.stack([values[0] for values in inside]).long()


@pytest.mark.parametrize(
    ("variant", "side", "test_shades"), [("rrr", 4, None), ("cdep", 5, 25 * LABELS)], ids=["rrr", "cdep"]
)
def test_decoys_are_as_published(variant, side, test_shades):
    before = IMAGES.clone()
    images, masks = decoy(IMAGES, LABELS, variant=variant, train=True, generator=generator())
    assert torch.equal(IMAGES, before)
    assert images.dtype == torch.uint8
    assert masks.shape == IMAGES.shape
    assert torch.equal(images[~masks], IMAGES[~masks])
    assert torch.equal(masks.sum((1, 2, 3)), torch.full((2000,), side**2))
    assert torch.equal(sampled_shades(images, masks), 255 - 25 * LABELS)
    # Each of the four corners, which is that of the image and not one pixel inside, about 500 times (σ = 19).
    for row in (0, 27):
        for column in (0, 27):
            assert 420 < int(masks[:, 0, row, column].sum()) < 580
            corner = masks[masks[:, 0, row, column], 0]
            rows, columns = slice(0, side) if row == 0 else slice(-side, None), slice(0, side)
            columns = columns if column == 0 else slice(-side, None)
            assert corner[:, rows, columns].all()

    tested, same_masks = decoy(IMAGES, LABELS, variant=variant, train=False, generator=generator())
    assert torch.equal(masks, same_masks)
    shades = sampled_shades(tested, masks)
    if test_shades is not None:
        assert torch.equal(shades, test_shades)
    else:  # any digit's shade, whatever the label: about 200 of each (σ = 13), a tenth of them the own one's
        assert torch.equal(shades.unique(), 255 - 25 * torch.arange(9, -1, -1))
        counts = shades.unique(return_counts=True)[1]
        assert int(counts.min()) > 140
        assert int(counts.max()) < 260
        assert 140 < int((shades == 255 - 25 * LABELS).sum()) < 260


def test_fixed_decoys_are_top_left_and_float_images_get_the_same_shades():
    images, masks = decoy(IMAGES[:10] / 255, LABELS[:10], train=True, generator=generator(), place="fixed")
    assert masks[:, :, :4, :4].all()
    assert int(masks.sum()) == 10 * 16
    torch.testing.assert_close(images[:, 0, 0, 0], (255 - 25 * LABELS[:10]) / 255)


@pytest.mark.parametrize("shortcut", [decoy, color, watermark])
def test_draws_depend_on_the_seed_alone(shortcut):
    few, labels = IMAGES[:200], LABELS[:200]
    options = {"correlation": 0.5} if shortcut is color else {"place": "random"}
    first, second, other = (
        shortcut(few, labels, train=True, generator=generator(seed), **options)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    as_float = shortcut(few / 255, labels, train=True, generator=generator(1), **options)[0]
    torch.testing.assert_close(as_float, first / 255, atol=0.5 / 255 + 1e-6, rtol=0)  # rounded to integers


def test_colors_are_those_of_cdep():
    """Values that the package ``colour`` gives for ``Color("red").range_to("purple", 10)``, to three decimals."""
    colors = class_colors()
    for label, expected in {
        0: (1, 0, 0),
        1: (0.945, 0.525, 0),
        4: (0, 0.779, 0.173),
        9: (0.502, 0, 0.502),
    }.items():
        torch.testing.assert_close(colors[label], torch.tensor(expected).float(), atol=6e-4, rtol=0)


def test_foreground_takes_the_class_color_and_its_reverse_in_the_test_set():
    digit = torch.zeros(10, 1, 4, 4)
    digit[:, 0, 1, 2] = 0.5
    images, masks = color(digit, torch.arange(10), train=True, generator=generator())
    torch.testing.assert_close(images[:, :, 1, 2], 0.5 * class_colors())
    assert masks.nonzero().tolist() == [[sample, 0, 1, 2] for sample in range(10)]
    assert not images[~masks.expand_as(images)].any()
    tested = color(digit, torch.arange(10), train=False, generator=generator())[0]
    torch.testing.assert_close(tested[:, :, 1, 2], 0.5 * class_colors().flip(0))


def test_background_blends_and_is_masked_where_there_is_no_object():
    digit = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 1, 1, 3)
    images, masks = color(digit, torch.tensor([0]), variant="background", train=True, generator=generator())
    # Red behind: red where black, 0.25 + 0.75·red at the edge, white on the object.
    torch.testing.assert_close(
        images[0, :, 0], torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.25, 1.0], [0.0, 0.25, 1.0]])
    )
    assert masks.flatten().tolist() == [True, False, False]


def test_correlation_is_the_share_of_own_colors_and_random_colors_ignore_the_label():
    white = torch.ones(2000, 1, 1, 1)
    colors = class_colors()
    shown = color(white, LABELS, train=True, generator=generator(), correlation=0.8)[0].flatten(1)
    nearest = torch.cdist(shown, colors).argmin(1)
    assert 1530 < int((nearest == LABELS).sum()) < 1670  # 1600, σ = 18
    assert len(nearest[nearest != LABELS].unique()) == 10
    shown = color(white, LABELS, train=False, generator=generator(), test="random")[0].flatten(1)
    assert 140 < int((torch.cdist(shown, colors).argmin(1) == LABELS).sum()) < 260
    spread = color(white, torch.full((2000,), 4), train=True, generator=generator(), spread=0.02)[0].flatten(
        1
    )
    assert 0.018 < float(spread[:, 1].std()) < 0.022  # far from 0 and 1, so that nothing is cut off
    assert abs(float(spread[:, 1].mean() - colors[4, 1])) < 0.003


def test_watermarks_are_blended_letters_of_the_class():
    images, masks = watermark(
        torch.full((3, 1, 28, 28), 0.5), torch.tensor([0, 1, 9]), train=True, generator=generator()
    )
    assert masks[:, 0, 22:27, 24:27].all()  # five by three pixels, one from the border
    assert int(masks.sum()) == 3 * 15
    letter_a = torch.tensor([[0, 1, 0], [1, 0, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1]])
    torch.testing.assert_close(images[0, 0, 22:27, 24:27], 0.5 + 0.7 * 0.5 * letter_a)  # 0.3·0.5 + 0.7
    assert (images[~masks] == 0.5).all()
    gray = torch.full((1, 1, 28, 28), 100, dtype=torch.uint8)
    integers = watermark(gray, torch.tensor([0]), train=True, generator=generator())[0]
    assert integers[0, 0, 22, 24:27].tolist() == [100, 208, 100]  # 30 + 178.5, to the even integer


def test_watermarks_mislead_in_the_test_set_or_are_absent():
    black = torch.zeros(2000, 1, 28, 28)
    glyphs = watermark_glyphs().flatten(1).float()
    tested, masks = watermark(black, LABELS, train=False, generator=generator(), opacity=1.0)
    read = (tested[masks].reshape(-1, 1, 15) == glyphs).all(2).float().argmax(1)
    assert not (read == LABELS).any()
    assert len(read.unique()) == 10
    none, masks = watermark(black, LABELS, train=False, generator=generator(), test="none")
    assert not none.any()
    assert not masks.any()
    shared, masks = watermark(black, LABELS, train=True, generator=generator(), share=0.25)
    assert 420 < int(masks.flatten(1).any(1).sum()) < 580  # 500, σ = 19
    assert torch.equal(shared.flatten(1).any(1), masks.flatten(1).any(1))


def test_random_watermarks_lie_along_all_four_sides():
    black = torch.zeros(2000, 1, 28, 28)
    masks = watermark(black, LABELS, train=True, generator=generator(), place="random")[1][:, 0]
    assert torch.equal(masks.sum((1, 2)), torch.full((2000,), 15))
    ring = torch.zeros(28, 28, dtype=torch.bool)
    ring[1:27, 1:27] = True
    assert not (masks & ~ring).any()  # one pixel is left free
    ring[2:26, 2:26] = False
    assert (masks & ring).flatten(1).any(1).all()  # and no mark is farther inside
    sides = [masks[:, 1].any(1), masks[:, 26].any(1), masks[:, :, 1].any(1), masks[:, :, 26].any(1)]
    assert min(int(side.sum()) for side in sides) > 400


def test_marks_of_many_classes_and_large_images_differ_and_grow():
    glyphs = watermark_glyphs(100)
    assert glyphs.shape == (100, 5, 7)
    assert len(glyphs.flatten(1).unique(dim=0)) == 100
    assert watermark_glyphs(10, scale=2).shape == (10, 10, 6)
    masks = watermark(torch.zeros(1, 1, 56, 60), torch.tensor([3]), train=True, generator=generator())[1]
    assert int(masks.sum()) == 10 * 6


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"images": torch.zeros(2, 28, 28)}, ValueError, "images"),
        ({"images": torch.full((2, 1, 28, 28), 2.0)}, ValueError, "images"),
        ({"images": torch.zeros(2, 1, 28, 28).long()}, TypeError, "images"),
        ({"images": torch.zeros(2, 1, 3, 28)}, ValueError, "images"),
        ({"labels": torch.tensor([0, 10])}, ValueError, "labels"),
        ({"labels": torch.zeros(2, 10)}, ValueError, "labels"),
        ({"labels": torch.zeros(2)}, TypeError, "labels"),
        ({"generator": 3}, TypeError, "generator"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(change, error, argument):
    arguments = {
        "images": torch.zeros(2, 1, 28, 28),
        "labels": torch.tensor([0, 1]),
        "generator": generator(),
    }
    with pytest.raises(error, match=f"^{argument}: "):
        decoy(train=True, **{**arguments, **change})
    with pytest.raises(error, match=f"^{argument}: "):
        watermark(train=True, **{**arguments, **change})


@pytest.mark.parametrize(
    ("shortcut", "options", "argument"),
    [
        (decoy, {"variant": "ross"}, "variant"),
        (decoy, {"place": "centre"}, "place"),
        (color, {"correlation": 1.5}, "correlation"),
        (color, {"test": "none"}, "test"),
        (color, {"spread": -1}, "spread"),
        (watermark, {"share": float("nan")}, "share"),
        (watermark, {"opacity": 0}, "opacity"),
        (watermark, {"num_classes": 1}, "num_classes"),
    ],
)
def test_options_that_do_not_exist(shortcut, options, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        shortcut(IMAGES[:1], LABELS[:1], train=True, generator=generator(), **options)

"""ForegroundPrototypes: against a loop over pixels, soft maps, warnings, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes, ForegroundPrototypes
from tests import reference_prototypes

K = 3


def data(n=40, size=(9, 11)):
    """Bright in the middle, with noise; class 2 has no image."""
    images = torch.rand(n, 3, *size) * 0.4
    images[..., 3:6, 4:7] += 0.25
    return images, torch.arange(n) % 2


def streamed(images, labels, sizes=(7,), **options):
    prototypes = ForegroundPrototypes(K, **options)
    for images_part, labels_part in zip(images.split(sizes[0]), labels.split(sizes[0]), strict=True):
        prototypes.update(images_part, labels_part)
    return prototypes


@pytest.mark.parametrize(
    "options", [{}, {"dilate": 0}, {"lit": 0.45, "share": 0.5, "dilate": 1}, {"lit": 0.0, "share": 0.0}]
)
@pytest.mark.parametrize("batch", [7, 40, 1])
def test_foreground_equals_a_loop_over_pixels(options, batch):
    images, labels = data()
    prototypes = streamed(images, labels, (batch,), **options)
    expected = reference_prototypes.foregrounds(images.mean(1), labels, K, **options)
    assert torch.equal(prototypes.foregrounds()[:, 0], expected)
    assert torch.equal(prototypes.maps()[:, 0], expected.float())
    assert prototypes.unseen == [2]
    if options.get("lit", 0.3):  # or the test would say nothing
        assert expected[0].any()
        assert not expected[0].all()


@pytest.mark.parametrize("spatial", [(12,), (6, 7), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
def test_dilation_in_one_two_and_three_dimensions(spatial):
    images = torch.zeros(1, 1, *spatial)
    centre = tuple(s // 2 for s in spatial)
    images[(0, 0, *centre)] = 1
    prototypes = ForegroundPrototypes(1, dilate=1)
    prototypes.update(images, torch.tensor([0]))
    assert int(prototypes.foregrounds().sum()) == 3 ** len(spatial)


def test_maps_of_another_size_say_how_much_is_foreground():
    """Not divided by the maximum, as shapes to imitate are: half of a pixel stays half."""
    images = torch.zeros(1, 1, 8, 8)
    images[..., 2, 2] = 1
    prototypes = ForegroundPrototypes(1, dilate=0)
    prototypes.update(images, torch.tensor([0]))
    maps = prototypes.maps((4, 4))
    assert_close(maps, F.avg_pool2d(images, 2))
    assert maps.max() == 0.25
    assert prototypes.maps((4, 4)) is maps


def test_standardization_is_undone():
    images, labels = data()
    plain = streamed(images, labels)
    undone = streamed((images - 0.4) / 0.2, labels, mean=0.4, std=0.2)
    assert torch.equal(undone.foregrounds(), plain.foregrounds())


def test_images_that_are_not_in_the_unit_interval():
    images, labels = data()
    for wrong in ((images - 0.4) / 0.2, (images * 255).to(torch.uint8)):
        with pytest.raises(
            ValueError, match=r"values from 0 to 1, .*pass mean= and std= .*divide .* by 255.*\(from .* to"
        ):
            streamed(wrong, labels)
    rounded = images / images.max() + 0.004
    assert streamed(rounded, labels).seen[0]


def test_from_loader_equals_updates_and_warns_of_nothing():
    images, labels = data()
    loader = [(images[:25], labels[:25]), (images[25:], labels[25:])]
    prototypes = ForegroundPrototypes.from_loader(loader, K, lit=0.4, share=0.5, dilate=1, progress=False)
    expected = streamed(images, labels, lit=0.4, share=0.5, dilate=1)
    assert torch.equal(prototypes.foregrounds(), expected.foregrounds())
    assert prototypes.counts.tolist() == [20, 20, 0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lit": 0.9}, r"expected some foreground in every class, got none in classes \[0, 1\]; lower lit= or share="),
        ({"dilate": 9}, r"expected some background in every class, got foreground everywhere in classes \[0, 1\]; raise lit="),
    ],
)  # fmt: skip
def test_foreground_that_tells_nothing_is_warned_of(options, text):
    images, labels = data()
    with pytest.warns(UserWarning, match=text) as caught:
        ForegroundPrototypes.from_loader([(images, labels)], K, progress=False, **options)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lit": 1.0}, "lit: expected a number of at least 0 and below 1, got 1.0"),
        ({"share": 35}, "share: expected a number of at least 0 and below 1, got 35"),
        ({"dilate": 0.5}, "dilate: expected a number of pixels, 0 or more, got 0.5"),
        ({"dilate": -1}, "dilate: expected a number of pixels, 0 or more, got -1"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(ValueError, match=text):
        ForegroundPrototypes(K, **options)


def test_from_maps_takes_foregrounds_as_they_are():
    maps = torch.rand(K, 1, 6, 6) > 0.5
    assert torch.equal(ForegroundPrototypes.from_maps(maps).foregrounds(), maps)


def test_file_keeps_the_rule_and_is_not_one_of_class_prototypes(tmp_path):
    prototypes = streamed(*data(), lit=0.4, share=0.5, dilate=1)
    prototypes.save(tmp_path / "foreground.pt")
    loaded = ForegroundPrototypes.load(tmp_path / "foreground.pt")
    assert torch.equal(loaded.foregrounds(), prototypes.foregrounds())
    assert (loaded.lit, loaded.share, loaded.dilate) == (0.4, 0.5, 1)
    with pytest.raises(
        ValueError, match=r"written by ClassPrototypes.save, got something else \(ForegroundP"
    ):
        ClassPrototypes.load(tmp_path / "foreground.pt")
    ClassPrototypes.from_maps(torch.rand(K, 1, 6, 6)).save(tmp_path / "class.pt")
    with pytest.raises(ValueError, match=r"written by ForegroundPrototypes\.save"):
        ForegroundPrototypes.load(tmp_path / "class.pt")


def test_pixel_has_to_be_above_the_limit_and_the_share_too():
    images = torch.zeros(4, 1, 1, 4)
    images[:, 0, 0, 0] = 0.5
    images[:2, 0, 0, 2] = 0.75
    images[:3, 0, 0, 3] = 0.75
    prototypes = ForegroundPrototypes(1, lit=0.5, share=0.5, dilate=0)
    prototypes.update(images, torch.zeros(4, dtype=torch.long))
    assert prototypes.foregrounds().flatten().tolist() == [False, False, False, True]

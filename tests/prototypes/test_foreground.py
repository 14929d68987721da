"""ForegroundPrototypes: against a loop over pixels, ready maps, warnings, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes, ForegroundLoss, ForegroundPrototypes, functional
from tests import reference_prototypes

K = 3


def data(n=40, size=(9, 11)):
    """Bright in the middle, with noise; class 2 has no image."""
    images = torch.rand(n, 3, *size) * 0.4
    images[..., 3:6, 4:7] += 0.25
    return images, torch.arange(n) % 2


def streamed(images, labels, batch=7, **options):
    prototypes = ForegroundPrototypes(K, **options)
    for images_part, labels_part in zip(images.split(batch), labels.split(batch), strict=True):
        prototypes.update(images_part, labels_part)
    return prototypes


@pytest.mark.parametrize(
    "options", [{}, {"dilate": 0}, {"lit": 0.45, "share": 0.5, "dilate": 1}, {"lit": 0.0, "share": 0.0}]
)
@pytest.mark.parametrize("batch", [7, 40, 1])
def test_foreground_equals_a_loop_over_pixels(options, batch):
    images, labels = data()
    prototypes = streamed(images, labels, batch, **options)
    expected = reference_prototypes.foregrounds(images.mean(1), labels, K, **options)
    assert torch.equal(prototypes.foregrounds()[:, 0], expected)
    assert torch.equal(prototypes.maps()[:, 0], expected.float())
    assert prototypes.unseen == [2]
    if options.get("lit", 0.3):  # otherwise the test says nothing
        assert expected[0].any()
        assert not expected[0].all()


@pytest.mark.parametrize("spatial", [(12,), (6, 7), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
def test_dilation_in_one_two_and_three_dimensions(spatial):
    images = torch.zeros(1, 1, *spatial)
    images[(0, 0, *(side // 2 for side in spatial))] = 1
    prototypes = ForegroundPrototypes(1, dilate=1)
    prototypes.update(images, torch.tensor([0]))
    assert int(prototypes.foregrounds().sum()) == 3 ** len(spatial)


def test_maps_of_another_size_are_the_share_of_foreground():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 2, 2] = 1
    prototypes = ForegroundPrototypes(1, dilate=0)
    prototypes.update(images, torch.tensor([0]))
    assert_close(prototypes.maps((4, 4)), F.avg_pool2d(images, 2))
    assert prototypes.maps((4, 4)).max() == 0.25  # not divided by the maximum


def test_limits_are_exclusive():
    images = torch.zeros(4, 1, 1, 4)
    images[:, 0, 0, 0] = 0.5
    images[:2, 0, 0, 2] = 0.75
    images[:3, 0, 0, 3] = 0.75
    prototypes = ForegroundPrototypes(1, lit=0.5, share=0.5, dilate=0)
    prototypes.update(images, torch.zeros(4, dtype=torch.long))
    assert prototypes.foregrounds().flatten().tolist() == [False, False, False, True]


def test_standardization_is_undone_and_images_are_in_the_unit_interval():
    images, labels = data()
    standardized = (images - 0.4) / 0.2
    undone = streamed(standardized, labels, mean=0.4, std=0.2)
    assert torch.equal(undone.foregrounds(), streamed(images, labels).foregrounds())
    for wrong in (standardized, (images * 255).to(torch.uint8)):
        with pytest.raises(ValueError, match="images"):
            streamed(wrong, labels)
    streamed(images / images.max() + 0.004, labels)  # rounding is fine


def test_from_loader_equals_updates_and_is_final():
    images, labels = data()
    loader = [(images[:25], labels[:25]), (images[25:], labels[25:])]
    prototypes = ForegroundPrototypes.from_loader(loader, K, lit=0.4, share=0.5, dilate=1, progress=False)
    expected = streamed(images, labels, lit=0.4, share=0.5, dilate=1)
    assert torch.equal(prototypes.foregrounds(), expected.foregrounds())
    assert prototypes.counts.tolist() == [20, 20, 0]
    with pytest.raises(RuntimeError, match="make new prototypes"):
        prototypes.update(images, labels)


@pytest.mark.parametrize("options", [{"lit": 0.9}, {"dilate": 9}], ids=["nothing", "everything"])
def test_foregrounds_that_teach_nothing_are_warned_of(options):
    with pytest.warns(UserWarning, match=r"classes \[0, 1\]") as caught:
        ForegroundPrototypes.from_loader([data()], K, progress=False, **options)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lit": 1.0}, "lit"),
        ({"share": 35}, "share"),
        ({"dilate": 0.5}, "dilate"),
        ({"dilate": -1}, "dilate"),
    ],
)
def test_bad_options(options, name):
    with pytest.raises(ValueError, match=name):
        ForegroundPrototypes(K, **options)


def test_from_maps_takes_foregrounds_as_they_are():
    maps = torch.rand(K, 1, 6, 6) > 0.5
    assert torch.equal(ForegroundPrototypes.from_maps(maps).foregrounds(), maps)
    soft = torch.rand(K, 2, 6, 6)
    prototypes = ForegroundPrototypes.from_maps(soft)
    assert torch.equal(prototypes.maps(), soft)
    assert_close(prototypes.maps((3, 3)), F.avg_pool2d(soft, 2))
    soft.zero_()
    assert prototypes.maps().any()


@pytest.mark.parametrize(
    "maps",
    [
        torch.rand(K, 6),
        torch.rand(K, 0, 6, 6),
        torch.full((K, 1, 6, 6), 2.0),
        torch.full((K, 1, 6, 6), torch.nan),
    ],
    ids=["dimensions", "none", "above 1", "NaN"],
)
def test_maps_that_are_not_foregrounds(maps):
    with pytest.raises(ValueError, match="prototypes"):
        ForegroundPrototypes.from_maps(maps)


@pytest.mark.parametrize("normalization", ["none", "share"])
def test_loss_of_ready_maps_is_that_of_the_function(normalization):
    everywhere = ForegroundLoss(torch.ones(1, 1, 8, 8), normalization=normalization)
    assert everywhere(torch.rand(1, 1, 8, 8), torch.tensor([0])) == 0
    maps, cams, labels = torch.rand(K, 2, 12, 12) * 0.8, torch.randn(4, 1, 6, 6), torch.tensor([0, 2, 1, 0])
    loss = ForegroundLoss(maps, normalization=normalization)
    assert_close(
        loss(cams, labels), functional.foreground_loss(cams, labels, maps, normalization=normalization)
    )


@pytest.mark.parametrize("ready", [False, True])
def test_a_state_does_not_depend_on_the_options_it_is_loaded_into(ready):
    source = ForegroundPrototypes.from_maps(torch.rand(K, 2, 9, 11)) if ready else streamed(*data(), dilate=1)
    other = ForegroundPrototypes(K, lit=0.9, dilate=5)
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    assert torch.equal(other.maps((5, 6)), source.maps((5, 6)))
    assert isinstance(other, ClassPrototypes)

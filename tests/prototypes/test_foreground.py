"""ForegroundPrototypes: against a loop over pixels, soft maps, warnings, and what they refuse."""

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
    soft = torch.rand(K, 2, 6, 6)  # two a class
    prototypes = ForegroundPrototypes.from_maps(soft)
    assert torch.equal(prototypes.maps(), soft)
    assert_close(prototypes.maps((3, 3)), F.avg_pool2d(soft, 2))
    assert prototypes.seen.all()
    soft.zero_()
    assert prototypes.maps().any()  # its own
    with pytest.raises(RuntimeError, match="taken from images, got ready maps; make new prototypes"):
        prototypes.update(*data())


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        (torch.rand(K, 6), r"\(K, 1, \*spatial\), or \(K, P, \*spatial\), got \(3, 6\)"),
        (torch.rand(K, 0, 6, 6), r"got \(3, 0, 6, 6\)"),
        (torch.full((K, 1, 6, 6), 2.0), "from 0 to 1, or booleans, got others"),
        (torch.full((K, 1, 6, 6), torch.nan), "from 0 to 1, or booleans, got others"),
    ],
)
def test_ready_maps_that_are_no_foregrounds(maps, text):
    with pytest.raises(ValueError, match=text):
        ForegroundPrototypes.from_maps(maps)


@pytest.mark.parametrize("normalization", ["none", "share"])
def test_loss_of_ready_maps_is_that_of_the_function(normalization):
    everywhere = ForegroundLoss(torch.ones(1, 1, 8, 8), normalization=normalization)
    assert everywhere(torch.rand(1, 1, 8, 8), torch.tensor([0])) == 0
    maps, cams, labels = torch.rand(K, 2, 12, 12) * 0.8, torch.randn(4, 1, 6, 6), torch.tensor([0, 2, 1, 0])
    for few in (maps, maps[:, :1]):
        loss = ForegroundLoss(few, normalization=normalization)
        assert_close(
            loss(cams, labels), functional.foreground_loss(cams, labels, few, normalization=normalization)
        )


def ready():
    return ForegroundPrototypes.from_maps(torch.rand(K, 1, 9, 11))


def ruled():
    return streamed(*data(), lit=0.4, share=0.5, dilate=1)


@pytest.mark.parametrize("make", [ready, ruled])
@pytest.mark.parametrize(
    "into", [ready, ruled, lambda: ForegroundPrototypes(K)], ids=["ready", "rule", "new"]
)
def test_state_brings_its_rule(make, into, tmp_path):
    source, other = make(), into()
    other.maps() if other.means.numel() else None  # a cache to be dropped
    other.load_state_dict(copy.deepcopy(source.state_dict()))
    source.save(tmp_path / "foreground.pt")
    for each in (other, ForegroundPrototypes.load(tmp_path / "foreground.pt")):
        assert torch.equal(each.maps(), source.maps())
        assert torch.equal(each.foregrounds(), source.foregrounds())
        assert (each.lit, each.share, each.dilate) == (source.lit, source.share, source.dilate)


def test_state_of_another_kind_is_refused():
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ClassPrototypes(K).load_state_dict(ruled().state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        ForegroundPrototypes(K).load_state_dict(
            ClassPrototypes.from_maps(torch.rand(K, 1, 6, 6)).state_dict()
        )


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

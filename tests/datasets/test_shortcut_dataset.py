"""The wrapper and its ready-made kinds."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from batchcam_captum.datasets import (
    ColorMNIST,
    DecoyFashionMNIST,
    DecoyMNIST,
    ShortcutDataset,
    WatermarkFashionMNIST,
    WatermarkMNIST,
    color,
    decoy,
    watermark,
)
from tests.datasets.files import write_idx


@pytest.fixture(scope="module")
def grey():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 200, (30, 28, 28), dtype=torch.uint8, generator=generator), torch.arange(30) % 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "MNIST" / "raw")
    write_idx(folder / "FashionMNIST" / "raw", seed=1)
    return folder


def test_samples_are_those_of_the_function(grey):
    images, labels = grey
    data = ShortcutDataset(grey, partial(decoy, variant="cdep"), seed=5)
    expected, masks = decoy(
        images.unsqueeze(1), labels, variant="cdep", train=True, generator=torch.Generator().manual_seed(5)
    )
    assert len(data) == 30
    image, label, mask = data[13]
    torch.testing.assert_close(image, expected[13] / 255)
    assert label == 3
    assert torch.equal(mask, masks[13])
    whole = data.tensors()
    torch.testing.assert_close(whole[0], expected / 255)
    assert torch.equal(whole[1], labels)
    assert torch.equal(whole[2], masks)
    whole[0].zero_()  # what is handed out is the caller's own
    torch.testing.assert_close(data[13][0], expected[13] / 255)


def test_an_image_keeps_its_place_in_every_mode_and_subset(grey):
    data = ShortcutDataset(grey, decoy)
    test = data.with_mode("test")
    assert torch.equal(data.tensors()[2], test.tensors()[2])
    assert not torch.equal(data.tensors()[0], test.tensors()[0])
    held_out = data.subset(torch.arange(20, 30))
    assert held_out.mode == "train"
    assert [held_out[place][1] for place in range(10)] == list(range(10))
    for subset, whole in (
        (held_out, data),
        (held_out.with_mode("test"), test),
        (held_out.subset([3, 1]), None),
    ):
        places = range(20, 30) if whole is not None else (23, 21)
        for place, original in enumerate(places):
            torch.testing.assert_close(subset[place][0], (whole or data)[original][0])
    with pytest.raises(IndexError, match="indices: expected positions from 0 to 9, got 10"):
        held_out.subset([10])


@pytest.mark.parametrize("shortcut", [decoy, color, watermark])
def test_clean_images_are_those_without(grey, shortcut):
    clean = ShortcutDataset(grey, shortcut).clean
    images, _, masks = clean.tensors()
    assert images.shape[1] == (3 if shortcut is color else 1)
    torch.testing.assert_close(images, (grey[0].unsqueeze(1) / 255).expand_as(images))
    assert not masks.any()


def test_workers_read_the_same(grey):
    data = ShortcutDataset(grey, partial(watermark, place="random", share=0.5), mode="train")
    alone = torch.stack([data[place][0] for place in range(30)])
    images, labels, masks = next(iter(DataLoader(data, batch_size=30, num_workers=1)))
    assert torch.equal(images, alone)
    assert torch.equal(labels, grey[1])
    assert masks.dtype == torch.bool
    again = pickle.loads(pickle.dumps(data))  # as a worker gets it that is spawned, not forked
    assert torch.equal(again.tensors()[0], alone)


def test_transforms(grey):
    data = ShortcutDataset(
        grey,
        decoy,
        transform=lambda image: image - 1,
        target_transform=lambda label: -label,
        joint_transform=lambda image, mask: (image.flip(-1), mask.flip(-1)),
    )
    plain = ShortcutDataset(grey, decoy)
    image, label, mask = data[4]
    torch.testing.assert_close(image, plain[4][0].flip(-1) - 1)
    assert label == -4
    assert torch.equal(mask, plain[4][2].flip(-1))


@pytest.mark.parametrize(
    ("kind", "options", "channels"),
    [
        (DecoyMNIST, {"variant": "cdep", "place": "fixed"}, 1),
        (DecoyFashionMNIST, {}, 1),
        (ColorMNIST, {"variant": "background"}, 3),
        (WatermarkMNIST, {"share": 0.9}, 1),
        (WatermarkFashionMNIST, {"test": "none"}, 1),
    ],
)
def test_ready_made_kinds(root, kind, options, channels):
    train, test = kind(root, **options), kind(root, train=False, **options)
    assert (len(train), len(test), train.mode, test.mode) == (40, 20, "train", "test")
    assert train[0][0].shape == (channels, 28, 28)
    assert len(train.classes) == 10
    assert (train.classes[0] == "zero") != (kind.source == "fashion-mnist")
    for name, value in options.items():
        assert train.shortcut.keywords[name] == value
    development = kind(root, train=False, mode="train", **options)
    assert torch.equal(development.tensors()[0], test.with_mode("train").tensors()[0])
    assert not torch.equal(development.tensors()[0], test.tensors()[0])
    assert isinstance(train.clean, kind)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^root: expected a folder, got .*; check the path, or pass download=True"
    ):
        DecoyMNIST(tmp_path / "none")
    with pytest.raises(
        FileNotFoundError,
        match=r"^root: expected the four files of fashion-mnist in .*FashionMNIST/raw, got: .*download=True",
    ):
        WatermarkFashionMNIST(tmp_path)
    assert not list(tmp_path.iterdir())


def test_arguments_that_do_not_fit(grey):
    with pytest.raises(ValueError, match="mode: expected 'train' or 'test' or 'clean', got 'valid'"):
        ShortcutDataset(grey, decoy, mode="valid")
    with pytest.raises(
        TypeError, match=r"dataset: expected one in memory, with data and targets, .* got list"
    ):
        ShortcutDataset([], decoy)

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


def test_subsets_by_masks_and_by_any_integers(grey):
    data = ShortcutDataset(grey, decoy)
    threes = [3, 13, 23]
    mask = data.labels == 3
    for chosen in (
        mask,
        mask.tolist(),
        mask.numpy(),
        threes,
        torch.tensor(threes, dtype=torch.int16).numpy().astype("uint16"),
    ):
        found = data.subset(chosen)
        assert found.labels.tolist() == [3, 3, 3]
        assert torch.equal(found.tensors()[0], data.tensors()[0][threes])
    assert len(data.subset([])) == len(data.subset(data.labels == 77)) == 0


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0.5, 1.9], TypeError, "expected integers from 0 to 29 or 30 booleans, got torch.float32"),
        (torch.tensor([True, False]), ValueError, "or 30 booleans, got 2 booleans"),
        (torch.zeros(30, dtype=torch.uint8), TypeError, r"got torch.uint8, .* a mask with .bool\(\)"),
        (torch.tensor([[1], [2]]), ValueError, r"in one dimension, got shape \(2, 1\)"),
        (3, ValueError, r"in one dimension, got shape \(\)"),
        ({1, 2}, TypeError, "got set .* pass a list or a tensor"),
        ([-1], IndexError, "expected positions from 0 to 29, got -1"),
    ],
)
def test_what_chooses_no_subset(grey, indices, error, message):
    with pytest.raises(error, match=f"^indices: .*{message}"):
        ShortcutDataset(grey, decoy).subset(indices)


def test_each_mode_is_drawn_once_and_a_subset_holds_its_own_images(grey):
    calls = []

    def counted(images, labels, *, train, generator):
        calls.append((len(images), train))
        return decoy(images, labels, train=train, generator=generator)

    data = ShortcutDataset(grey, counted)
    few = data.subset([4, 25])
    for each in (data, few, few.subset([1])):
        for mode in ("train", "test", "clean"):
            each.with_mode(mode).subset([0]).with_mode("test")
    assert sorted(calls) == [(30, False), (30, True)]
    held = [tensor for tensor in vars(few).values() if isinstance(tensor, torch.Tensor)]
    held += [tensor for drawn in few._drawn.values() for tensor in drawn]
    assert len(held) >= 8
    assert all(len(tensor) == 2 and len(tensor.untyped_storage()) <= 2 * 28 * 28 for tensor in held)


def test_what_a_spawned_worker_gets_is_small_and_knows_every_mode(grey):
    data = ShortcutDataset(grey, partial(decoy, variant="rrr"), seed=4)
    few = data.subset([4, 25])
    sent = pickle.dumps(few)
    assert len(sent) < 6 * 2 * 28 * 28 + 8000  # five tensors of two images, and their envelopes
    assert len(pickle.dumps(data)) < 3 * 30 * 28 * 28 + 8000  # the images, and those of this mode with masks
    for here, there in ((few, pickle.loads(sent)), (data, pickle.loads(pickle.dumps(data)))):
        for mode in ("train", "test", "clean"):
            for one, other in zip(
                here.with_mode(mode).tensors(), there.with_mode(mode).tensors(), strict=True
            ):
                assert torch.equal(one, other)


def test_a_clean_data_set_that_was_made_so_has_the_other_modes_too(grey):
    clean = ShortcutDataset(grey, color, mode="clean")
    assert not clean._drawn
    assert torch.equal(
        clean.with_mode("test").tensors()[0], ShortcutDataset(grey, color, mode="test").tensors()[0]
    )
    assert torch.equal(clean.subset([3]).with_mode("train")[0][0], ShortcutDataset(grey, color)[3][0])


def test_attributes_of_torchvision(grey, root):
    data = ShortcutDataset(grey, partial(decoy, place="fixed"), seed=2)
    assert data.data.shape == (30, 28, 28)
    assert data.data.dtype == torch.uint8
    assert torch.equal(data.data / 255, data.tensors()[0][:, 0])
    assert torch.equal(data.targets, grey[1])
    assert (data.classes, data.class_to_idx) == ((), {})
    assert torch.equal(data.clean.data, grey[0])
    assert repr(data).splitlines() == [
        "Dataset ShortcutDataset",
        "    Number of datapoints: 30",
        "    Mode: train",
        "    Shortcut: decoy(place='fixed')",
        "    Seed: 2",
    ]
    colored = ColorMNIST(root, train=False, transform=torch.nn.Identity())
    assert colored.data.shape == (20, 3, 28, 28)
    assert colored.class_to_idx["three"] == 3
    assert list(colored.class_to_idx) == list(colored.classes)
    lines = repr(colored.subset([1, 2]).clean).splitlines()
    assert lines[:5] == [
        "Dataset ColorMNIST",
        "    Number of datapoints: 2",
        f"    Root location: {root}",
        "    Split: Test",
        "    Mode: clean",
    ]
    assert lines[-1] == "    transform: Identity()"
    again = ShortcutDataset(data, watermark)  # which has what a data set in memory needs
    assert torch.equal(again.clean.data, data.data)


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

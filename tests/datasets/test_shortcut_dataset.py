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
def gray():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 200, (30, 28, 28), dtype=torch.uint8, generator=generator), torch.arange(30) % 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "MNIST" / "raw")
    write_idx(folder / "FashionMNIST" / "raw", seed=1)
    return folder


def test_samples_are_those_of_the_function(gray):
    images, labels = gray
    data = ShortcutDataset(gray, partial(decoy, variant="cdep"), seed=5)
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


def test_an_image_keeps_its_place_in_every_mode_and_subset(gray):
    data = ShortcutDataset(gray, decoy)
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
    with pytest.raises(IndexError, match=r"^indices: .*got 10"):
        held_out.subset([10])


def test_subsets_by_masks_and_by_any_integers(gray):
    data = ShortcutDataset(gray, decoy)
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
        ([0.5, 1.9], TypeError, "torch.float32"),
        (torch.tensor([True, False]), ValueError, r"\(2,\)"),
        (torch.zeros(30, dtype=torch.uint8), TypeError, "torch.uint8"),
        (torch.tensor([[1], [2]]), ValueError, r"\(2, 1\)"),
        (3, ValueError, r"\(\)"),
        ({1, 2}, TypeError, "got set"),
        ([-1], IndexError, "got -1"),
    ],
)
def test_what_chooses_no_subset(gray, indices, error, message):
    with pytest.raises(error, match=f"^indices: .*{message}"):
        ShortcutDataset(gray, decoy).subset(indices)


def test_each_mode_is_drawn_once_and_a_subset_draws_nothing(gray):
    calls = []

    def counted(images, labels, *, train, generator):
        calls.append((len(images), train))
        return decoy(images, labels, train=train, generator=generator)

    data = ShortcutDataset(gray, counted)
    few = data.subset([4, 25])
    for each in (data, few, few.subset([1])):
        for mode in ("train", "test", "clean"):
            each.with_mode(mode).subset([0]).with_mode("test")
    assert sorted(calls) == [(30, False), (30, True)]
    few.data[0] = 0  # its own images
    assert data.data[4].any()


def test_attributes_of_torchvision(gray, root):
    data = ShortcutDataset(gray, partial(decoy, place="fixed"), seed=2)
    assert data.data.shape == (30, 28, 28)
    assert data.data.dtype == torch.uint8
    assert torch.equal(data.data / 255, data.tensors()[0][:, 0])
    assert torch.equal(data.targets, gray[1])
    assert (data.classes, data.class_to_idx) == ((), {})
    assert torch.equal(data.clean.data, gray[0])
    colored = ColorMNIST(root, train=False, transform=torch.nn.Identity())
    assert colored.data.shape == (20, 3, 28, 28)
    assert colored.class_to_idx["three"] == 3
    assert list(colored.class_to_idx) == list(colored.classes)
    again = ShortcutDataset(data, watermark)  # which has what a data set in memory needs
    assert torch.equal(again.clean.data, data.data)


@pytest.mark.parametrize("shortcut", [decoy, color, watermark])
def test_clean_images_are_those_without(gray, shortcut):
    clean = ShortcutDataset(gray, shortcut).clean
    images, _, masks = clean.tensors()
    assert images.shape[1] == (3 if shortcut is color else 1)
    torch.testing.assert_close(images, (gray[0].unsqueeze(1) / 255).expand_as(images))
    assert not masks.any()


def test_workers_read_the_same(gray):
    data = ShortcutDataset(gray, partial(watermark, place="random", share=0.5), mode="train")
    alone = torch.stack([data[place][0] for place in range(30)])
    images, labels, masks = next(iter(DataLoader(data, batch_size=30, num_workers=1)))
    assert torch.equal(images, alone)
    assert torch.equal(labels, gray[1])
    assert masks.dtype == torch.bool
    again = pickle.loads(pickle.dumps(data))  # as a worker gets it that is spawned, not forked
    assert torch.equal(again.tensors()[0], alone)


def test_transforms(gray):
    data = ShortcutDataset(
        gray,
        decoy,
        transform=lambda image: image - 1,
        target_transform=lambda label: -label,
        joint_transform=lambda image, mask: (image.flip(-1), mask.flip(-1)),
    )
    plain = ShortcutDataset(gray, decoy)
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
    assert (train.classes[0] == "zero") != ("Fashion" in kind.__name__)
    for name, value in options.items():
        assert train.shortcut.keywords[name] == value
    development = kind(root, train=False, mode="train", **options)
    assert torch.equal(development.tensors()[0], test.with_mode("train").tensors()[0])
    assert not torch.equal(development.tensors()[0], test.tensors()[0])
    assert isinstance(train.clean, kind)


def test_missing_and_damaged_data_are_named_and_nothing_is_created(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^root: .*none"):
        DecoyMNIST(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"^root: .*FashionMNIST/raw.*download=True"):
        WatermarkFashionMNIST(tmp_path)
    assert not list(tmp_path.iterdir())
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"too short")
    with pytest.raises(OSError, match=r"^root: .*MNIST/raw"):
        DecoyMNIST(tmp_path)


def test_arguments_that_do_not_fit(gray):
    with pytest.raises(ValueError, match=r"^mode: .*got 'valid'"):
        ShortcutDataset(gray, decoy, mode="valid")
    with pytest.raises(TypeError, match=r"^dataset: .*got list"):
        ShortcutDataset([], decoy)

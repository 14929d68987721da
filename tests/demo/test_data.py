"""The demo's data sets: real files in torchvision's layout, written here."""

import pytest
import torch

from batchcam_captum.demo.data import load_data
from tests.datasets.files import write_idx


def test_digits_are_standardised_and_split_without_overlap():
    data = load_data("digits")
    assert len(data.train) + len(data.test) == 1797
    assert data.image_size == 8
    assert data.train.images.mean().abs() < 1e-5
    assert (data.train.images.std() - 1).abs() < 1e-5
    assert data.train.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_sets_are_read_from_the_folder(tmp_path, name, folder):
    write_idx(tmp_path / folder / "raw")
    data = load_data(name, tmp_path)
    assert data.train.images.shape == (40, 1, 28, 28)
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]
    assert len(data.class_names) == 10
    assert data.class_names[0] in ("0", "zero", "T-shirt/top")


def test_missing_data_set_is_named_and_nothing_is_made(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"--data-root: expected the four files of mnist in .*MNIST/raw, got: .*download",
    ):
        load_data("mnist", tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"--data-root: expected readable files of mnist in .*MNIST/raw"):
        load_data("mnist", tmp_path)


def test_shuffled_batches_have_one_size_and_depend_on_the_generator_alone():
    images = load_data("digits").train
    batches = [
        [labels for _, labels in images.batches(64, torch.Generator().manual_seed(seed))]
        for seed in (1, 1, 2)
    ]
    assert {len(labels) for labels in batches[0]} == {64}
    assert torch.equal(torch.cat(batches[0]), torch.cat(batches[1]))
    assert not torch.equal(torch.cat(batches[0]), torch.cat(batches[2]))


def test_unshuffled_batches_cover_everything():
    images = load_data("digits").test
    assert torch.equal(torch.cat([labels for _, labels in images.batches(64)]), images.labels)

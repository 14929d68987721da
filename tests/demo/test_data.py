"""The demo's data sets: real files in torchvision's layout, written here."""

import pytest
import torch

from batchcam_captum.demo.data import load_data
from tests.datasets.files import write_idx


def test_digits_are_normalized_and_split():
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.image_size) == (1347, 450, 8)
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
    assert data.class_names[0] in ("zero", "T-shirt/top")


def test_batches_cover_everything_or_are_shuffled_in_one_size():
    images = load_data("digits").test
    assert torch.equal(torch.cat([labels for _, labels in images.batches(64)]), images.labels)
    first, again, other = (
        [labels for _, labels in images.batches(64, torch.Generator().manual_seed(seed))]
        for seed in (1, 1, 2)
    )
    assert {len(labels) for labels in first} == {64}
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))

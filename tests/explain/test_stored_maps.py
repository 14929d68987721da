"""A store as a data set of images and maps."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from batchcam_captum.explain import Status

from .stores import columns_of, write_store

SAMPLES, CHUNK, DAMAGED = 20, 8, 3


@pytest.fixture(scope="module")
def written():
    found = columns_of(SAMPLES, maps=(2, 3, 4), thumbnail=(6, 8), dtype="float16")
    found["status"][DAMAGED] = Status.DAMAGED
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory, written):
    return write_store(tmp_path_factory.mktemp("stores") / "store", written, chunk=CHUNK)


@pytest.fixture(scope="module")
def thumbnails(written):
    return written["thumbnails"].transpose(0, 3, 1, 2) / np.float32(255)


def check_batches(dataset, written, workers, images):
    """All written samples with their own images and maps, in order."""
    batches = list(DataLoader(dataset, batch_size=5, num_workers=workers))
    found, maps = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(maps) == len(dataset)
    assert maps.dtype is found.dtype is torch.float32
    np.testing.assert_array_equal(maps, written["maps"][dataset.positions].astype("f4"))
    np.testing.assert_allclose(found, images[dataset.positions], atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_were_explained(store, written, workers):
    """Worker processes read the store, too, after this one has."""
    images = torch.rand(SAMPLES, 3, 5, 5)
    dataset = store.dataset(TensorDataset(images, torch.arange(SAMPLES)))
    torch.testing.assert_close(dataset[-1][0], images[-1])
    check_batches(dataset, written, workers, images)


def test_thumbnails(store, written, thumbnails):
    dataset = store.dataset()
    check_batches(dataset, written, 0, thumbnails)
    assert len(pickle.dumps(dataset)) < 10_000, "what is kept stays behind"


def test_data_sets_that_do_not_fit(store, tmp_path):
    with pytest.raises(ValueError, match="images: expected the 20 samples of the store, got 3"):
        store.dataset(TensorDataset(torch.rand(3, 1)))
    with pytest.raises(ValueError, match="images"):
        write_store(tmp_path / "store", columns_of(4, thumbnail=None)).dataset()


def test_a_batch_in_random_order_reads_each_chunk_once(store, written, monkeypatch):
    class Counted:
        def __init__(self, array):
            self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

        def __getitem__(self, rows):
            self.read.append(rows.start // CHUNK)
            return self.array[rows]

    dataset = store.dataset()
    maps = Counted(store.maps)
    monkeypatch.setattr(store, "maps", maps)
    order = [18, 0, 9, 17, 1, 8, 10, 2]
    batch = next(iter(DataLoader(Subset(dataset, order), batch_size=len(order))))
    np.testing.assert_array_equal(batch[1], written["maps"][dataset.positions[order]].astype("f4"))
    assert maps.read == [0, 1, 2]

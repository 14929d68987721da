"""A store as a data set of images and maps."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from batchcam_captum.explain import Status, stored_maps

from .stores import columns_of, write_store

SAMPLES, CHUNK, DAMAGED = 20, 8, 3


class Counted:
    """An array that tells what was read."""

    def __init__(self, array):
        self.array = array
        self.read = []

    def __getattr__(self, name):
        return getattr(self.array, name)

    def __getitem__(self, rows):
        self.read.append(rows.start // CHUNK)
        return self.array[rows]


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
    dataset = store.dataset(TensorDataset(images, torch.arange(SAMPLES)), transform=lambda image: image * 2)
    torch.testing.assert_close(dataset[-1][0], 2 * images[-1])
    check_batches(dataset, written, workers, 2 * images)


def test_thumbnails_are_taken_although_there_are_paths(store, written, thumbnails):
    assert all(store.paths[:])
    check_batches(store.dataset(), written, 0, thumbnails)


@pytest.mark.parametrize("some", [False, True])
def test_thumbnails_are_transformed_where_not_all_have_paths(tmp_path, written, thumbnails, some):
    paths = np.array(["", *written["paths"][1:]] if some else [""] * SAMPLES, dtype=object)
    store = write_store(tmp_path / "store", written | {"paths": paths})
    check_batches(store.dataset(transform=lambda image: image / 2), written, 0, thumbnails / 2)


def test_files_are_read_where_they_are_transformed_or_there_are_no_thumbnails(tmp_path):
    columns = columns_of(3)
    columns["paths"] = np.array([str(tmp_path / f"bild <{row}> ä '\".png") for row in range(3)], dtype=object)
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6), dtype=np.uint8)
    for path, image in zip(columns["paths"], images, strict=True):
        Image.fromarray(image).save(path)
    dataset = write_store(tmp_path / "store", columns).dataset(transform=lambda image: image)
    assert len(dataset) == 3
    image, map_ = dataset[2]
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), images[2][..., None].repeat(3, -1))
    assert map_.shape == (1, 4, 4)

    del columns["thumbnails"]
    expected = images[:, None].repeat(3, 1) / np.float32(255)
    check_batches(write_store(tmp_path / "plain", columns).dataset(), columns, 0, expected)


def test_data_sets_that_do_not_fit(store, tmp_path):
    with pytest.raises(ValueError, match="images: expected the 20 samples of the store, got 3"):
        store.dataset(TensorDataset(torch.rand(3, 1)))
    bare = columns_of(4, thumbnail=None)
    del bare["paths"]
    with pytest.raises(ValueError, match="neither paths nor thumbnails, got None; pass the one"):
        write_store(tmp_path / "store", bare).dataset()


def counted(dataset):
    arrays = Counted(dataset._maps.array), Counted(dataset._thumbnails.array)
    dataset._maps.array, dataset._thumbnails.array = arrays
    return arrays


def test_chunks_are_read_once(store, written, thumbnails):
    dataset = store.dataset()
    maps, pictures = counted(dataset)
    for _ in range(2):
        check_batches(dataset, written, 0, thumbnails)
    for index in range(len(dataset)):
        dataset[index]
    assert maps.read == pictures.read == [0, 1, 2]


def test_a_batch_reads_each_chunk_once_whatever_is_kept(store, written, monkeypatch):
    """In a random order, and of maps that are too large for more than one chunk to be kept."""
    monkeypatch.setattr(stored_maps, "_KEPT_BYTES", 0)
    dataset = store.dataset()
    maps, _ = counted(dataset)
    order = [18, 0, 9, 17, 1, 8, 10, 2]
    batch = next(iter(DataLoader(Subset(dataset, order), batch_size=len(order))))
    np.testing.assert_array_equal(batch[1], written["maps"][dataset.positions[order]].astype("f4"))
    assert maps.read == [0, 1, 2]
    assert len(dataset._maps._chunks) == 1


def test_what_is_kept_stays_behind_in_pickling(store):
    dataset = store.dataset()
    map_ = dataset[0][1]
    assert dataset._maps._chunks
    assert len(pickle.dumps(dataset)) < 10_000
    again = pickle.loads(pickle.dumps(dataset))
    assert not again._maps._chunks
    torch.testing.assert_close(again[0][1], map_)

"""Reading stores: arrays, table, and what is no store."""

import json
import pickle
import shutil

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from batchcam_captum.explain import Status, open_store

from .stores import SETTINGS, columns_of, write_store

SAMPLES, DAMAGED, MISSING = 20, 3, 17
METRICS = ("energy_in_mask",)


def columns():
    """One sample is damaged, one is not written yet, and of one the label is not known."""
    found = columns_of(SAMPLES, maps=(2, 3, 4), thumbnail=(6, 8), metrics=METRICS, dtype="float16")
    found["problems"] = np.array([""] * SAMPLES, dtype=object)
    found["problems"][DAMAGED] = "UnidentifiedImageError: <b>ä</b>"
    found["labels"][5] = -1
    for row, status in ((DAMAGED, Status.DAMAGED), (MISSING, Status.MISSING)):
        found["status"][row] = status
        for name in ("maps", "scores", "confidences", *METRICS):
            found[name][row] = np.nan
        for name in ("targets", "predictions"):
            found[name][row] = -1
    return found


@pytest.fixture(scope="module")
def written():
    return columns()


@pytest.fixture(scope="module")
def store(tmp_path_factory, written):
    return write_store(tmp_path_factory.mktemp("stores") / "store", written, chunk=8, metrics=METRICS)


def test_arrays_are_lazy_and_as_they_were_written(store, written):
    for name in store.layout.arrays():
        array = store.metrics[name] if name in METRICS else getattr(store, name)
        assert not isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array[:], written[name])
        np.testing.assert_array_equal(array[6:10], written[name][6:10])
    assert store.maps.chunks == (8, 2, 3, 4)
    assert list(store.metrics) == list(METRICS)


def test_only_the_chunks_that_are_asked_for_are_read(store, tmp_path):
    """So that a store may be larger than the memory: the others are not even looked at."""
    path = shutil.copytree(store.path, tmp_path / "store")
    for chunk in (0, 2):
        (path / "maps" / f"c.{chunk}.0.0.0").write_bytes(b"no array")
    copy = open_store(path)
    np.testing.assert_array_equal(copy.maps[8:16], store.maps[8:16])
    with pytest.raises(RuntimeError, match="Zstd"):
        copy.maps[:1]


def test_what_a_store_says_of_itself(store):
    assert len(store) == SAMPLES
    assert "20 samples" in repr(store)
    assert not store.complete
    assert store.settings == SETTINGS
    assert store.class_names == ("cat", "dog", "ship")
    assert store.written().tolist() == [row for row in range(SAMPLES) if row not in (DAMAGED, MISSING)]


def test_a_store_travels_as_its_path(store):
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.maps[:], store.maps[:])
    assert len(pickle.dumps(store)) < 500


def test_frame(store, written):
    frame = store.frame()
    assert frame.index.name == "position"
    assert list(frame) == [
        "id", "path", "status", "problem", "label", "prediction", "confidence", "correct", *METRICS,
    ]  # fmt: skip
    assert frame.status.value_counts().to_dict() == {"written": SAMPLES - 2, "damaged": 1, "missing": 1}
    assert frame.problem[DAMAGED] == "UnidentifiedImageError: <b>ä</b>"
    assert frame.path[7] == "folder/00007.png"
    assert frame.label[5] is pandas.NA
    assert frame.prediction[DAMAGED] is pandas.NA
    known = [row for row in range(SAMPLES) if row not in (5, DAMAGED, MISSING)]
    unknown = [5, DAMAGED, MISSING]
    assert frame.correct[unknown].isna().all()
    expected = written["labels"][known] == written["predictions"][known]
    assert frame.correct[known].tolist() == expected.tolist()
    assert 0 < frame.correct.mean() < 1
    np.testing.assert_array_equal(frame[METRICS[0]], written[METRICS[0]][:, 0])
    np.testing.assert_array_equal(frame.confidence, written["confidences"])


@pytest.fixture
def copy(store, tmp_path):
    return shutil.copytree(store.path, tmp_path / "copy")


def change(path, edit):
    """Rewrite the metadata of the group."""
    file = path / "zarr.json"
    known = json.loads(file.read_text())
    edit(known)
    file.write_text(json.dumps(known))


def test_what_is_no_store(tmp_path, copy):
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_store(tmp_path / "nothing")
    (tmp_path / "file.zarr").write_bytes(b"PK")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file.zarr", tmp_path / "folder", copy / "maps"):
        with pytest.raises(ValueError, match=f"{path.name}: expected a store .* got something else"):
            open_store(path)
    change(copy, lambda known: known["attributes"].clear())  # somebody else's Zarr group
    with pytest.raises(ValueError, match="got something else"):
        open_store(copy)


def test_another_version(copy):
    change(copy, lambda known: known["attributes"]["batchcam_captum"].update(format=1))
    with pytest.raises(ValueError, match="got one of version 1"):
        open_store(copy)


def test_arrays_that_are_gone(copy):
    shutil.rmtree(copy / "scores")
    shutil.rmtree(copy / "status")
    with pytest.raises(ValueError, match="scores, status"):
        open_store(copy)


def test_zarr_itself_reads_a_store(store, written):
    """The format is a standard one: nothing of this package is needed."""
    import zarr

    group = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(group["maps"][:], written["maps"])
    assert list(group["paths"][:2]) == ["folder/00000.png", "folder/00001.png"]


# Images and maps as a data set


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
            self.read.append(rows.start // 8)
            return self.array[rows]

    dataset = store.dataset()
    maps = Counted(store.maps)
    monkeypatch.setattr(store, "maps", maps)
    order = [16, 0, 9, 15, 1, 8, 10, 2]
    batch = next(iter(DataLoader(Subset(dataset, order), batch_size=len(order))))
    np.testing.assert_array_equal(batch[1], written["maps"][dataset.positions[order]].astype("f4"))
    assert maps.read == [0, 1, 2]

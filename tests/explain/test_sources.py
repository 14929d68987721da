"""Data sets to explain: what is listed, what is read, and which classes its labels are."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from batchcam_captum.explain.sources import (
    Classes,
    ImageFiles,
    TorchvisionImages,
    list_csv,
    list_folder,
    match_classes,
    torchvision_data,
)
from batchcam_captum.loading import Preprocessing, load_images
from tests.datasets.files import write_idx

SMALL = Preprocessing((8, 10), crop=1.0)
GREY = Preprocessing((8, 8), (0.5,), (0.25,), crop=1.0)
#: A line end among them; a file system takes all but "/" and NUL.
HOSTILE = ("a b", 'O\'Brien "x"', "<img src=x onerror=alert(1)>", "ø 猫 😀", "line\nend", "-n", "%s {0}")


def save(path, mode="RGB", size=(12, 9), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels.numpy()).convert(mode).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes with images at several depths, one image beside them, and what is no image."""
    folder = tmp_path_factory.mktemp("images")
    save(folder / "cats" / "2.png", seed=1)
    save(folder / "cats" / "deeper" / "1.JPG", seed=2)
    save(folder / "dogs" / "1.png", "L", seed=3)
    save(folder / "beside.png", "RGBA", seed=4)
    save(folder / "cats" / ".hidden.png")
    save(folder / ".git" / "1.png")
    (folder / "dogs" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    return folder


def test_a_folder_is_listed_in_the_order_of_names_with_its_folders_as_classes(folder):
    listing = list_folder(folder)
    assert listing.ids == ("beside.png", "cats/2.png", "cats/deeper/1.JPG", "dogs/1.png")
    assert listing.names == ("cats", "dogs", "empty")
    assert listing.labels == (-1, 0, 0, 1)
    assert listing.paths == tuple(str(folder / each) for each in listing.ids)
    flat = list_folder(folder / "cats" / "deeper")
    assert (flat.labels, flat.names) == ((-1,), None)


def test_files_are_read_as_the_images_of_the_other_commands_are(folder):
    listing = list_folder(folder)
    files = ImageFiles(listing, SMALL)
    assert len(files) == 4
    images = torch.stack([files[index][0] for index in range(4)])
    assert torch.equal(images, load_images(listing.files, SMALL).tensor)
    assert [files[index][1] for index in range(4)] == [-1, 0, 0, 1]
    assert ImageFiles(listing, GREY)[1][0].shape == (1, 8, 8)
    with pytest.raises(ValueError, match="size"):
        ImageFiles(listing, Preprocessing((0, 8)))


def test_labels_become_classes_of_the_model(folder):
    files = ImageFiles(list_folder(folder), SMALL, Classes(("dogs", "cats", "cows"), (1, 0)))
    assert files.labels == (-1, 1, 1, 0)
    assert files[3][1] == 0
    assert files.class_names == ("dogs", "cats", "cows")


def test_a_spawned_worker_reads_the_same(folder):
    files = ImageFiles(list_folder(folder), SMALL)
    first = files[0][0]
    again = pickle.loads(pickle.dumps(files))
    assert torch.equal(again[0][0], first)
    # A spawned process imports torch anew, which takes long on a busy machine: forked ones go through the loader here.
    context = multiprocessing.get_context("fork") if sys.platform == "linux" else None
    loader = DataLoader(again, batch_size=4, num_workers=1, multiprocessing_context=context)
    images, labels = next(iter(loader))
    assert torch.equal(images[0], first)
    assert labels.tolist() == [-1, 0, 0, 1]


def test_damaged_files_raise_one_line_that_says_why(tmp_path):
    whole = save(tmp_path / "a.jpg", size=(60, 60)).read_bytes()
    (tmp_path / "b truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c empty.png").touch()
    (tmp_path / "d text.png").write_text("<html>no image</html>")
    os.mkfifo(tmp_path / "e pipe.png")
    files = ImageFiles(list_folder(tmp_path), SMALL)
    assert files[0][0].shape == (3, 8, 10)
    reasons = ["truncated", "not an image", "not an image", "not a regular file"]
    for index, reason in enumerate(reasons, start=1):
        with pytest.raises(OSError, match=reason) as caught:
            files[index]
        assert caught.value.filename == files.paths[index]
        assert "\n" not in str(caught.value)
    (tmp_path / "c empty.png").unlink()
    with pytest.raises(FileNotFoundError, match="c empty"):
        files[2]


def test_names_of_any_kind_are_listed_and_read(tmp_path):
    for name in HOSTILE:
        save(tmp_path / name / f"{name}.png")
    if sys.platform == "linux":
        folder = os.fsencode(tmp_path) + b"/\xff\xfe"  # no UTF-8
        os.mkdir(folder)
        os.link(tmp_path / "a b" / "a b.png", folder + b"/\xff.png")
    listing = list_folder(tmp_path)
    assert set(HOSTILE) <= set(listing.names)
    files = ImageFiles(listing, SMALL)
    for index in range(len(files)):
        assert files[index][0].shape == (3, 8, 10)
        assert (files.paths[index] + files.ids[index] + listing.names[files.labels[index]]).encode("utf-8")
    assert len(set(files.ids)) == len(files) == len(HOSTILE) + (sys.platform == "linux")


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        list_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="data"):
        list_folder(tmp_path / "gone")


def write_csv(folder, text, encoding="utf-8"):
    path = folder / "list.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_csv_of_paths_labels_and_ids(folder, tmp_path):
    path = write_csv(
        tmp_path,
        f'id,label,path,other\none,dog,"{folder}/dogs/1.png",\ntwo,,gone.png,x\nthree, cat,"a, b .png",x\n',
        "utf-8-sig",
    )
    listing = list_csv(path)
    assert listing.ids == ("one", "two", "three")
    assert (listing.labels, listing.names) == ((1, -1, 0), ("cat", "dog"))
    assert listing.files == (f"{folder}/dogs/1.png", f"{tmp_path}/gone.png", f"{tmp_path}/a, b .png")
    plain = list_csv(write_csv(tmp_path, "path,label\nx.png,12\nx.png,-1\ny.png,\n"))
    assert (plain.labels, plain.names, plain.ids) == ((12, -1, -1), None, ("x.png", "x.png", "y.png"))
    assert list_csv(write_csv(tmp_path, "path\nx.png\n")).labels == (-1,)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_with_other_delimiters(tmp_path, delimiter):
    rows = (("path", "label", '"id, of it"'), ('"a, b;\tc.png"', "dog", "x"), ("d,e.png", "", ""))
    text = "\r\n".join(map(delimiter.join, rows))
    listing = list_csv(write_csv(tmp_path, text, "utf-8-sig"))
    assert listing.ids == ("a, b;\tc.png", "d,e.png")
    assert (listing.labels, listing.names) == ((0, -1), ("dog",))
    with pytest.raises(ValueError, match="line 3"):
        list_csv(write_csv(tmp_path, f"{text}{delimiter}"))
    alone = list_csv(write_csv(tmp_path, f"path\na{delimiter}b.png\n"))
    assert alone.ids == (f"a{delimiter}b.png",), "the header has commas, if any"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;label\na.png;1\n", "column path"),
        ("path,path\na.png,b.png\n", "column path"),
        ("", "column path"),
        ("path,label\n", "only the header"),
        ("path,label\na.png,1\n,2\n", "no path in line 3"),
        ("path,label\na,b.png,1\n", "line 2"),
        ("path,id\na.png,7\nb.png,7\n", "'7' twice"),
        ('path\n"a.png\n', "unexpected end of data"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        list_csv(write_csv(tmp_path, text))


def test_a_csv_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        list_csv(tmp_path / "gone.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match=r"binary\.csv"):
        list_csv(tmp_path / "binary.csv")


def test_data_sets_of_torchvision(tmp_path):
    write_idx(tmp_path / "FashionMNIST" / "raw")
    data = torchvision_data("FashionMNIST", tmp_path, "test")
    images = TorchvisionImages(data, SMALL)
    assert len(images) == 20
    image, label = pickle.loads(pickle.dumps(images))[13]
    assert image.shape == (3, 8, 10)
    assert torch.equal(image, images[13][0])
    assert label == data[13][1] == 3
    assert images.class_names[9] == "Ankle boot"
    assert len(torchvision_data("FashionMNIST", tmp_path, "train")) == 40
    turned = TorchvisionImages(data, SMALL, Classes(None, range(9, -1, -1)))
    assert turned[13][1] == 6
    boxes = TorchvisionImages([(data[0][0], {"boxes": []}), (data[1][0], torch.ones(4))], SMALL)
    assert [boxes[0][1], boxes[1][1]] == [-1, -1]


def test_data_sets_of_torchvision_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="got 'CIFAR'"):
        torchvision_data("CIFAR", tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="--data-root"):
        torchvision_data("CIFAR10", None, "test")
    with pytest.raises(FileNotFoundError, match="CIFAR10") as caught:
        torchvision_data("CIFAR10", tmp_path, "test")
    assert "download=" not in str(caught.value)  # the command has no such argument
    with pytest.raises(ValueError, match="val"):
        torchvision_data("CIFAR10", tmp_path, "val")
    with pytest.raises(ValueError, match="SVHN"):
        torchvision_data("SVHN", tmp_path, "validation")


def test_labels_are_matched_by_name_before_they_are_matched_by_order():
    names = ("zebra", "ant", "crane", "crane", "bee")
    assert match_classes(None, 5).order == range(5)
    assert match_classes(("b", "a"), 2).names == ("b", "a")
    by_name = match_classes(("ant", "zebra"), 5, packaged=names)
    assert (by_name.names, [by_name(0), by_name(1), by_name(-1)]) == (names, [1, 0, -1])
    by_word = match_classes(("n02", "n01"), 5, packaged=names, also={"n01": 0, "n02": 4})
    assert list(by_word.order) == [4, 0]
    renamed = match_classes(("0", "1"), 2, given=("no", "yes"))
    assert (renamed.names, list(renamed.order)) == (("no", "yes"), [0, 1])
    other = match_classes(("ant", "moth"), 5, packaged=names)
    assert (other.names, other(0)) == (names, -1)
    assert "2 classes and the model 5" in other.remark
    ambiguous = match_classes(("crane",), 5, packaged=names)
    assert ambiguous(0) == -1
    with pytest.raises(ValueError, match=r"classes: .*moth"):
        match_classes(("ant", "moth"), 5, given=names)
    with pytest.raises(ValueError, match="classes: expected 4"):
        match_classes(None, 4, given=names)

"""ClassPrototypes: how images are read and summed, precision, loaders, and what they refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes
from tests import reference

K = 4


def data(channels=3, spatial=(6, 7), n=23):
    """Class 2 has no image, label -100 is ignored."""
    labels = torch.tensor([0, 1, 3])[torch.randint(3, (n,))]
    labels[5] = -100
    return torch.randn(n, channels, *spatial), labels


def streamed(images, labels, sizes, **options):
    prototypes = ClassPrototypes(K, **options)
    for images_part, labels_part in zip(images.split(sizes), labels.split(sizes), strict=True):
        prototypes.update(images_part, labels_part)
    return prototypes


@pytest.mark.parametrize(
    ("channels", "spatial"), [(1, (12,)), (3, (6, 7)), (5, (4, 5, 6))], ids=["1-D", "2-D", "3-D"]
)
def test_means_equal_a_loop_over_images_in_any_split(channels, spatial):
    images, labels = data(channels, spatial)
    expected, counts = reference.mean_images(images, labels, K)
    for split in ([23], [1] * 23, [10, 0, 13], [7, 7, 7, 2]):
        prototypes = streamed(images, labels, split)
        assert prototypes.counts.tolist() == counts
        assert prototypes.values.dtype == torch.float32
        assert_close(prototypes.values.double(), expected, rtol=1e-6, atol=1e-7)
    assert prototypes.unseen == [2]
    assert prototypes.seen.tolist() == [True, True, False, True]


def test_sums_are_float64_so_that_a_long_stream_loses_nothing():
    images = torch.rand(500, 1, 2, 2) + 1000
    labels = torch.zeros(500, dtype=torch.long)
    single = streamed(images, labels, [1] * 500)
    assert torch.equal(single.values, streamed(images, labels, [500]).values)
    assert torch.equal(single.values[0], images.double().mean(0).float())


def test_integer_images_are_not_scaled():
    images, labels = torch.randint(0, 256, (23, 3, 6, 7)).to(torch.uint8), data()[1]
    expected, _ = reference.mean_images(images, labels, K)
    assert_close(streamed(images, labels, [11, 12]).values.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.4, 0.2), ([0.1, 0.5, 0.9], [0.2, 0.3, 0.4]), ([0.1, 0.5, 0.9], None), (None, 0.5)]
)
def test_standardization_is_undone(mean, std):
    images, labels = data()
    scale = torch.as_tensor(1.0 if std is None else std).reshape(-1, 1, 1)
    shift = torch.as_tensor(0.0 if mean is None else mean).reshape(-1, 1, 1)
    prototypes = streamed((images - shift) / scale, labels, [23], mean=mean, std=std)
    assert_close(prototypes.values, streamed(images, labels, [23]).values, rtol=1e-5, atol=1e-6)


def test_to_channel_replaces_the_mean_over_channels():
    images, labels = data()
    prototypes = streamed(images, labels, [10, 13], to_channel=lambda images: images[:, 1:2])
    assert torch.equal(prototypes.values, streamed(images[:, 1:2], labels, [10, 13]).values)
    with pytest.raises(ValueError, match="to_channel"):
        streamed(images, labels, [23], to_channel=lambda images: images[:, 1])


def test_size_resizes_images_of_several_sizes():
    large, small = torch.rand(2, 1, 12, 10), torch.rand(2, 1, 6, 5)
    prototypes = ClassPrototypes(K, size=(6, 5))
    prototypes.update(large, torch.tensor([0, 1]))
    prototypes.update(small, torch.tensor([0, 1]))
    assert_close(prototypes.values[:2], (torch.nn.functional.avg_pool2d(large, 2) + small) / 2)


BAD_UPDATES = {
    "size": (torch.rand(2, 3, 5, 5), [0, 1], ValueError, "size="),
    "one-hot": (torch.rand(2, 3, 6, 7), [[1, 0, 0, 0], [0, 1, 0, 0]], ValueError, "labels"),
    "range": (torch.rand(2, 3, 6, 7), [0, 4], ValueError, "labels"),
    "length": (torch.rand(2, 3, 6, 7), [0, 1, 2], ValueError, "labels"),
    "floating": (torch.rand(2, 3, 6, 7), [0.0, 1.0], TypeError, "labels"),
    "no channel": (torch.rand(2, 6), [0, 1], ValueError, "images"),
    "nan": (torch.full((2, 3, 6, 7), torch.nan), [0, 1], ValueError, "images"),
}


@pytest.mark.parametrize(("images", "labels", "error", "name"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_update_that_raises_changes_nothing(images, labels, error, name):
    rest, rest_labels = data()
    prototypes = streamed(rest, rest_labels, [23])
    before = copy.deepcopy(prototypes.state_dict())
    with pytest.raises(error, match=name):
        prototypes.update(images, torch.tensor(labels))
    assert all(torch.equal(before[name], value) for name, value in prototypes.state_dict().items())
    prototypes.update(rest, rest_labels)
    assert_close(prototypes.values, before["values"])


def test_first_update_that_raises_leaves_no_size_behind():
    prototypes = ClassPrototypes(K)
    with pytest.raises(ValueError, match="labels"):
        prototypes.update(torch.rand(2, 1, 6, 7), torch.tensor([0, K]))
    prototypes.update(torch.rand(0, 1, 9, 9), torch.zeros(0, dtype=torch.long))
    prototypes.update(torch.rand(2, 1, 8, 8), torch.tensor([-100, -100]))
    prototypes.update(torch.rand(2, 1, 5, 5), torch.tensor([0, 1]))
    assert prototypes.values.shape == (K, 1, 5, 5)


def test_maps_span_zero_to_one_and_are_zero_for_unseen_classes():
    prototypes = streamed(*data(), [23])
    for size in (None, (3, 4), (9, 9)):
        maps = prototypes.maps(size)
        assert maps.shape == (K, 1, *(size or (6, 7)))
        assert maps.amax((1, 2, 3)).tolist() == [1, 1, 0, 1]
        assert maps.amin() >= 0
    mean = prototypes.values[0]
    assert_close(prototypes.maps()[0], (mean - mean.min()) / (mean.max() - mean.min()))
    pooled = torch.nn.functional.interpolate(prototypes.maps()[:1], size=(3, 4), mode="area")
    assert_close(prototypes.maps((3, 4))[:1], pooled / pooled.max())


@pytest.mark.parametrize("how", ["state_dict", "file", "moved", "copied", "from_loader"])
def test_updates_continue(how, tmp_path):
    images, labels = data()
    options = {"mean": [0.1, 0.2, 0.3], "std": 2.0}
    prototypes = streamed(images[:10], labels[:10], [10], **options)
    if how == "state_dict":
        state, prototypes = prototypes.state_dict(), ClassPrototypes(K, **options)
        prototypes.load_state_dict(state)
    elif how == "file":
        prototypes.save(tmp_path / "prototypes.pt")
        prototypes = ClassPrototypes.load(tmp_path / "prototypes.pt")
    elif how == "moved":
        prototypes.to("cpu").half()
    elif how == "copied":
        prototypes = copy.deepcopy(prototypes)
    else:
        prototypes = ClassPrototypes.from_loader([(images[:10], labels[:10])], K, progress=False, **options)
        assert prototypes._sums is None  # twice as large as the means, and no longer needed
    prototypes.update(images[10:], labels[10:])
    expected = streamed(images, labels, [23], **options)
    assert torch.equal(prototypes.counts, expected.counts)
    assert_close(prototypes.values, expected.values, rtol=1e-5, atol=1e-6)


def test_several_prototypes_per_class_cannot_be_updated():
    with pytest.raises(RuntimeError, match="one prototype per class"):
        ClassPrototypes.from_maps(torch.rand(K, 2, 6, 7)).update(*data())


@pytest.mark.parametrize("progress", [True, False])
def test_from_loader_equals_updates(progress, capsys):
    images, labels = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=5)
    prototypes = ClassPrototypes.from_loader(loader, K, mean=0.5, std=0.25, progress=progress)
    expected = streamed(images, labels, [5, 5, 5, 5, 3], mean=0.5, std=0.25)
    assert torch.equal(prototypes.values, expected.values)
    assert ("prototypes" in capsys.readouterr().err) is progress


@pytest.mark.parametrize("labels", [[], [-100, -100]], ids=["empty", "ignored"])
def test_from_loader_without_images(labels):
    loader = [(torch.rand(len(labels), 1, 4, 4), torch.tensor(labels, dtype=torch.long))][: len(labels)]
    with pytest.raises(ValueError, match="loader"):
        ClassPrototypes.from_loader(loader, K, progress=False)


BAD_OPTIONS = [
    ({"num_classes": 0}, ValueError, "num_classes"),
    ({"mean": "a"}, ValueError, "mean"),
    ({"mean": [0.5, float("nan")]}, ValueError, "mean"),
    ({"std": {"r": 1}}, ValueError, "std"),
    ({"size": (0, 4)}, ValueError, "size"),
    ({"to_channel": "mean"}, TypeError, "to_channel"),
    ({"ignore_index": "a"}, TypeError, "ignore_index"),
    ({"images_per_class": 3}, TypeError, "images_per_class"),
]


@pytest.mark.parametrize(("options", "error", "name"), BAD_OPTIONS)
def test_bad_options(options, error, name):
    options = {"num_classes": K} | options
    with pytest.raises(error, match=name):
        ClassPrototypes(**options)
    with pytest.raises(error, match=name):
        ClassPrototypes.from_loader([data()], **options, progress=False)


def test_options_may_be_arrays_and_are_kept_as_numbers():
    prototypes = ClassPrototypes(2, mean=np.array([0.5, 0.25]), std=torch.tensor(0.5))
    assert (prototypes.mean, prototypes.std) == ((0.5, 0.25), 0.5)

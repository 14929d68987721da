"""ClassPrototypes: streaming, precision, saving, and what they refuse."""

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


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("spatial", [(12,), (6, 7), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
def test_means_equal_a_loop_over_images_in_any_split(channels, spatial):
    images, labels = data(channels, spatial)
    expected, counts = reference.mean_images(images, labels, K)
    splits = [[23], [1] * 23, [10, 0, 13], [7, 7, 7, 2]]
    results = [streamed(images, labels, split) for split in splits]
    for prototypes in results:
        assert prototypes.counts.tolist() == counts
        assert prototypes.means.dtype == torch.float32
        assert_close(prototypes.means.double(), expected, rtol=1e-6, atol=1e-7)
        assert_close(prototypes.means, results[0].means, rtol=1e-7, atol=0)
    assert prototypes.unseen == [2]
    assert prototypes.seen.tolist() == [True, True, False, True]


def test_sums_are_float64_so_that_a_long_stream_loses_nothing():
    images = torch.rand(3000, 1, 2, 2) + 1000
    labels = torch.zeros(3000, dtype=torch.long)
    whole = streamed(images, labels, [3000])
    single = streamed(images, labels, [1] * 3000)
    assert torch.equal(whole.means, single.means)
    assert torch.equal(whole.means[0], images.double().mean(0).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_integer_images_are_taken_as_they_are(dtype):
    images, labels = torch.randint(0, 256, (23, 3, 6, 7)).to(dtype), data()[1]
    expected, _ = reference.mean_images(images, labels, K)
    assert_close(streamed(images, labels, [11, 12]).means.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.4, 0.2), ([0.1, 0.5, 0.9], [0.2, 0.3, 0.4]), ([0.1, 0.5, 0.9], None), (None, 0.5)]
)
def test_standardization_is_undone(mean, std):
    images, labels = data()
    scale = torch.as_tensor(1.0 if std is None else std).reshape(-1, 1, 1)
    shift = torch.as_tensor(0.0 if mean is None else mean).reshape(-1, 1, 1)
    prototypes = streamed((images - shift) / scale, labels, [23], mean=mean, std=std)
    assert_close(prototypes.means, streamed(images, labels, [23]).means, rtol=1e-5, atol=1e-6)


def test_own_reduction_to_one_channel():
    images, labels = data()
    prototypes = streamed(images, labels, [10, 13], to_channel=lambda images: images[:, 1:2])
    assert torch.equal(prototypes.means, streamed(images[:, 1:2], labels, [10, 13]).means)
    with pytest.raises(
        ValueError, match=r"to_channel: expected a result of shape \(23, 1, 6, 7\), got \(23, 6, 7\)"
    ):
        streamed(images, labels, [23], to_channel=lambda images: images[:, 1])


def test_size_takes_images_of_several_sizes():
    large, small = torch.rand(2, 1, 12, 10), torch.rand(2, 1, 6, 5)
    prototypes = ClassPrototypes(K, size=(6, 5))
    labels = torch.tensor([0, 1])
    prototypes.update(large, labels)
    prototypes.update(small, labels)
    expected = (torch.nn.functional.avg_pool2d(large, 2) + small) / 2
    assert_close(prototypes.means[:2], expected)


BAD_UPDATES = {
    "size": (torch.rand(2, 3, 5, 5), [0, 1], ValueError, r"size \(6, 7\) of the images before, got \(5, 5\); pass size="),
    "one-hot": (torch.rand(2, 3, 6, 7), [[1, 0, 0, 0], [0, 1, 0, 0]], ValueError, "not one-hot rows"),
    "range": (torch.rand(2, 3, 6, 7), [0, 4], ValueError, r"indices from 0 to 3, .*found \[4\]"),
    "length": (torch.rand(2, 3, 6, 7), [0, 1, 2], ValueError, r"expected shape \(2,\), got \(3,\)"),
    "floating": (torch.rand(2, 3, 6, 7), [0.0, 1.0], TypeError, "integer class indices, got torch.float32"),
    "no channel": (torch.rand(2, 6), [0, 1], ValueError, r"expected \(N, C, \*spatial\), got \(2, 6\); add the"),
    "nan": (torch.full((2, 3, 6, 7), torch.nan), [0, 1], ValueError, "expected finite values, got NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("images", "labels", "kind", "text"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_update_that_raises_changes_nothing(images, labels, kind, text):
    rest, rest_labels = data()
    prototypes = streamed(rest, rest_labels, [23])
    before = copy.deepcopy(prototypes.state_dict())
    with pytest.raises(kind, match=text):
        prototypes.update(images, torch.tensor(labels))
    assert all(torch.equal(before[name], value) for name, value in prototypes.state_dict().items())
    prototypes.update(rest, rest_labels)
    assert_close(prototypes.means, before["means"])


def test_first_update_that_raises_leaves_no_size_behind():
    prototypes = ClassPrototypes(K)
    with pytest.raises(ValueError, match="found"):
        prototypes.update(torch.rand(2, 1, 6, 7), torch.tensor([0, K]))
    prototypes.update(torch.rand(0, 1, 9, 9), torch.zeros(0, dtype=torch.long))
    prototypes.update(torch.rand(2, 1, 8, 8), torch.tensor([-100, -100]))
    prototypes.update(torch.rand(2, 1, 5, 5), torch.tensor([0, 1]))
    assert prototypes.means.shape == (K, 1, 5, 5)


def test_maps_span_zero_to_one_and_are_zero_for_unseen_classes():
    prototypes = streamed(*data(), [23])
    for size in (None, (3, 4), (9, 9)):
        maps = prototypes.maps(size)
        assert maps.shape == (K, 1, *(size or (6, 7)))
        assert maps.amax((1, 2, 3)).tolist() == [1, 1, 0, 1]
        assert maps.amin() >= 0
    means = prototypes.means[0]
    assert_close(prototypes.maps()[0], (means - means.min()) / (means.max() - means.min()))
    pooled = torch.nn.functional.interpolate(prototypes.maps()[:1], size=(3, 4), mode="area")
    assert_close(prototypes.maps((3, 4))[:1], pooled / pooled.max())


def test_maps_are_computed_once_until_the_means_change():
    images, labels = data()
    prototypes = streamed(images, labels, [23])
    first = prototypes.maps((3, 3))
    assert prototypes.maps((3, 3)) is first
    prototypes.update(torch.rand(1, 3, 6, 7) * 9, torch.tensor([0]))
    second = prototypes.maps((3, 3))
    assert not torch.equal(first, second)
    prototypes.load_state_dict(streamed(images, labels, [23]).state_dict())
    assert torch.equal(prototypes.maps((3, 3)), first)
    with torch.no_grad():
        prototypes.means[0, 0, 0, 0] = 100.0  # behind its back
    assert not torch.equal(prototypes.maps((3, 3)), first)


def test_maps_and_updates_under_inference_mode_serve_a_later_backward():
    images, labels = data()
    prototypes = ClassPrototypes(K)
    with torch.inference_mode():
        prototypes.update(images, labels)
        prototypes.maps()
    assert not prototypes.maps().is_inference()
    cams = torch.rand(K, 1, 6, 7, requires_grad=True)
    (cams * prototypes.maps()).sum().backward()


def test_no_prototypes_yet():
    with pytest.raises(RuntimeError, match=r"got none; call update\(\) or use from_loader\(\)"):
        ClassPrototypes(K).maps()


@pytest.mark.parametrize("loaded_into", [{}, {"size": (2, 2)}], ids=["fresh", "another size"])
def test_state_dict_round_trip_goes_on_updating(loaded_into):
    images, labels = data()
    half = streamed(images[:10], labels[:10], [10])
    other = ClassPrototypes(K, **loaded_into)
    assert not other.load_state_dict(half.state_dict(), strict=True).missing_keys
    assert torch.equal(other.means, half.means)
    assert torch.equal(other.counts, half.counts)
    if not loaded_into:
        other.update(images[10:], labels[10:])
        assert_close(other.means, streamed(images, labels, [23]).means)


def test_state_of_another_number_of_classes():
    state = streamed(*data(), [23]).state_dict()
    prototypes = ClassPrototypes(K + 1)
    with pytest.raises(
        RuntimeError, match=r"expected 5 classes, got a state of 4; the number of classes has"
    ):
        prototypes.load_state_dict(state)
    assert (prototypes.counts == 0).all()


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_casting_the_model_keeps_float32_exactly(cast):
    prototypes = streamed(*data(), [23])
    before = prototypes.means.clone()
    parent = torch.nn.ModuleDict({"prototypes": prototypes, "layer": torch.nn.Linear(2, 2)})
    getattr(parent, cast)()
    prototypes.to(torch.bfloat16)
    assert prototypes.means.dtype == torch.float32
    assert torch.equal(prototypes.means, before)
    assert prototypes.counts.dtype == torch.int64
    prototypes.update(*data())


def test_moves_to_another_device_drop_the_maps():
    prototypes = streamed(*data(), [23])
    prototypes.maps()
    moved = copy.deepcopy(prototypes).to("meta")
    assert {moved.means.device.type, moved.counts.device.type, moved.maps().device.type} == {"meta"}
    assert prototypes.maps().device.type == "cpu"
    assert copy.deepcopy(prototypes).half().to("meta").means.dtype == torch.float32


def test_prototypes_travel_with_a_model_and_hold_no_parameters():
    prototypes = streamed(*data(), [23])
    assert set(prototypes.state_dict()) == {"means", "counts"}
    assert not list(prototypes.parameters())
    assert not prototypes.maps().requires_grad
    assert len(prototypes) == K
    assert "num_classes=4, size=(6, 7), images=22" in repr(prototypes)


def test_save_and_load_keep_settings_and_go_on_updating(tmp_path):
    images, labels = data()
    labels[labels == -100] = 9
    options = {"mean": [0.1, 0.2, 0.3], "std": 2.0, "ignore_index": 9}
    half = streamed(images[:10], labels[:10], [10], **options)
    half.save(tmp_path / "prototypes.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["prototypes.pt"]
    loaded = ClassPrototypes.load(tmp_path / "prototypes.pt")
    assert torch.equal(loaded.means, half.means)
    loaded.update(images[10:], labels[10:])
    assert_close(loaded.means, streamed(images, labels, [23], **options).means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a file of torch", None], ids=["empty", "text", "foreign"])
def test_damaged_file(tmp_path, content):
    path = tmp_path / "prototypes.pt"
    if content is None:
        torch.save({"means": torch.rand(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"prototypes.pt: expected prototypes written by ClassPrototypes.save"
    ):
        ClassPrototypes.load(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "prototypes.pt"
    streamed(*data(), [23]).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="expected prototypes written by"):
        ClassPrototypes.load(path)


def test_missing_file_and_unwritable_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        ClassPrototypes.load(tmp_path / "nowhere.pt")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="expected a folder that exists and can be written to"):
        streamed(*data(), [23]).save(tmp_path / "file" / "prototypes.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("progress", [True, False])
def test_from_loader_equals_updates(progress, capsys):
    images, labels = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=5)
    prototypes = ClassPrototypes.from_loader(loader, K, mean=0.5, std=0.25, progress=progress)
    expected = streamed(images, labels, [5, 5, 5, 5, 3], mean=0.5, std=0.25)
    assert torch.equal(prototypes.means, expected.means)
    assert ("prototypes" in capsys.readouterr().err) is progress


@pytest.mark.parametrize(
    ("loader", "kind", "text"),
    [
        ([], ValueError, "expected at least one batch, got none; check the data set and drop_last"),
        ([{"image": 1}], TypeError, "loader: expected batches"),
        ([torch.rand(2, 1, 4, 4)], TypeError, "got Tensor"),
        (
            [(torch.rand(2, 1, 4, 4), torch.tensor([-100, -100]))],
            ValueError,
            "expected at least one image whose label is not ignored, got none; check",
        ),
    ],
    ids=["empty", "dicts", "no labels", "ignored"],
)
def test_from_loader_names_what_it_cannot_use(loader, kind, text):
    with pytest.raises(kind, match=text):
        ClassPrototypes.from_loader(loader, K, progress=False)


def test_from_loader_keeps_no_sums_and_goes_on_from_the_means():
    images, labels = data()
    prototypes = ClassPrototypes.from_loader([(images[:10], labels[:10])], K, progress=False)
    kept = [
        t for value in vars(prototypes).values() for t in (value if isinstance(value, tuple) else [value])
    ]
    assert not any(isinstance(each, torch.Tensor) for each in kept)
    prototypes.to("cpu").update(images[10:], labels[10:])
    expected = streamed(images, labels, [23])
    assert torch.equal(prototypes.counts, expected.counts)
    assert_close(prototypes.means, expected.means, rtol=1e-5, atol=1e-6)


def test_from_maps_counts_every_class_once():
    maps = torch.rand(K, 1, 5, 5, requires_grad=True)
    prototypes = ClassPrototypes.from_maps(maps)
    assert torch.equal(prototypes.means, maps.detach())
    assert prototypes.counts.tolist() == [1] * K
    assert not prototypes.means.requires_grad


def test_number_of_classes_is_positive():
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        ClassPrototypes(0)


def test_settings_may_be_arrays_and_are_kept_as_numbers(tmp_path):
    prototypes = ClassPrototypes(2, mean=np.array([0.5, 0.25]), std=torch.tensor(0.5))
    assert (prototypes.mean, prototypes.std) == ((0.5, 0.25), 0.5)
    prototypes.update(torch.rand(4, 2, 6, 6), torch.tensor([0, 1, 0, 1]))
    prototypes.save(tmp_path / "prototypes.pt")
    assert ClassPrototypes.load(tmp_path / "prototypes.pt").mean == (0.5, 0.25)
    for bad in ("a", [0.5, float("nan")], {"r": 1}):
        with pytest.raises(ValueError, match="mean: expected a finite number, or one for each channel, got"):
            ClassPrototypes(2, mean=bad)


def test_prototypes_made_under_inference_mode_go_on_outside_of_it():
    with torch.inference_mode():
        prototypes = ClassPrototypes.from_loader(
            [(torch.rand(4, 1, 6, 6), torch.arange(4) % 2)], 2, progress=False
        )
    prototypes.update(torch.rand(4, 1, 6, 6), torch.arange(4) % 2)
    assert prototypes.counts.tolist() == [4, 4]
    assert not prototypes.maps().is_inference()


def test_assigned_half_means_become_float32():
    source = ClassPrototypes(2)
    source.update(torch.rand(4, 1, 6, 6), torch.arange(4) % 2)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in source.state_dict().items()
    }
    loaded = ClassPrototypes(2)
    loaded.load_state_dict(state, assign=True)
    assert loaded.means.dtype == torch.float32


def test_maps_of_two_sizes_are_both_kept():
    prototypes = ClassPrototypes(2)
    prototypes.update(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)
    small, full = prototypes.maps((4, 4)), prototypes.maps()
    assert prototypes.maps((4, 4)) is small
    assert prototypes.maps() is full

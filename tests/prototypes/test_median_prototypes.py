"""MedianPrototypes: against numpy, streaming, what decoys do to them, saving, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes, MedianPrototypes, PrototypeLoss
from batchcam_captum.datasets import decoy
from batchcam_captum.prototypes import histograms

K = 4
#: Class 0 has an odd number of images, class 1 an even one, class 2 none and class 3 one; one image is ignored.
LABELS = torch.tensor([0, 1, 0, 1, 1, -100, 1, 0, 0, 0, 1, 1, 3])


def data(channels=1, spatial=(6, 7)):
    """8-bit images as torchvision's ToTensor makes them."""
    return torch.randint(0, 256, (len(LABELS), channels, *spatial)).float() / 255, LABELS


def streamed(images, labels, batch=13, **options):
    prototypes = MedianPrototypes(K, **options)
    for images_part, labels_part in zip(images.split(batch), labels.split(batch), strict=True):
        prototypes.update(images_part, labels_part)
    return prototypes


def expected_of(images, labels, quantile=0.5):
    """(K, 1, *spatial) in float64; zero without an image."""
    single = images.double().mean(1, keepdim=True).numpy()
    means = [
        np.quantile(single[labels.numpy() == label], quantile, axis=0)
        if (labels == label).any()
        else np.zeros_like(single[0])
        for label in range(K)
    ]
    return torch.from_numpy(np.stack(means))


@pytest.mark.parametrize("spatial", [(12,), (6, 7), (4, 5, 6)], ids=["1-D", "2-D", "3-D"])
def test_medians_of_8_bit_images_are_those_of_numpy_and_torch_in_any_split(spatial):
    images, labels = data(spatial=spatial)
    whole = streamed(images, labels)
    assert torch.equal(
        whole.means[0], images[labels == 0].median(0).values
    )  # an odd number: one of the values
    middle = np.median(images[labels == 1].double().numpy(), axis=0)
    assert_close(whole.means[1].double(), torch.from_numpy(middle), rtol=1e-7, atol=0)
    assert torch.equal(whole.means[3], images[12])
    assert whole.means.dtype == torch.float32
    assert whole.counts.tolist() == [5, 6, 0, 1]
    assert whole.unseen == [2]
    assert not whole.means[2].any()
    for batch in (1, 5):
        assert torch.equal(streamed(images, labels, batch).means, whole.means)


@pytest.mark.parametrize("quantile", [0, 0.1, 0.65, 1])
def test_quantiles_are_those_of_numpy(quantile):
    images, labels = data()
    means = streamed(images, labels, quantile=quantile).means.double()
    assert_close(means, expected_of(images, labels, quantile), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bins", [2, 17, 256, 5000])
def test_other_values_are_off_by_half_a_step_at_most(bins):
    images, labels = torch.rand(len(LABELS), 3, 6, 7, dtype=torch.float64), LABELS
    error = (streamed(images, labels, bins=bins).means - expected_of(images, labels)).abs().max()
    assert 0 < error <= 0.5 / (bins - 1) + 1e-6


def test_values_in_pieces_of_any_size_are_counted_alike(monkeypatch):
    images, labels = data()
    expected = streamed(images, labels)
    monkeypatch.setattr(histograms, "_AT_ONCE", 100)  # two images, and less than one class
    pieces = streamed(images, labels)
    assert torch.equal(pieces.histogram, expected.histogram)
    assert torch.equal(pieces.means, expected.means)
    assert expected.histogram.sum() == 12 * 6 * 7


def test_decoys_in_random_corners_are_in_the_mean_and_not_in_the_median():
    images, labels = torch.zeros(200, 1, 28, 28), torch.arange(200) % 2
    images[..., 10:18, 10:18] = 0.8
    decoyed, _ = decoy(images, labels, train=True, generator=torch.Generator().manual_seed(0))
    corners = torch.zeros(28, 28, dtype=torch.bool)
    corners[:4, :4] = corners[:4, -4:] = corners[-4:, :4] = corners[-4:, -4:] = True
    loader = [(decoyed, labels)]
    mean, median = (
        kind.from_loader(loader, 2, progress=False).maps()[:, 0]
        for kind in (ClassPrototypes, MedianPrototypes)
    )
    assert (mean[:, corners] > 0.1).all()
    assert torch.equal(median, (images[:2, 0] > 0).float())
    fixed = decoyed.clone()
    fixed[..., :4, :4] = 1  # what all images have in one place stays
    assert MedianPrototypes.from_loader([(fixed, labels)], 2, progress=False).maps()[0, 0, 0, 0] == 1


def test_standardization_is_undone_and_channels_become_one():
    images, labels = data(3)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    standardized = (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    options = {"to_channel": lambda images: images.amax(1, keepdim=True)}
    undone = streamed(standardized, labels, mean=mean, std=std, **options)
    brightest = images.amax(1, keepdim=True)
    assert torch.equal(undone.means, streamed(brightest, labels).means)
    small = streamed(images, labels, size=(3, 7), bins=5000)
    pooled = torch.nn.functional.avg_pool2d(images, (2, 1))
    assert_close(small.means.double(), expected_of(pooled, labels), rtol=0, atol=1.1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_types(dtype):
    images, labels = data()
    assert torch.equal(
        streamed(images.to(dtype), labels).means, streamed(images.to(dtype).float(), labels).means
    )


def test_values_beyond_the_unit_interval_by_rounding_count_at_its_ends():
    images = torch.tensor([-0.004, 1.004]).reshape(2, 1, 1, 1).expand(2, 1, 3, 3)
    prototypes = streamed(images, torch.tensor([0, 1]))
    assert not prototypes.means[0].any()
    assert (prototypes.means[1] == 1).all()
    assert prototypes.histogram[:2, [0, -1]].flatten(2).amin(2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("into", [{}, {"bins": 7, "quantile": 0.9, "size": (2, 2)}], ids=["fresh", "other"])
@pytest.mark.parametrize("assign", [False, True])
def test_state_goes_on_streaming(into, assign, tmp_path):
    images, labels = data()
    whole = streamed(images, labels)
    half = streamed(images[:6], labels[:6])
    half.save(tmp_path / "medians.pt")
    loaded = MedianPrototypes(K, **into)
    state = copy.deepcopy(half.state_dict())
    state["histogram"] = state["histogram"].long()
    result = loaded.load_state_dict(state, strict=True, assign=assign)
    assert not result.missing_keys
    assert loaded.histogram.dtype == torch.int32
    loaded.size = None
    for each in (loaded, MedianPrototypes.load(tmp_path / "medians.pt"), pickle.loads(pickle.dumps(half))):
        assert torch.equal(each.maps(), half.maps())
        each.update(images[6:], labels[6:])
        assert torch.equal(each.means, whole.means)
        assert torch.equal(each.counts, whole.counts)
        assert torch.equal(each.histogram, whole.histogram)
        assert (each.bins, each.quantile) == (256, 0.5)


@pytest.mark.parametrize(
    "convert",
    [lambda p: p.half(), lambda p: p.type(torch.float64), lambda p: p.to(memory_format=torch.channels_last)],
    ids=["half", "type", "channels_last"],
)
def test_casting_loses_no_counts_and_streaming_goes_on(convert):
    images, labels = data()
    prototypes = streamed(images[:6], labels[:6])
    prototypes.load_state_dict(copy.deepcopy(prototypes.state_dict()))
    prototypes.update(images[6:9], labels[6:9])
    convert(torch.nn.ModuleList([prototypes]))
    assert prototypes.histogram.dtype == torch.int32
    prototypes.counts = prototypes.counts.long()  # which type() casts, as of all kinds
    prototypes.update(images[9:], labels[9:])
    assert torch.equal(prototypes.means, streamed(images, labels).means)
    assert prototypes.to("meta").histogram.is_meta


def test_updates_under_inference_mode_serve_a_later_training_step():
    with torch.inference_mode():
        images, labels = data()
        prototypes = streamed(images, labels, 5)
        prototypes.maps()
    assert not any(buffer.is_inference() for buffer in prototypes.buffers())
    cams = torch.randn(3, 1, 6, 7, requires_grad=True)
    PrototypeLoss(prototypes)(cams, torch.tensor([0, 1, 3])).backward()
    assert cams.grad.flatten(1).any(1).all()
    prototypes.update(images.clone(), labels.clone())


def test_from_loader_keeps_its_histograms_only_where_it_is_asked_to():
    images, labels = data()
    loader = [(images[:6], labels[:6]), (images[6:], labels[6:])]
    light = MedianPrototypes.from_loader(loader, K, progress=False)
    kept = MedianPrototypes.from_loader(loader[:1], K, progress=False, keep_histogram=True)
    kept.update(*loader[1])
    for each in (light, kept):
        assert torch.equal(each.means, streamed(images, labels).means)
    assert light.histogram.shape == (K, 0)
    fresh = MedianPrototypes(K)
    fresh.load_state_dict(light.state_dict())
    before = light.means.clone()
    for each in (light, fresh, MedianPrototypes.from_maps(light.means)):
        assert torch.equal(each.maps(), light.maps())
        with pytest.raises(
            RuntimeError, match=r"histograms of the images so far, got none.*keep_histogram=True"
        ):
            each.update(images, labels)
        assert torch.equal(each.means, before)


def test_classes_without_anything_in_common_are_warned_of():
    images = torch.zeros(10, 1, 4, 4)
    images.flatten(2)[range(10), 0, range(10)] = 1  # one pixel each
    images[5:, :, 3, 3] = 1
    loader = [(images, torch.arange(10) // 5)]
    text = r"shows something in every class, got one that is the same everywhere in classes \[0\].*raise quantile="
    with pytest.warns(UserWarning, match=text) as caught:
        MedianPrototypes.from_loader(loader, 2, progress=False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.full((2, 1, 6, 7), 1.5), r"values from 0 to 1, got others; pass mean= and std= .*\(from 1.5 to 1.5\)"),
        (torch.full((2, 1, 6, 7), 255, dtype=torch.uint8), r"divide those of 0 to 255 by 255.*\(from 255 to 255\)"),
        (torch.full((2, 1, 6, 7), torch.nan), "expected finite values, got NaN or infinity"),
        (torch.rand(2, 1, 7, 7), r"spatial size \(6, 7\) of the images before, got \(7, 7\); pass size="),
        (torch.rand(2, 6, 7), r"images: expected"),
    ],
    ids=["range", "bytes", "NaN", "size", "shape"],
)  # fmt: skip
def test_images_that_are_refused_change_nothing(images, text):
    prototypes = streamed(*data())
    before = copy.deepcopy(prototypes.state_dict())
    with pytest.raises(ValueError, match=text):
        prototypes.update(images, torch.tensor([0, 1]))
    after = prototypes.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ("means", "counts", "histogram"))


def test_histograms_of_too_many_bytes_are_refused():
    prototypes = MedianPrototypes(1000)
    images = torch.rand(1, 1, 1, 1).expand(1, 1, 224, 224)
    text = r"at most 4 GiB, got 47.9 GiB for 1000 classes, 256 bins and images \(224, 224\); pass a smaller size=, fewer"
    with pytest.raises(ValueError, match=text):
        prototypes.update(images, torch.tensor([0]))
    assert not prototypes.means.numel()
    few = MedianPrototypes(K, bins=16)
    few.most_bytes = 4 * K * 16 * 42
    few.update(*data())
    few = MedianPrototypes(K, bins=17)
    few.most_bytes = 4 * K * 16 * 42
    with pytest.raises(ValueError, match="bins: expected histograms of at most"):
        few.update(*data())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bins": 1}, "bins: expected a number of at least 2, as 256 for 8-bit images, got 1"),
        ({"bins": 25.5}, "bins: .* got 25.5"),
        ({"quantile": 50}, "quantile: expected a number from 0 to 1, 0.5 for the median, got 50"),
        ({"quantile": float("nan")}, "quantile: .* got nan"),
    ],
)
def test_bad_settings(options, text):
    with pytest.raises(ValueError, match=text):
        MedianPrototypes(K, **options)


def test_state_of_another_kind_or_a_damaged_one_is_refused():
    images, labels = data()
    medians, means = streamed(images, labels), ClassPrototypes(K)
    means.update(images, labels)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ClassPrototypes(K).load_state_dict(medians.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        MedianPrototypes(K).load_state_dict(means.state_dict())
    state = medians.state_dict()
    state["histogram"] = state["histogram"][..., :3]
    with pytest.raises(RuntimeError, match=r"of one spatial size, got \(4, 256, 6, 3\) and \(4, 1, 6, 7\)"):
        MedianPrototypes(K).load_state_dict(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("images_on", ["cpu", "cuda"])
def test_a_gpu_counts_as_the_cpu_does(images_on):
    images, labels = data()
    prototypes = MedianPrototypes(K).cuda()
    for part in (slice(0, 6), slice(6, None)):
        prototypes.update(images[part].to(images_on), labels[part].to(images_on))
    assert {buffer.device.type for buffer in prototypes.buffers()} == {"cuda"}
    assert_close(prototypes.means.cpu(), streamed(images, labels).means, rtol=1e-6, atol=0)
    assert torch.equal(prototypes.counts.cpu(), streamed(images, labels).counts)

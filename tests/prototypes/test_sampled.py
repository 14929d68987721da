"""Medians and clusters: the sample of images, and what is computed from it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import ClusterPrototypes, MedianPrototypes
from batchcam_captum.prototypes import SampledPrototypes
from tests import reference_prototypes

K = 3


def data(n=60):
    """Three groups of images in class 0, noise in class 1, nothing in class 2."""
    images, labels = torch.rand(n, 3, 5, 6) * 0.1, torch.arange(n) % 2
    images[labels == 0] += (torch.arange(n)[labels == 0] % 3).reshape(-1, 1, 1, 1)
    labels[7] = -100
    return images, labels


def made(kind, images, labels, batch=16, **options):
    loader = list(zip(images.split(batch), labels.split(batch), strict=True))
    return kind.from_loader(loader, K, progress=False, **options)


class ListedPrototypes(SampledPrototypes):
    """The images of the sample themselves, in one row, sorted."""

    def summarize(self, images):
        return images.flatten().sort().values[None, None]


def numbered(n, **options):
    images = torch.arange(float(n)).reshape(n, 1, 1, 1)
    loader = list(zip(images.split(7), torch.zeros(n, dtype=torch.long).split(7), strict=True))

    class Row(SampledPrototypes):
        def _make_room(self, size):
            super()._make_room((1, min(n, self.images_per_class)))

        def read(self, images, labels):
            return images, labels

        summarize = ListedPrototypes.summarize

    prototypes = Row.from_loader(loader, 1, progress=False, **options)
    return prototypes.values.flatten().tolist(), prototypes.counts.item()


def test_the_sample_is_all_images_if_there_are_fewer():
    assert numbered(30, images_per_class=50) == ([float(i) for i in range(30)], 30)


def test_the_sample_is_uniform_without_replacement_and_depends_on_the_seed():
    drawn = torch.zeros(40)
    for seed in range(200):
        sample, count = numbered(40, images_per_class=10, seed=seed)
        assert len(set(sample)) == count == 10
        drawn[[int(i) for i in sample]] += 1
    # 200 draws with probability 1/4: 50 ± 6.1, so 5 standard deviations.
    assert drawn.min() > 50 - 31
    assert drawn.max() < 50 + 31
    assert numbered(40, images_per_class=10, seed=3) == numbered(40, images_per_class=10, seed=3)
    assert numbered(40, images_per_class=10, seed=3) != numbered(40, images_per_class=10, seed=4)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("n", [30, 31])
def test_medians_equal_those_of_numpy(quantile, n):
    images, labels = torch.rand(2 * n, 3, 5, 6), torch.arange(2 * n) % 2
    prototypes = made(MedianPrototypes, images, labels, quantile=quantile)
    for c in range(2):
        expected = np.quantile(images.mean(1)[labels == c].double().numpy(), quantile, axis=0)
        assert_close(prototypes.values[c, 0].double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert prototypes.counts.tolist() == [n, n, 0]
    assert prototypes.unseen == [2]


def test_medians_of_large_images(monkeypatch):
    """Earlier versions of torch.quantile take a limited number of values at once."""
    monkeypatch.setattr("batchcam_captum.prototypes.sampled._MOST_FOR_QUANTILE", 100)
    images = torch.rand(5, 9, 7)
    assert_close(MedianPrototypes(1).summarize(images)[0], images.median(0).values)


def test_a_decoy_in_random_corners_is_in_the_mean_and_not_in_the_median():
    images = torch.zeros(40, 1, 8, 8)
    images[..., 3:5, 3:5] = 0.5
    for index in range(40):
        images[index, 0, (0, 0, 7, 7)[index % 4], (0, 7, 0, 7)[index % 4]] = 1
    maps = MedianPrototypes.from_loader([(images, torch.zeros(40).long())], 1, progress=False).maps()[0, 0]
    assert maps[3, 3] == 1
    assert not maps[[0, 0, 7, 7], [0, 7, 0, 7]].any()


def test_a_flat_median_is_warned_of():
    images = torch.eye(8).reshape(8, 1, 8, 1).expand(8, 1, 8, 8)
    with pytest.warns(UserWarning, match="quantile") as caught:
        MedianPrototypes.from_loader([(images, torch.zeros(8).long())], 1, progress=False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_images_are_found_from_any_seed(seed):
    images, labels = data()
    prototypes = made(ClusterPrototypes, images, labels, per_class=3, seed=seed)
    own = images.mean(1)[labels == 0]
    groups = torch.stack([own[(own.mean((1, 2)).round() == group)].mean(0) for group in range(3)])
    found = prototypes.values[0][prototypes.values[0].mean((1, 2)).argsort()]
    assert_close(found, groups, rtol=1e-5, atol=1e-5)
    assert prototypes.maps().shape == (K, 3, 5, 6)
    assert not prototypes.maps()[2].any()


def test_centers_are_a_fixed_point_of_k_means():
    images, labels = data()
    prototypes = made(ClusterPrototypes, images, labels, per_class=3)
    expected = reference_prototypes.lloyd(
        images.mean(1)[labels == 1], torch.zeros(29).long(), prototypes.values[1:2], 1
    )
    assert_close(prototypes.values[1].double(), expected[0], rtol=1e-4, atol=1e-5)


def test_fewer_images_than_prototypes_are_repeated():
    images = torch.rand(5, 1, 5, 6)
    images[2] = images[0]
    prototypes = made(ClusterPrototypes, images, torch.tensor([0, 1, 0, 0, 1]), per_class=3)
    for c, different in ((0, images[[0, 3]]), (1, images[[1, 4]])):
        distances = torch.cdist(prototypes.values[c].flatten(1), different.flatten(1))
        assert distances.amin(0).max() < 1e-5
        assert distances.amin(1).max() < 1e-5


@pytest.mark.parametrize("kind", [MedianPrototypes, ClusterPrototypes])
def test_images_are_read_as_those_of_the_mean(kind):
    images, labels = data()
    plain = made(kind, images, labels)
    assert_close(
        made(kind, (images - 0.4) / 0.2, labels, mean=0.4, std=0.2).values, plain.values, rtol=1e-4, atol=1e-5
    )
    assert made(kind, images, labels, size=(3, 3)).values.shape[2:] == (3, 3)
    with pytest.raises(ValueError, match="size="):
        kind.from_loader([(images, labels), (images[..., :4], labels)], K, progress=False)


BAD_OPTIONS = [
    (MedianPrototypes, {"quantile": 1.5}, ValueError, "quantile"),
    (MedianPrototypes, {"images_per_class": 0}, ValueError, "images_per_class"),
    (MedianPrototypes, {"bins": 256}, TypeError, "bins"),
    (ClusterPrototypes, {"per_class": 0}, ValueError, "per_class"),
]


@pytest.mark.parametrize(("kind", "options", "error", "name"), BAD_OPTIONS)
def test_bad_options(kind, options, error, name):
    with pytest.raises(error, match=name):
        kind(K, **options)


def test_clusters_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModuleNotFoundError, match=r"batchcam-captum\[clusters\]"):
        made(ClusterPrototypes, *data())

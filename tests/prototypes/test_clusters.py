"""ClusterPrototypes: against a loop and scikit-learn, how they begin, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import ClusterPrototypes
from tests import reference_prototypes

K, P = 3, 3


def data(n=60):
    """Three clusters in class 0, noise in class 1, nothing in class 2."""
    images, labels = torch.rand(n, 3, 5, 6), torch.arange(n) % 2
    images[labels == 0] += (torch.arange(n)[labels == 0] % 3).reshape(-1, 1, 1, 1)
    labels[7] = -100
    return images, labels


def loader_of(images, labels, batch=16):
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def clustered(images, labels, batch=16, **options):
    return ClusterPrototypes.from_loader(
        loader_of(images, labels, batch), K, per_class=P, progress=False, **options
    )


def start_of(images, labels):
    single = images.mean(1)
    start = torch.zeros(K, P, 5, 6)
    for c in range(2):
        start[c] = single[labels == c][:P]
    return start


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("batch", [60, 16, 1])
def test_centres_equal_a_loop_from_the_same_start(iterations, batch):
    images, labels = data()
    start = start_of(images, labels)
    prototypes = clustered(images, labels, batch, start=start, iterations=iterations, tolerance=0)
    expected, counts = reference_prototypes.lloyd(images.mean(1), labels, start, iterations)
    assert_close(prototypes.means.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(prototypes.counts, counts)
    assert prototypes.unseen == [2]


def test_centres_equal_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    images, labels = data()
    start = start_of(images, labels)
    prototypes = clustered(images, labels, start=start, iterations=50, tolerance=0)
    for c in range(2):
        rows = images.mean(1)[labels == c].flatten(1).double().numpy()
        theirs = cluster.KMeans(
            P, init=start[c].flatten(1).double().numpy(), n_init=1, max_iter=50, tol=0, algorithm="lloyd"
        ).fit(rows)
        assert_close(
            prototypes.means[c].flatten(1).double(),
            torch.from_numpy(theirs.cluster_centers_),
            rtol=1e-6,
            atol=1e-7,
        )


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_lie_apart_are_found_from_any_seed(seed):
    images, labels = data()
    images[labels == 0] = images[labels == 0].floor() * 4 + torch.rand(30, 3, 5, 6) * 0.1
    prototypes = clustered(images, labels, seed=seed)
    assert prototypes.counts[0].tolist() == [10, 10, 10]
    values = prototypes.means[0].mean((1, 2)).sort().values
    assert_close(values, torch.tensor([0.05, 4.05, 8.05]), rtol=0, atol=0.02)


def test_beginning_is_an_image_by_its_squared_distance():
    """Of 10 images of two kinds, 9 and 1: the odd one is always a centre, as the others lie at no distance."""
    images = torch.zeros(10, 1, 4, 4)
    images[3] = 1
    for seed in range(10):
        prototypes = ClusterPrototypes.from_loader(
            [(images, torch.zeros(10, dtype=torch.long))], 1, per_class=2, seed=seed, progress=False
        )
        assert sorted(prototypes.counts[0].tolist()) == [1, 9]


def test_first_centre_may_be_any_image():
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 4, 4)
    from batchcam_captum.prototypes.kmeans import ClassKMeans

    found = set()
    for seed in range(60):
        means = ClassKMeans(
            lambda what: iter([(images.flatten(1).double(), torch.zeros(8, dtype=torch.long))]),
            1, 1, 16, torch.device("cpu"), None,
        )  # fmt: skip
        means.seed(seed)
        found.add(float(means.centres[0, 0, 0]))
    assert found == set(range(8))


def test_same_seed_same_prototypes_and_another_seed_others():
    images, labels = torch.rand(40, 1, 5, 6), torch.zeros(40, dtype=torch.long)
    first, second, other = (clustered(images, labels, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.means, second.means)
    assert not torch.equal(first.means, other.means)


def test_fewer_images_than_prototypes_are_repeated():
    images = torch.rand(5, 1, 5, 6)
    images[2] = images[0]
    prototypes = clustered(images, torch.tensor([0, 1, 0, 0, 1]))
    for c, different in ((0, images[[0, 3]]), (1, images[[1, 4]])):
        assert sorted(prototypes.counts[c].tolist()) == ([0, 1, 2] if c == 0 else [0, 1, 1])
        for mean in prototypes.means[c]:
            assert any(torch.allclose(mean, image[0], atol=1e-7) for image in different)
        for image in different:
            assert any(torch.allclose(mean, image[0], atol=1e-7) for mean in prototypes.means[c])
    assert not prototypes.means[2].any()


def test_it_stops_when_nothing_moves():
    images, labels = data()
    passes = []

    class Counted(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    loader = Counted(loader_of(images, labels))
    ClusterPrototypes.from_loader(loader, K, per_class=P, iterations=500, tolerance=0, progress=False)
    assert len(passes) < 60


def test_standardization_is_undone_and_size_is_taken():
    images, labels = data()
    start = start_of(images, labels)
    plain = clustered(images, labels, start=start)
    undone = clustered((images - 0.4) / 0.2, labels, start=start, mean=0.4, std=0.2)
    assert_close(undone.means, plain.means, rtol=1e-4, atol=1e-5)
    assert clustered(images, labels, size=(3, 3)).means.shape == (K, P, 3, 3)


def test_maps_are_those_of_each_prototype():
    prototypes = clustered(*data())
    for size in (None, (3, 4)):
        maps = prototypes.maps(size)
        assert maps.shape == (K, P, *(size or (5, 6)))
        assert maps[:2].amax((2, 3)).eq(1).all()
        assert not maps[2].any()
    mean = prototypes.means[1, 2]
    assert_close(prototypes.maps()[1, 2], (mean - mean.min()) / (mean.max() - mean.min()))


def test_from_maps():
    maps = torch.rand(K, P, 5, 6)
    prototypes = ClusterPrototypes.from_maps(maps)
    assert torch.equal(prototypes.means, maps)
    assert prototypes.counts.tolist() == [[1] * P] * K
    assert "num_classes=3, per_class=3, size=(5, 6)" in repr(prototypes)
    with pytest.raises(ValueError, match=r"expected maps \(K, P, \*spatial\), got \(3, 3\)"):
        ClusterPrototypes.from_maps(torch.rand(3, 3))


BAD = {
    "iterator": (lambda: iter(loader_of(*data())), {}, TypeError, "gone through several times, got list_iterator"),
    "empty": (list, {}, ValueError, "expected at least one image whose label is not ignored, got none"),
    "dicts": (lambda: [{"image": 1}], {}, TypeError, "loader: expected batches"),
    "iterations": (lambda: loader_of(*data()), {"iterations": 0}, ValueError, "iterations: expected at least 1, got 0"),
    "tolerance": (lambda: loader_of(*data()), {"tolerance": -1.0}, ValueError, "tolerance: expected a number of at least 0"),
    "per_class": (lambda: loader_of(*data()), {"per_class": 0}, ValueError, "per_class: expected at least 1, got 0"),
    "start": (
        lambda: loader_of(*data()), {"start": torch.rand(K, 2, 5, 6)}, ValueError,
        r"start: expected shape \(3, 4, 5, 6\), got \(3, 2, 5, 6\)",
    ),
    "sizes": (
        lambda: [*loader_of(*data()), (torch.rand(1, 3, 9, 9), torch.tensor([0]))], {}, ValueError,
        r"size \(5, 6\) of the images before, got \(9, 9\); pass size=",
    ),
    "nan": (lambda: [(torch.full((1, 1, 4, 4), torch.nan), torch.tensor([0]))], {}, ValueError, "expected finite values"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "options", "kind", "text"), BAD.values(), ids=BAD)
def test_what_it_refuses(make, options, kind, text):
    with pytest.raises(kind, match=text):
        ClusterPrototypes.from_loader(make(), K, progress=False, **options)


def test_loader_that_runs_out():
    class Once:
        left = 2  # the size is read first

        def __iter__(self):
            self.left -= 1
            return iter(loader_of(*data()) if self.left >= 0 else [])

    with pytest.raises(ValueError, match="expected the images again, got none"):
        ClusterPrototypes.from_loader(Once(), K, per_class=1, progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(progress, capsys):
    images, labels = data()
    ClusterPrototypes.from_loader(loader_of(images, labels), K, progress=progress, iterations=1)
    assert ("prototypes: means" in capsys.readouterr().err) is progress


def test_centre_without_images_stays_and_becomes_the_fullest_in_the_end():
    images = torch.tensor([0.0, 0.1, 0.2, 10.0, 10.1]).reshape(-1, 1, 1, 1).expand(5, 1, 4, 4)
    start = torch.tensor([10.0, 8.0, 99.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    prototypes = ClusterPrototypes.from_loader(
        [(images, torch.zeros(5, dtype=torch.long))], 1, per_class=3, start=start, progress=False
    )
    assert prototypes.counts.tolist() == [[2, 3, 0]]
    assert_close(prototypes.means[0, :, 0, 0], torch.tensor([10.05, 0.1, 0.1]))

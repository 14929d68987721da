"""How near cams are to prototypes."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import nearest_prototype, prototype_cosine, prototype_distance
from tests import reference

LABELS = torch.tensor([0, 2, 2, 1])


@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_metrics_equal_the_strict_loss_of_each_sample(distance):
    cams = torch.randn(4, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    prototypes = torch.rand(3, 1, 9, 9, dtype=torch.float64)
    slow = reference.prototype_losses(cams, LABELS, prototypes, distance, revive=False)
    value = prototype_distance(cams, LABELS, prototypes, distance)
    assert not value.requires_grad
    assert_close(value, torch.stack(slow).detach())
    if distance == "cosine":
        assert_close(prototype_cosine(cams, LABELS, prototypes), 1 - value)


def test_dead_cams_count_as_the_zero_map():
    prototypes = torch.rand(3, 1, 5, 6)
    for cams in (torch.zeros(4, 1, 5, 6), -torch.rand(4, 1, 5, 6)):
        own = prototypes[LABELS] / prototypes[LABELS].amax((1, 2, 3), True)
        assert_close(prototype_distance(cams, LABELS, prototypes), own.mean((1, 2, 3)))
        assert (prototype_cosine(cams, LABELS, prototypes) == 0).all()


def test_of_several_prototypes_a_class_the_nearest_counts():
    cams, prototypes = torch.randn(4, 1, 5, 6), torch.rand(3, 2, 5, 6)
    each = [prototype_distance(cams, LABELS, prototypes[:, p : p + 1], "ssim") for p in (0, 1)]
    assert_close(prototype_distance(cams, LABELS, prototypes, "ssim"), torch.minimum(*each))
    each = [prototype_cosine(cams, LABELS, prototypes[:, p : p + 1]) for p in (0, 1)]
    assert_close(prototype_cosine(cams, LABELS, prototypes), torch.maximum(*each))


def test_ignored_labels_have_no_value_whatever_their_cams():
    cams, prototypes = torch.randn(4, 1, 5, 6), torch.rand(3, 1, 5, 6)
    expected = prototype_distance(cams, LABELS, prototypes)
    labels = LABELS.clone()
    cams[2], labels[2] = torch.nan, -100
    for metric in (prototype_distance, prototype_cosine):
        assert metric(cams, labels, prototypes).isnan().tolist() == [False, False, True, False]
    assert_close(prototype_distance(cams, labels, prototypes)[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_nearest_prototype_by_centered_cosines_is_that_of_a_loop(dims):
    cams, prototypes = torch.randn(20, 1, *[5] * dims), torch.rand(4, 1, *[5] * dims) + 1
    scaled = prototypes / prototypes.flatten(1).amax(1).reshape(-1, *[1] * (dims + 1))
    common = scaled.mean(0)
    expected = []
    for cam in cams:
        positive = cam.clamp(min=0)
        cosines = [
            torch.nn.functional.cosine_similarity(
                (positive - positive.mean()).flatten(), (p - common).flatten(), dim=0
            )
            for p in scaled
        ]
        expected.append(int(torch.stack(cosines).argmax()))
    assert nearest_prototype(cams, prototypes).tolist() == expected
    assert len(set(expected)) > 2


def test_nearest_prototype_by_a_distance_is_scikit_learns():
    from sklearn.metrics import pairwise_distances_argmin

    cams, prototypes = torch.rand(20, 1, 4, 4), torch.rand(4, 1, 4, 4)
    cams, prototypes = cams / cams.amax((1, 2, 3), True), prototypes / prototypes.amax((1, 2, 3), True)
    rows = cams.flatten(1).numpy(), prototypes.flatten(1).numpy()
    for distance, metric in (("l1", "manhattan"), ("l2", "sqeuclidean"), ("cosine", "cosine")):
        expected = pairwise_distances_argmin(*rows, metric=metric)
        assert nearest_prototype(cams * 0.01, prototypes, distance).tolist() == expected.tolist()


def test_what_is_near_to_no_prototype():
    prototypes = torch.rand(3, 1, 4, 4)
    prototypes[0] = 0  # never seen: the zero map would be the nearest to a faint cam
    faint = torch.zeros(1, 1, 4, 4)
    faint[..., 1, 2] = 1
    cams = torch.cat([faint, torch.zeros(1, 1, 4, 4), -faint, torch.full((1, 1, 4, 4), 0.3), prototypes[2:]])
    for distance in ("centered_cosine", "l1"):
        near = nearest_prototype(cams, prototypes, distance).tolist()
        assert near[0] in (1, 2)
        assert near[1:3] == [-1, -1]
        assert near[4] == 2
        assert (near[3] == -1) == (distance == "centered_cosine")
    only = nearest_prototype(cams, prototypes, seen=torch.tensor([False, True, False]))
    assert only.tolist() == [1, -1, -1, -1, 1]
    with pytest.raises(ValueError, match="prototypes"):
        nearest_prototype(cams, torch.zeros_like(prototypes))


def test_nearest_of_several_prototypes_a_class():
    prototypes = torch.rand(3, 2, 4, 4)
    for distance in ("centered_cosine", "l2"):
        near = nearest_prototype(prototypes.flatten(0, 1).unsqueeze(1), prototypes, distance)
        assert near.tolist() == [0, 0, 1, 1, 2, 2]


CAMS, PROTOTYPES = torch.randn(4, 1, 5, 6), torch.rand(3, 1, 5, 6)
BAD = CAMS.index_fill(0, torch.tensor(1), torch.nan)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: prototype_distance(BAD, LABELS, PROTOTYPES), ValueError, r"cams.*\[1\]"),
        (lambda: nearest_prototype(BAD, PROTOTYPES), ValueError, r"cams.*\[1\]"),
        (
            lambda: prototype_distance(CAMS, LABELS, PROTOTYPES, lambda a, _: a[:, 0, 0, 0] / 0),
            ValueError,
            "distance",
        ),
        (lambda: nearest_prototype(CAMS, PROTOTYPES / 0), ValueError, "prototypes"),
        (
            lambda: prototype_cosine(CAMS, LABELS, PROTOTYPES, seen=LABELS[:3] < 2),
            ValueError,
            r"prototypes.*\[1, 2\]",
        ),
        (lambda: prototype_cosine(CAMS, LABELS + 1, PROTOTYPES), ValueError, "labels"),
        (lambda: prototype_cosine(CAMS, torch.rand(4, 3), PROTOTYPES), TypeError, "labels"),
    ],
)
def test_what_does_not_fit_raises(call, error, text):
    with pytest.raises(error, match=text):
        call()

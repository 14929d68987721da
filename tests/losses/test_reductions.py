"""What counts: absent classes, ignored samples, empty batches, and the order between the two losses."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import (
    batch_cam_loss,
    class_means,
    class_weights,
    image_loss,
    prototype_contrastive_loss,
    prototype_loss,
)

K = 4
PER_SAMPLE = {"prototype": prototype_loss, "contrastive": prototype_contrastive_loss}


def some_dead(n):
    cams = torch.randn(n, 1, 5, 5, dtype=torch.float64)
    cams[::3] = -cams[::3].abs()
    return cams


def maps():
    return torch.rand(K, 1, 5, 5, dtype=torch.float64)


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("with_dead", [True, False], ids=["some dead", "all alive"])
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_batch_cam_equals_prototype_loss_with_one_image_a_class(distance, with_dead, revive):
    cams = some_dead(K) if with_dead else torch.randn(K, 1, 5, 5, dtype=torch.float64)
    options = {"distance": distance, "revive": revive, "reduction": "none"}
    prototypes, labels = maps(), torch.tensor([2, 0, 3, 1])
    by_class = batch_cam_loss(cams, labels, prototypes, **options)
    by_sample = prototype_loss(cams, labels, prototypes, **options)
    assert torch.equal(by_class[labels], by_sample)
    in_order = torch.arange(K)
    options["reduction"] = "mean"
    assert torch.equal(
        batch_cam_loss(cams, in_order, prototypes, **options),
        prototype_loss(cams, in_order, prototypes, **options),
    )


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("seed", range(5))
def test_batch_cam_is_at_most_the_class_balanced_mean_of_prototype_loss(seed, distance, resolution, revive):
    torch.manual_seed(seed)
    cams, labels, prototypes = some_dead(20), torch.randint(K - 1, (20,)), maps()
    options = {"distance": distance, "resolution": resolution, "revive": revive, "reduction": "none"}
    by_class = batch_cam_loss(cams, labels, prototypes, **options)
    balanced, counts = class_means(
        prototype_loss(cams, labels, prototypes, **options), class_weights(labels, K).weights
    )
    assert counts[-1] == 0
    assert (by_class <= balanced).all()
    assert (by_class < balanced).any()  # not vacuous


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
def test_absent_classes_are_zero_and_no_part_of_the_mean(revive):
    cams = some_dead(3).requires_grad_()
    prototypes, labels = maps(), torch.tensor([1, 1, 3])
    by_class = batch_cam_loss(cams, labels, prototypes, reduction="none", revive=revive)
    assert by_class.shape == (K,)
    assert (by_class == 0).tolist() == [True, False, True, False]
    mean = batch_cam_loss(cams, labels, prototypes, revive=revive)
    assert_close(mean, by_class.sum() / 2)
    mean.backward()
    assert cams.grad.isfinite().all()


@pytest.mark.parametrize("value", [-100, 255])
@pytest.mark.parametrize("loss", [prototype_loss, batch_cam_loss, prototype_contrastive_loss])
def test_ignored_samples_are_as_if_they_were_not_there(loss, value):
    cams, prototypes = some_dead(5).requires_grad_(), maps()
    labels = torch.tensor([1, value, 3, value, 1])
    kept = labels != value
    ignoring = loss(cams, labels, prototypes, ignore_index=value)
    assert_close(ignoring, loss(cams[kept], labels[kept], prototypes), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(ignoring, cams)
    assert gradient[~kept].abs().max() == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("n", "label"), [(0, 0), (3, -100)], ids=["empty", "all ignored"])
@pytest.mark.parametrize("loss", [prototype_loss, batch_cam_loss, prototype_contrastive_loss])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
def test_nothing_to_count_gives_a_zero_with_a_graph(loss, n, label, reduction, resolution):
    cams = torch.randn(n, 1, 5, 5).requires_grad_()
    prototypes = torch.rand(K, 1, 8, 8)
    value = loss(cams, torch.full((n,), label), prototypes, reduction=reduction, resolution=resolution)
    assert value == 0
    value.backward()
    assert (cams.grad == 0).all()


def test_empty_batch_of_images_gives_a_zero_with_a_graph():
    cams = torch.randn(0, 1, 5, 5).requires_grad_()
    value = image_loss(cams, torch.rand(0, 1, 8, 8))
    value.backward()
    assert value == 0


@pytest.mark.parametrize("loss", [prototype_loss, batch_cam_loss, prototype_contrastive_loss])
def test_floating_one_hot_rows_equal_class_indices(loss):
    cams, prototypes, labels = some_dead(6), maps(), torch.tensor([0, 1, 1, 3, 3, 3])
    soft = torch.nn.functional.one_hot(labels, K).double()
    assert_close(loss(cams, soft, prototypes), loss(cams, labels, prototypes), rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", PER_SAMPLE.values(), ids=PER_SAMPLE)
def test_without_reduction_there_is_one_number_a_sample(loss):
    values = loss(some_dead(6), torch.tensor([0, 1, 1, 3, 3, -100]), maps(), reduction="none")
    assert values.shape == (6,)
    assert (values > 0).tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_more_classes_than_samples_change_nothing(reduction, resolution, revive):
    """With K > N only the classes of the batch are compared: the same numbers, and a cost that does not grow with K."""
    torch.manual_seed(3)
    cams = torch.randn(7, 1, 6, 6, dtype=torch.float64)
    cams[2] = -1
    labels = torch.tensor([4, 0, 4, -100, 2, 0, 4])
    few, many = torch.rand(5, 1, 9, 9, dtype=torch.float64), torch.rand(40, 1, 9, 9, dtype=torch.float64)
    many[[30, 8, 17]] = few[[0, 2, 4]]
    renamed = torch.tensor([17, 30, 17, -100, 8, 30, 17])
    options = {"resolution": resolution, "revive": revive, "reduction": reduction}
    calls = []

    def counting(first, second):
        calls.append(len(first))
        return (first - second).abs().flatten(1).mean(1)

    gradients = []
    for y, maps in ((labels, few), (renamed, many)):
        x = cams.clone().requires_grad_()
        loss = batch_cam_loss(x, y, maps, distance=counting, **options)
        gradients.append(torch.autograd.grad(loss.sum(), x)[0])
        value = loss[torch.tensor([0, 2, 4] if maps is few else [30, 8, 17])] if reduction == "none" else loss
        assert loss.shape == ((len(maps),) if reduction == "none" else ())
        gradients.append(value.detach())
        if reduction == "none":
            assert (loss != 0).sum() == 3
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[1], gradients[3], rtol=1e-12, atol=1e-14)
    assert calls == [5, 7]

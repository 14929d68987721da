"""Class means over the last micro-batches: against the whole batch at once, in float64."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from tests import reference
from tests.training.models import Net

K = 4
SIZE = (5, 6)
#: Micro-batches of several sizes, one of them empty; class 3 is in the first only, an ignored sample and dead cams among them.
SIZES = (4, 3, 0, 5)
LABELS = torch.tensor([0, 3, 1, 0, 2, 2, -100, 1, 0, 2, 1, 0])


def batch(dtype=torch.float64):
    cams = torch.randn(12, 1, *SIZE, dtype=dtype)
    for dead in (1, 5, 8):
        cams[dead] = -cams[dead].abs() - 0.1
    return cams, torch.rand(K, 1, 9, 8)


def parts_of(cams, sizes=SIZES):
    return list(zip(cams.split(sizes), LABELS.split(sizes), strict=True))


def twin(loss, cams, distance, reduction="mean"):
    maps = loss.prototypes.maps(SIZE).double()
    return reference.reduced(
        reference.batch_cam_losses(cams, LABELS, maps, distance, revive=loss.revive), reduction
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_a_full_window_accumulates_the_gradient_of_the_whole_batch(distance, revive, reduction):
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, distance=distance, revive=revive, reduction=reduction, memory=3)
    for own, labels in parts_of(cams):  # the round before, at the same weights
        loss(own, labels)
    leaf = cams.clone().requires_grad_()
    expected = twin(loss, leaf, distance, reduction)
    (gradient,) = torch.autograd.grad(expected, leaf)
    values = [loss(*part) for part in parts_of(leaf)]
    for value in values:
        assert_close(value, expected, rtol=1e-11, atol=0)
    (sum(values) / len(SIZES)).backward()
    assert_close(leaf.grad, gradient, rtol=1e-9, atol=1e-12)


def test_the_parameters_of_a_network_get_the_gradient_of_the_whole_batch():
    """The CAM term alone, so that the head has a gradient only if the cams' own gradient is differentiated."""
    model = Net(dropout=0.0).eval().double()
    images, labels = torch.rand(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    prototypes = torch.rand(3, 1, 8, 8)

    def gradients(parts, rounds, **options):
        regularizer = CamRegularizer(BatchGradCam(model, model.layer), BatchCamLoss(prototypes, **options))
        for _ in range(rounds):
            model.zero_grad()
            for own, of in parts:
                with regularizer:
                    scores = model(own)
                (regularizer(scores, of) / len(parts)).backward()
        return [parameter.grad.clone() for parameter in model.head[1].parameters()]

    parts = list(zip(images.split(3), labels.split(3), strict=True))
    whole = gradients([(images, labels)], 1)
    assert_close(gradients(parts, 2, memory=3), whole, rtol=1e-9, atol=1e-12)
    assert whole[0].abs().max() > 1e-5
    with pytest.raises(AssertionError):  # without it, each part has class means of its own
        assert_close(gradients(parts, 2), whole, rtol=1e-3, atol=0)


def test_until_the_window_is_full_it_is_that_of_the_calls_so_far():
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, distance="l2", memory=5)
    seen = []
    for number, (own, labels) in enumerate(parts_of(cams), 1):
        seen.append((own, labels))
        whole = [torch.cat(each) for each in zip(*seen, strict=True)]
        maps = loss.prototypes.maps(SIZE).double()
        leaf = own.clone().requires_grad_()
        together = torch.cat([whole[0][: len(whole[0]) - len(own)], leaf])
        expected = reference.reduced(reference.batch_cam_losses(together, whole[1], maps, "l2"), "mean")
        value = loss(leaf, labels)
        assert_close(value, expected, rtol=1e-11, atol=0)
        if len(own):
            (gradient,) = torch.autograd.grad(expected, leaf)
            assert_close(torch.autograd.grad(value, leaf)[0], number * gradient, rtol=1e-9, atol=1e-12)


def test_the_window_slides():
    """What is older than M − 1 calls is gone."""
    cams, prototypes = batch()
    first, second = (BatchCamLoss(prototypes, memory=2) for _ in range(2))
    first(torch.randn(3, 1, *SIZE, dtype=torch.float64), torch.tensor([0, 1, 2]))
    for own, labels in parts_of(cams)[:3]:
        last = first(own, labels), second(own, labels)
    assert_close(*last, rtol=1e-12, atol=0)
    assert_close(first(*parts_of(cams)[3]), second(*parts_of(cams)[3]), rtol=1e-12, atol=0)


def test_without_a_memory_nothing_is_remembered():
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes)
    assert loss.earlier is None
    assert not loss.keeps_state
    own, labels = parts_of(cams)[0]
    assert torch.equal(loss(own, labels), loss(own, labels))
    assert [name for name in loss.state_dict() if "earlier" in name] == []
    loss.reset()


def test_evaluation_neither_sees_nor_changes_the_memory():
    cams, prototypes = batch()
    loss, plain = BatchCamLoss(prototypes, memory=2), BatchCamLoss(prototypes)
    loss(*parts_of(cams)[0])
    before = copy.deepcopy(loss.state_dict())
    loss.eval()
    assert torch.equal(loss(*parts_of(cams)[1]), plain(*parts_of(cams)[1]))
    assert_close(dict(loss.state_dict()), dict(before), rtol=0, atol=0)


def test_a_regularizer_that_evaluates_leaves_the_memory_alone():
    model = Net(dropout=0.0)
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    loss = BatchCamLoss(torch.rand(3, 1, 8, 8), memory=1)
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), loss)
    regularizer.evaluate(images, labels)
    assert loss.earlier.num_calls == 0
    with regularizer:
        scores = model(images)
    regularizer(scores, labels)
    assert loss.earlier.num_calls == 1


def test_what_is_remembered_carries_no_graph():
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, memory=2)
    loss(cams.requires_grad_(), LABELS)
    assert not any(tensor.requires_grad for tensor in loss.earlier.state_dict().values())
    first = loss(cams, LABELS)
    loss(cams, LABELS)  # writing to the ring must not disturb a backward that has yet to come
    first.backward()


def test_a_resumed_run_goes_on_bit_for_bit():
    cams, prototypes = batch(torch.float32)
    loss = BatchCamLoss(prototypes, memory=2)
    steps = parts_of(cams, (4, 3, 5))
    for part in steps[:2]:
        loss(*part)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    resumed = BatchCamLoss(torch.rand_like(prototypes), memory=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for part in [*steps, *steps]:
        values = []
        for each in (loss, resumed, copy.deepcopy(loss)):
            leaf = part[0].clone().requires_grad_()
            value = each(leaf, part[1])
            value.backward()
            values.append((value.detach(), leaf.grad))
        assert all(torch.equal(*pair) for pair in zip(values[0], values[1], strict=True))
        assert torch.equal(loss.earlier.maps, resumed.earlier.maps)


def test_a_state_of_another_length_or_without_a_memory_is_refused():
    _, prototypes = batch()
    state = BatchCamLoss(prototypes, memory=2).state_dict()
    with pytest.raises(RuntimeError, match="memory: expected"):
        BatchCamLoss(prototypes, memory=3).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        BatchCamLoss(prototypes).load_state_dict(state)


def test_maps_of_another_size_are_refused_and_change_nothing():
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, memory=1)
    loss(*parts_of(cams)[0])
    before = copy.deepcopy(dict(loss.state_dict()))
    turned = cams.transpose(2, 3)[:4]  # as many pixels
    with pytest.raises(ValueError, match="cams: expected"):
        loss(turned, LABELS[:4])
    assert_close(dict(loss.state_dict()), before, rtol=0, atol=0)
    loss.reset()
    assert loss.earlier.num_calls == 0
    assert torch.equal(loss(turned, LABELS[:4]), BatchCamLoss(prototypes)(turned, LABELS[:4]))


def test_what_raises_is_not_remembered():
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, memory=2)
    loss(*parts_of(cams)[0])
    with pytest.raises(ValueError, match="class indices"):
        loss(cams[:1], torch.tensor([K]))
    assert loss.earlier.num_calls == 1


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_casting_the_loss_keeps_what_is_remembered(cast):
    cams, prototypes = batch(torch.float32)
    loss = BatchCamLoss(prototypes, memory=2)
    loss(*parts_of(cams)[0])
    before = loss.earlier.maps.clone()
    cast(loss)
    assert torch.equal(loss.earlier.maps, before)
    assert loss.earlier.maps.dtype == torch.float32
    loss(*parts_of(cams)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_cams_are_remembered_in_full_precision(dtype):
    cams, prototypes = batch(torch.float32)
    loss = BatchCamLoss(prototypes, memory=1)
    loss(cams[:4].to(dtype), LABELS[:4])
    assert loss.earlier.maps.dtype == torch.float32


def test_an_empty_first_call():
    """No sample on the first call of all: the next one is by itself, but counts as the second."""
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, memory=1)
    assert loss(cams[:0], LABELS[:0]) == 0
    leaf = cams[:4].clone().requires_grad_()
    value, plain = loss(leaf, LABELS[:4]), BatchCamLoss(prototypes)(leaf, LABELS[:4])
    assert_close(value, plain, rtol=1e-12, atol=0)
    first, second = (torch.autograd.grad(each, leaf)[0] for each in (value, plain))
    assert_close(first, 2 * second, rtol=1e-12, atol=0)


@pytest.mark.parametrize("memory", [-1, 1.5, True, None])
def test_a_memory_is_a_number_of_calls(memory):
    with pytest.raises(ValueError, match="memory: expected"):
        BatchCamLoss(torch.rand(K, 1, 8, 8), memory=memory)


def test_several_layers_need_a_memory_each():
    model = Net()
    loss = BatchCamLoss(torch.rand(3, 1, 8, 8), memory=1)
    assert loss.keeps_state
    with pytest.raises(ValueError, match="losses: expected"):
        CamRegularizer(BatchGradCam(model, [model.trunk, model.layer]), loss)
    assert not PrototypeLoss(torch.rand(3, 1, 8, 8)).keeps_state


def test_memory_helps_where_classes_are_rare():
    """Accumulation over micro-batches of one image, where class means would be single cams, learns from real means."""
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, memory=11)
    for _ in range(2):
        for own, label in zip(cams.split(1), LABELS.split(1), strict=True):
            value = loss(own, label)
    assert_close(value, twin(loss, cams, "l1"), rtol=1e-11, atol=0)
    single = BatchCamLoss(prototypes)
    mean = torch.stack(
        [single(own, label) for own, label in zip(cams.split(1), LABELS.split(1), strict=True)]
    )
    assert F.l1_loss(mean.mean(), value) > 1e-3


def test_a_memory_adds_up_what_there_is_of_a_class():
    torch.manual_seed(5)
    cams, maps = torch.rand(4, 1, 4, 4), torch.rand(2, 1, 4, 4)
    soft = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    loss = BatchCamLoss(maps, memory=1)
    loss(cams[:2], soft[:2])
    assert_close(loss(cams[2:], soft[2:]), BatchCamLoss(maps)(cams, soft))


def test_samples_that_weigh_little_make_up_a_class_as_without_a_memory():
    cams, prototypes = batch()
    weights = torch.linspace(0, 0.3, 12, dtype=cams.dtype)
    given = (cams, LABELS)
    for reduction in ("mean", "sum", "none"):
        plain = BatchCamLoss(prototypes, reduction=reduction)(*given, sample_weights=weights)
        remembering = BatchCamLoss(prototypes, reduction=reduction, memory=1)
        for _ in range(2):
            assert_close(remembering(*given, sample_weights=weights), plain, rtol=1e-12, atol=0)

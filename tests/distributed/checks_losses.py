"""On every rank: Batch-CAM losses of a share of the batch, against the slow twin on the whole batch, in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss
from batchcam_captum.distributed import group_of, sum_over_ranks
from tests import reference
from tests.distributed.group import WORLD, Checks

CHECKS = Checks()
K = 4
SIZE = (5, 6)
#: Class 0 is alone with a dead cam on the first rank, 2 is missing on the first, 3 on the last; one sample is ignored.
HARD = torch.tensor([0, 1, 1, 3, 3, -100, 0, 2, 1, 2])
SPLITS = {"even": (5, 5), "uneven": (7, 3), "nothing": (10, 0), "nothing on the first": (0, 10)}


def batch():
    """Ten cams, three of them dead, on both ranks."""
    cams = torch.randn(10, 1, *SIZE, dtype=torch.float64)
    for dead in (0, 2, 8):
        cams[dead] = -cams[dead].abs() - 0.1
    return cams, torch.rand(K, 1, 9, 8)


def labels_of(kind):
    if kind == "hard":
        return HARD
    soft = torch.rand(10, K, dtype=torch.float64)
    soft[:, 3] = 0
    return soft / soft.sum(1, keepdim=True)


def share(tensor, rank, split):
    return tensor.split(SPLITS[split])[rank].clone()


def compare(rank, loss, cams, labels, split, whole, **more):
    """The loss of this rank's share, and W times the whole's gradient at it."""
    (expected,) = torch.autograd.grad(whole.sum(), cams)
    own = share(cams.detach(), rank, split).requires_grad_()
    weights = {name: share(value, rank, split) for name, value in more.items()}
    value = loss(own, share(labels, rank, split), **weights)
    assert_close(value, whole, rtol=1e-11, atol=1e-12)
    value.sum().backward()
    assert_close(own.grad / WORLD, share(expected, rank, split), rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 1e-4


def twin(loss, cams, labels):
    maps = loss.prototypes.maps(SIZE).double()
    return reference.batch_cam_losses(cams, labels, maps, TWINS[loss], revive=loss.revive)


TWINS = {}


def loss_of(prototypes, distance, **options):
    loss = BatchCamLoss(prototypes, distance=distance, **options)
    TWINS[loss] = distance
    return loss


@CHECKS.each(
    distance=["l1", "l2", "ssim", "cosine"], revive=[True, False], labels=["hard", "soft"], split=["even"]
)
def loss_and_gradients(rank, distance, revive, labels, split):
    cams, prototypes = batch()
    labels = labels_of(labels)
    cams.requires_grad_()
    for reduction in ("mean", "sum", "none"):
        loss = loss_of(prototypes, distance, revive=revive, reduction=reduction)
        compare(rank, loss, cams, labels, split, reference.reduced(twin(loss, cams, labels), reduction))


@CHECKS.each(split=["uneven", "nothing", "nothing on the first"], labels=["hard", "soft"])
def uneven_batches(rank, split, labels):
    loss_and_gradients(rank, "l1", True, labels, split)


@CHECKS.each(split=["even", "uneven"])
def sample_weights(rank, split):
    """A sample that counts n times is one that comes n times."""
    cams, prototypes = batch()
    cams.requires_grad_()
    weights = torch.tensor([1, 2, 0, 1, 3, 1, 1, 2, 1, 1])
    loss = loss_of(prototypes, "l2")
    repeated = twin(loss, cams.repeat_interleave(weights, 0), HARD.repeat_interleave(weights))
    compare(
        rank, loss, cams, HARD, split, reference.reduced(repeated, "mean"), sample_weights=weights.double()
    )


@CHECKS.each()
def nothing_at_all(rank):
    """No rank has a sample that counts: a zero with a graph."""
    cams = torch.randn(2, 1, *SIZE, requires_grad=True)
    value = BatchCamLoss(torch.rand(K, 1, 9, 8))(cams, torch.full((2,), -100))
    value.backward()
    assert value == 0
    assert torch.count_nonzero(cams.grad) == 0


@CHECKS.each()
def ranks_agree_to_the_last_bit(rank):
    cams, prototypes = batch()
    value = BatchCamLoss(prototypes)(share(cams.float(), rank, "uneven"), share(HARD, rank, "uneven"))
    every = [torch.empty_like(value) for _ in range(WORLD)]
    dist.all_gather(every, value)
    assert torch.equal(*every)


@CHECKS.each(how=["sync=False", "eval"])
def alone(rank, how):
    """Only one rank calls: it would wait for ever if anything were sent."""
    cams, prototypes = batch()
    loss = BatchCamLoss(prototypes, sync=how != "sync=False").train(how != "eval")
    if rank == 0:
        own = share(cams, rank, "even")
        maps = loss.prototypes.maps(SIZE).double()
        expected = reference.reduced(reference.batch_cam_losses(own, HARD[:5], maps), "mean")
        assert_close(loss(own, HARD[:5]), expected, rtol=1e-11, atol=0)


@CHECKS.each()
def nothing_is_sent_backwards(rank):
    cams, prototypes = batch()
    own = share(cams, rank, "even").requires_grad_()
    value = BatchCamLoss(prototypes)(own, share(HARD, rank, "even"))
    if rank == 0:
        value.backward()
        assert own.grad.abs().sum() > 0


@CHECKS.each()
def groups(rank):
    """A group of both ranks is as good as all ranks; in a group of its own a rank is alone."""
    cams, prototypes = batch()
    both, single = dist.new_group([0, 1]), [dist.new_group([each]) for each in range(WORLD)]
    assert group_of(False) is None
    assert group_of(single[rank]) is None
    assert group_of(single[1 - rank]) is None  # of which it is no part
    loss = loss_of(prototypes, "l1", sync=both)
    cams.requires_grad_()
    compare(rank, loss, cams, HARD, "even", reference.reduced(twin(loss, cams, HARD), "mean"))
    copied = copy.deepcopy(loss)
    assert copied.sync is both
    with pytest.raises(TypeError, match="save the state_dict"):
        pickle.dumps(loss)
    assert pickle.loads(pickle.dumps(BatchCamLoss(prototypes))).sync is True
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    with pytest.raises(TypeError, match=r"got DeviceMesh; pass mesh.get_group\(\)"):
        BatchCamLoss(prototypes, sync=mesh)
    assert group_of(mesh.get_group()) is not None


@CHECKS.each()
def memory_of_all_ranks(rank):
    """Two micro-batches on two ranks, twice over at the same weights: in the second round each sees all four quarters."""
    cams, prototypes = batch()
    quarters = cams.split((4, 2, 1, 3)), HARD.split((4, 2, 1, 3))
    loss = loss_of(prototypes, "ssim", memory=1)
    cams.requires_grad_()
    whole = reference.reduced(twin(loss, cams, HARD), "mean")
    (expected,) = torch.autograd.grad(whole, cams)
    for turn in range(4):
        index = 2 * (turn % 2) + rank
        own = quarters[0][index].detach().clone().requires_grad_()
        value = loss(own, quarters[1][index])
        if turn > 1:
            assert_close(value, whole, rtol=1e-11, atol=0)
            (value / 2).backward()
            assert_close(own.grad / WORLD, expected.split((4, 2, 1, 3))[index], rtol=1e-9, atol=1e-12)


@CHECKS.each()
def sum_has_second_derivatives(rank):
    own = torch.tensor([1.0 + rank], dtype=torch.float64, requires_grad=True)
    total = sum_over_ranks(own, dist.group.WORLD)
    (first,) = torch.autograd.grad(total**3, own, create_graph=True)
    assert_close(first, torch.tensor([WORLD * 27.0], dtype=torch.float64))
    (second,) = torch.autograd.grad(first, own)
    assert_close(second, torch.tensor([WORLD * WORLD * 18.0], dtype=torch.float64))


@CHECKS.each(memory=[0, 1])
def compiled(rank, memory):
    """A whole step, the message included, in one graph."""
    cams, prototypes = batch()
    own, labels = share(cams.float(), rank, "even"), share(HARD, rank, "even")
    values = []
    for wrap in (lambda call: call, lambda call: torch.compile(call, fullgraph=True, backend="aot_eager")):
        loss = BatchCamLoss(prototypes, memory=memory)
        call = wrap(lambda cams, labels, loss=loss: loss(cams, labels))
        for _ in range(3):
            leaf = own.clone().requires_grad_()
            value = call(leaf, labels)
            value.backward()
        values.append((value.detach(), leaf.grad))
    assert_close(*values)

"""On every rank: whole training steps under DDP and FSDP2, against one process with the whole batch, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.training import AutoWeight
from tests.distributed.group import WORLD, Checks
from tests.distributed.models import (
    STEPS,
    Net,
    NetWithUnusedPart,
    PooledNet,
    batch,
    check_same,
    check_term_matters,
    in_one_process,
    mine,
    objective,
    regularizer_of,
    train,
)

CHECKS = Checks()
#: Small buckets, so that there are several.
KINDS = {
    "plain": {"bucket_cap_mb": 1e-4},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "both": {"static_graph": True, "find_unused_parameters": True, "bucket_cap_mb": 1e-4},
}


def wrapped(kind, output="tensor", net=None):
    net = net or (NetWithUnusedPart if "unused" in kind else Net)
    model = net(output)
    return model, DistributedDataParallel(copy.deepcopy(model), **KINDS[kind])


@CHECKS.each(kind=KINDS, made_with=["model", "wrapper"], net=[None, PooledNet])
def ddp(rank, kind, made_with, net):
    """After four steps the ranks agree, and are where one process is."""
    model, ddp = wrapped(kind, net=net)
    images, labels = batch()
    regularizer = regularizer_of(ddp.module if made_with == "model" else ddp, ddp.module.layer)
    train(ddp, regularizer, mine(images, rank), mine(labels, rank))
    trained = in_one_process(model, images, labels)
    check_same(ddp.module, trained)
    check_term_matters(model, images, labels, trained)


@CHECKS.each(
    kind=["static_graph", "find_unused_parameters"],
    output=["dict", "tuple"],
    made_with=["model", "wrapper"],
)
def ddp_output(rank, kind, output, made_with):
    model, ddp = wrapped(kind, output)
    images, labels = batch()
    made_of = ddp.module if made_with == "model" else ddp
    regularizer = regularizer_of(made_of, ddp.module.layer, output=output)
    train(ddp, regularizer, mine(images, rank), mine(labels, rank), output=output)
    check_same(ddp.module, in_one_process(model, images, labels, output=output))


@CHECKS.each(kind=["static_graph", "find_unused_parameters"])
def ddp_scores_that_were_computed_afterwards(rank, kind):
    """They raise, on every rank, and leave nothing behind."""
    model, ddp = wrapped(kind)
    images, labels = batch()
    regularizer = regularizer_of(ddp.module, ddp.module.layer)
    with regularizer:
        scores = ddp(mine(images, rank))
    with pytest.raises(RuntimeError, match="the very scores that DistributedDataParallel returned"):
        regularizer(scores * 2, mine(labels, rank))
    F.cross_entropy(scores, mine(labels, rank)).backward()
    ddp.zero_grad()
    train(ddp, regularizer, mine(images, rank), mine(labels, rank))
    check_same(ddp.module, in_one_process(model, images, labels))


@CHECKS.each()
def ddp_scores_that_were_computed_afterwards_without_its_operator(rank):
    """Plain DDP puts nothing after the model, so that anything may be computed of its output."""
    model, ddp = wrapped("plain")
    images, labels = batch()
    own = []
    for net, part, sync in ((ddp, mine, True), (copy.deepcopy(model), lambda tensor, _: tensor, False)):
        inner = getattr(net, "module", net)
        regularizer = regularizer_of(inner, inner.layer, sync=sync)
        with regularizer:
            scores = net(part(images, rank)) * 2
        (regularizer(scores, part(labels, rank)) + 0 * scores.sum()).backward()
        own.append([each.grad for each in inner.parameters()])
    assert_close(own[0], own[1], rtol=1e-9, atol=1e-12)


@CHECKS.each(kind=["plain", "find_unused_parameters"], memory=[0, 1])
def accumulation(rank, kind, memory):
    """Two micro-batches under no_sync(). Without a memory: the mean of two losses. With one: the whole batch's gradient."""
    model, ddp = wrapped(kind)
    images, labels = batch(16)
    quarters, halves = quarters_and_halves(images, labels)
    regularizer = regularizer_of(ddp.module, ddp.module.layer, memory=memory)
    if memory:  # which the round before has filled, at the same weights
        for turn in range(2):
            with ddp.no_sync():
                objective(ddp, regularizer, *quarters[2 * turn + rank])
    for turn in range(2):
        own = quarters[2 * turn + rank]
        if turn == 0:
            with ddp.no_sync():
                (objective(ddp, regularizer, *own) / 2).backward()
        else:
            (objective(ddp, regularizer, *own) / 2).backward()
    reference = regularizer_of(model, model.layer, sync=False)
    if memory:
        objective(model, reference, images, labels).backward()
    else:
        sum(objective(model, reference, *half) / 2 for half in halves).backward()
    for own, expected in zip(ddp.module.parameters(), model.parameters(), strict=True):
        assert_close(own.grad, expected.grad, rtol=1e-9, atol=1e-12)


def shards_of(model, **options):
    """Copy a model, and shard the copy."""
    model = copy.deepcopy(model)
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    for part in (model.layer, model.head, model):
        fully_shard(part, mesh=mesh, **options)
    return model


def check_gradients(shards, model):
    for own, expected in zip(shards.parameters(), model.parameters(), strict=True):
        assert_close(own.grad.full_tensor(), expected.grad, rtol=1e-9, atol=1e-12)


def quarters_and_halves(images, labels):
    parts = (zip(images.chunk(count), labels.chunk(count), strict=True) for count in (4, 2))
    return map(list, parts)


@CHECKS.each(net=[Net, PooledNet], reshard=[True, False], made_with=["model", "shards"])
def fsdp2(rank, net, reshard, made_with):
    model = net()
    images, labels = batch()
    sharded = shards_of(model, reshard_after_forward=reshard)
    layer = sharded.layer if made_with == "model" else "layer"
    train(sharded, regularizer_of(sharded, layer), mine(images, rank), mine(labels, rank))
    trained = in_one_process(model, images, labels)
    check_term_matters(model, images, labels, trained)
    for own, expected in zip(sharded.parameters(), trained.parameters(), strict=True):
        assert_close(own.full_tensor(), expected.detach(), rtol=1e-9, atol=1e-11)


@CHECKS.each(sends=["at the end", "each time"])
def fsdp2_accumulation(rank, sends):
    """The cam's own gradient passes FSDP's hooks, and must neither send nor drop what has accumulated."""
    model = Net()
    images, labels = batch(16)
    quarters, halves = quarters_and_halves(images, labels)
    sharded = shards_of(model)
    regularizer = regularizer_of(sharded, sharded.layer)
    for turn in range(2):
        sharded.set_requires_gradient_sync(turn == 1 or sends == "each time")
        (objective(sharded, regularizer, *quarters[2 * turn + rank]) / 2).backward()
    reference = regularizer_of(model, model.layer, sync=False)
    sum(objective(model, reference, *half) / 2 for half in halves).backward()
    check_gradients(sharded, model)


@CHECKS.each(net=[Net, PooledNet], between=["a forward", "an evaluation"])
def fsdp2_another_forward(rank, net, between):
    """What the cam's gradient has kept for the step's backward is freed by any other forward, and must be gathered again."""
    model = net()
    images, labels = batch(16)
    quarters, halves = quarters_and_halves(images, labels)
    sharded = shards_of(model)
    regularizer = regularizer_of(sharded, sharded.layer)
    total = objective(sharded, regularizer, *quarters[rank])
    if between == "a forward":
        total = total + objective(sharded, regularizer, *quarters[2 + rank])
    else:
        regularizer.evaluate(*quarters[2 + rank])
    total.backward()
    reference = regularizer_of(model, model.layer, sync=False)
    used = halves if between == "a forward" else halves[:1]
    sum(objective(model, reference, *half) for half in used).backward()
    check_gradients(sharded, model)


@CHECKS.each(kind=["plain", "static_graph", "find_unused_parameters"], sizes=[(5, 3), (8, 0), (0, 8)])
def ddp_uneven(rank, kind, sizes):
    """The cam term of an uneven batch; a rank without images calls the regularizer all the same."""
    model, ddp = wrapped(kind)
    images, labels = batch(8)
    regularizer = regularizer_of(ddp.module, ddp.module.layer)
    with regularizer:
        scores = ddp(images.split(sizes)[rank])
    # A sum in the place of the task's loss: every parameter has to have a gradient, and a mean of nothing is NaN.
    (regularizer(scores, labels.split(sizes)[rank]) + 0 * scores.sum()).backward()
    reference = regularizer_of(model, model.layer, sync=False)
    with reference:
        scores = model(images)
    (reference(scores, labels) + 0 * scores.sum()).backward()
    for (name, own), expected in zip(ddp.module.named_parameters(), model.parameters(), strict=True):
        if expected.grad is None:
            assert own.grad is None
        else:
            assert_close(own.grad, expected.grad, rtol=1e-9, atol=1e-12)
            assert own.grad.abs().max() > 1e-6 or name == "head.3.bias"  # on which no cam depends


@CHECKS.each(kind=["plain", "static_graph", "find_unused_parameters"], made_with=["model", "wrapper"])
def evaluate_on_one_rank(rank, kind, made_with):
    """It waits for nobody, and training goes on as if nothing had been."""
    model, ddp = wrapped(kind)
    images, labels = batch()
    regularizer = regularizer_of(ddp.module if made_with == "model" else ddp, ddp.module.layer)
    for turn in range(2):
        if rank == turn:
            alone = regularizer_of(ddp.module, ddp.module.layer, sync=False)
            with alone:
                scores = ddp.module(images[:5])
            alone(scores, labels[:5])
            found = regularizer.evaluate(images[:5], labels[:5])["batch_cam"]
            assert_close(found, alone.values["batch_cam"], rtol=1e-9, atol=0)
        train(ddp, regularizer, mine(images, rank), mine(labels, rank), steps=STEPS)
    expected = copy.deepcopy(model)
    for _ in range(2):
        expected = in_one_process(expected, images, labels)
    check_same(ddp.module, expected)


@CHECKS.each()
def weight_set_by_gradients(rank):
    """λ is the same on all ranks, and that of one process."""
    model, ddp = wrapped("find_unused_parameters")
    images, labels = batch()

    def weights_of(net, images, labels, sync):
        auto = AutoWeight(0.5, every=2, momentum=0.5, sync=sync)
        inner = getattr(net, "module", net)
        regularizer = regularizer_of(inner, inner.layer, weight=auto, sync=sync)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
        weights = []
        for _ in range(STEPS):
            with regularizer:
                scores = net(images)
            task = F.cross_entropy(scores, labels)
            loss = task + regularizer(scores, labels, task_loss=task)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            weights.append(auto.weight.clone())
        return torch.stack(weights)

    weights = weights_of(ddp, mine(images, rank), mine(labels, rank), sync=True)
    every = [torch.empty_like(weights) for _ in range(WORLD)]
    dist.all_gather(every, weights)
    assert torch.equal(*every)
    assert_close(weights, weights_of(model, images, labels, sync=False), rtol=1e-5, atol=0)
    assert len(set(weights.tolist())) > 1


@CHECKS.each()
def cams_of_the_wrapper(rank):
    """An attribution through the wrapper gives the model's cams, and leaves the wrapper as it was."""
    model, ddp = wrapped("plain")
    images, labels = batch()
    cams = BatchGradCam(ddp, ddp.module.layer).attribute(images, target=labels)
    assert_close(cams, BatchGradCam(model, model.layer).attribute(images, target=labels))
    train(ddp, regularizer_of(ddp.module, ddp.module.layer), mine(images, rank), mine(labels, rank))
    check_same(ddp.module, in_one_process(model, images, labels))


@CHECKS.each()
def terms_without_class_means(rank):
    """A loss of single samples needs nothing of the other ranks."""
    model, ddp = wrapped("plain")
    images, labels = batch()
    maps = torch.rand(3, 1, 8, 8)
    regularizers = [
        CamRegularizer(
            BatchGradCam(net, net.layer), {"a": PrototypeLoss(maps), "b": BatchCamLoss(maps, sync=sync)}
        )
        for net, sync in ((ddp.module, True), (model, False))
    ]
    train(ddp, regularizers[0], mine(images, rank), mine(labels, rank))
    train(model, regularizers[1], images, labels)
    check_same(ddp.module, model)

"""Run on each of two ranks: prototypes are those of one process that has all samples, and alike on both."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    ClassPrototypes,
    ClusterPrototypes,
    ForegroundPrototypes,
    MaskPrototypes,
    PrototypeLoss,
    RunningPrototypes,
)
from tests import reference_prototypes
from tests.distributed.group import Checks

CHECKS = Checks()
K = 4
#: How the samples of a batch of 6 are shared out: evenly, unevenly, and with nothing for a rank.
SHARES = {"even": [3, 3], "uneven": [5, 1], "empty": [6, 0]}


def alike(tensor):
    every = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(every, tensor.contiguous())
    return torch.equal(*every)


def batches(number=4):
    torch.manual_seed(1)
    labels = torch.tensor([0, 1, 1, 3, 3, 0])  # classes that one rank lacks; class 2 never comes
    made = []
    for step in range(number):
        cams = torch.randn(6, 1, 5, 6)
        cams[step] = -cams[step].abs() - 0.1
        made.append((cams, labels.roll(step), torch.rand(6)))
    return made


@CHECKS.each(share=list(SHARES))
def running_means_are_those_of_the_whole_batch(rank, share):
    prototypes, whole = RunningPrototypes(K), RunningPrototypes(K, sync=False)
    loss, whole_loss = PrototypeLoss(prototypes), PrototypeLoss(whole)
    for cams, labels, weights in batches():
        loss(
            *[t.split(SHARES[share])[rank] for t in (cams, labels)],
            sample_weights=weights.split(SHARES[share])[rank],
        )
        whole_loss(cams, labels, sample_weights=weights)
    assert alike(prototypes.means)
    assert alike(prototypes.counts)
    assert_close(prototypes.means, whole.means, rtol=1e-5, atol=1e-6)
    assert torch.equal(prototypes.counts, whole.counts)
    assert prototypes.unseen == [2]


@CHECKS.each()
def without_sync_each_rank_is_by_itself(rank):
    prototypes = RunningPrototypes(K, sync=False)
    if rank == 0:  # the other would wait for ever
        PrototypeLoss(prototypes)(torch.rand(2, 1, 5, 6), torch.tensor([0, 1]))
    assert prototypes.counts.sum() == (2 if rank == 0 else 0)


@CHECKS.each()
def evaluation_waits_for_nobody(rank):
    prototypes = RunningPrototypes(K)
    loss = PrototypeLoss(prototypes)
    cams, labels = torch.rand(4, 1, 5, 6), torch.arange(4)
    loss(cams, labels)
    masked = BatchCamLoss(MaskPrototypes(K)).eval()
    if rank == 0:
        loss.eval()(cams, labels)
        masked(cams, labels, masks=cams)


@CHECKS.each(share=list(SHARES))
def masks_are_averaged_over_the_ranks_whose_cams_are(rank, share):
    cams, labels, weights = batches()[0]
    masks = (torch.rand(6, 1, 10, 12) > 0.6).float()

    def gradient(parts, sync, scale=1):
        cams, labels, weights, masks = parts
        cams = cams.clone().requires_grad_()
        loss = BatchCamLoss(MaskPrototypes(K), sync=sync)
        value = loss(cams, labels, masks=masks, sample_weights=weights)
        value.backward()
        return value.detach(), cams.grad / scale

    everything = (cams, labels, weights, masks)
    value, own = gradient([t.split(SHARES[share])[rank] for t in everything], True, dist.get_world_size())
    expected, whole = gradient(everything, False)
    assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert_close(own, whole.split(SHARES[share])[rank], rtol=1e-4, atol=1e-6)


def images(n=40):
    torch.manual_seed(2)
    images, labels = torch.rand(n, 1, 6, 7), torch.arange(n) % 3
    images[labels == 0] += (torch.arange(n)[labels == 0] % 2).reshape(-1, 1, 1, 1) * 3
    return images, labels


def share_of(rank, share, images, labels, batch=4):
    own = slice(rank, None, 2) if share == "even" else slice(None) if rank == 0 else slice(0, 0)
    pairs = zip(images[own].split(batch), labels[own].split(batch), strict=True)
    return [pair for pair in pairs if len(pair[1])]


@CHECKS.each(share=["even", "empty"])
def clusters_are_those_of_all_images(rank, share):
    images_, labels = images()
    start = torch.stack([images_[labels == c][:2, 0] for c in range(3)] + [torch.zeros(2, 6, 7)])
    options = {"per_class": 2, "start": start, "iterations": 4, "tolerance": 0, "progress": False}
    prototypes = ClusterPrototypes.from_loader(share_of(rank, share, images_, labels), K, **options)
    expected, counts = reference_prototypes.lloyd(images_[:, 0], labels, start, 4)
    assert alike(prototypes.means)
    assert_close(prototypes.means[:3].double(), expected[:3], rtol=1e-6, atol=1e-7)
    assert torch.equal(prototypes.counts, counts)


@CHECKS.each(share=["even", "empty"], seed=[0, 1, 2])
def clusters_begin_with_images_of_any_rank(rank, share, seed):
    images_, labels = images()
    prototypes = ClusterPrototypes.from_loader(
        share_of(rank, share, images_, labels), K, per_class=2, seed=seed, progress=False
    )
    assert alike(prototypes.means)
    assert sorted(prototypes.counts[0].tolist()) == [7, 7]
    assert prototypes.unseen == [3]


@CHECKS.each()
def a_rank_with_other_images_is_named(rank):
    loader = [(torch.rand(2, 1, 6, 7 + rank), torch.tensor([0, 1]))]
    text = r"one spatial size on all ranks, got \[\(6, 7\), \(6, 8\)\]; pass size="
    with pytest.raises(ValueError, match=text):
        ClusterPrototypes.from_loader(loader, K, progress=False)


@CHECKS.each(sync=[True, False])
def class_means_go_on_after_a_loader(rank, sync):
    """Each image counts once: those of the loader, whether added up then or later, and those of updates afterwards."""
    images_, labels = images()
    whole = ClassPrototypes(K)
    whole.update(images_, labels)
    first, later = images_[:30], images_[30:]
    prototypes = ClassPrototypes.from_loader(
        share_of(rank, "even", first, labels[:30]), K, progress=False, sync=sync
    )
    if not sync:
        assert prototypes.counts.sum() == 15
        prototypes.reduce()
        prototypes.reduce()
    assert prototypes.counts.sum() == 30
    prototypes.update(later[rank::2], labels[30:][rank::2])
    for _ in range(2):
        prototypes.reduce()
        assert alike(prototypes.means)
        assert torch.equal(prototypes.counts, whole.counts)
        assert_close(prototypes.means, whole.means, rtol=1e-5, atol=1e-6)
    unreduced = ClassPrototypes.from_loader(
        share_of(rank, "even", first, labels[:30]), K, progress=False, sync=sync
    )
    unreduced.update(later[rank::2], labels[30:][rank::2])
    unreduced.reduce()
    assert torch.equal(unreduced.counts, whole.counts)
    assert_close(unreduced.means, whole.means, rtol=1e-5, atol=1e-6)


@CHECKS.each()
def foregrounds_are_those_of_all_images(rank):
    images_, labels = images()
    images_ = images_ / images_.max()
    options = {"lit": 0.2, "share": 0.4, "dilate": 0, "progress": False}
    prototypes = ForegroundPrototypes.from_loader(share_of(rank, "even", images_, labels), K, **options)
    expected = reference_prototypes.foregrounds(images_[:, 0], labels, K, 0.2, 0.4, 0)
    assert alike(prototypes.means)
    assert torch.equal(prototypes.foregrounds()[:, 0], expected)

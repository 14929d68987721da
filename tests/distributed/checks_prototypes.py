"""On every rank: prototypes of the images, or cams, of all ranks, against one process that sees everything."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from batchcam_captum import (
    ClassPrototypes,
    ClusterPrototypes,
    ForegroundPrototypes,
    MedianPrototypes,
    PrototypeLoss,
    RunningPrototypes,
)
from tests import reference, reference_prototypes
from tests.distributed.group import WORLD, Checks

CHECKS = Checks()
K = 4
#: How the samples of a batch of 6 are shared out: evenly, unevenly, and with nothing for a rank.
SHARES = {"even": [3, 3], "uneven": [5, 1], "empty": [6, 0]}


def alike(tensor):
    every = [torch.empty_like(tensor) for _ in range(WORLD)]
    dist.all_gather(every, tensor.contiguous())
    return torch.equal(*every)


def data(n=40):
    """Two groups of images in class 0; class 2 is on the first rank only, class 3 on none; one image is ignored."""
    torch.manual_seed(2)
    images, labels = torch.rand(n, 1, 6, 7) * 0.1, torch.arange(n) % 3
    images[labels == 0] += (torch.arange(n)[labels == 0] % 2).reshape(-1, 1, 1, 1) * 0.8
    labels[(labels == 2) & (torch.arange(n) % 2 == 1)] = 1
    labels[4] = -100
    return images, labels


def shared_out(rank, share, images, labels, batch=4):
    own = slice(rank, None, 2) if share == "even" else slice(None) if rank == 0 else slice(0, 0)
    pairs = zip(images[own].split(batch), labels[own].split(batch), strict=True)
    return [pair for pair in pairs if len(pair[1])]


def taken(kind, rank, how, images, labels, **options):
    loader = shared_out(rank, how, images, labels)
    prototypes = kind.from_loader(loader, K, progress=False, **options)
    assert alike(prototypes.values)
    assert alike(prototypes.counts)
    assert prototypes.unseen == [3]
    return prototypes


@CHECKS.each(share=["even", "empty"])
def means_are_those_of_all_images(rank, share):
    images, labels = data()
    prototypes = taken(ClassPrototypes, rank, share, images, labels)
    means, counts = reference.mean_images(images, labels, K)
    assert prototypes.counts.tolist() == counts
    assert_close(prototypes.values.double(), means, rtol=1e-6, atol=1e-7)
    more, more_labels = data(8)
    prototypes.update(more, more_labels)  # on this rank alone
    means, _ = reference.mean_images(torch.cat([images, more]), torch.cat([labels, more_labels]), K)
    assert_close(prototypes.values.double(), means, rtol=1e-5, atol=1e-6)


@CHECKS.each(share=["even", "empty"])
def foregrounds_are_those_of_all_images(rank, share):
    images, labels = data()
    prototypes = taken(ForegroundPrototypes, rank, share, images, labels, lit=0.05, share=0.5, dilate=0)
    expected = reference_prototypes.foregrounds(images[:, 0], labels, K, 0.05, 0.5, 0)
    assert torch.equal(prototypes.foregrounds()[:, 0], expected)


@CHECKS.each(share=["even", "empty"])
def medians_are_those_of_all_images(rank, share):
    images, labels = data()
    prototypes = taken(MedianPrototypes, rank, share, images, labels)
    whole = MedianPrototypes.from_loader([(images, labels)], K, progress=False, sync=False)
    assert torch.equal(prototypes.values, whole.values)
    assert torch.equal(prototypes.counts, whole.counts)


@CHECKS.each()
def the_sample_is_drawn_from_all_ranks(rank):
    images = torch.full((30, 1, 4, 4), float(rank))
    found = set()
    for seed in range(8):
        prototypes = MedianPrototypes.from_loader(
            [(images, torch.zeros(30, dtype=torch.long))], 1, images_per_class=3, seed=seed, progress=False
        )
        assert prototypes.counts.tolist() == [3]
        found.add(prototypes.values.unique().item())
    assert found == {0.0, 1.0}


@CHECKS.each(share=["even", "empty"])
def clusters_are_those_of_all_images(rank, share):
    images, labels = data()
    prototypes = taken(ClusterPrototypes, rank, share, images, labels, per_class=2)
    own = images[labels == 0, 0]
    groups = torch.stack([own[own.mean((1, 2)).round() == group].mean(0) for group in (0, 1)])
    found = prototypes.values[0][prototypes.values[0].mean((1, 2)).argsort()]
    assert_close(found, groups, rtol=1e-5, atol=1e-6)


@CHECKS.each(kind=[ClassPrototypes, MedianPrototypes], what=["images", "num_classes", "loader"])
def ranks_that_do_not_fit(rank, kind, what):
    """All of them raise, so that none is left waiting."""
    loader = [(torch.rand(2, 1, 6, 7 + (what == "images") * rank), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=what):
        kind.from_loader(loader * (what != "loader"), K + (what == "num_classes") * rank, progress=False)


@CHECKS.each()
def one_rank_alone(rank):
    images, labels = data()
    if rank == 0:  # the other one would wait forever
        prototypes = ClassPrototypes.from_loader([(images, labels)], K, sync=False, progress=False)
        assert prototypes.counts.tolist() == reference.mean_images(images, labels, K)[1]
        PrototypeLoss(RunningPrototypes(K, sync=False))(torch.rand(2, 1, 5, 6), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="sync"):
        ClassPrototypes.from_loader([(images, labels)], K, sync="yes")


@CHECKS.each(share=list(SHARES))
def running_means_are_those_of_the_whole_batch(rank, share):
    labels = torch.tensor([0, 1, 1, 3, 3, 0])  # one rank lacks some classes; class 2 never comes
    prototypes, whole = RunningPrototypes(K), RunningPrototypes(K, sync=False)
    loss, whole_loss = PrototypeLoss(prototypes), PrototypeLoss(whole)
    for step in range(4):
        cams, weights = torch.randn(6, 1, 5, 6), torch.rand(6)
        cams[step] = -cams[step].abs() - 0.1
        batch = cams, labels.roll(step), weights
        own, own_labels, own_weights = (each.split(SHARES[share])[rank] for each in batch)
        loss(own, own_labels, sample_weights=own_weights)
        whole_loss(*batch[:2], sample_weights=weights)
    assert alike(prototypes.values)
    assert_close(prototypes.values, whole.values, rtol=1e-5, atol=1e-6)
    assert torch.equal(prototypes.counts, whole.counts)
    assert prototypes.unseen == [2]
    if rank == 0:  # in evaluation mode no rank waits for the others
        loss.eval()(cams, labels)

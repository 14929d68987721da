"""On every rank: prototypes that stream on both and are added up once, against a loop over all images."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes, MedianPrototypes
from tests import reference
from tests.distributed import checks_metrics
from tests.distributed.group import WORLD, Checks

CHECKS = Checks()
CHECKS.update(checks_metrics.CHECKS)  # to start two processes takes longer than to run these
K = 4
#: Class 2 is on one rank only, class 3 on none; one image is ignored.
LABELS = torch.tensor([0, 1, 0, 1, 1, -100, 2, 2, 0, 1])


def images_of(n=10):
    return torch.rand(n, 2, 6, 5)


def check(prototypes, images, labels):
    """The means are those of a loop over the images, and the same to the last bit on all ranks."""
    means, counts = reference.mean_images(images, labels, K)
    assert prototypes.counts.tolist() == counts
    assert_close(prototypes.means.double(), means, rtol=1e-6, atol=1e-7)
    every = [torch.empty_like(prototypes.means) for _ in range(WORLD)]
    dist.all_gather(every, prototypes.means)
    assert torch.equal(*every)


def update(prototypes, images, labels, rank):
    if len(images.chunk(WORLD)[rank]):
        prototypes.update(images.chunk(WORLD)[rank], labels.chunk(WORLD)[rank])


@CHECKS.each(times=[1, 3])
def reduce_counts_each_image_once(rank, times):
    images, prototypes = images_of(), ClassPrototypes(K)
    update(prototypes, images, LABELS, rank)
    for _ in range(times):
        prototypes.reduce()
    check(prototypes, images, LABELS)


@CHECKS.each(first=["reduced", "not reduced", "loaded", "from_maps"])
def updates_may_go_on(rank, first):
    """What all ranks have in common is not added up again."""
    images, prototypes = images_of(), ClassPrototypes(K)
    update(prototypes, images, LABELS, rank)
    labels, every = LABELS, images
    if first != "not reduced":
        prototypes.reduce()
    if first == "loaded":
        file = io.BytesIO()
        torch.save(prototypes.state_dict(), file)
        file.seek(0)
        prototypes = ClassPrototypes(K)
        prototypes.load_state_dict(torch.load(file))
    elif first == "from_maps":
        every, labels = torch.rand(K, 1, 6, 5), torch.arange(K)
        prototypes = ClassPrototypes.from_maps(every)
        every = every.expand(-1, 2, -1, -1)
    more = images_of()
    update(prototypes, more, LABELS, rank)
    prototypes.reduce()
    prototypes.reduce()
    check(prototypes, torch.cat([every, more]), torch.cat([labels, LABELS]))


@CHECKS.each()
def own_images_until_the_next_reduce(rank):
    images, prototypes = images_of(), ClassPrototypes(K)
    update(prototypes, images, LABELS, rank)
    prototypes.reduce()
    more = images_of()
    update(prototypes, more, LABELS, rank)
    seen = torch.cat([images, more.chunk(WORLD)[rank]]), torch.cat([LABELS, LABELS.chunk(WORLD)[rank]])
    means, counts = reference.mean_images(*seen, K)
    assert prototypes.counts.tolist() == counts
    assert_close(prototypes.means.double(), means, rtol=1e-6, atol=1e-7)


@CHECKS.each(sees=["the first", "the last", "none"])
def a_rank_that_saw_nothing(rank, sees):
    """It does not know the images' size, and learns it."""
    images, prototypes = images_of(), ClassPrototypes(K)
    if sees == "none":
        prototypes.reduce()
        assert prototypes.counts.tolist() == [0] * K
        assert not prototypes.means.numel()
        return
    if rank == (0 if sees == "the first" else 1):
        prototypes.update(images, LABELS)
    prototypes.reduce()
    check(prototypes, images, LABELS)
    assert torch.equal(prototypes.maps((3, 3)), copy.deepcopy(prototypes).maps((3, 3)))


@CHECKS.each()
def moved_and_copied_before_it_is_reduced(rank):
    """What is this rank's own stays so when the prototypes are moved or copied."""
    images, prototypes = images_of(), ClassPrototypes(K)
    update(prototypes, images, LABELS, rank)
    prototypes = copy.deepcopy(prototypes.to("cpu").half())
    prototypes.reduce()
    check(prototypes, images, LABELS)


@CHECKS.each()
def maps_are_made_anew(rank):
    images, prototypes = images_of(), ClassPrototypes(K, size=(6, 5))
    if rank == 0:
        prototypes.update(images, LABELS)
    before = prototypes.maps()
    prototypes.reduce()
    assert not torch.equal(prototypes.maps(), before) or rank == 0
    assert prototypes.unseen == [3]


@CHECKS.each(loader=["shares", "empty on one rank", "size="])
def from_loader(rank, loader):
    images = images_of()
    batches = list(zip(images.split((4, 2, 4)), LABELS.split((4, 2, 4)), strict=True))
    first = 3 if loader == "empty on one rank" else 2
    batches = (batches[:first], batches[first:])[rank]
    size = (6, 5) if loader == "size=" else None
    check(ClassPrototypes.from_loader(batches, K, size=size, progress=True), images, LABELS)


@CHECKS.each()
def from_loader_without_images(rank):
    with pytest.raises(ValueError, match="expected at least one batch"):
        ClassPrototypes.from_loader([], K)


@CHECKS.each()
def from_loader_on_one_rank(rank):
    images = images_of()
    if rank == 0:
        prototypes = ClassPrototypes.from_loader([(images, LABELS)], K, sync=False, progress=False)
        assert prototypes.counts.tolist() == reference.mean_images(images, LABELS, K)[1]
    with pytest.raises(TypeError, match="sync: expected True, False or a ProcessGroup"):
        ClassPrototypes.from_loader([(images, LABELS)], K, sync="yes")


@CHECKS.each(what=["size", "classes", "common"])
def ranks_that_do_not_fit(rank, what):
    """All of them raise, so that none is left waiting; and nothing has changed."""
    images = images_of()
    prototypes = ClassPrototypes(K + rank if what == "classes" else K)
    prototypes.update(images[..., : 5 - rank] if what == "size" else images, LABELS)
    if what == "common" and rank:
        prototypes.load_state_dict(copy.deepcopy(prototypes.state_dict()))
    before = prototypes.means.clone()
    text = {
        "size": r"one spatial size of the images on all ranks, got \[\(6, 4\), \(6, 5\)\]; pass size=",
        "classes": r"one number of classes on all ranks, got \[4, 5\]",
        "common": r"as many images that all have in common on all ranks, got \[0, 9\]; load them on all",
    }[what]
    with pytest.raises(ValueError, match=text):
        prototypes.reduce()
    assert torch.equal(prototypes.means, before)


def check_medians(prototypes, images, labels):
    """They are those of one process that has seen all images, to the last bit and on all ranks."""
    whole = MedianPrototypes(K)
    whole.update(images, labels)
    assert torch.equal(prototypes.means, whole.means)
    assert torch.equal(prototypes.counts, whole.counts)


@CHECKS.each(sees=["shares", "the first", "the last", "none"])
def medians_count_each_image_once(rank, sees):
    images, prototypes = images_of(), MedianPrototypes(K)
    if sees == "shares":
        update(prototypes, images, LABELS, rank)
    elif sees != "none" and rank == (0 if sees == "the first" else 1):
        prototypes.update(images, LABELS)
    for _ in range(2):
        prototypes.reduce()
    if sees == "none":
        assert not prototypes.means.numel()
        return
    check_medians(prototypes, images, LABELS)
    file = io.BytesIO()
    torch.save(prototypes.state_dict(), file)
    file.seek(0)
    loaded = MedianPrototypes(K, bins=16)
    loaded.load_state_dict(torch.load(file))
    more = images_of()
    for each in (prototypes, loaded):
        update(each, more, LABELS, rank)
        each = copy.deepcopy(each).half()
        for _ in range(2):
            each.reduce()
        check_medians(each, torch.cat([images, more]), torch.cat([LABELS, LABELS]))


@CHECKS.each()
def medians_from_loader(rank):
    images = images_of()
    batches = list(zip(images.split((4, 2, 4)), LABELS.split((4, 2, 4)), strict=True))
    batches = (batches, [])[rank]  # nothing on the last one
    prototypes = MedianPrototypes.from_loader(batches, K, progress=False)
    check_medians(prototypes, images, LABELS)
    assert not prototypes.histogram.numel()
    prototypes.reduce()  # they have everything in common
    check_medians(prototypes, images, LABELS)
    kept = MedianPrototypes.from_loader(
        list(zip(images.split(5), LABELS.split(5), strict=True))[rank::2],
        K,
        progress=False,
        sync=False,
        keep_histogram=True,
    )
    kept.reduce()
    check_medians(kept, images, LABELS)


@CHECKS.each(what=["bins", "size", "dropped"])
def medians_that_do_not_fit(rank, what):
    """All ranks raise, and nothing has changed."""
    images = images_of()
    prototypes = MedianPrototypes(K, bins=8 + rank if what == "bins" else 256)
    prototypes.update(images[..., : 5 - rank] if what == "size" else images, LABELS)
    kind, text = {
        "bins": (ValueError, r"one number of bins on all ranks, got \[8, 9\]; pass the same bins="),
        "size": (ValueError, r"one spatial size of the images on all ranks, got \[\(6, 4\), \(6, 5\)\]"),
        "dropped": (
            RuntimeError,
            "reduce: expected the histograms of the images so far, got none; pass keep",
        ),
    }[what]
    if what == "dropped":
        prototypes.drop_histogram()
    before = prototypes.means.clone()
    with pytest.raises(kind, match=text):
        prototypes.reduce()
    assert torch.equal(prototypes.means, before)

"""Every metric class: batch by batch, merged, reset, pickled and in a collection."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.testing import assert_close
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryJaccardIndex, MulticlassAccuracy

from batchcam_captum.evaluation.metrics import (
    DeadFraction,
    MaskIoU,
    NearestPrototypeAccuracy,
    ShortcutReliance,
)
from batchcam_captum.functional import nearest_prototype, shortcut_share
from tests.evaluation.metrics.every_metric import EVERY, PROTOTYPES, expected, make_case

CASE = make_case()


@pytest.mark.parametrize("name", EVERY)
def test_batch_by_batch_is_all_at_once(name):
    make, _ = EVERY[name]
    want = expected(name, CASE)
    assert 0 < want < 3
    for size in (23, 5, 1):
        metric = make()
        for start in range(0, 23, size):
            CASE.part(slice(start, start + size)).fed_to(metric)
        assert_close(metric.compute(), want)
    metric.reset()
    assert_close(CASE.part(slice(8, 20)).fed_to(metric).compute(), expected(name, CASE.part(slice(8, 20))))


@pytest.mark.parametrize("name", EVERY)
def test_merged_pickled_and_forward(name):
    make, _ = EVERY[name]
    first, second = (CASE.part(slice(0, 12)), CASE.part(slice(12, 23)))
    one, other = first.fed_to(make()), second.fed_to(make())
    one.merge_state(pickle.loads(pickle.dumps(other)))
    assert_close(one.compute(), expected(name, CASE))

    metric = make()
    for part in (first, second):
        value = metric(part.cams, part.labels, masks=part.masks, shortcuts=part.shortcuts)
        assert_close(value, expected(name, part))
    assert_close(metric.compute(), expected(name, CASE))


def test_in_one_collection():
    collection = MetricCollection({name: make() for name, (make, _) in EVERY.items()})
    for start in range(0, 23, 6):
        part = CASE.part(slice(start, start + 6))
        collection.update(part.cams, part.labels, masks=part.masks, shortcuts=part.shortcuts)
    for name, value in collection.compute().items():
        assert_close(value, expected(name, CASE))


def test_metrics_that_agree_on_the_first_batch_are_not_taken_for_one():
    """A collection updates one of those whose states are equal."""
    low, high = MaskIoU(threshold=0.1), MaskIoU(threshold=0.9)
    raw, clean = (NearestPrototypeAccuracy(prototypes) for prototypes in (PROTOTYPES, PROTOTYPES.flip(0)))
    collection = MetricCollection(
        {"low": low, "high": high, "raw": raw, "clean": clean, "dead": DeadFraction()}
    )
    hit = torch.zeros(1, 1, 8, 8)
    hit[..., 2] = 1
    collection.update(hit, torch.tensor([-100]), masks=hit)
    collection.update(PROTOTYPES, torch.arange(3), masks=torch.ones(3, 1, 8, 8))
    values = collection.compute()
    assert values["low"] > values["high"]
    assert values["raw"] > values["clean"]
    same = MetricCollection({"one": MaskIoU(), "other": MaskIoU()})
    same.update(hit, masks=hit)
    assert len(same.compute_groups) == 1  # as it should be


def test_values_against_torchmetrics():
    cams, masks = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8) > 0.5
    units = (cams - cams.amin((1, 2, 3), True)) / (cams.amax((1, 2, 3), True) - cams.amin((1, 2, 3), True))
    jaccard = [
        BinaryJaccardIndex()((unit > 0.5).int(), mask) for unit, mask in zip(units, masks, strict=True)
    ]
    metric = MaskIoU()
    metric.update(cams, masks=masks)
    assert_close(metric.compute(), torch.stack(jaccard).mean())

    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    nearest = NearestPrototypeAccuracy(PROTOTYPES, "l1")
    nearest.update(cams, labels)
    accuracy = MulticlassAccuracy(num_classes=3, average="micro")
    assert_close(
        nearest.compute(), accuracy(nearest_prototype(cams, PROTOTYPES, "l1"), labels), check_dtype=False
    )


def test_shortcut_relative_to_chance():
    metric = CASE.fed_to(ShortcutReliance(relative=True))
    share, area = shortcut_share(CASE.cams, CASE.shortcuts, counted=CASE.labels != -100)
    assert_close(metric.compute(), share.nanmean() / area.nanmean())


def test_coherence_of_each_class():
    from batchcam_captum.evaluation.metrics import ClassCoherence
    from batchcam_captum.functional import class_coherence

    metric = ClassCoherence(4, (4, 4), average="none")
    values = CASE.fed_to(metric).compute()
    assert_close(values, class_coherence(CASE.cams, CASE.labels, 4).float(), equal_nan=True)
    assert values.isnan().tolist() == [False, False, False, True]

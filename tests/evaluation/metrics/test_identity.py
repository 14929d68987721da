"""When two metrics are one and the same: in a collection, and when they are merged."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation.metrics import DeletionAUC, InsertionAUC, MaxSensitivity, PrototypeDistance
from tests.evaluation.metrics.every_metric import PROTOTYPES
from tests.models import SmallCnn


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = SmallCnn().eval()
    return model, {"images": torch.rand(3, 3, 8, 8), "cams": torch.randn(3, 1, 3, 3), "targets": [0, 1, 2]}


def test_models_that_agree_on_the_first_batch_are_not_taken_for_one(case):
    model, batch = case
    model, averaged = copy.deepcopy(model), copy.deepcopy(model)
    collection = MetricCollection(
        {name: InsertionAUC(each, steps=2) for name, each in (("net", model), ("average", averaged))}
    )
    collection.update(**batch)
    assert len(collection.compute_groups) == 2
    collection.reset()
    with torch.no_grad():
        model.head.weight.mul_(5)
    collection.update(**batch)
    values = collection.compute()
    assert values["net"] != values["average"]
    same = MetricCollection({name: InsertionAUC(model, steps=2) for name in "ab"})
    same.update(**batch)
    assert len(same.compute_groups) == 1


def scaled(first, second, factor):
    return factor * (first - second).abs().flatten(1).mean(1)


def test_functions_and_explainers_that_agree_on_the_first_batch_are_not_taken_for_one(case):
    model, batch = case
    distances = {
        "amax": lambda first, second: (first - second).abs().flatten(1).amax(1),
        "amin": lambda first, second: (first - second).abs().flatten(1).amin(1),
        "once": partial(scaled, factor=1),
        "twice": partial(scaled, factor=2),
    }
    collection = MetricCollection(
        {name: PrototypeDistance(PROTOTYPES, each) for name, each in distances.items()}
    )
    collection.update(PROTOTYPES / PROTOTYPES.amax((1, 2, 3), True), torch.arange(3))
    assert len(collection.compute_groups) == 4
    explainers = [BatchGradCam(model, layer) for layer in (model.layer, model.layer)]
    by_layer = MetricCollection(
        {str(i): MaxSensitivity(each, samples=1) for i, each in enumerate(explainers)}
    )
    by_layer.update(**{name: batch[name] for name in ("images", "targets")})
    assert len(by_layer.compute_groups) == 2


def test_other_models_are_not_merged_and_copies_from_elsewhere_are(case):
    model, batch = case
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.mul_(2)
    makers = [
        lambda model: InsertionAUC(model, steps=2),
        lambda model: MaxSensitivity(BatchGradCam(model, model.layer), samples=1),
        lambda model: InsertionAUC(model.forward, steps=2),
        lambda model: InsertionAUC(partial(nn.Module.__call__, model), steps=2),
    ]
    for make in makers:
        metric = make(model)
        metric.update(**{name: batch[name] for name in metric._update_signature.parameters})
        value = metric.compute()
        with pytest.raises(ValueError, match="the same settings, prototypes and model, got another"):
            metric.merge_state(make(other))
        elsewhere = pickle.loads(pickle.dumps(metric))
        assert not torch.equal(elsewhere.settings, metric.settings)  # within a process they are two
        metric.merge_state(elsewhere)
        assert metric.count == 6
        torch.testing.assert_close(metric.compute(), value)
    state = elsewhere.metric_state
    metric.merge_state(state)
    assert metric.count == 9


def test_a_lambda_is_not_merged_with_another():
    one, other = (
        PrototypeDistance(PROTOTYPES, each) for each in (lambda a, b: a.sum(), lambda a, b: b.sum())
    )
    with pytest.raises(ValueError, match="got another"):
        one.merge_state(other)


def test_options_that_are_tensors():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    fills = torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.25), torch.tensor(0.5).bfloat16()
    ids = {tuple(DeletionAUC(model, fill=fill).settings.tolist()) for fill in fills}
    assert len(ids) == 4
    assert torch.equal(
        DeletionAUC(model, fill=torch.tensor(0.5)).settings, DeletionAUC(model, fill=fills[0]).settings
    )

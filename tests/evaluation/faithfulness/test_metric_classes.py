"""The torchmetrics classes over the measures that ask the model."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.testing import assert_close
from torchmetrics import MetricCollection

from batchcam_captum.evaluation import faithfulness
from batchcam_captum.evaluation.metrics import (
    DeadFraction,
    DeletionAUC,
    Infidelity,
    InsertionAUC,
    MaxSensitivity,
    Road,
)

TWO = {"percentiles": (20, 60)}

EVERY = {
    "insertion": (
        lambda case: InsertionAUC(case.model, steps=4),
        lambda *given: faithfulness.insertion_curve(*given, steps=4).auc,
    ),
    "deletion": (
        lambda case: DeletionAUC(case.model, steps=4, fill="mean"),
        lambda *given: faithfulness.deletion_curve(*given, steps=4, fill="mean").auc,
    ),
    "road": (
        lambda case: Road(case.model, **TWO),
        lambda *given: faithfulness.road(*given, **TWO).combined,
    ),
    "morf": (
        lambda case: Road(case.model, "morf", **TWO),
        lambda *given: faithfulness.road(*given, **TWO).morf.mean(1),
    ),
    "lerf": (
        lambda case: Road(case.model, "lerf", **TWO),
        lambda *given: faithfulness.road(*given, **TWO).lerf.mean(1),
    ),
    "infidelity": (
        lambda case: Infidelity(case.model, relative=True),
        lambda *given: faithfulness.infidelity(*given, relative=True),
    ),
}


@pytest.mark.parametrize("name", EVERY)
def test_streamed_in_parts_and_merged_equals_the_mean_of_the_function(case, name):
    make, function = EVERY[name]
    metric, other = make(case), make(case)
    metric.update(case.images[:1], case.cams[:1], case.targets[:1])
    other.update(case.images[1:], case.cams[1:], case.targets[1:])
    metric.merge_state(other)
    expected = function(case.model, case.images, case.cams, case.targets)
    assert_close(metric.compute(), expected.mean(), rtol=1e-4, atol=1e-6)
    metric.reset()
    assert_close(metric(case.images, case.cams, case.targets), expected.mean(), rtol=1e-4, atol=1e-6)
    # What cannot be measured leaves what has been measured.
    with pytest.raises(ValueError, match="cams: expected finite values"):
        metric.update(case.images, case.cams * float("nan"), case.targets)
    assert_close(metric.compute(), expected.mean(), rtol=1e-4, atol=1e-6)


def test_sensitivity_stands_beside_the_dead_fraction_in_one_collection(case):
    collection = MetricCollection(
        {
            "sensitivity": MaxSensitivity(case.grad_cam, samples=3),
            "insertion": InsertionAUC(case.model, steps=2),
            "dead": DeadFraction(),
        }
    )
    cams = case.cams.clone()
    cams[0] = -1
    for rows in (slice(0, 3), slice(3, 4)):
        collection.update(images=case.images[rows], cams=cams[rows], targets=case.targets[rows])
    values = collection.compute()
    expected = faithfulness.max_sensitivity(case.grad_cam, case.images, case.targets, samples=3).values.mean()
    assert_close(values["sensitivity"], expected, rtol=1e-4, atol=1e-6)
    assert_close(values["dead"], torch.tensor(0.25))
    assert 0 < values["insertion"] < 1


def test_the_model_is_no_part_of_the_metric(case):
    metric = InsertionAUC(case.model)
    assert not list(metric.children())
    assert not list(metric.parameters())
    assert not metric.state_dict()
    assert metric.clone().model is case.model
    assert MaxSensitivity(case.grad_cam).clone().explain is case.grad_cam
    metric.double().eval().train()
    assert next(case.model.parameters()).dtype == torch.float32
    assert not case.model.training
    again = pickle.loads(pickle.dumps(Road(case.model, "lerf")))
    assert again.order == "lerf"
    assert_close(again.model.state_dict(), case.model.state_dict())


def test_other_options_are_another_metric(case):
    given = case.images, case.cams, case.targets
    cases = [
        Road(case.model, "morf", **TWO),
        Road(case.model, "lerf", **TWO),
        Road(case.model, "lerf", **TWO, noise=0.5),
    ]
    for metric in cases:
        metric.update(*given)
    for one, other in ((0, 1), (1, 2)):
        with pytest.raises(
            ValueError, match="incoming_state: expected that of a Road with the same settings"
        ):
            cases[one].merge_state(cases[other])
    assert [metric.higher_is_better for metric in cases] == [False, True, True]


def test_errors(case):
    with pytest.raises(TypeError, match="model: expected a module or a function of images, got str"):
        InsertionAUC("resnet")
    with pytest.raises(ValueError, match="order: expected 'combined', 'morf' or 'lerf', got 'mean'"):
        Road(case.model, "mean")
    with pytest.raises(TypeError, match=r"explain: expected a BatchGradCam or a function .*, got str"):
        MaxSensitivity("layer4")
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `step`"):
        InsertionAUC(case.model, step=4)
    for make, error, message in [
        (lambda: InsertionAUC(case.model, steps=2.5), TypeError, r"steps: expected an integer, got 2\.5"),
        (lambda: InsertionAUC(case.model, start="black"), ValueError, "start: expected 'zero'"),
        (lambda: DeletionAUC(case.model, seed="a"), TypeError, "seed: expected an integer, got 'a'"),
        (lambda: DeletionAUC(case.model, score="prob"), ValueError, "score: expected 'probability'"),
        (lambda: Road(case.model, percentiles=20), TypeError, r"percentiles: .*got 20; pass a list"),
        (lambda: Road(case.model, percentiles=[float("nan")]), ValueError, "percentiles: expected numbers"),
        (lambda: Road(case.model, noise="a"), TypeError, "noise: expected a number, got 'a'"),
        (lambda: Infidelity(case.model, samples=2.5), TypeError, "samples: expected an integer"),
        (lambda: Infidelity(case.model, noise_std=float("inf")), ValueError, "noise_std: .*finite, got inf"),
        (lambda: Infidelity(case.model, side=1.0), ValueError, "side: expected a share"),
        (lambda: MaxSensitivity(case.grad_cam, radius=0), ValueError, "radius: expected more than 0"),
        (lambda: MaxSensitivity(case.grad_cam, batch_size=0), ValueError, "batch_size: expected at least 1"),
    ]:
        with pytest.raises(error, match=message):
            make()


def test_road_says_of_the_class_what_is_better():
    assert Road.higher_is_better is True
    assert pickle.loads(pickle.dumps(Road(torch.nn.Flatten(), "morf"))).higher_is_better is False


def test_ignored_targets_are_left_out(case):
    targets = case.targets.clone()
    targets[[1, 2]] = -100
    for make, _ in EVERY.values():
        metric, without = make(case), make(case)
        metric.update(case.images, case.cams, targets)
        without.update(case.images[[0, 3]], case.cams[[0, 3]], targets[[0, 3]])
        assert metric.count == 2
        assert_close(metric.compute(), without.compute())
    sensitivity = MaxSensitivity(case.grad_cam, samples=2, ignore_index=4)
    sensitivity.update(case.images, case.targets)
    assert sensitivity.count == 3
    none = InsertionAUC(case.model, steps=2, ignore_index=1)
    none.update(case.images, case.cams, 1)
    assert none.count == 0

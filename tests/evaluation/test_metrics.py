"""The metric classes: over batches, merged, reset, pickled, in a collection, in other number types, with a model."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys

import pytest
import torch
from torch.testing import assert_close
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryJaccardIndex, MulticlassAccuracy

from batchcam_captum import BatchGradCam, ClassPrototypes, evaluation, functional
from batchcam_captum.evaluation import faithfulness, metrics
from tests.evaluation.metric_cases import EVERY, PROTOTYPES, expected, make_case

CASE = make_case()


@pytest.mark.parametrize("name", EVERY)
def test_batches_merged_forward_and_reset_equal_the_function_over_all_samples(name):
    make, _ = EVERY[name]
    want = expected(name, CASE)
    assert 0 < want < 3
    for size in (23, 5, 1):
        metric = make()
        for start in range(0, 23, size):
            CASE.part(slice(start, start + size)).fed_to(metric)
        assert_close(metric.compute(), want)
    metric.reset()
    first, second = CASE.part(slice(0, 12)), CASE.part(slice(12, 23))
    assert_close(first.fed_to(metric).compute(), expected(name, first))
    metric.merge_state(pickle.loads(pickle.dumps(second.fed_to(make()))))
    assert_close(metric.compute(), want)
    metric = make()
    for part in (first, second):
        value = metric(part.cams, part.labels, masks=part.masks, shortcuts=part.shortcuts)
        assert_close(value, expected(name, part))
    assert_close(metric.compute(), want)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_to_measure_is_nan_and_bad_cams_add_nothing(name):
    metric = EVERY[name][0]()
    ignored = CASE._replace(cams=CASE.cams * torch.nan, labels=torch.full_like(CASE.labels, -100))
    assert ignored.fed_to(metric).compute().isnan()
    assert ignored.part(slice(0, 0)).fed_to(metric).compute().isnan()
    before = CASE.fed_to(metric).compute()
    for bad in (torch.nan, torch.inf):
        cams = CASE.cams.clone()
        cams[1, 0, 2, 2] = bad
        with pytest.raises(ValueError, match="cams"):
            CASE._replace(cams=cams).fed_to(metric)
    metric._computed = None
    assert_close(metric.compute(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.half])
def test_a_collection_in_every_number_type(dtype):
    """Also of cams in that type. Booleans stay booleans, and half types do not limit how many samples are counted."""
    collection = MetricCollection({name: make() for name, (make, _) in EVERY.items()}).set_dtype(dtype)
    if dtype in (torch.bfloat16, torch.half):
        collection.half()
    for _ in range(3):
        for start in range(0, 23, 6):
            part = CASE.part(slice(start, start + 6))
            collection.update(part.cams.to(dtype), part.labels, masks=part.masks, shortcuts=part.shortcuts)
    for name, value in collection.compute().items():
        if "coherence" not in name:  # whose pairs change when samples are repeated
            assert_close(value.float(), expected(name, CASE._replace(cams=CASE.cams.to(dtype))))
    sparse = metrics.Sparsity().set_dtype(dtype)
    point = torch.zeros(700, 1, 1, 2, dtype=dtype)
    point[..., 0] = 1
    sparse.update(point)
    sparse.update(point[:1])
    assert (sparse.count, sparse.compute()) == (701, 0.5)


def test_metrics_that_agree_on_the_first_batch_are_not_taken_for_one():
    """A collection updates only one of the metrics whose states are equal."""
    prototypes = {"raw": PROTOTYPES, "clean": PROTOTYPES.flip(0)}
    collection = MetricCollection(
        {
            **{name: metrics.NearestPrototypeAccuracy(maps) for name, maps in prototypes.items()},
            "low": metrics.MaskIoU(threshold=0.1),
            "high": metrics.MaskIoU(threshold=0.9),
            "dead": metrics.DeadFraction(),
            "miss": metrics.PointingGame(),
        }
    )
    hit = torch.zeros(1, 1, 8, 8)
    hit[..., 2] = 1
    collection.update(hit, torch.tensor([-100]), masks=hit)
    collection.update(PROTOTYPES, torch.arange(3), masks=torch.ones(3, 1, 8, 8))
    values = collection.compute()
    assert values["low"] > values["high"]
    assert values["raw"] > values["clean"]
    assert (values["miss"], values["dead"]) == (1, 0)


def test_values_equal_torchmetrics_own():
    cams, masks = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8) > 0.5
    units = (cams - cams.amin((1, 2, 3), True)) / (cams.amax((1, 2, 3), True) - cams.amin((1, 2, 3), True))
    jaccard = [
        BinaryJaccardIndex()((unit > 0.5).int(), mask) for unit, mask in zip(units, masks, strict=True)
    ]
    metric = metrics.MaskIoU()
    metric.update(cams, masks=masks)
    assert_close(metric.compute(), torch.stack(jaccard).mean())
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    nearest = metrics.NearestPrototypeAccuracy(PROTOTYPES, "l1")
    nearest.update(cams, labels)
    accuracy = MulticlassAccuracy(num_classes=3, average="micro")
    assert_close(nearest.compute(), accuracy(functional.nearest_prototype(cams, PROTOTYPES, "l1"), labels))


def test_shortcut_relative_to_chance_and_coherence_by_class():
    share, area = functional.shortcut_share(CASE.counted.cams, CASE.counted.shortcuts)
    metric = CASE.fed_to(metrics.ShortcutReliance(relative=True))
    assert_close(metric.compute(), share.nanmean() / area.nanmean())
    values = CASE.fed_to(metrics.ClassCoherence(4, (4, 4), average="none")).compute()
    assert_close(values, functional.class_coherence(CASE.cams, CASE.labels, 4).float(), equal_nan=True)
    assert values.isnan().tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("make", "given", "error", "name"),
    [
        (metrics.RankAccuracy, {}, ValueError, "masks"),
        (metrics.ShortcutReliance, {"masks": CASE.masks}, ValueError, "shortcuts"),
        (EVERY["cosine"][0], {}, ValueError, "labels"),
        (EVERY["cosine"][0], {"labels": CASE.labels + 1}, ValueError, "labels"),
        (EVERY["nearest"][0], {"labels": CASE.labels + 1}, ValueError, "labels"),
        (EVERY["nearest"][0], {"labels": torch.rand(23, 3)}, TypeError, "labels"),
        (EVERY["coherence"][0], {"labels": torch.rand(23, 4)}, TypeError, "labels"),
        (metrics.Sparsity, {"labels": torch.ones(23, 3, dtype=torch.long)}, ValueError, "labels"),
        (lambda: metrics.MaskIoU(threshold=2), {"masks": CASE.masks}, ValueError, "threshold"),
        (
            lambda: metrics.PrototypeDistance(PROTOTYPES, "l3"),
            {"labels": CASE.labels},
            ValueError,
            "distance",
        ),
        (lambda: metrics.PrototypeCosine([PROTOTYPES]), {}, TypeError, "prototypes"),
        (lambda: metrics.PrototypeCosine(PROTOTYPES[:, 0, 0]), {}, TypeError, "prototypes"),
        (lambda: metrics.ClassCoherence(0, (4, 4)), {}, ValueError, "num_classes"),
        (lambda: metrics.ClassCoherence(3, 7), {}, ValueError, "size"),
        (lambda: metrics.ClassCoherence(3, (7.5, 7)), {}, TypeError, "size"),
        (lambda: metrics.ClassCoherence(3, (4,), average="micro"), {}, ValueError, "average"),
        (lambda: metrics.CamEntropy(unknown=True), {}, ValueError, "unknown"),
        (lambda: metrics.InsertionAUC("resnet"), {}, TypeError, "model"),
        (lambda: metrics.Road(torch.nn.Flatten(), "mean"), {}, ValueError, "order"),
    ],
)
def test_bad_settings_and_updates(make, given, error, name):
    with pytest.raises(error, match=name):
        make().update(CASE.cams, **given)


def test_class_prototypes_are_copied_and_a_class_without_one_raises():
    prototypes = ClassPrototypes(3)
    prototypes.update(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)
    made = metrics.PrototypeDistance(prototypes), metrics.PrototypeCosine(prototypes.maps())
    prototypes.update(torch.rand(8, 1, 8, 8), torch.full((8,), 2))
    cams = torch.rand(3, 1, 4, 4)
    for metric in made:
        metric.update(cams[:2], torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=r"prototypes.*\[2\]"):
            metric.update(cams, torch.arange(3))


def test_unsigned_labels_are_not_taken_for_the_ignored_one():
    metric = metrics.Sparsity()
    metric.update(CASE.cams, torch.full((23,), 156, dtype=torch.uint8))
    assert metric.count == 23


def test_sums_of_inference_mode_can_be_added_to_outside():
    metric = metrics.EnergyPointingGame()
    with torch.inference_mode():
        CASE.fed_to(metric)
    first = metric.compute()
    assert_close(CASE.fed_to(metric).compute(), first)


def test_signatures_show_the_options_of_the_function():
    assert list(inspect.signature(metrics.MaskIoU).parameters) == [
        "ignore_index", "threshold", "options",
    ]  # fmt: skip
    assert {"model", "order", "percentiles", "noise"} < set(inspect.signature(metrics.Road).parameters)


def test_plot_keeps_the_range():
    figure, axis = CASE.fed_to(metrics.PointingGame()).plot()
    low, high = axis.get_ylim()
    assert low <= 0
    assert high >= 1
    figure.clear()


def test_needs_torchmetrics_only_where_a_class_is_used(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("batchcam_captum.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("batchcam_captum.evaluation", evaluation)  # is put back at the end
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    fresh = importlib.import_module("batchcam_captum.evaluation")
    assert fresh.diagnose is not None
    with pytest.raises(ModuleNotFoundError, match=r"batchcam-captum\[metrics\]"):
        _ = fresh.Sparsity


@pytest.mark.parametrize("package", [evaluation, metrics])
def test_public_names_resolve(package):
    assert set(metrics.__all__) <= set(evaluation.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


TWO = {"percentiles": (20, 60)}
FAITHFUL = {
    "insertion": (
        lambda model: metrics.InsertionAUC(model, steps=4),
        lambda *given: faithfulness.insertion_curve(*given, steps=4).auc,
    ),
    "deletion": (
        lambda model: metrics.DeletionAUC(model, steps=4, fill="mean"),
        lambda *given: faithfulness.deletion_curve(*given, steps=4, fill="mean").auc,
    ),
    "road": (
        lambda model: metrics.Road(model, **TWO),
        lambda *given: faithfulness.road(*given, **TWO).combined,
    ),
    "morf": (
        lambda model: metrics.Road(model, "morf", **TWO),
        lambda *given: faithfulness.road(*given, **TWO).morf.mean(1),
    ),
    "infidelity": (
        lambda model: metrics.Infidelity(model, relative=True),
        lambda *given: faithfulness.infidelity(*given, relative=True),
    ),
}


@pytest.mark.parametrize("name", FAITHFUL)
def test_faithfulness_in_parts_equals_the_mean_of_the_function(case, name):
    make, function = FAITHFUL[name]
    metric, other = make(case.model), make(case.model)
    metric.update(case.images[:1], case.cams[:1], case.targets[:1])
    other.update(case.images[1:], case.cams[1:], case.targets[1:])
    metric.merge_state(other)
    values = function(case.model, case.images, case.cams, case.targets)
    assert_close(metric.compute(), values.mean(), rtol=1e-4, atol=1e-6)
    metric.reset()
    metric.update(case.images, case.cams, case.targets.index_fill(0, torch.tensor([1, 2]), -100))
    assert metric.count == 2
    assert_close(metric.compute(), values[[0, 3]].mean(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="cams"):
        metric.update(case.images, case.cams * torch.nan, case.targets)
    assert metric.count == 2
    assert metric.higher_is_better is (name in ("insertion", "road"))


def test_sensitivity_and_the_dead_fraction_in_one_collection(case):
    collection = MetricCollection(
        {
            "sensitivity": metrics.MaxSensitivity(case.grad_cam, samples=3),
            "insertion": metrics.InsertionAUC(case.model, steps=2),
            "dead": metrics.DeadFraction(),
        }
    )
    cams = case.cams.clone()
    cams[0] = -1
    for rows in (slice(0, 3), slice(3, 4)):
        collection.update(images=case.images[rows], cams=cams[rows], targets=case.targets[rows])
    values = collection.compute()
    sensitivity = faithfulness.max_sensitivity(case.grad_cam, case.images, case.targets, samples=3)
    assert_close(values["sensitivity"], sensitivity.values.mean(), rtol=1e-4, atol=1e-6)
    assert_close(values["dead"], torch.tensor(0.25))
    assert 0 < values["insertion"] < 1


def test_the_model_is_not_part_of_the_metric(case):
    metric = metrics.InsertionAUC(case.model)
    assert not list(metric.children())
    assert not metric.state_dict()
    assert metric.clone().model is case.model
    assert metrics.MaxSensitivity(case.grad_cam).clone().explain is case.grad_cam
    metric.set_dtype(torch.float64).train()
    assert next(case.model.parameters()).dtype == torch.float32
    assert not case.model.training
    again = pickle.loads(pickle.dumps(metrics.Road(case.model, "morf")))
    assert (again.order, again.higher_is_better) == ("morf", False)
    assert isinstance(again.model, type(case.model))


def test_sensitivity_leaves_ignored_targets_out(case):
    metric = metrics.MaxSensitivity(BatchGradCam(case.model, "layer"), samples=2, ignore_index=4)
    metric.update(case.images, case.targets)
    assert metric.count == 3

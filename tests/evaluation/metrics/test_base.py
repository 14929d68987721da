"""What the metric classes have in common: bad input, nothing to measure, types, settings."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from batchcam_captum import ClassPrototypes, MaskPrototypes, evaluation
from batchcam_captum.evaluation import metrics
from batchcam_captum.evaluation.metrics import streaming
from tests.evaluation.metrics.every_metric import EVERY, PROTOTYPES, make_case

CASE = make_case()


@pytest.mark.parametrize("name", EVERY)
def test_nothing_to_measure_is_nan(name):
    metric = EVERY[name][0]()
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert metric.compute().isnan()
    ignored = CASE._replace(cams=CASE.cams * torch.nan, labels=torch.full_like(CASE.labels, -100))
    assert ignored.fed_to(metric).compute().isnan()
    assert ignored.part(slice(0, 0)).fed_to(metric).compute().isnan()


@pytest.mark.parametrize("name", EVERY)
def test_cams_that_are_not_finite_raise_and_add_nothing(name):
    metric = EVERY[name][0]()
    before = CASE.fed_to(metric).compute()
    for bad in (torch.nan, torch.inf):
        cams = CASE.cams.clone()
        cams[1, 0, 2, 2] = bad
        with pytest.raises(ValueError, match="cams: expected finite numbers"):
            CASE._replace(cams=cams).fed_to(metric)
    assert torch.equal(metric.compute(), before)


@pytest.mark.parametrize(
    ("make", "given", "error", "message"),
    [
        (metrics.RankAccuracy, {}, ValueError, r"masks: expected masks .* got none; RankAccuracy is not"),
        (metrics.ShortcutReliance, {"masks": CASE.masks}, ValueError, "shortcuts: expected"),
        (EVERY["cosine"][0], {}, ValueError, r"labels: expected class indices \(N,\), got none"),
        (EVERY["cosine"][0], {"labels": CASE.labels + 1}, ValueError, "indices from 0 to 2"),
        (EVERY["nearest"][0], {"labels": CASE.labels + 1}, ValueError, "indices from 0 to 2"),
        (EVERY["nearest"][0], {"labels": torch.rand(23, 3)}, TypeError, r"pass labels.argmax\(1\)"),
        (EVERY["coherence"][0], {"labels": torch.rand(23, 4)}, TypeError, r"pass labels.argmax\(1\)"),
        (metrics.Sparsity, {"labels": torch.ones(23, 3, dtype=torch.long)}, ValueError, "one-hot rows"),
        (
            lambda: metrics.Sparsity().to("meta"),
            {},
            ValueError,
            "cams: expected them on the metric's device meta",
        ),
    ],
)
def test_bad_updates(make, given, error, message):
    with pytest.raises(error, match=message):
        make().update(CASE.cams, **given)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: metrics.PrototypeDistance(PROTOTYPES, "l3"), ValueError, "distance: expected one of"),
        (lambda: metrics.NearestPrototypeAccuracy(PROTOTYPES, "l3"), ValueError, "distance: expected one of"),
        (lambda: metrics.PrototypeCosine(PROTOTYPES, resolution="mask"), ValueError, "resolution: expected"),
        (lambda: metrics.PrototypeCosine([PROTOTYPES]), TypeError, "expected ClassPrototypes.* got list"),
        (lambda: metrics.PrototypeCosine(PROTOTYPES / 0), ValueError, "prototypes: expected finite"),
        (lambda: metrics.PrototypeCosine(MaskPrototypes(3)), ValueError, "got MaskPrototypes, which depends"),
        (lambda: metrics.ClassCoherence(0, (4, 4)), ValueError, "num_classes: expected at least 1"),
        (lambda: metrics.ClassCoherence(3, ()), ValueError, "size: expected 1 to 3 sides"),
        (lambda: metrics.ClassCoherence(3, 7), ValueError, r"size: .* such as \(7, 7\), got 7"),
        (lambda: metrics.ClassCoherence(3, (7.5, 7)), TypeError, r"size: expected an integer, got 7\.5"),
        (
            lambda: metrics.PrototypeDistance(torch.rand(3, 4, 4)),
            ValueError,
            r"pass prototypes\.unsqueeze\(1\)",
        ),
        (lambda: metrics.PointingGame(tolerance=-1), ValueError, "tolerance: expected at least 0"),
        (lambda: metrics.MaskIoU(threshold=2), ValueError, "threshold: expected a number in"),
        (lambda: metrics.CamEntropy(ignore_index="a"), TypeError, "ignore_index: expected an integer"),
        (lambda: metrics.ClassCoherence(3, (4,), average="micro"), ValueError, "average: expected"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_other_settings_are_not_merged():
    one, other = (CASE.fed_to(metrics.MaskIoU(threshold=threshold)) for threshold in (0.5, 0.6))
    before = one.compute()
    with pytest.raises(ValueError, match="incoming_state: expected that of a MaskIoU with the same settings"):
        one.merge_state(other)
    assert one.compute() == before


def test_class_prototypes_are_copied_and_a_class_without_one_is_refused():
    prototypes = ClassPrototypes(3)
    prototypes.update(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)
    metric, cosine = metrics.PrototypeDistance(prototypes), metrics.PrototypeCosine(prototypes.maps())
    prototypes.update(torch.rand(8, 1, 8, 8), torch.full((8,), 2))
    cams = torch.rand(3, 1, 4, 4)
    for each in (metric, cosine):
        each.update(cams[:2], torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=r"classes without a prototype: \[2\]"):
            each.update(cams, torch.arange(3))


def test_what_was_added_up_under_inference_mode_goes_on_outside():
    metric = metrics.EnergyPointingGame()
    with torch.inference_mode():
        CASE.fed_to(metric)
    first = metric.compute()
    CASE.fed_to(metric)
    assert metric.compute() == first


def test_half_types_and_long_sums():
    metric = metrics.Sparsity().half()
    metric.update(CASE.cams.bfloat16())
    assert metric.total.dtype == torch.float64
    metric.total = metric.total + 2.0**30  # where float32 steps by 64
    total = metric.total.item()
    metric.update(CASE.cams.bfloat16())
    assert metric.total.item() == pytest.approx(total + total - 2.0**30, abs=1e-5)


def test_a_device_without_float64_gets_float32(monkeypatch):
    monkeypatch.setattr(
        streaming, "wide_dtype", lambda device: torch.float32 if device.type == "meta" else torch.float64
    )
    metric = metrics.ShortcutReliance().to("meta")
    assert (metric.total.dtype, metric.area.dtype, metric.count.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )
    metric.reset()
    assert metric.total.dtype == torch.float32
    assert metric.total.device.type == "meta"


def test_plot_keeps_the_range():
    figure, axis = CASE.fed_to(metrics.PointingGame()).plot()
    low, high = axis.get_ylim()
    assert low <= 0
    assert high >= 1
    figure.clear()


def test_needs_torchmetrics_only_where_a_class_is_used(monkeypatch):
    code = "import sys, batchcam_captum.evaluation.metrics; print('torchmetrics' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, streaming.__name__)
    with pytest.raises(ModuleNotFoundError, match=r"needs torchmetrics.*install batchcam-captum\[metrics\]"):
        importlib.import_module(streaming.__name__)


def test_all_metrics_are_found_in_either_place():
    assert set(metrics.__all__) <= set(evaluation.__all__)


@pytest.mark.parametrize("package", [evaluation, metrics])
def test_public_names_resolve(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = package.Nothing

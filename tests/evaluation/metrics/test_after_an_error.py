"""A batch that raises leaves a metric as it was; what could not be looked at raises until the metric is reset."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from batchcam_captum.evaluation import metrics
from batchcam_captum.evaluation.metrics import base
from batchcam_captum.functional import ValueChecks
from tests.evaluation.metrics.every_metric import EVERY, make_case

CASE = make_case()
BAD = CASE._replace(cams=CASE.cams * torch.nan)


class Deferring(ValueChecks):
    """As on a GPU: nothing is looked at before it has to be."""

    def require(self, holds, message, detail=None):
        self._failed[message] = ~holds.detach().all()


def called(metric, case):
    return metric(case.cams, case.labels, masks=case.masks, shortcuts=case.shortcuts)


def notes(metric):
    return {
        name: value
        for name, value in copy.deepcopy(metric.__dict__).items()
        if name not in ("update", "compute", "_update_signature", "_borrowed", "_defaults", "_reductions")
    }


@pytest.mark.parametrize("name", ["l1", "shortcut", "coherence"])
def test_a_bad_batch_given_to_forward_leaves_what_there_was(name):
    metric = EVERY[name][0]()
    called(metric, CASE)
    metric.compute()
    before = str(notes(metric))
    for how in (called, lambda metric, case: case.fed_to(metric)):
        with pytest.raises(ValueError, match="cams: expected finite"):
            how(metric, BAD)
        assert str(notes(metric)) == before
    called(metric, CASE)
    assert metric.update_count == 2
    torch.testing.assert_close(metric.compute(), CASE.fed_to(CASE.fed_to(EVERY[name][0]())).compute())


def test_a_bad_batch_given_to_a_collection():
    collection = MetricCollection([metrics.Sparsity(), metrics.DeadFraction()])
    for _ in range(2):
        collection(CASE.cams, CASE.labels)
    before = collection.compute()
    with pytest.raises(ValueError, match="cams: expected finite"):
        collection(BAD.cams, CASE.labels)
    assert collection.compute() == before


def test_a_first_update_that_raises_does_not_count():
    metric = metrics.Sparsity()
    with pytest.raises(ValueError, match="cams: expected finite"):
        BAD.fed_to(metric)
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert metric.compute().isnan()


def test_what_could_not_be_looked_at_raises_until_a_reset(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(base, "ValueChecks", Deferring)
        metric = BAD.fed_to(CASE.fed_to(metrics.Sparsity()))
        fine = CASE.fed_to(metrics.Sparsity())
        # Its value has to be looked at, and so the batch is not added.
        before = fine.compute()
        with pytest.raises(ValueError, match="cams: expected finite"):
            called(fine, BAD)
        assert fine.compute() == before
        called(metric, CASE)
    merged, from_state = CASE.fed_to(metrics.Sparsity()), CASE.fed_to(metrics.Sparsity())
    merged.merge_state(metric)
    from_state.merge_state(metric.metric_state)
    for each in (metric, merged, pickle.loads(pickle.dumps(metric)), metric.clone()):
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"cams: expected finite .* since the last reset; call reset\(\)"
            ):
                each.compute()
    with pytest.raises(ValueError, match="values: something did not fit on another rank"):
        from_state.compute()
    metric.reset()
    assert CASE.fed_to(metric).compute() == before

"""Metrics over two ranks are those over all samples, also where one rank has seen nothing."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation import metrics
from batchcam_captum.functional import ValueChecks, sparsity
from tests.distributed.group import Checks
from tests.evaluation.metrics.every_metric import EVERY, expected, make_case
from tests.models import SmallCnn

CHECKS = Checks()


@CHECKS.each(good=[True, False])
def metrics_that_ask_the_model_over_all_ranks(rank, good):
    """Each rank has a model of its own, of the same numbers, as under DDP. A bad batch on one of them changes nothing."""
    torch.manual_seed(0)
    model = SmallCnn().eval()
    images, cams, targets = torch.rand(5, 3, 8, 8), torch.rand(5, 1, 3, 3), torch.arange(5)
    makers = [
        lambda **kw: metrics.InsertionAUC(model, steps=2, **kw),
        lambda **kw: metrics.DeletionAUC(model, steps=2, **kw),
        lambda **kw: metrics.Road(model, percentiles=[50], **kw),
        lambda **kw: metrics.Infidelity(model, samples=3, relative=True, **kw),
        lambda **kw: metrics.MaxSensitivity(BatchGradCam(model, model.layer), samples=2, **kw),
    ]
    rows = slice(0, 2) if rank == 0 else slice(2, None)
    for make in makers:
        metric, alone = make(), make(sync_on_compute=False)
        takes = metric._update_signature.parameters
        batch = {"images": images, "cams": cams, "targets": targets}
        alone.update(**{name: batch[name] for name in takes})
        part = {name: batch[name][rows] for name in takes}
        metric(**part)
        if rank == 0 and not good:
            with pytest.raises(ValueError, match="images: expected finite values"):
                metric(**part | {"images": part["images"] / 0})
        assert_close(metric.compute(), alone.compute(), rtol=1e-4, atol=1e-6)


@CHECKS.each()
def what_failed_on_one_rank_raises_on_all(rank):
    metric = metrics.Sparsity()
    case = make_case().part(slice(0, 8))
    case.fed_to(metric)
    own = metric.total
    if rank == 0:
        checks = ValueChecks()
        checks._failed["cams: expected finite numbers"] = torch.tensor(True)  # as it is on a GPU
        metric._note_failures(checks)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=("cams: expected finite", "on another rank, look at its error")[rank]
        ):
            metric.compute()
        assert metric.total == own
    metric.reset()
    case.fed_to(metric)
    assert_close(metric.compute(), sparsity(case.cams, counted=case.labels != -100).nanmean())


@CHECKS.each(first=[15, 23])
def metrics_of_all_ranks(rank, first):
    case = make_case()
    parts = case.part(slice(0, first)), case.part(slice(first, None))
    for name, (make, _) in EVERY.items():
        metric = make()
        if len(parts[rank].cams):
            parts[rank].fed_to(metric)
        assert_close(metric.compute(), expected(name, case))
        own = metric.metric_state  # after the exchange each rank goes on with its own share
        for key, state in parts[rank].fed_to(make()).metric_state.items():
            assert_close(own[key], state)

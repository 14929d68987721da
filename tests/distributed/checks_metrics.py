"""Metrics over two ranks equal those over all samples, also where one rank has seen nothing."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from batchcam_captum.evaluation import metrics
from tests.distributed.group import Checks
from tests.evaluation.metric_cases import EVERY, expected, make_case
from tests.models import SmallCnn

CHECKS = Checks()


@CHECKS.each(first=[15, 23])
def metrics_of_all_ranks(rank, first):
    case = make_case()
    parts = case.part(slice(0, first)), case.part(slice(first, None))
    for name, (make, _) in EVERY.items():
        metric = make()
        if len(parts[rank].cams):
            parts[rank].fed_to(metric)
        assert_close(metric.compute(), expected(name, case))
        # After the exchange each rank goes on with its own share.
        own = parts[rank].fed_to(make()).metric_state
        assert_close(metric.metric_state, own, equal_nan=True)


@CHECKS.each()
def metrics_that_run_the_model(rank):
    """Each rank has its own copy of the model, as under DDP."""
    torch.manual_seed(0)
    model = SmallCnn().eval()
    images, cams, targets = torch.rand(5, 3, 8, 8), torch.rand(5, 1, 3, 3), torch.arange(5)
    metric = metrics.InsertionAUC(model, steps=2)
    alone = metrics.InsertionAUC(model, steps=2, sync_on_compute=False)
    alone.update(images, cams, targets)
    rows = slice(0, 2) if rank == 0 else slice(2, None)
    metric.update(images[rows], cams[rows], targets[rows])
    assert_close(metric.compute(), alone.compute(), rtol=1e-4, atol=1e-6)

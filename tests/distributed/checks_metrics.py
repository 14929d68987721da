"""Metrics over two ranks are those over all samples, also where one rank has seen nothing."""

from __future__ import annotations

from torch.testing import assert_close

from tests.distributed.group import Checks
from tests.evaluation.metrics.every_metric import EVERY, expected, make_case

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
        own = metric.metric_state  # after the exchange each rank goes on with its own share
        for key, state in parts[rank].fed_to(make()).metric_state.items():
            assert_close(own[key], state)

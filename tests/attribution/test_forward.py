"""What one walk over a model's modules tells, and the input shape that an observer notes."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from batchcam_captum.attribution.forward import ModelFacts
from batchcam_captum.attribution.observer import ForwardObserver, own_forward
from tests.models import SmallCnn


def test_every_module_is_seen_once_and_hidden_ones_are_suspected() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Sequential(shared), shared, nn.ModuleDict({"inner": nn.Sequential()})).eval()
    model.register_module("nothing", None)
    facts = ModelFacts.of(model)
    assert facts.modules == set(model.modules())
    assert facts.training == ()
    assert not facts.hides([shared])
    assert facts.hides([nn.Dropout()])
    assert ModelFacts.of(lambda images: images).hides([])
    shared.train()
    assert ModelFacts.of(model).training == (shared,)


@pytest.mark.parametrize(
    ("norm", "training", "mixes"),
    [
        (nn.BatchNorm2d(4), True, True),
        (nn.BatchNorm2d(4), False, False),
        (nn.BatchNorm2d(4, track_running_stats=False), False, True),
        (nn.SyncBatchNorm(4), True, True),
        (nn.InstanceNorm2d(4), True, False),
        (nn.GroupNorm(2, 4), True, False),
    ],
)
def test_batch_norms_that_mix_samples(norm: nn.Module, training: bool, mixes: bool) -> None:
    assert bool(ModelFacts.of(nn.Sequential(norm).train(training)).norms) == mixes


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        (nn.Linear(4, 4), False),
        (nn.MultiheadAttention(4, 2), True),
        (nn.TransformerEncoderLayer(4, 2, 8), True),
        (nn.DataParallel(nn.Linear(4, 4)), True),
    ],
)
def test_modules_that_compute_something_else_without_a_graph(module: nn.Module, needs: bool) -> None:
    assert ModelFacts.of(nn.Sequential(module)).needs_graph == needs
    with parametrize.cached():
        assert ModelFacts.of(nn.Sequential(module)).needs_graph


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it loads its compiler
def test_what_may_be_compiled() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    assert not ModelFacts.of(plain).may_be_compiled
    assert ModelFacts.of(nn.Sequential(torch.compile(nn.Linear(4, 4)))).may_be_compiled
    assert ModelFacts.of(torch.fx.symbolic_trace(plain)).may_be_compiled
    plain[0].compile(backend="eager")
    assert ModelFacts.of(plain).may_be_compiled


def test_the_input_shape_is_that_of_the_observed_forward() -> None:
    model, others = SmallCnn(), torch.randn(4, 3, 11, 7)
    with ForwardObserver([], model) as observer:
        model(torch.randn(2, 3, 9, 9))
        with own_forward():
            model(others)
        thread = threading.Thread(target=lambda: model(others))
        thread.start()
        thread.join()
        assert observer.input_shape == (2, 3, 9, 9)
        model._is_replica = True  # as DataParallel's workers are marked
        thread = threading.Thread(target=lambda: model(others))
        thread.start()
        thread.join()
    assert observer.input_shape == (4, 3, 11, 7)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks

"""What one walk over the modules finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize

from batchcam_captum.attribution.survey import survey


def test_every_module_is_seen_once() -> None:
    model = torchvision.models.resnet18()
    assert survey(model).modules == set(model.modules())
    shared = nn.ReLU()
    model = nn.Sequential(nn.Sequential(shared), shared, nn.ModuleDict({"inner": nn.Sequential()}))
    model.register_module("nothing", None)
    assert survey(model).modules == set(model.modules())


def test_modules_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).eval()
    assert survey(model).training == ()
    model[1].train()
    assert survey(model).training == (model[1],)


def test_a_layer_that_no_walk_finds_may_train_unseen() -> None:
    hidden = nn.Dropout()
    facts = survey(nn.Sequential(nn.Linear(4, 4)).eval())
    assert facts.may_train([hidden])
    assert not facts.may_train(facts.modules)
    assert survey(nn.Sequential(nn.Linear(4, 4))).may_train([])


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
def test_batch_statistics(norm: nn.Module, training: bool, mixes: bool) -> None:
    assert survey(nn.Sequential(norm).train(training)).batch_norm_may_mix == mixes


@pytest.mark.parametrize(
    ("module", "asks"),
    [
        (nn.Linear(4, 4), False),
        (nn.MultiheadAttention(4, 2), True),
        (nn.TransformerEncoderLayer(4, 2, 8), True),
        (nn.DataParallel(nn.Linear(4, 4)), True),
    ],
)
def test_who_asks_for_the_grad_mode(module: nn.Module, asks: bool) -> None:
    assert survey(nn.Sequential(module)).asks_for_grad_mode == asks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it loads its compiler
def test_what_may_be_compiled() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    assert not survey(plain).may_be_compiled
    assert survey(nn.Sequential(torch.compile(nn.Linear(4, 4)))).may_be_compiled
    assert survey(torch.fx.symbolic_trace(plain)).may_be_compiled
    plain[0].compile(backend="eager")
    assert survey(plain).may_be_compiled


def test_cached_parametrizations_ask_for_it() -> None:
    with parametrize.cached():
        assert survey(nn.Linear(4, 4)).asks_for_grad_mode
    assert not survey(nn.Linear(4, 4)).asks_for_grad_mode


def test_a_function_cannot_be_looked_into() -> None:
    def function(images: Any) -> Any:
        return images

    assert survey(function) == (frozenset(), (), True, False, True)

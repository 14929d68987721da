"""Time and memory: what fails is named, and the others go on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from batchcam_captum.interop import OURS
from batchcam_captum.interop.comparison import memory
from batchcam_captum.interop.comparison.cases import Work, reason_of
from batchcam_captum.interop.comparison.cost import measured
from batchcam_captum.interop.comparison.measure import Times, Within, interleaved
from batchcam_captum.loading import load_model
from tests.models import SmallCnn

from .networks import Hungry

OWN = """
import torch
from beside_own_net import Act
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 4, 3), Act())
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        torch.ones(5_000_000)
        return self.head(self.layer(x).mean((2, 3)))

def make():
    return Net()
"""


def work(model, samples=3, **given):
    images = torch.rand(samples, 3, 12, 12)
    return Work(
        **(
            {
                "model": model.eval(),
                "layer": "layer",
                "images": images,
                "targets": list(range(samples)),
                "reshape": None,
            }
            | given
        )
    )


def test_a_case_that_raises_is_told_and_left_out_and_the_others_go_on():
    calls = {"good": 0, "bad": 0, "late": 0}

    def late():
        calls["late"] += 1
        if calls["late"] == 3:
            raise MemoryError

    def bad():
        calls["bad"] += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")

    def good():
        calls["good"] += 1

    told = []
    cases = {"bad": bad, "good": good, "late": late}
    times = interleaved(
        cases, "cpu", rounds=4, failed=lambda name, error: told.append((name, reason_of(error)))
    )
    assert told == [("bad", "out of memory"), ("late", "out of memory")]
    assert list(times.seconds) == ["good"]
    assert times.rounds == 4
    assert calls == {"good": 5, "bad": 1, "late": 3}
    assert times.spread("bad") is None
    assert times.spread("good").median > 0


def test_without_a_listener_the_error_is_raised_and_the_collector_is_as_it_was():
    import gc

    def bad():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        interleaved({"bad": bad}, "cpu", rounds=2)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_the_user_froze_stays_frozen():
    import gc

    def collected():
        return any(each is mine for each in gc.get_objects())

    mine = [{}]
    assert collected()
    gc.freeze()
    try:
        interleaved({"good": lambda: None}, "cpu", rounds=2)
        assert not collected()
    finally:
        gc.unfreeze()
    assert collected()


def test_no_cases_take_no_time():
    assert interleaved({}, "cpu", rounds=3) == Times({})


def test_reasons_are_one_line_and_memory_is_one_word():
    wrapped = ValueError("TorchCAM cannot do this")
    wrapped.__cause__ = RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert reason_of(wrapped) == "out of memory"
    assert reason_of(ValueError("Captum cannot\nand more")) == "Captum cannot"
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert reason_of(RuntimeError()) == "RuntimeError: "


def test_a_batch_repeats_the_images_with_their_targets():
    whole = work(SmallCnn(), images=torch.rand(3, 3, 8, 8).to(memory_format=torch.channels_last))
    images, targets = whole.batch(7)
    assert targets == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(images[3:6], whole.images)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert whole.batch(2)[1] == [0, 1]


def test_hooks_are_there_only_while_a_case_runs():
    model = SmallCnn().eval()
    case = work(model).case(OURS.name, "grad_cam", 2)
    assert isinstance(case, Within)
    with case.enter() as call:
        assert call().shape == (2, 1, 5, 5)
    assert not model.layer._forward_hooks


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_memory_is_measured_in_a_process_that_may_be_ended():
    keys = [("grad_cam", 1), ("grad_cam", 8), ("grad_cam", 16)]
    found = memory.peaks_in_process(work(Hungry()), OURS.name, keys)
    assert list(found) == keys
    assert abs(found["grad_cam", 1] - 40_000_000) < 2_000_000
    for key in keys[1:]:
        assert found[key].startswith("out of memory: the system ended the process")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_memory_of_a_model_of_a_users_file_is_measured(tmp_path):
    """Its class, and one of a file beside it, have to be found by the other process."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "beside_own_net.py").write_text(
        "from torch import nn\n\nclass Act(nn.ReLU):\n    pass\n"
    )
    (tmp_path / "own" / "own_net.py").write_text(OWN)
    model = load_model(f"{tmp_path / 'own' / 'own_net.py'}:make")
    try:
        found = memory.peaks_in_process(work(model), OURS.name, [("grad_cam", 1)])
    finally:
        sys.modules.pop("beside_own_net")
        sys.modules.pop(type(model).__module__)
    assert isinstance(found["grad_cam", 1], int), found
    assert abs(found["grad_cam", 1] - 20_000_000) < 2_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_what_a_process_that_was_ended_left_open_is_measured_by_another(monkeypatch):
    keys = [("grad_cam", 1), ("grad_cam", 8), ("hires_cam", 1)]
    asked = []

    def process(folder, left):
        asked.append(list(left))
        return {("grad_cam", 1): 5, ("grad_cam", 8): "out of memory"} if len(asked) == 1 else {left[0]: 6}

    monkeypatch.setattr(memory, "_measured", process)
    found = memory.peaks_in_process(work(SmallCnn()), OURS.name, keys)
    assert asked == [keys, keys[2:]]
    assert list(found.values()) == [5, "out of memory", 6]


def test_a_model_that_cannot_be_sent_to_another_process_is_named(monkeypatch):
    model = SmallCnn()
    model.function = lambda x: x
    found = memory.peaks_in_process(work(model), OURS.name, [("grad_cam", 1)])
    if sys.platform == "linux":
        assert "cannot be sent to another process" in found["grad_cam", 1]
        assert "lambda" in found["grad_cam", 1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(memory, "_PROGRAM", "raise SystemExit('no such class')")
    found = memory.peaks_in_process(work(SmallCnn()), OURS.name, [("grad_cam", 1), ("grad_cam", 2)])
    assert set(found.values()) == {"not measured: no such class"}


def test_elsewhere_than_on_linux_memory_is_not_measured(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    found = memory.peaks_in_process(work(SmallCnn()), OURS.name, [("grad_cam", 1)])
    assert "on Linux only" in found["grad_cam", 1]


def test_a_batch_that_ended_the_process_is_not_timed_here(monkeypatch):
    ended = "out of memory: the system ended the process that measured it"
    outcomes = {("grad_cam", 1): 7, ("grad_cam", 8): ended}
    monkeypatch.setattr("batchcam_captum.interop.comparison.cost.peaks_in_process", lambda *_: outcomes)
    found = measured(work(Hungry()), {"grad_cam": [OURS.name]}, [1, 8], 2, 1.0, True, lambda _: None)
    assert [(cost.batch_size, cost.peak_bytes, cost.seconds is None) for cost in found.costs] == [
        (1, 7, False),
        (8, None, True),
    ]
    assert [(entry.batch_size, entry.reason) for entry in found.skipped] == [(8, ended)]

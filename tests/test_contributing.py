"""What CONTRIBUTING.md shows works as it stands, and what it names is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from batchcam_captum import functional
from batchcam_captum.functional import DISTANCES, distance
from batchcam_captum.losses import LOSSES
from tests.losses import family, test_family_in_common

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LOSS, TEST, DISTANCE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(code: str, module: ModuleType) -> None:
    exec(compile(code, f"CONTRIBUTING.md: {module.__name__}", "exec"), vars(module))


@pytest.fixture
def spread(monkeypatch):
    """The loss's module, as if its file were there; the registry is put back."""
    module = ModuleType("batchcam_captum.losses.spread")
    module.__package__ = "batchcam_captum.losses"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    run(LOSS, module)
    return module


def its_tests() -> None:
    module = ModuleType("test_spread")
    run(TEST, module)
    found = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert found
    torch.manual_seed(0)
    for test in found:
        test()


def test_the_loss_passes_the_test_that_stands_beside_it(spread):
    assert LOSS.startswith("# batchcam_captum/losses/spread.py\n")
    assert TEST.startswith("# tests/losses/test_spread.py\n")
    assert LOSSES["spread"] is spread.SpreadLoss
    its_tests()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("masked_fill(dead, 1)", "masked_fill(dead, 0)"),
        ("places - centre", "places"),
        ("(maps.dim() - 2)", "2"),
    ],
)
def test_its_test_fails_for_a_wrong_loss(spread, right, wrong):
    assert LOSS.count(right) == 1
    LOSSES._entries.clear()
    run(LOSS.replace(right, wrong), spread)
    with pytest.raises(AssertionError):
        its_tests()


def test_the_loss_has_what_all_losses_have_in_common(spread, monkeypatch):
    monkeypatch.setitem(family.MAKERS, "spread", spread.SpreadLoss)
    checks = vars(test_family_in_common)
    for reduction in ("mean", "sum"):
        checks["test_weight_two_is_the_sample_twice"]("spread", reduction)
        checks["test_weight_zero_is_the_sample_absent_whatever_it_holds"]("spread", reduction)
        for nothing in ("empty", "ignored", "weightless"):
            checks["test_nothing_to_count_gives_a_zero_with_a_graph"]("spread", reduction, nothing)
        checks["test_one_hot_soft_labels_are_class_indices"]("spread", reduction)
    checks["test_ignored_samples_are_as_if_they_were_absent"]("spread")
    checks["test_half_cams_and_autocast_give_the_float32_loss"]("spread", torch.bfloat16)
    checks["test_scale_of_the_cams_does_not_matter"]("spread", 1e-11)
    checks["test_revive_gives_a_dead_cam_a_gradient_and_strict_mode_none"]("spread")
    checks["test_losses_that_rectify_report_their_dead_fraction_and_others_none"]("spread")


def test_the_distance_is_one(monkeypatch):
    monkeypatch.setattr(DISTANCES, "_entries", dict(DISTANCES._entries))
    module = ModuleType("distance")
    vars(module).update(vars(distance))
    run(DISTANCE, module)
    first, second = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    second[1] = 0.3  # 0.1 · (0.3 − 0.05) a pixel
    values = functional.get_distance("huber")(first, second)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.025]))


def test_files_and_commands_that_are_named_are_there():
    made = {"batchcam_captum/losses/spread.py", "batchcam_captum/functional/losses/spread.py"}
    named = set(re.findall(r"`((?:batchcam_captum|tests|docs|benchmarks)/[\w./*]*)`", TEXT)) - made
    assert len(named) > 10
    named |= set(re.findall(r"\]\(([\w./]+)", TEXT))
    assert not {name for name in named if not list(ROOT.glob(name))}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake (test|format|docs|\w+ *#)", TEXT)) <= targets
    assert {"test", "format", "docs"} <= targets


def test_every_part_of_the_package_has_its_floor():
    parts = {
        path.stem for path in (ROOT / "batchcam_captum").iterdir() if path.suffix == ".py" or path.is_dir()
    }
    table = TEXT.partition("| floor |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == parts - {"__init__", "__main__", "__pycache__", "py"}

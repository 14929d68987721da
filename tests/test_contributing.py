"""What CONTRIBUTING.md shows works as it stands, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import batchcam_captum
from batchcam_captum.attribution import targets
from batchcam_captum.evaluation import metrics
from batchcam_captum.functional import CAM_METHODS, DISTANCES, cam, distance
from batchcam_captum.functional.metrics import maps
from batchcam_captum.losses import LOSSES, base
from batchcam_captum.prototypes import sampled
from tests.losses import family, test_family

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LOSS, TEST, DISTANCE, WEIGHTING, TARGET, PROTOTYPES, METRIC, METRIC_CLASS = re.findall(
    r"```python\n(.*?)```", TEXT, re.DOTALL
)


def run(code, module=None):
    """Run code as if it stood in a module of the package, and return its names."""
    names = dict(vars(module)) if module else {"__name__": "example"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    for registry in (LOSSES, DISTANCES, CAM_METHODS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def run_tests():
    found = [value for name, value in run(TEST).items() if name.startswith("test_")]
    assert found
    torch.manual_seed(0)
    for test in found:
        test()


def test_loss_is_short_and_passes_its_test():
    kind = run(LOSS, base)["SpreadLoss"]
    assert len(LOSS.partition("@LOSSES")[2].splitlines()) <= 15
    assert LOSSES["spread"] is kind
    run_tests()


@pytest.mark.parametrize(
    ("right", "wrong"), [("maps.sum(1", "maps.amax(1"), ("(share @ places)", "(0 * share @ places)")]
)
def test_its_test_fails_for_a_wrong_loss(right, wrong):
    assert LOSS.count(right) == 1
    run(LOSS.replace(right, wrong), base)
    with pytest.raises(AssertionError):
        run_tests()


def test_loss_has_what_the_family_has(monkeypatch):
    monkeypatch.setitem(family.MAKERS, "spread", run(LOSS, base)["SpreadLoss"])
    test_family.test_weight_two_is_the_sample_twice("spread")
    test_family.test_samples_left_out_are_as_if_absent("spread")
    test_family.test_nothing_to_count_gives_a_zero_with_a_graph("spread", "ignored")
    test_family.test_revive_brings_a_dead_cam_to_life_and_strict_mode_does_not("spread")


def test_distance():
    run(DISTANCE, distance)
    first, second = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    second[1] = 0.3  # 0.1 · (0.3 − 0.05) per pixel
    torch.testing.assert_close(DISTANCES["huber"](first, second), torch.tensor([0.0, 0.025]))


def test_weighting():
    run(WEIGHTING, cam)
    activations, gradients = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    cams = batchcam_captum.functional.apply_method("largest_gradient", activations, gradients)
    expected = sum(gradients[0, k].max() * activations[0, k] for k in range(3))
    torch.testing.assert_close(cams[0, 0], expected)


def test_target():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 9, 3))
    images = torch.rand(2, 1, 5, 5)
    first, second = model(images).topk(2, dim=1).indices.T
    grad_cam = batchcam_captum.BatchGradCam(model, "0")
    cams = grad_cam.attribute(images, target=run(TARGET, targets)["margin"])
    expected = grad_cam.attribute(
        images, target=lambda scores: scores[[0, 1], first] - scores[[0, 1], second]
    )
    torch.testing.assert_close(cams, expected)


def test_kind_of_prototype():
    kind = run(PROTOTYPES, sampled)["BrightestPrototypes"]
    images, labels = torch.rand(12, 1, 4, 5), torch.arange(12) % 3
    prototypes = kind.from_loader([(images, labels)], num_classes=3, progress=False)
    brightest = images[labels == 1, 0].amax(0)
    expected = (brightest - brightest.min()) / (brightest.max() - brightest.min())
    torch.testing.assert_close(prototypes.maps()[1, 0], expected)
    batchcam_captum.PrototypeLoss(prototypes)(torch.rand(12, 1, 4, 5), labels)


def test_metric(monkeypatch):
    peak_share = run(METRIC, maps)["peak_share"]
    cams = torch.tensor([[3.0, 1, -1], [0, 2, 0]]).unsqueeze(1)
    torch.testing.assert_close(peak_share(cams), torch.tensor([0.75, 1]))
    monkeypatch.setattr(metrics, "peak_share", peak_share, raising=False)
    metric = run(METRIC_CLASS, metrics)["PeakShare"]()
    metric.update(cams)
    torch.testing.assert_close(metric.compute(), torch.tensor(0.875))


def test_files_and_commands_that_are_named_are_there():
    made = {"batchcam_captum/losses/spread.py"}
    text = re.sub(r"```python\n.*?```", "", TEXT, flags=re.DOTALL)
    named = set(re.findall(r"`((?:batchcam_captum|tests|docs|benchmarks)/[\w./*]*)`", text)) - made
    named |= set(re.findall(r"\]\(([\w./]+)", text))
    assert len(named) > 10
    assert not {name for name in named if not list(ROOT.glob(name))}


def test_every_part_of_the_package_has_its_floor():
    parts = {
        path.stem for path in (ROOT / "batchcam_captum").iterdir() if path.suffix == ".py" or path.is_dir()
    }
    table = TEXT.partition("| floor |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == parts - {"__init__", "__main__", "__pycache__", "py"}

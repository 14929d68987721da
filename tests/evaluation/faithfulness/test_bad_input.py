"""What all measures share: they change nothing, also when something fails, and name the argument at fault."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation.faithfulness import (
    cascading_randomization,
    deletion_curve,
    infidelity,
    insertion_curve,
    max_sensitivity,
    road,
)
from tests.models import SmallCnn

MEASURES = [insertion_curve, deletion_curve, road, infidelity]
EXPLAINING = [max_sensitivity, cascading_randomization]


class Fails(SmallCnn):
    """Raises from its n-th forward on."""

    def __init__(self, **options):
        super().__init__(**options)
        self.left = 10**6

    def forward(self, x):
        self.left -= 1
        if self.left <= 0:
            raise RuntimeError("out of order")
        return super().forward(x)


def state_of(model):
    return (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("measure", [*MEASURES, *EXPLAINING])
@pytest.mark.filterwarnings("ignore:.*(BatchNorm|Dropout)")
def test_everything_is_as_it_was(measure, fails):
    model = Fails(norm=True, dropout=0.3).train()
    model.head.eval()
    images, cams = torch.rand(3, 3, 8, 8), torch.randn(3, 1, 3, 3)
    before = state_of(model)
    model.left = 3 if fails else 10**6
    with pytest.raises(RuntimeError, match="out of order") if fails else nullcontext():
        if measure in EXPLAINING:
            measure(BatchGradCam(model, model.layer), images, 1, batch_size=2)
        else:
            measure(model, images, cams, 1, batch_size=2)
    after = state_of(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:5] == before[1:5]
    assert torch.equal(after[5], before[5])
    assert after[6] == before[6]


@pytest.mark.parametrize(
    ("model", "text"), [(SmallCnn(norm=True), "BatchNorm"), (SmallCnn(dropout=0.3), "Dropout")]
)
@pytest.mark.parametrize("measure", [insertion_curve, max_sensitivity, cascading_randomization])
def test_layers_in_training_mode_are_warned_about(case, model, text, measure):
    given = (
        (model, case.images, case.cams)
        if measure is insertion_curve
        else (BatchGradCam(model, "layer"), case.images)
    )
    with pytest.warns(UserWarning, match=rf"model: .*{text}") as caught:
        measure(*given, 0)
    assert __file__ in {warning.filename for warning in caught}


def test_results_have_no_graph(case):
    cams = case.cams.clone().requires_grad_()
    assert not insertion_curve(
        case.model, case.images.clone().requires_grad_(), cams, 0, steps=2
    ).auc.requires_grad
    assert not infidelity(case.model, case.images, cams, 0).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"cams": torch.full((4, 1, 3, 3), float("nan"))}, ValueError, "cams"),
        ({"cams": torch.rand(4, 3, 3)}, ValueError, "cams"),
        ({"cams": torch.rand(3, 1, 3, 3)}, ValueError, "cams"),
        ({"cams": torch.ones(4, 1, 3, 3).int()}, TypeError, "cams"),
        ({"images": torch.rand(4, 3)}, ValueError, "images"),
        ({"images": [1]}, TypeError, "images"),
        ({"images": torch.full((4, 3, 8, 8), float("nan"))}, ValueError, "images"),
        ({"targets": 5}, ValueError, r"targets.*-5 to 4, got 5"),
        ({"targets": [0, 1, 2, -6]}, ValueError, r"targets.*got -6"),
        ({"targets": torch.zeros(3).long()}, ValueError, "targets"),
        ({"targets": torch.eye(5)[:4].long()}, ValueError, "targets.*one-hot"),
        ({"targets": None}, TypeError, "targets"),
        ({"targets": "cat"}, TypeError, "targets"),
        ({"targets": torch.rand(4)}, TypeError, "targets"),
        ({"score": "loss"}, ValueError, "score"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"model": 3}, TypeError, "model"),
        ({"model": lambda x: {"out": x}}, TypeError, "model"),
        ({"model": lambda x: x}, ValueError, "model"),
        ({"model": lambda x: x.flatten(1) / 0}, ValueError, "model"),
        ({"model": lambda x: x.flatten(1)[:, :1], "targets": 0, "score": "probability"}, ValueError, "model"),
    ],
)
def test_bad_input_of_every_measure(case, change, error, name):
    given = {"model": case.model, "images": case.images, "cams": case.cams, "targets": case.targets} | change
    for measure in MEASURES:
        with pytest.raises(error, match=name):
            measure(**given)


@pytest.mark.parametrize(
    ("measure", "options", "error", "name"),
    [
        (insertion_curve, {"steps": 65}, ValueError, "steps"),
        (insertion_curve, {"steps": 2.5}, TypeError, "steps"),
        (insertion_curve, {"start": "black"}, ValueError, "start"),
        (deletion_curve, {"fill": 0}, ValueError, "fill"),
        (deletion_curve, {"fill": torch.zeros(2)}, ValueError, "fill"),
        (road, {"percentiles": [100]}, ValueError, "percentiles"),
        (road, {"percentiles": 20}, TypeError, "percentiles"),
        (road, {"noise": -1}, ValueError, "noise"),
        (infidelity, {"noise_std": 0}, ValueError, "noise_std"),
        (infidelity, {"side": 7}, ValueError, "side"),
        (infidelity, {"samples": 0}, ValueError, "samples"),
        (infidelity, {"perturbation": "circle"}, ValueError, "perturbation"),
    ],
)
def test_bad_options(case, measure, options, error, name):
    with pytest.raises(error, match=name):
        measure(case.model, case.images, case.cams, case.targets, **options)


def test_road_needs_two_dimensions_and_sensitivity_a_radius(case):
    with pytest.raises(ValueError, match="images"):
        road(case.model, case.images[..., 0], case.cams[..., 0], 0)
    with pytest.raises(ValueError, match="radius"):
        max_sensitivity(case.grad_cam, case.images, 0, radius=0)

"""What all measures have in common: they change nothing, also when something fails, and say what is wrong with their input."""

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


def test_a_function_around_the_model_hides_nothing():
    model = SmallCnn(norm=True, dropout=0.3).train()
    images, cams = torch.rand(3, 3, 8, 8), torch.randn(3, 1, 3, 3)
    before = state_of(model)
    insertion_curve(lambda images: model(images), images, cams, 1, steps=2)
    after = state_of(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert torch.equal(after[5], before[5])


def test_a_batch_norm_in_training_mode_is_warned_of(case):
    model = SmallCnn(norm=True).train()
    with pytest.warns(UserWarning, match=r"model: a BatchNorm uses .* call model\.eval\(\) first") as caught:
        insertion_curve(model, case.images, case.cams, 0, steps=2)
    assert caught[0].filename == __file__


def test_an_active_dropout_is_warned_of(case):
    model = SmallCnn(dropout=0.3).train()
    for call in (
        lambda: insertion_curve(model, case.images, case.cams, 0, steps=2),
        lambda: max_sensitivity(BatchGradCam(model, model.layer), case.images, 0, samples=1),
        lambda: cascading_randomization(BatchGradCam(model, model.layer), case.images, 0, layers=1),
    ):
        with pytest.warns(UserWarning, match=r"model: a Dropout is active.* call model\.eval\(\) first"):
            call()


def test_results_have_no_graph(case):
    cams = case.cams.clone().requires_grad_()
    assert not insertion_curve(
        case.model, case.images.clone().requires_grad_(), cams, 0, steps=2
    ).auc.requires_grad
    assert not infidelity(case.model, case.images, cams, 0).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"cams": torch.full((4, 1, 3, 3), float("nan"))},
            ValueError,
            r"cams: expected finite values, got NaN",
        ),
        ({"cams": torch.rand(4, 3, 3)}, ValueError, r"cams: expected \(4, 1, h, w\), .* got \(4, 3, 3\)"),
        (
            {"cams": torch.rand(3, 1, 3, 3)},
            ValueError,
            r"cams: expected \(4, 1, h, w\), .* got \(3, 1, 3, 3\)",
        ),
        (
            {"cams": torch.ones(4, 1, 3, 3).int()},
            TypeError,
            r"cams: expected a floating-point tensor, got torch.int32",
        ),
        ({"images": torch.rand(4, 3)}, ValueError, r"images: expected \(N, C, \*spatial\).*got \(4, 3\)"),
        ({"images": [1]}, TypeError, r"images: expected a floating-point tensor, got list"),
        (
            {"images": torch.full((4, 3, 8, 8), float("nan"))},
            ValueError,
            r"images: expected finite values, got NaN",
        ),
        (
            {"targets": 5},
            ValueError,
            r"targets: expected indices from -5 to 4, got 5; the model returns 5 scores",
        ),
        ({"targets": [0, 1, 2, -6]}, ValueError, r"targets: expected indices from -5 to 4, got -6"),
        ({"targets": torch.zeros(3).long()}, ValueError, r"targets: expected shape \(4,\), got \(3,\)"),
        ({"targets": torch.eye(5)[:4].long()}, ValueError, r"targets: .* not one-hot rows"),
        ({"targets": None}, TypeError, r"targets: expected integers, got None; pass class indices"),
        ({"targets": "cat"}, TypeError, r"targets: expected integers, got 'cat'"),
        ({"seed": "a"}, TypeError, r"seed: expected an integer, got 'a'"),
        ({"targets": torch.rand(4)}, TypeError, r"targets: expected integers, got torch.float32"),
        ({"score": "loss"}, ValueError, r"score: expected 'probability' or 'logit', got 'loss'"),
        ({"batch_size": 0}, ValueError, r"batch_size: expected at least 1, got 0"),
        ({"model": 3}, TypeError, r"model: expected a module or a function of images, got int"),
        ({"model": lambda x: {"out": x}}, TypeError, r"model: expected a tensor of scores, got dict"),
        ({"model": lambda x: x}, ValueError, r"model: expected scores \(\d+, K\), got \(\d+, 3, 8, 8\)"),
    ],
)
def test_bad_input_of_every_measure(case, change, error, message):
    given = {"model": case.model, "images": case.images, "cams": case.cams, "targets": case.targets} | change
    for measure in MEASURES:
        with pytest.raises(error, match=message):
            measure(**given)


def test_bad_options(case):
    given = case.model, case.images, case.cams, case.targets
    with pytest.raises(ValueError, match=r"steps: expected 1 to 64, the number of pixels, got 65"):
        insertion_curve(*given, steps=65)
    with pytest.raises(ValueError, match=r"start: expected 'zero', 'mean', 'blur' or a tensor, got 'black'"):
        insertion_curve(*given, start="black")
    with pytest.raises(ValueError, match=r"fill: expected 'zero', 'mean', 'blur' or a tensor, got 0"):
        deletion_curve(*given, fill=0)
    with pytest.raises(ValueError, match=r"percentiles: expected numbers between 0 and 100, got \(100,\)"):
        road(*given, percentiles=[100])
    with pytest.raises(ValueError, match=r"noise: expected at least 0, and finite, got -1"):
        road(*given, noise=-1)
    with pytest.raises(ValueError, match=r"images: expected \(N, C, H, W\), got \(4, 3, 8\)"):
        road(case.model, case.images[..., 0], case.cams[..., 0], 0)
    with pytest.raises(ValueError, match=r"noise_std: expected more than 0, and finite, got 0"):
        infidelity(*given, noise_std=0)
    with pytest.raises(ValueError, match=r"samples: expected at least 1, got 0"):
        infidelity(*given, samples=0)
    with pytest.raises(ValueError, match=r"radius: expected more than 0, and finite, got 0"):
        max_sensitivity(case.grad_cam, case.images, 0, radius=0)
    with pytest.raises(ValueError, match=r"model: expected at least two scores an image"):
        insertion_curve(lambda images: images.flatten(1)[:, :1], case.images, case.cams, 0)

"""Cascading randomization: against re-initializing by hand, and for a map that ignores the model."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy import stats
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation.faithfulness import cascading_randomization
from batchcam_captum.evaluation.faithfulness.cascade import randomize
from batchcam_captum.functional import prepare, ssim

TOP_DOWN = ["head", "tail.1", "layer", "stem.0"]


def test_similarities_equal_those_of_layers_reset_by_hand(case):
    found = cascading_randomization(case.grad_cam, case.images, case.targets, seed=4, batch_size=3)
    assert found.layers == TOP_DOWN
    model = copy.deepcopy(case.model)
    original = prepare(case.cams).maps
    before = original.flatten(1)
    torch.manual_seed(4)
    for row, name in enumerate(TOP_DOWN):
        model.get_submodule(name).reset_parameters()
        prepared = prepare(BatchGradCam(model, "layer").attribute(case.images, case.targets))
        assert_close(found.dead[row], prepared.dead)
        assert_close(found.similarities["ssim"][row], ssim(prepared.maps, original))
        for sample, now in enumerate(prepared.maps.flatten(1)):
            if prepared.dead[sample]:
                assert found.similarities["spearman"][row, sample] == 0
                continue
            rank = stats.spearmanr(now, before[sample]).statistic
            assert_close(
                found.similarities["spearman"][row, sample].item(), float(rank), atol=1e-5, rtol=1e-5
            )
            cosine = torch.cosine_similarity(now, before[sample], dim=0)
            assert_close(found.similarities["cosine"][row, sample], cosine)
    assert not found.original_dead.any()
    assert all(values.mean() < 0.9 for values in found.similarities.values())


def test_a_map_that_shows_the_image_survives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 16, 3))
    image_itself = BatchGradCam(model, model[0], method=lambda activations, gradients: activations)
    images = torch.rand(3, 1, 6, 6)
    found = cascading_randomization(image_itself, images, 0, layers=1)
    assert found.layers == ["3"]
    for values in found.similarities.values():
        assert_close(values, torch.ones(1, 3))


def test_parameters_without_a_reset_are_permuted():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 50))
            self.inner = nn.Linear(2, 2)

    module = Scaled()
    before = copy.deepcopy(module.state_dict())
    randomize(module)
    assert not torch.equal(module.weight, before["weight"])
    assert_close(module.weight.flatten().sort().values, before["weight"].flatten().sort().values)
    assert_close(module.inner.weight, before["inner.weight"])


def test_nothing_is_drawn_but_from_the_seed(case):
    def call(seed):
        return cascading_randomization(
            case.grad_cam, case.images[:2], case.targets[:2], layers=1, similarities=["cosine"], seed=seed
        )

    first = call(0)
    assert list(first.similarities) == ["cosine"]
    torch.manual_seed(77)
    assert_close(call(0).similarities, first.similarities)
    assert not torch.equal(call(1).similarities["cosine"], first.similarities["cosine"])


def _explain(model):
    return BatchGradCam(model, model[0])


BARE = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
NAN = nn.Sequential(nn.Conv2d(3, 4, 3), BARE)
nn.init.constant_(NAN[0].weight, torch.nan)


@pytest.mark.parametrize(
    ("make", "options", "error", "name"),
    [
        (
            lambda case: BatchGradCam(lambda images: case.model(images), case.model.layer),
            {},
            TypeError,
            "grad_cam",
        ),
        (lambda case: case.model, {}, TypeError, "grad_cam"),
        (lambda case: BatchGradCam(case.model, ["stem", "layer"]), {}, TypeError, "one layer"),
        (lambda case: case.grad_cam, {"similarities": ["psnr"]}, ValueError, "similarities"),
        (lambda case: case.grad_cam, {"layers": 0}, ValueError, "layers"),
        (lambda case: _explain(BARE), {}, ValueError, "grad_cam"),
        (lambda case: _explain(NAN), {}, ValueError, "finite"),
    ],
)
def test_what_does_not_fit_raises(case, make, options, error, name):
    with pytest.raises(error, match=name):
        cascading_randomization(make(case), case.images, 0, **options)

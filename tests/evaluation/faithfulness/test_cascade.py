"""Cascading randomisation: against re-initialising by hand, and what it says of a map that ignores the model."""

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

from .networks import Case

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


def test_errors():
    case = Case()
    function = BatchGradCam(lambda images: case.model(images), case.model.layer)
    with pytest.raises(TypeError, match=r"grad_cam: expected a model that is a module, got function"):
        cascading_randomization(function, case.images, 0)
    two = BatchGradCam(case.model, ["stem", "layer"])
    with pytest.raises(ValueError, match=r"grad_cam: expected one layer, got 2"):
        cascading_randomization(two, case.images, 0)
    with pytest.raises(
        ValueError, match=r"similarities: expected 'ssim', 'spearman' or 'cosine', got 'psnr'"
    ):
        cascading_randomization(case.grad_cam, case.images, 0, similarities=["psnr"])
    bare = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"grad_cam: expected a model with parameters, got none"):
        cascading_randomization(BatchGradCam(bare, bare[0]), case.images, 0)
    with torch.no_grad():
        case.model.stem[0].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"cams: expected finite values, got NaN"):
        cascading_randomization(case.grad_cam, case.images, 0)

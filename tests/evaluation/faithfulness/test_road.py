"""ROAD against pytorch-grad-cam's, and for good and bad maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.evaluation.faithfulness import linear_imputation, road
from tests.evaluation.networks import Linear

peer = pytest.importorskip("pytorch_grad_cam.metrics.road")
from pytorch_grad_cam.metrics.perturbation_confidence import (  # noqa: E402
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget  # noqa: E402

# It hands tensors to NumPy's functions, which NumPy 2 deprecates.
peers_own_warnings = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")


@peers_own_warnings
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_imputation_equals_pytorch_grad_cams_sparse_solution(share):
    images = torch.randn(4, 2, 13, 10)
    blobs = torch.nn.functional.interpolate(torch.randn(4, 1, 4, 4), (13, 10), mode="bilinear")
    removed = blobs >= blobs.flatten(1).quantile(1 - share, dim=1).reshape(-1, 1, 1, 1)
    imputer = peer.NoisyLinearImputer(noise=0)
    expected = [imputer(image, (~hole[0]).float()) for image, hole in zip(images, removed, strict=True)]
    found = linear_imputation(images, removed)
    assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert (found != images).any(1, keepdim=True).equal(removed)


def test_imputation_leaves_nothing_of_a_constant_and_nothing_of_a_hole():
    images = torch.full((1, 1, 6, 6), 0.7)
    removed = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    removed[..., 5, 5] = False
    images[removed] = 100.0  # what is removed has no part in what replaces it
    assert_close(linear_imputation(images, removed), torch.full((1, 1, 6, 6), 0.7))
    untouched = torch.zeros_like(removed)
    assert_close(linear_imputation(images, untouched), images, rtol=0, atol=0)


@peers_own_warnings
def test_road_equals_pytorch_grad_cams_without_noise(case):
    found = road(
        case.model, case.images, case.cams, case.targets, percentiles=(25, 50, 75), noise=0, batch_size=3
    )
    # Its percentile says what is kept, of cams of the images' size; 64 pixels are cut where both agree.
    size = case.images.shape[2:]
    cams = torch.nn.functional.interpolate(case.cams, size, mode="bilinear")[:, 0].numpy()
    targets = [ClassifierOutputSoftmaxTarget(int(target)) for target in case.targets]
    imputer = peer.NoisyLinearImputer(noise=0)
    for remove, values in ((RemoveMostRelevantFirst, found.morf), (RemoveLeastRelevantFirst, found.lerf)):
        for column, kept in enumerate((75, 50, 25)):
            metric = PerturbationConfidenceMetric(remove(kept, imputer))
            expected = metric(case.images, cams, targets, case.model, return_diff=False)
            assert_close(values[:, column], torch.from_numpy(np.asarray(expected)), atol=1e-5, rtol=1e-4)
    assert_close(found.combined, ((found.lerf - found.morf) / 2).mean(1))
    assert found.morf.std() > 0.01


def test_a_perfect_map_beats_a_random_one_which_beats_its_inverse():
    weights = torch.randn(9, 9)
    images = weights.sign().expand(16, 1, 9, 9)  # so that surroundings do not replace what is removed
    evidence = weights.abs().expand(16, 1, 9, 9)
    chance = torch.randn(16, 1, 9, 9)
    perfect, random, inverse, nothing = (
        road(Linear(weights / 10), images, maps, 0, score="logit", percentiles=[20, 50]).combined.mean()
        for maps in (evidence, chance, -evidence, torch.zeros(16, 1, 9, 9))
    )
    assert perfect > random + 1 > inverse + 2
    assert abs(nothing) < 0.5  # a random order


def test_noise_depends_on_the_seed_alone(case):
    def call(**options):
        return road(case.model, case.images, case.cams, case.targets, percentiles=[30], **options)

    whole = call(noise=0.1)
    torch.manual_seed(99)
    assert_close(call(noise=0.1, batch_size=1).morf, whole.morf)
    assert not torch.equal(call(noise=0.1, seed=1).morf, whole.morf)
    assert not torch.equal(call(noise=0.0).morf, whole.morf)

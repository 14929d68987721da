"""Infidelity and maximum sensitivity: against Captum, a loop over images and squares, and cases with a known value."""

from __future__ import annotations

import captum.metrics
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum.evaluation.faithfulness import infidelity, max_sensitivity
from batchcam_captum.functional import prepare
from tests.evaluation.networks import Linear


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_of_squares_equals_a_loop(case, normalize):
    options = {"samples": 6, "normalize": normalize, "seed": 5, "side": 0.4, "fill": "mean"}
    given = case.model, case.images, case.cams, case.targets
    found = infidelity(*given, **options)
    small = infidelity(*given, **options, batch_size=4)  # less than the samples
    relative = infidelity(*given, **options, relative=True)
    generator = torch.Generator().manual_seed(5)
    # Three of eight pixels per side.
    top, left = (torch.randint(6, (6, 1), generator=generator).flatten().tolist() for _ in "hw")
    heat = F.interpolate(case.cams, (8, 8), mode="bilinear")
    for row, image in enumerate(case.images):
        predicted, happened = [], []
        for sample in range(6):
            changed = image.clone()
            square = (slice(top[sample], top[sample] + 3), slice(left[sample], left[sample] + 3))
            for channel in range(3):
                changed[channel][square] = image[channel].mean()
            predicted.append(heat[row, 0][square].sum())
            with torch.no_grad():
                before, after = case.model(torch.stack([image, changed]))[:, case.targets[row]]
            happened.append(before - after)
        predicted, happened = torch.stack(predicted), torch.stack(happened)
        if normalize:  # the factor of least squares
            predicted = predicted * torch.linalg.lstsq(predicted[:, None], happened[:, None]).solution.item()
        expected = F.mse_loss(predicted, happened)
        assert_close(found[row], expected, rtol=1e-3, atol=1e-6)
        assert_close(small[row], expected, rtol=1e-3, atol=1e-6)
        assert_close(relative[row], expected / happened.square().mean(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_of_noise_equals_captums(case, normalize):
    options = {"samples": 6, "normalize": normalize, "seed": 5, "perturbation": "noise", "noise_std": 0.3}
    found = infidelity(case.model, case.images, case.cams, case.targets, **options)
    noise = 0.3 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    heat = F.interpolate(case.cams, (8, 8), mode="bilinear").expand_as(case.images)
    for row in range(len(case.images)):
        expected = captum.metrics.infidelity(
            case.model,
            lambda repeated: (noise, repeated - noise),
            case.images[row : row + 1],
            heat[row : row + 1],
            target=int(case.targets[row]),
            n_perturb_samples=6,
            normalize=normalize,
        )
        assert_close(found[row], expected[0], rtol=1e-3, atol=1e-6)


def test_squares_in_one_and_three_dimensions():
    """Every drop of a linear model is a sum over the square, so weights times pixels predict it."""
    for size in ((9,), (5, 4, 6)):
        weights, images = torch.randn(1, *size), torch.rand(2, 1, *size)
        found = infidelity(Linear(weights), images, weights * images, 0, normalize=False, side=0.3)
        assert_close(found, torch.zeros(2), atol=1e-9, rtol=0)


def test_the_weights_of_a_linear_model_are_faithful_and_the_zero_map_is_not():
    weights = torch.randn(1, 1, 5, 5)
    images = torch.rand(3, 1, 5, 5)
    model, maps = Linear(weights[0]), weights.expand(3, 1, 5, 5)
    noise = {"perturbation": "noise"}
    assert_close(
        infidelity(model, images, maps, 0, normalize=False, **noise), torch.zeros(3), atol=1e-9, rtol=0
    )
    assert_close(infidelity(model, images, 7 * maps, 0, **noise), torch.zeros(3), atol=1e-7, rtol=0)
    assert (infidelity(model, images, 7 * maps, 0, normalize=False, **noise) > 1e-2).all()
    for normalize in (True, False):
        nothing = infidelity(model, images, torch.zeros_like(maps), 0, normalize=normalize, relative=True)
        assert_close(nothing, torch.ones(3))
    # The other score is constant: there is nothing to predict.
    assert_close(infidelity(model, images, maps, 1, relative=True), torch.zeros(3))


@pytest.mark.parametrize("normalize", [None, "max"])
def test_max_sensitivity_equals_captums(case, normalize):
    options = {"radius": 0.1, "samples": 5, "normalize": normalize, "seed": 2}
    found = max_sensitivity(case.grad_cam, case.images, case.targets, **options)
    small = max_sensitivity(case.grad_cam, case.images, case.targets, **options, batch_size=3)
    noise = 0.1 * (2 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 1)
    for row in range(len(case.images)):

        def explain(images, row=row):
            cams = case.grad_cam.attribute(images[0], int(case.targets[row]))
            return (cams if normalize is None else prepare(cams).maps,)

        expected = captum.metrics.sensitivity_max(
            lambda images: explain(images if isinstance(images, tuple) else (images,)),
            case.images[row : row + 1],
            lambda repeated: repeated + noise,
            n_perturb_samples=5,
        )
        assert expected > 1e-3
        assert_close(found.values[row], expected[0], rtol=1e-3, atol=1e-5)
        assert_close(small.values[row], expected[0], rtol=1e-3, atol=1e-5)
    assert not found.dead.any()


def test_a_dead_cam_looks_stable_and_is_reported():
    def dead_or_input(images, targets):
        return images.mean(1, keepdim=True) * targets.reshape(-1, 1, 1, 1)

    images = torch.rand(3, 3, 6, 6) + 0.5
    found = max_sensitivity(dead_or_input, images, torch.tensor([-1, 0, 1]), normalize="max")
    assert found.dead.tolist() == [True, True, False]
    assert found.values.tolist()[:2] == [0.0, 0.0]
    assert found.values[2] > 1e-3
    nothing = max_sensitivity(dead_or_input, images[:0], [])
    assert nothing.values.shape == nothing.dead.shape == (0,)


@pytest.mark.parametrize(
    ("explain", "error"),
    [
        (lambda images, targets: [images], TypeError),
        (lambda images, targets: images, ValueError),
        (lambda images, targets: images[:, :1] * float("nan"), ValueError),
        ("layer", TypeError),
    ],
)
def test_anything_but_one_cam_per_image_raises(case, explain, error):
    with pytest.raises(error, match="explain"):
        max_sensitivity(explain, case.images, 0)

"""Insertion and deletion: by hand, against a loop over images and pixels, and for good and bad maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torchvision.transforms.functional import gaussian_blur

from batchcam_captum.evaluation.faithfulness import deletion_curve, filled_images, insertion_curve
from batchcam_captum.functional import pixel_ranks
from tests.evaluation.networks import Case, Linear

WEIGHTS = torch.tensor([[4.0, 1.0], [2.0, 3.0]])


def test_curves_of_a_linear_model_by_hand():
    images, cams = torch.ones(1, 1, 2, 2), WEIGHTS[None, None]
    deletion = deletion_curve(Linear(WEIGHTS), images, cams, 0, steps=4, score="logit")
    assert_close(deletion.curves, torch.tensor([[10.0, 6.0, 3.0, 1.0, 0.0]]))
    assert_close(deletion.auc, torch.tensor([(5 + 6 + 3 + 1 + 0) / 4]))
    insertion = insertion_curve(Linear(WEIGHTS), images, cams, 0, steps=4, score="logit", start="zero")
    assert_close(insertion.curves, torch.tensor([[0.0, 4.0, 7.0, 9.0, 10.0]]))
    assert_close(insertion.auc, torch.tensor([(0 + 4 + 7 + 9 + 5) / 4]))
    # Three steps of four pixels: after 1, 3 and 4 of them, which the area takes into account.
    uneven = deletion_curve(Linear(WEIGHTS), images, cams, [-2], steps=3, score="logit")
    assert_close(uneven.fractions, torch.tensor([0.0, 0.25, 0.75, 1.0]))
    assert_close(uneven.curves, torch.tensor([[10.0, 6.0, 1.0, 0.0]]))
    assert_close(uneven.auc, torch.tensor([8 * 0.25 + 3.5 * 0.5 + 0.5 * 0.25]))


def slow_curve(model, image, cam, target, steps, first, then):
    """One image, pixel by pixel, the model called on each state alone."""
    heat = F.interpolate(cam[None], image.shape[1:], mode={1: "linear", 2: "bilinear"}[cam.dim() - 1])[0, 0]
    places = sorted(np.ndindex(*heat.shape), key=lambda place: -heat[place].item())
    state, curve, done = first.clone(), [], 0
    for step in range(steps + 1):
        for place in places[done : round(step * len(places) / steps)]:
            state[(slice(None), *place)] = then[(slice(None), *place)]
            done += 1
        with torch.no_grad():
            curve.append(model(state[None]).softmax(1)[0, target].item())
    return curve


@pytest.mark.parametrize(("dims", "fill", "steps"), [(2, "blur", 8), (2, "mean", 16), (1, "zero", 4)])
def test_curves_equal_a_loop_over_images_and_pixels(dims, fill, steps):
    case = Case(dims=dims)
    if fill == "blur":
        absent = gaussian_blur(case.images, [11, 11], [5.0, 5.0])
    else:
        absent = torch.zeros_like(case.images)
        if fill == "mean":
            absent += case.images.mean((2, 3), keepdim=True)
    fast = insertion_curve(
        case.model, case.images, case.cams, case.targets, steps=steps, start=fill, batch_size=3
    )
    gone = deletion_curve(case.model, case.images, case.cams, case.targets, steps=steps, fill=fill)
    for row in range(len(case.images)):
        args = case.model, case.images[row], case.cams[row], case.targets[row].item(), steps
        inserted = slow_curve(*args, absent[row], case.images[row])
        deleted = slow_curve(*args, case.images[row], absent[row])
        assert_close(fast.curves[row], torch.tensor(inserted), atol=1e-5, rtol=1e-5)
        assert_close(gone.curves[row], torch.tensor(deleted), atol=1e-5, rtol=1e-5)
        area = np.trapezoid(inserted, np.linspace(0, 1, steps + 1))
        assert_close(fast.auc[row].item(), float(area), atol=1e-5, rtol=1e-5)


def test_one_forward_a_step_and_batch():
    model = Linear(torch.randn(4, 4))
    images, cams = torch.rand(7, 1, 4, 4), torch.randn(7, 1, 2, 2)
    whole = deletion_curve(model, images, cams, 0, steps=5)
    assert model.forwards == 6
    pieces = deletion_curve(model, images, cams, 0, steps=5, batch_size=3)
    assert model.forwards == 6 + 3 * 6
    assert_close(pieces.curves, whole.curves)
    nothing = deletion_curve(model, images[:0], cams[:0], [], steps=5)
    assert nothing.auc.shape == (0,)
    assert nothing.curves.shape == (0, 6)


def test_an_all_zero_map_gets_what_a_random_order_gets():
    weights = torch.linspace(1, 0, 16).reshape(4, 4) / 4  # in rows it would be the perfect order
    images = torch.ones(2, 1, 4, 4)
    zero = deletion_curve(Linear(weights), images, torch.zeros(2, 1, 4, 4), 0, steps=16)
    shuffled = -pixel_ranks(torch.zeros(1, 16)).reshape(1, 1, 4, 4).float().expand(2, 1, 4, 4)
    assert_close(zero.curves, deletion_curve(Linear(weights), images, shuffled, 0, steps=16).curves)
    perfect = deletion_curve(Linear(weights), images, weights.expand(2, 1, 4, 4), 0, steps=16)
    assert (zero.auc > perfect.auc + 0.01).all()


def test_fill_of_a_given_value():
    images = torch.rand(2, 3, 4, 4)
    black = torch.tensor([-1.0, -2.0, -3.0]).reshape(3, 1, 1)
    assert_close(filled_images(images, black), black.expand(2, 3, 4, 4))
    assert filled_images(images, "blur").std() < images.std() / 3  # 4 pixels: a window of 7


def test_small_images_take_as_many_steps_as_they_have_pixels(case):
    few = insertion_curve(case.model.__class__().eval(), case.images, case.cams, 0)
    assert few.curves.shape == (4, 29)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    assert insertion_curve(linear, torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3), 0).curves.shape == (2, 10)

"""Warnings name the user's line, from however deep in the package they come."""

import inspect

import pytest
import torch
from torch import nn

from batchcam_captum import BatchGradCam, CamRegularizer
from batchcam_captum.prototypes import ForegroundPrototypes
from batchcam_captum.training import recipe_losses


def by_class(loader):
    ForegroundPrototypes.from_loader(loader, 2, progress=False)


def by_recipe(loader):
    recipe_losses(loader, 2, progress=False)


def by_regularizer(loader):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 2))
    CamRegularizer.from_loader(BatchGradCam(model, model[1]), loader, 2, progress=False)


@pytest.mark.parametrize("call", [by_class, by_recipe, by_regularizer])
def test_images_without_a_foreground_are_warned_of_at_the_line_of_the_call(call):
    loader = [(torch.zeros(4, 1, 8, 8), torch.arange(4) % 2)]
    with pytest.warns(UserWarning, match="lower lit= or share=") as caught:
        call(loader)
    lines, first = inspect.getsourcelines(call)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, first + len(lines) - 1)]

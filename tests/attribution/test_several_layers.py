"""Several layers in one pass: the maps of each, from one forward and one gradient."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from batchcam_captum import BatchGradCam
from tests.models import SmallCnn, strong_heads


class Nested(nn.Module):
    """Layers one after the other, one inside another, and one on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh())
        self.branch = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, images):
        stem = self.first(images)
        return self.head((self.block(stem) + self.branch(stem)).tanh().mean((2, 3)))


NAMES = ["branch", "block.0", "first", "block"]


@pytest.fixture
def model():
    return strong_heads(Nested()).double()


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_each_map_equals_that_of_its_layer_alone(model, at_input, differentiable):
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    arguments = {"target": [0, 4, 2], "attribute_to_layer_input": at_input, "differentiable": differentiable}
    together = BatchGradCam(model, NAMES).attribute(images, **arguments)
    assert isinstance(together, list)
    for name, cams in zip(NAMES, together, strict=True):
        alone = BatchGradCam(model, name).attribute(images, **arguments)
        assert alone.abs().max() > 1e-4
        torch.testing.assert_close(cams, alone)
        if differentiable:
            ours, theirs = (
                torch.autograd.grad(maps.square().sum(), model.head.weight, retain_graph=True)[0]
                for maps in (cams, alone)
            )
            assert ours.abs().max() > 0
            torch.testing.assert_close(ours, theirs)


def test_there_is_one_forward_and_one_gradient(model, monkeypatch):
    forwards, gradients = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    original = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: gradients.append(1) or original(*args, **kwargs)
    )
    BatchGradCam(model, NAMES).attribute(torch.randn(2, 3, 8, 8, dtype=torch.double), target=0)
    assert (len(forwards), len(gradients)) == (1, 1)


def test_one_layer_in_a_list_gives_a_list_of_one():
    model = SmallCnn()
    (cams,) = BatchGradCam(model, [model.layer]).attribute(torch.randn(2, 3, 12, 12), target=0)
    assert torch.equal(cams.isfinite(), torch.ones_like(cams, dtype=torch.bool))


def test_an_empty_list_and_a_layer_listed_twice_are_refused(model):
    with pytest.raises(ValueError, match="layer: expected at least one layer, got an empty list"):
        BatchGradCam(model, [])
    with pytest.raises(ValueError, match="layer: expected each layer once, got Conv2d again at position 2"):
        BatchGradCam(model, ["first", "block", model.first])


class LateIdentity(nn.Module):
    """A branch with a layer of its own comes between two uses of the stem, the second through an Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.before = nn.Conv2d(4, 4, 1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.identity = nn.Identity()
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        stem = self.stem(images)
        before = self.before(stem).tanh()
        return self.head((self.branch(stem) + self.identity(stem) * before).mean((2, 3)))


def test_what_was_used_before_any_of_the_layers_counts():
    model = strong_heads(LateIdentity()).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    names = ["branch", "identity"]
    for name, cams in zip(names, BatchGradCam(model, names).attribute(images, target=1), strict=True):
        expected = LayerGradCam(model, model.get_submodule(name)).attribute(images, target=1)
        torch.testing.assert_close(cams, expected.detach())

"""CamRegularizer.evaluate: the values of a validation batch, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ImageLoss,
    PrototypeLoss,
)
from tests.training.models import (
    K,
    Net,
    batch,
    captured,
    hooks_of,
    objective,
    prototypes,
    regularizer_of,
)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_evaluate_leaves_everything_as_it_was(context, training):
    model, (images, labels) = Net().train(training), batch()
    regularizer = regularizer_of(model)
    objective(regularizer, model, images, labels).backward()
    values = dict(regularizer.values)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    rng = torch.get_rng_state()
    with context():
        result = regularizer.evaluate(images.clone(), labels.clone())  # made inside, as a loader does
        assert not any(value.requires_grad for value in result.values())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training is training
    assert hooks_of(model) == 0
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, model.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert regularizer.values == values


def test_evaluate_equals_the_training_values_in_eval_mode():
    model, (images, labels) = Net().eval(), batch()
    terms = {"a": PrototypeLoss(prototypes()), "b": (ImageLoss(), 0.1)}
    regularizer = regularizer_of(model, terms)
    regularizer(captured(regularizer, images), labels, images=images)
    result = regularizer.evaluate(images, labels)
    assert result.keys() == regularizer.values.keys()
    for name, value in result.items():
        assert_close(value, regularizer.values[name])


def test_evaluate_says_what_is_wrong_with_the_layer_and_the_labels():
    model, (images, labels) = Net(), batch()
    elsewhere = CamRegularizer(BatchGradCam(model, nn.Conv2d(1, 1, 1)), BatchCamLoss(prototypes()))
    with pytest.raises(RuntimeError, match="got no run"):
        elsewhere.evaluate(images, labels)
    with pytest.raises(ValueError, match="labels: expected a tensor on cpu"):
        regularizer_of(model).evaluate(images, labels.to("meta"))

    class Two(nn.Module):
        def forward(self, activations):
            return activations, activations * 2

    several = nn.Sequential(nn.Conv2d(1, 2, 3), Two(), Sum(), nn.Flatten(), nn.Linear(72, K))
    regularizer = CamRegularizer(BatchGradCam(several, several[1]), BatchCamLoss(prototypes()))
    with pytest.raises(ValueError, match="Two: expected a single tensor"):
        regularizer.evaluate(images, labels)


class Sum(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


def test_evaluate_keeps_no_graph_before_the_layer():
    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(model)
    saved = []

    def note(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        regularizer.evaluate(images, labels)
    assert tuple(images.shape) not in saved, "the first convolution keeps its input only where it is recorded"
    assert saved

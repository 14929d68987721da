"""What a CamRegularizer saves, copies and owns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    ClassPrototypes,
)
from tests.training.models import (
    K,
    Net,
    batch,
    captured,
    regularizer_of,
)


def test_state_dict_holds_prototypes_and_steps_and_nothing_of_the_model():
    model = Net()
    regularizer = regularizer_of(model)
    regularizer.step()
    assert not list(regularizer.parameters())
    state = regularizer.state_dict()
    assert set(state) == {
        "_extra_state",
        "terms.batch_cam.prototypes.values",
        "terms.batch_cam.prototypes.counts",
    }
    other = regularizer_of(Net(), BatchCamLoss(ClassPrototypes(K)))
    other.load_state_dict(state)
    assert other.steps == 1
    assert torch.equal(other.terms["batch_cam"].prototypes.values, state["terms.batch_cam.prototypes.values"])


def test_regularizer_is_no_part_of_the_model():
    model = Net()
    regularizer = regularizer_of(model).half().eval()
    assert model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any(isinstance(module, Net) for module in regularizer.modules())


@pytest.mark.parametrize("when", ["inside the block", "after it"])
def test_a_held_capture_survives_deepcopy_and_pickle(when, tmp_path):
    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(model)
    copies = []

    def copied():
        copies.append(copy.deepcopy(regularizer))
        torch.save(regularizer, tmp_path / "regularizer.pt")
        copies.append(torch.load(tmp_path / "regularizer.pt", weights_only=False))

    with regularizer:
        scores = model(images)
        if when == "inside the block":
            copied()
    if when == "after it":
        copied()
    expected = regularizer(scores, labels)
    for other in copies:
        network = other.grad_cam.forward_func
        assert network is not model
        with pytest.raises(RuntimeError, match="got none"):
            other(scores, labels)
        assert_close(other(captured(other, images), labels), expected)
        assert isinstance(network, nn.Module)

"""Bad input gets an error that says what was expected, what came and what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from tests.models import SmallCnn


@pytest.mark.parametrize("method", ["attribute", "attribute_with_scores"])
def test_a_layer_that_the_forward_never_reaches(method: str) -> None:
    model = SmallCnn()
    grad_cam = BatchGradCam(model, nn.Conv2d(3, 3, 1))
    with pytest.raises(
        RuntimeError, match=r"Conv2d: expected a layer that the forward runs through, got no run of it"
    ):
        getattr(grad_cam, method)(torch.randn(2, 3, 9, 9), 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("layers", "expected the name of a layer of SmallCnn, got 'layers'; it has layer"),
        ("stem.7", "got 'stem.7'; it has stem, stem.0, stem.1, stem.2"),
        ("backbone.layer", "got 'backbone.layer'; it has layer"),
        ("nonsense", "got 'nonsense'; it has"),
    ],
)
def test_an_unknown_layer_name_gets_suggestions(name: str, text: str) -> None:
    with pytest.raises(ValueError, match="^layer: .*" + re.escape(text)):
        BatchGradCam(SmallCnn(), name)


def test_a_layer_name_finds_the_layer() -> None:
    model = SmallCnn()
    assert BatchGradCam(model, "tail.1").layer is model.tail[1]


def test_a_layer_name_needs_a_module() -> None:
    model = SmallCnn()
    with pytest.raises(
        TypeError, match=r"got the name 'layer' with a forward_func that is no module; pass the module"
    ):
        BatchGradCam(lambda x: model(x), "layer")


@pytest.mark.parametrize("layer", [None, 3, torch.zeros(1)], ids=repr)
def test_a_layer_of_the_wrong_type(layer: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^layer: expected a torch.nn.Module or its name, got {type(layer).__name__}"
    ):
        BatchGradCam(SmallCnn(), layer)
    with pytest.raises(TypeError, match=rf"^layer: expected a torch.nn.Module, got {type(layer).__name__}"):
        LayerCapture(layer)


@pytest.mark.parametrize(
    "wrap", [lambda scores: {"logits": scores}, lambda scores: (scores,)], ids=["dict", "tuple"]
)
def test_an_output_that_is_no_tensor(wrap: Any) -> None:
    model = SmallCnn()
    kind = type(wrap(None)).__name__
    with pytest.raises(
        TypeError, match=f"^forward_func: expected a tensor of scores, got {kind}; wrap the model"
    ):
        BatchGradCam(lambda x: wrap(model(x)), model.layer).attribute(torch.randn(2, 3, 9, 9), 1)


def test_scores_without_a_batch_dimension() -> None:
    model = SmallCnn()
    with pytest.raises(ValueError, match=r"^target: .*got shape \(\)"):
        BatchGradCam(lambda x: model(x).sum(), model.layer).attribute(torch.randn(2, 3, 9, 9))


def test_scores_that_do_not_depend_on_the_layer() -> None:
    model = SmallCnn()

    def forward(x: Tensor) -> Tensor:
        model.layer(model.stem(x))
        return model.stem(x).mean((2, 3))

    with pytest.raises(
        RuntimeError, match=r"^scores: expected scores that were computed from the captured activations"
    ):
        BatchGradCam(forward, model.layer).attribute(torch.randn(2, 3, 9, 9), 1)


@pytest.mark.parametrize("change", [torch.Tensor.detach, torch.Tensor.argmax], ids=["detached", "argmax"])
def test_scores_without_a_graph(change: Any) -> None:
    model = SmallCnn()

    def forward(x: Tensor) -> Tensor:
        return change(model(x)) if change is torch.Tensor.detach else model(x).argmax(1)

    target = 1 if change is torch.Tensor.detach else None
    with pytest.raises(RuntimeError, match=r"^scores: expected scores with a graph, got scores without one"):
        BatchGradCam(forward, model.layer).attribute(torch.randn(2, 3, 9, 9), target)


class Returns(nn.Module):
    """Returns what it was made with, and passes its input on beside it."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    "value", [None, {"maps": torch.ones(1)}, "text", torch.zeros(2, 1).long(), ()], ids=repr
)
def test_a_layer_that_returns_no_floating_tensor(value: Any) -> None:
    model, odd = SmallCnn(), Returns(value)

    def forward(x: Tensor) -> Tensor:
        odd(x)
        return model(x)

    text = rf"^Returns: expected a layer that returns a floating tensor.*got {type(value).__name__}; choose a layer inside"
    with pytest.raises(TypeError, match=text):
        BatchGradCam(forward, odd).attribute(torch.randn(2, 3, 9, 9), 1)
    with pytest.raises(TypeError, match=text), LayerCapture(odd) as capture:
        forward(torch.randn(2, 3, 9, 9))
    assert not odd._forward_hooks
    with pytest.raises(RuntimeError, match="got none"):
        _ = capture.activations


def test_a_layer_that_receives_no_floating_tensor() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.Linear(24, 5))
    with pytest.raises(
        TypeError, match=r"^Embedding: expected a floating tensor among the layer's positional arguments"
    ):
        BatchGradCam(model, model[0]).attribute(torch.zeros(2, 4).long(), 1, attribute_to_layer_input=True)


def test_a_layer_without_channels() -> None:
    model = SmallCnn()
    flat = nn.Flatten(0)

    def forward(x: Tensor) -> Tensor:
        return flat(model(x)).reshape(2, 5)

    with pytest.raises(ValueError, match=r"^Flatten: expected activations \(N, C, \*spatial\), got \(10,\)"):
        BatchGradCam(forward, flat).attribute(torch.randn(2, 3, 9, 9), 1)


def test_batched_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    with pytest.raises(ValueError, match="is_grads_batched=True, which has no cam"):
        BatchGradCam(model, model[0]).attribute(
            torch.randn(2, 3, 8, 8), target=0, grad_kwargs={"is_grads_batched": True}
        )

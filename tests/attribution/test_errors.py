"""Bad input gets an error that says what was expected, what came and what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from tests.models import DenseNetOutput, SmallCnn, frozen

BAD_TARGETS: dict[str, tuple[Any, type[Exception], str]] = {
    "list_too_short": (
        [0, 1],
        ValueError,
        "expected 3 entries, one a sample, got a list of 2; pass a single integer",
    ),
    "list_too_long": ([0] * 4, ValueError, "expected 3 entries, one a sample, got a list of 4"),
    "empty_list": ([], ValueError, "expected 3 entries, one a sample, got a list of 0"),
    "tensor_too_short": (
        torch.zeros(2, dtype=torch.long),
        ValueError,
        "expected shape (3,), got (2,); pass one class index",
    ),
    "one_hot": (
        torch.eye(5, dtype=torch.long)[:3],
        ValueError,
        "expected shape (3,), got (3, 5); pass class indices, not one-hot rows",
    ),
    "column": (
        torch.zeros(3, 1, dtype=torch.long),
        ValueError,
        "expected shape (3,), got (3, 1); pass one class index",
    ),
    "too_large": (5, ValueError, "expected indices from -5 to 4, got 5; the model returns 5 scores"),
    "too_small": (-6, ValueError, "expected indices from -5 to 4, got -6"),
    "too_large_in_list": ([0, 7, 1], ValueError, "expected indices from -5 to 4, got 7"),
    "too_large_in_tensor": (torch.tensor([0, 1, -9]), ValueError, "expected indices from -5 to 4, got -9"),
    "too_large_in_one_element": (torch.tensor(8), ValueError, "expected indices from -5 to 4, got 8"),
    "too_large_in_tuple": ((5,), ValueError, "expected indices from -5 to 4, got 5"),
    "too_large_in_list_of_tuples": ([(0,), (5,), (1,)], ValueError, "expected indices from -5 to 4, got 5"),
    "float_tensor": (torch.rand(3), TypeError, "expected integers, got torch.float32; pass class indices"),
    "soft_labels": (torch.rand(3, 5), TypeError, "expected integers, got torch.float32"),
    "bool_tensor": (torch.ones(3, dtype=torch.bool), TypeError, "expected integers, got torch.bool"),
    "string": (
        "cat",
        TypeError,
        "expected None, an integer, a tuple, a list, a tensor or a function, got str",
    ),
    "float": (
        1.0,
        TypeError,
        "expected None, an integer, a tuple, a list, a tensor or a function, got float",
    ),
    "floats_in_list": (
        [0.0, 1.0, 2.0],
        TypeError,
        "expected a list of integers, of tuples or of functions, got a list of float",
    ),
    "mixed_list": (
        [0, (1,), 2],
        TypeError,
        "expected a list of integers, of tuples or of functions, got a list of int, tuple",
    ),
    "too_many_indices": (
        (0, 1),
        ValueError,
        "expected at most 1 indices for an output of shape (3, 5), got (0, 1)",
    ),
    "too_many_indices_in_list": (
        [(0, 1)] * 3,
        ValueError,
        "expected tuples of at most 1 indices for an output of shape (3, 5)",
    ),
    "lengths_differ": ([(0,), (0, 1), (0,)], ValueError, "expected tuples of integers of one length"),
    "floats_in_tuples": ([(0.0,)] * 3, ValueError, "expected tuples of integers of one length"),
    "slices_differ": (
        [(slice(0, 1),), (slice(0, 2),), (slice(0, 1),)],
        ValueError,
        "slices that select as much in every",
    ),
    "slice_of_several": (
        (slice(0, 2),),
        ValueError,
        "expected one score a sample, got shape (3, 2) for target",
    ),
    "missing": (
        None,
        ValueError,
        "expected one score a sample, got shape (3, 5) for no target and an output of shape (3, 5)",
    ),
}


@pytest.mark.parametrize(("target", "error", "text"), BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_targets_that_do_not_fit(target: Any, error: type[Exception], text: str, is_frozen: bool) -> None:
    model = SmallCnn()
    if is_frozen:
        frozen(model)
    with pytest.raises(error, match="^target: .*" + re.escape(text)):
        BatchGradCam(model, model.layer).attribute(torch.randn(3, 3, 9, 9), target)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            1,
            "expected one score a sample, got shape (3, 3, 3) for target 1 and an output of shape (3, 5, 3, 3)",
        ),
        ([0, 1, 2], "expected tuples of 3 indices for an output of shape (3, 5, 3, 3), got integers"),
        (
            torch.tensor([0, 1, 2]),
            "expected tuples of 3 indices for an output of shape (3, 5, 3, 3), got integers",
        ),
        ((1, 2), "expected one score a sample, got shape (3, 3) for target (1, 2)"),
        ([(1, 2)] * 3, "expected one score a sample, got shape (3, 3)"),
        ((1, 3, 0), "expected indices from -3 to 2, got 3"),
        ((1, 0, 0, 0), "expected at most 3 indices"),
    ],
    ids=str,
)
def test_targets_that_do_not_fit_outputs_with_places(target: Any, text: str) -> None:
    model = DenseNetOutput()
    with pytest.raises(ValueError, match="^target: .*" + re.escape(text)):
        BatchGradCam(model, model.layer).attribute(torch.randn(3, 3, 8, 8), target)


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
    with pytest.raises(ValueError, match=r"expected one score a sample, got shape \(\) for no target"):
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

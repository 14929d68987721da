"""Scores inside of dictionaries, tuples and objects: found by name, position or function, and errors that list what is there."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, MaskTarget
from batchcam_captum.attribution import pick_output
from tests.attribution.captum_parity import assert_close_to
from tests.models import DenseNetOutput, SmallCnn

Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


class WithLoss(NamedTuple):
    loss: Tensor | None
    logits: Tensor


@dataclass
class Fields:
    logits: Tensor
    features: Tensor | None = None


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As Hugging Face's outputs behave: fields that are None are no keys; read by key, field and position."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


#: What a model makes of its scores, and every picker that finds them.
CONTAINERS: dict[str, tuple[Callable[[Tensor], Any], list[Any]]] = {
    "tensor": (lambda s: s, [None, "logits", lambda output: output]),
    "dict": (lambda s: {"aux": s * 2, "logits": s}, ["logits", lambda output: output["logits"]]),
    "dict_by_number": (lambda s: {7: s}, [7]),
    "ordered_dict": (lambda s: OrderedDict(out=s, aux=-s), ["out"]),
    "tuple": (lambda s: (s * 2, s), [1, -1, lambda output: output[1]]),
    "list": (lambda s: [s], [0]),
    "named_tuple": (lambda s: Outputs(s, s * 2), ["logits", 0, lambda output: output.logits]),
    "named_tuple_with_none": (lambda s: WithLoss(None, s), ["logits", 1]),
    "dataclass": (lambda s: Fields(s), ["logits"]),
    "object": (lambda s: SimpleNamespace(logits=s), ["logits"]),
    "model_output": (lambda s: ModelOutput(logits=s), ["logits", 0, lambda output: output.logits]),
    "model_output_with_states": (
        lambda s: ModelOutput(logits=s, hidden_states=(s,)),
        ["logits", 0, lambda output: output[:1][0]],
    ),
}


@pytest.mark.parametrize(
    ("wrap", "picker"),
    [
        pytest.param(wrap, picker, id=f"{name}-{picker if not callable(picker) else 'function'}")
        for name, (wrap, pickers) in CONTAINERS.items()
        for picker in pickers
    ],
)
def test_the_scores_are_found_with_their_graph(wrap: Any, picker: Any) -> None:
    model = SmallCnn().double()
    images = torch.randn(3, 3, 9, 9).double()
    scores = model(images)
    assert pick_output(wrap(scores), picker) is scores
    expected = LayerGradCam(model, model.layer).attribute(images.clone(), [0, 4, 2])
    grad_cam = BatchGradCam(lambda x: wrap(model(x)), model.layer, output=picker)
    cams, found = grad_cam.attribute_with_scores(images, [0, 4, 2])
    assert_close_to(cams, expected, torch.float64)
    torch.testing.assert_close(found, scores.detach())
    # attribute_classes reads the same part.
    torch.testing.assert_close(grad_cam.attribute_classes(images)[:, 4], grad_cam.attribute(images, 4)[:, 0])


class Segmenter(nn.Module):
    """As torchvision's segmentation models: a dictionary with two maps of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DenseNetOutput()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.net(x)
        return OrderedDict(out=out, aux=out.flip(1))


@pytest.mark.parametrize("wrapper", [lambda model: model, nn.DataParallel], ids=["plain", "data_parallel"])
def test_a_segmentation_models_mask(wrapper: Any) -> None:
    model = Segmenter().double()
    images, mask = torch.randn(2, 3, 8, 8).double(), torch.rand(2, 3, 3) > 0.5
    expected = LayerGradCam(lambda x: (model(x)["aux"][:, 1] * mask).sum((1, 2)), model.net.layer).attribute(
        images.clone()
    )
    grad_cam = BatchGradCam(wrapper(model), model.net.layer, output="aux")
    assert_close_to(grad_cam.attribute(images, MaskTarget(1, mask)), expected, torch.float64)


@pytest.mark.parametrize("training", [False, True])
def test_a_name_works_whether_a_model_trains_or_not(training: bool) -> None:
    # Inception and GoogLeNet return a named tuple in train mode, and the scores themselves in eval mode.
    class Net(SmallCnn):
        def forward(self, x: Tensor) -> Any:
            scores = super().forward(x)
            return Outputs(scores, scores.square()) if self.training else scores

    model = Net().train(training)
    images = torch.randn(2, 3, 9, 9)
    cams = BatchGradCam(model, model.layer, output="logits").attribute(images, 1)
    assert cams.equal(BatchGradCam(model.eval(), model.layer).attribute(images, 1))
    assert cams.abs().max() > 1e-3


T = torch.zeros(2, 5)
#: Output, picker, and what the error names.
ERRORS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "none_dict": (
        {"aux": T, "logits": T},
        None,
        TypeError,
        "forward_func: .* dict.* output='logits'.* 'aux' a tensor",
    ),
    "none_other_names": (
        {"loss": None, "y": T},
        None,
        TypeError,
        "forward_func: .* output='y'.* 'loss' None",
    ),
    "none_out": ({"aux": T, "out": T}, None, TypeError, "forward_func: .* output='out'"),
    "none_tuple": ((None, T), None, TypeError, "forward_func: .* output=1.* 0 None, 1 a tensor"),
    "none_named_tuple": (Outputs(T, T), None, TypeError, "forward_func: .* output='logits'.* Outputs"),
    "none_model_output": (ModelOutput(logits=T), None, TypeError, "forward_func: .* output='logits'"),
    "none_dataclass": (Fields(T), None, TypeError, "forward_func: .* 'logits' a tensor .* 'features' None"),
    "none_nothing": (None, None, TypeError, "forward_func: .* got None"),
    "none_list_of_dicts": ([{"boxes": T}], None, TypeError, "forward_func: .* got list"),
    "many": ({f"p{i}": T for i in range(14)}, None, TypeError, "'p11' a tensor .* and 2 more"),
    "wrong_key": ({"out": T}, "logits", ValueError, "output: .* got 'logits'.* 'out'"),
    "wrong_field": (Outputs(T, T), "out", ValueError, "output: .* got 'out'.* 'logits'"),
    "method_of_a_dict": ({"out": T}, "values", ValueError, "output: .* got 'values'"),
    "wrong_position": ((T,), 1, ValueError, "output: .* got 1"),
    "position_in_a_dict": ({"out": T}, 0, ValueError, "output: .* got 0.* 'out'"),
    "position_in_an_object": (Fields(T), 0, ValueError, "output: .* got 0.* Fields"),
    "position_in_a_tensor": (T, 0, ValueError, "output: .* position 0 and a tensor"),
    "no_scores": (WithLoss(None, T), "loss", TypeError, "output='loss': .* got None"),
    "absent_field": (ModelOutput(logits=T), "loss", TypeError, "output='loss': .* got None"),
    "no_scores_at": ((T, 3), 1, TypeError, "output=1: .* got int"),
    "function": ((T,), lambda output: output, TypeError, "output: .* got tuple"),
    "kind": (T, 1.0, TypeError, "output: .* got float"),
    "bool": ((T, T), True, TypeError, "output: .* got bool"),
}


@pytest.mark.parametrize(("output", "picker", "error", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_what_is_there(output: Any, picker: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pick_output(output, picker)


def test_a_picker_of_a_wrong_type_is_noticed_at_once() -> None:
    model = SmallCnn()
    with pytest.raises(TypeError, match=r"^output: .* got float"):
        BatchGradCam(model, model.layer, output=0.0)

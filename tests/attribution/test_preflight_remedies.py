"""The layers that ``check`` and the errors advise are ones that can be explained, and their sentences read well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, check, suggest_layers
from batchcam_captum.attribution.second_order import second_order_message, training_error
from tests.models import SmallCnn, strong_heads

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
COMPILED = "code of torch.compile"


def test_after_a_batch_norm_a_whole_block_is_advised() -> None:
    """Not the norm in it: the map of the last ``bn2`` misses what takes the shortcut."""
    model = torchvision.models.resnet18(num_classes=5).train()
    images = torch.randn(3, 3, 128, 128)
    report = check(model, "layer3", images)
    (finding,) = report.about("batch_norm")
    assert (
        "with eval(), or explain a layer from 'layer4' on, where its maps have at least 4 x 4"
        in finding.message
    )
    assert not check(model, "layer4", images).about("batch_norm")


def test_where_no_layer_follows_the_batch_norm() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)
    ).train()
    (finding,) = check(model, "0", IMAGES).about("batch_norm")
    assert "explain a layer" not in finding.message
    assert "switch it to running statistics with eval()" in finding.message


@pytest.mark.parametrize(
    "options", [{"method": "layer_cam"}, {"method": "grad_cam"}, {"reshape": "auto"}, {"output": 0}]
)
def test_options_beside_a_grad_cam(options: Any) -> None:
    grad_cam = BatchGradCam(SmallCnn().eval(), "layer")
    (name,) = options
    with pytest.raises(TypeError, match=rf"check: expected no {name} beside a BatchGradCam, .* got {name}="):
        check(grad_cam, IMAGES, **options)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match=r"batch: expected one sample or more, got \(0, 3, 16, 16\)"):
        check(SmallCnn().eval(), "layer", IMAGES[:0])


class Segments(nn.Module):
    """Dense scores that a layer before the last operator makes, right after one without a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.classifier = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.classifier(nn.functional.hardsigmoid(self.layer(images)))
        return nn.functional.interpolate(scores, scale_factor=2)


def test_dense_scores_are_never_advised() -> None:
    (finding,) = check(Segments().eval(), "layer", IMAGES, target=(0, 0, 0)).about("second_order")
    assert "no later layer with places works: replace the operator" in finding.message
    grad_cam = BatchGradCam(Segments().eval(), "layer")
    with pytest.raises(RuntimeError, match="no later layer with places works: replace the operator"):
        grad_cam.attribute(IMAGES, (0, 0, 0), differentiable=True)


def test_sentences_of_missing_second_derivatives() -> None:
    assert (
        "choose 'b', the nearest later layer that works, or replace the operator ("
        in second_order_message("one", "a", "b")
    )
    assert "no later layer with places works: replace the operator (" in second_order_message(
        "one", "a", None
    )
    for text in (second_order_message(COMPILED, "a", None), str(training_error(COMPILED, "a"))):
        assert 'torch.compiler.set_stance("force_eager")' in text
        assert "replace the operator" not in text
        assert "check(model" not in text


def test_hooks_of_our_own_are_not_reported() -> None:
    model = SmallCnn().eval()
    compiled = torch.compile(model, backend="eager")
    report = check(lambda images: compiled(images), model.layer, IMAGES)
    assert not report.about("warning")
    torch._dynamo.reset()


def test_what_is_printed_names_the_output() -> None:
    class Mapped(SmallCnn):
        def forward(self, images: Tensor) -> Any:
            return {"logits": super().forward(images), "other": images}

    def pick(output: dict[str, Tensor]) -> Tensor:
        return output["logits"]

    for output, written in (("logits", 'output="logits"'), (pick, "output=pick")):
        found = suggest_layers(Mapped().eval(), IMAGES, output=output)
        assert str(found).splitlines()[-1].endswith(f", {written})")
        assert str(found[:1]).splitlines()[-1].endswith(f", {written})")
    assert "output=" not in str(suggest_layers(SmallCnn().eval(), IMAGES))


def test_a_layer_of_plain_scores_is_still_advised() -> None:
    """Its channels may be as many as the classes."""
    model = strong_heads(
        nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.Hardsigmoid(), nn.Conv2d(5, 5, 3), nn.Flatten(), nn.Linear(720, 5)
        )
    ).eval()
    (finding,) = check(model, "0", IMAGES).about("second_order")
    assert "choose '1'" in finding.message

"""What ``check`` reports, each against a network that has the fault and one that has not, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchGradCam, check
from batchcam_captum.attribution import CheckReport, Finding
from batchcam_captum.functional import math_attention
from tests.models import RepeatedNet, SmallCnn, TupleNet, VectorNet, strong_heads

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def found(report: CheckReport) -> list[tuple[str, str]]:
    return [(finding.severity, finding.topic) for finding in report.findings]


def message(report: CheckReport, topic: Any) -> str:
    (finding,) = report.about(topic)
    return finding.message


def plain(*after: nn.Module) -> nn.Sequential:
    """A convolution, ``after``, and a head."""
    return strong_heads(
        nn.Sequential(nn.Conv2d(3, 4, 3), *after, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))
    ).eval()


def test_nothing_to_remark() -> None:
    model = SmallCnn().eval()
    report = check(model, model.layer, IMAGES, [0, 1, 2, 3])
    cams = BatchGradCam(model, model.layer).attribute(IMAGES, [0, 1, 2, 3])
    dead = (cams.amax((1, 2, 3)) <= 1e-3 * cams.abs().amax((1, 2, 3))).float().mean().item()
    assert report.ok
    assert report.map_size == tuple(cams.shape[2:])
    assert report.dead_fraction == dead
    assert all(severity == "note" for severity, _ in found(report))


@pytest.mark.parametrize("target", [None, torch.arange(4)])
def test_a_grad_cam_in_place_of_model_and_layer(target: Any) -> None:
    model = SmallCnn().eval()
    grad_cam = BatchGradCam(model, "layer", method="hires_cam")
    reports = [
        check(model, "layer", IMAGES, target, method="hires_cam"),
        check(grad_cam, IMAGES, target),
        check(grad_cam, batch=IMAGES, target=target),
    ]
    assert len({str(report) for report in reports}) == 1
    assert len({report.dead_fraction for report in reports}) == 1


def test_the_default_target_is_the_highest_score() -> None:
    model = SmallCnn().eval()
    assert str(check(model, "layer", IMAGES)) == str(check(model, "layer", IMAGES, model(IMAGES).argmax(1)))


# Compiled code, and checkpointing.


@pytest.mark.filterwarnings("error")
def test_a_compiled_model() -> None:
    model = SmallCnn().eval()
    report = check(torch.compile(model, backend="eager"), model.layer, IMAGES)
    assert found(report)[0] == ("error", "compiled")
    assert "model._orig_mod" in message(report, "compiled")


def test_a_compiled_part_after_the_layer() -> None:
    model = SmallCnn().eval()
    model.tail.compile(backend="aot_eager")
    report = check(model, model.layer, IMAGES)
    assert report.ok
    assert ("warning", "compiled") in found(report)
    assert 'torch.compiler.set_stance("force_eager")' in message(report, "compiled")
    assert BatchGradCam(model, model.layer).attribute(IMAGES, 0, differentiable=True).requires_grad
    model = SmallCnn().eval()
    model.stem.compile(backend="aot_eager")
    assert not check(model, model.layer, IMAGES).about("compiled")


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.stem, self.layer, self.tail = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = strong_heads(nn.Linear(4, 5))
        self.use_reentrant = use_reentrant

    def forward(self, images: Tensor) -> Tensor:
        maps = checkpoint(self.layer, self.stem(images), use_reentrant=self.use_reentrant)
        return self.head(self.tail(maps).tanh().mean((2, 3)))


@pytest.mark.parametrize("layer", ["stem", "layer", "tail"])
def test_reentrant_checkpointing(layer: str) -> None:
    """After the layer, and around it; before it does no harm."""
    report = check(Checkpointed(True), layer, IMAGES)
    assert report.ok == (layer == "tail")
    if not report.ok:
        assert found(report) == [("error", "checkpoint")]
        assert "use_reentrant=False" in message(report, "checkpoint")
    assert check(Checkpointed(False), layer, IMAGES).ok


# Second derivatives.


class Attends(nn.Module):
    """Tokens of the last convolution attend to each other, if wanted inside of a checkpoint."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 4, stride=4)
        self.attend = nn.MultiheadAttention(8, 1, batch_first=True)
        self.head = strong_heads(nn.Linear(8, 5))
        self.checkpointed = checkpointed

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.layer(images).flatten(2).transpose(1, 2)
        if self.checkpointed:
            return self.head(checkpoint(self._mixed, tokens, use_reentrant=False).tanh().mean(1))
        return self.head(self._mixed(tokens).tanh().mean(1))

    def _mixed(self, tokens: Tensor) -> Tensor:
        return self.attend(tokens, tokens, tokens, need_weights=False)[0]


def test_fused_attention_after_the_layer() -> None:
    report = check(Attends(), "layer", IMAGES)
    assert found(report) == [("note", "attention")]
    assert "(attend)" in message(report, "attention")
    assert math_attention._users == 0


def test_attention_beside_the_layer_is_not_after_it() -> None:
    """The path around a block leads through earlier attention, but not from the layer to the scores."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    report = check(model, "blocks.2.norm1", torch.randn(2, 3, 64, 64), reshape="auto")
    assert "(blocks.2.attn)" in message(report, "attention")


def test_attention_inside_of_checkpointing() -> None:
    report = check(Attends(checkpointed=True), "layer", IMAGES)
    assert found(report) == [("warning", "checkpoint"), ("note", "attention")]
    assert "SDPBackend.MATH" in message(report, "checkpoint")


def test_an_operator_without_a_second_derivative() -> None:
    model = plain(nn.Hardsigmoid(), nn.Conv2d(4, 4, 3))
    report = check(model, "0", IMAGES)
    assert found(report) == [("warning", "second_order")]
    assert "hardsigmoid after the layer" in message(report, "second_order")
    assert "choose '1', the nearest later layer that works" in message(report, "second_order")
    assert not check(model, "1", IMAGES).about("second_order")


# Layers.


def test_layers_that_run_twice_or_never() -> None:
    report = check(RepeatedNet().eval(), "layer", IMAGES)
    assert ("warning", "repeated") in found(report)
    assert "runs 2 times" in message(report, "repeated")
    assert report.layers[0].runs == 2
    report = check(SmallCnn().eval(), nn.Conv2d(3, 3, 3), IMAGES)
    assert found(report) == [("error", "unreached")]
    assert "'stem'" in message(report, "unreached")
    assert report.map_size is None
    assert report.dead_fraction is None


class WithAside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.aside, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer(images)
        self.exit = self.aside(maps)
        return self.head(maps.tanh().mean((2, 3)))


def test_scores_that_do_not_depend_on_the_layer() -> None:
    report = check(WithAside(), "aside", IMAGES)
    assert found(report) == [("error", "disconnected")]
    assert "choose 'layer'" in message(report, "disconnected")


def test_a_batch_norm_after_the_layer() -> None:
    model = plain(nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    assert not check(model, "0", IMAGES).findings
    model.train()
    report = check(model, "0", IMAGES)
    assert found(report) == [("warning", "batch_norm")]
    assert message(report, "batch_norm").startswith("1, 4: BatchNorm")
    assert "from '4' on" in message(report, "batch_norm")
    assert not check(model, "4", IMAGES).about("batch_norm")


def test_samples_that_are_mixed_otherwise() -> None:
    class Centred(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps - maps.mean(0)

    assert found(check(plain(Centred(), nn.Tanh()), "0", IMAGES)) == [("warning", "mixing")]


# Maps.


@pytest.mark.parametrize(("size", "measure"), [(5, "3 x 3"), (4, "2 x 2")])
def test_maps_that_are_small(size: int, measure: str) -> None:
    report = check(plain(), "0", torch.randn(2, 3, size, size))
    assert report.ok
    assert f"maps of {measure}, under 4 x 4" in message(report, "small_maps")
    assert not check(plain(), "0", torch.randn(2, 3, 6, 6)).about("small_maps")


def test_an_earlier_layer_is_named_where_maps_are_small() -> None:
    model = torchvision.models.resnet18(num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    assert "choose 'layer3' (4 x 4)" in message(check(model, "layer4", images), "small_maps")
    assert not check(model, "layer3", images).about("small_maps")


def test_maps_of_a_single_place() -> None:
    report = check(plain(), "0", torch.randn(2, 3, 3, 3))
    assert found(report)[0] == ("error", "small_maps")
    report = check(VectorNet(), "layer", torch.randn(2, 3, 2, 2))
    assert ("error", "small_maps") in found(report)
    assert report.map_size == ()


def test_dead_maps() -> None:
    """Weights of one sign, activations of one sign: every map is negative, or every one positive."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 2))
    with torch.no_grad():
        model[3].weight[0], model[3].weight[1] = -1.0, 1.0
    for target, dead in [(0, 1.0), (1, 0.0), ([0, 1, 1, 1], 0.25), ([0, 0, 1, 1], 0.5)]:
        report = check(model, "1", IMAGES, target)
        assert report.dead_fraction == dead
        severity = {0.0: [], 0.25: [("note", "dead_cams")]}.get(dead, [("warning", "dead_cams")])
        assert found(report) == severity


def test_a_gradient_that_is_zero() -> None:
    model = SmallCnn().eval()
    nn.init.zeros_(model.head.weight)
    assert found(check(model, "layer", IMAGES)) == [("error", "zero_gradient")]


def test_maps_and_scores_that_are_not_finite() -> None:
    model = plain()
    images = IMAGES.clone()
    images[1, 0, 3, 3] = float("nan")
    assert ("error", "not_finite") in found(check(model, "0", images, 0))


def test_softmaxed_scores() -> None:
    model = plain()
    assert found(check(nn.Sequential(model, nn.Softmax(1)), "0.0", IMAGES)) == [("warning", "softmax")]
    assert not check(nn.Sequential(model, nn.Sigmoid()), "0.0", IMAGES).about("softmax")


# Transformers.


def test_tokens() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    report = check(model, "blocks.1", images)
    assert found(report)[0] == ("error", "layout")
    assert "pass reshape='auto'" in message(report, "layout")
    assert report.map_size == (4, 4)
    assert check(model, "blocks.1", images, reshape="auto").ok
    last = check(model, "blocks.2", images, reshape="auto")
    assert found(last) == [("error", "class_token")]
    assert "choose 'blocks.2.norm1' (4 x 4)" in message(last, "class_token")
    assert check(model, "blocks.2.norm1", images, reshape="auto").ok


def test_channels_last() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(1, 1, 1, 1)).eval()
    images = torch.randn(2, 3, 112, 112)
    assert not check(model, "layers.2", images).ok
    report = check(BatchGradCam(model, "layers.2", reshape="auto"), images)
    assert report.ok
    assert report.map_size == (7, 7)


# Several layers, several outputs, arguments that do not fit.


def test_several_layers() -> None:
    model = torchvision.models.resnet18(num_classes=3).eval()
    report = check(model, ["layer4", model.layer3], torch.randn(2, 3, 64, 64))
    assert [figures.map_size for figures in report.layers] == [(2, 2), (4, 4)]
    assert [figures.name for figures in report.layers] == ["layer4", "layer3"]
    assert [finding.layer for finding in report.about("small_maps")] == ["layer4"]
    assert "small maps: layer4: maps of 2 x 2" in str(report)


def test_a_layer_of_several_tensors_and_an_output_of_several_parts() -> None:
    assert check(TupleNet().eval(), "layer", IMAGES).ok

    class Parts(SmallCnn):
        def forward(self, images: Tensor) -> Any:
            return {"logits": super().forward(images)}

    report = check(Parts().eval(), "layer", IMAGES)
    assert found(report) == [("error", "target")]
    assert check(Parts().eval(), "layer", IMAGES, output="logits").ok


def test_targets_that_do_not_fit_are_reported_and_other_arguments_raise() -> None:
    report = check(SmallCnn().eval(), "layer", IMAGES, 99)
    assert found(report) == [("error", "target")]
    assert "got 99" in message(report, "target")
    with pytest.raises(ValueError, match="layer: expected the name of a layer"):
        check(SmallCnn(), "nowhere", IMAGES)
    with pytest.raises(TypeError, match="batch: expected a tensor or a tuple of tensors, got list"):
        check(SmallCnn(), "layer", [IMAGES])


def test_the_model_of_a_function_and_of_data_parallel() -> None:
    model = SmallCnn().eval()
    assert check(lambda images: model(images), model.layer, IMAGES).ok
    assert check(nn.DataParallel(model), model.layer, IMAGES).ok


# The report.


def test_a_report_in_words() -> None:
    report = check(plain(nn.Hardsigmoid(), nn.Conv2d(4, 4, 3)), "0", torch.randn(2, 3, 5, 5))
    lines = str(report).splitlines()
    assert lines[0] == "ok: 2 warnings"
    assert lines[1].startswith("  0: map 3 x 3, ")
    assert sum(line.startswith("warning, ") for line in lines) == 2
    assert all(len(line) <= 100 for line in lines)
    assert str(CheckReport([], report.layers)).startswith("ok: nothing to remark")


def test_errors_come_first_and_nothing_twice() -> None:
    note, error = Finding("attention", "note", "a"), Finding("target", "error", "b")
    report = CheckReport([note, error, note], [])
    assert report.findings == (error, note)
    assert not report.ok


# No traces.


class Breaks(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        raise ArithmeticError("in the middle of the forward")


@pytest.mark.parametrize("fault", ["none", "forward", "second order"])
def test_nothing_changes(fault: str) -> None:
    model = SmallCnn(norm=True, dropout=0.5).train()
    model.tail.insert(2, nn.BatchNorm2d(8))
    model.tail[4].eval()
    if fault != "none":
        model.tail.insert(0, Breaks() if fault == "forward" else nn.Hardsigmoid())
    model.head.weight.grad = gradient = torch.ones_like(model.head.weight)
    grad_cam = BatchGradCam(model, "layer")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    own = dict(vars(grad_cam))
    images, state = IMAGES.clone(), torch.get_rng_state()
    if fault == "forward":
        with pytest.raises(ArithmeticError):
            check(grad_cam, images)
    else:
        assert check(grad_cam, images).findings
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.head.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert vars(grad_cam) == own
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert math_attention._flags() == [True] * 5


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it(context: Any) -> None:
    model = SmallCnn().eval().requires_grad_(False)
    with context():
        report = check(model, "layer", IMAGES.clone())
    assert str(report) == str(check(model, "layer", IMAGES))

"""What ``check`` reports, each fault against a network that has it and one that has not, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
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
    highest = model(IMAGES).argmax(1) if target is None else target
    reports = [
        check(model, "layer", IMAGES, target, method="hires_cam"),
        check(grad_cam, IMAGES, target),
        check(grad_cam, batch=IMAGES, target=highest),
        check(lambda images: model(images), model.layer, IMAGES, target, method="hires_cam"),
        check(nn.DataParallel(model), "module.layer", IMAGES, target, method="hires_cam"),
    ]
    assert len({report.dead_fraction for report in reports}) == 1
    assert len({str(report).replace("Conv2d", "layer").replace("module.", "") for report in reports}) == 1


# One network for each finding.


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.stem, self.layer, self.tail = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = strong_heads(nn.Linear(4, 5))
        self.use_reentrant = use_reentrant

    def forward(self, images: Tensor) -> Tensor:
        maps = checkpoint(self.layer, self.stem(images), use_reentrant=self.use_reentrant)
        return self.head(self.tail(maps).tanh().mean((2, 3)))


class Attends(nn.Module):
    """Tokens of the last convolution attend to each other, if asked inside of a checkpoint."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 4, stride=4)
        self.attend = nn.MultiheadAttention(8, 1, batch_first=True)
        self.head = strong_heads(nn.Linear(8, 5))
        self.checkpointed = checkpointed

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.layer(images).flatten(2).transpose(1, 2)
        mixed = (
            checkpoint(self._mixed, tokens, use_reentrant=False) if self.checkpointed else self._mixed(tokens)
        )
        return self.head(mixed.tanh().mean(1))

    def _mixed(self, tokens: Tensor) -> Tensor:
        return self.attend(tokens, tokens, tokens, need_weights=False)[0]


class WithAside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.aside, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer(images)
        self.exit = self.aside(maps)
        return self.head(maps.tanh().mean((2, 3)))


class Centered(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps - maps.mean(0)


class Segments(nn.Module):
    """Dense scores, made right after an operator without a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.classifier = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.classifier(F.hardsigmoid(self.layer(images))), scale_factor=2)


def zero_head() -> nn.Module:
    model = SmallCnn().eval()
    nn.init.zeros_(model.head.weight)
    return model


def vit(layer: str, **options: Any) -> tuple[Any, ...]:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=3).eval()
    return model, layer, torch.randn(2, 3, 64, 64), options


def of_size(size: int) -> Tensor:
    return torch.randn(2, 3, size, size)


NOT_FINITE = IMAGES.clone()
NOT_FINITE[1, 0, 3, 3] = float("nan")
RESNET = torchvision.models.resnet18(num_classes=3).eval()
TRAINED = plain(nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).train()

#: Model, layer, images and options -> severity and topic of the worst finding, and what its message names.
FAULTS: dict[str, tuple[Any, tuple[str, str] | None, str]] = {
    "reentrant, after": (lambda: (Checkpointed(True), "stem"), ("error", "checkpoint"), "use_reentrant=False"),
    "reentrant, around": (lambda: (Checkpointed(True), "layer"), ("error", "checkpoint"), "use_reentrant=False"),
    "reentrant, before": (lambda: (Checkpointed(True), "tail"), None, ""),
    "not reentrant": (lambda: (Checkpointed(False), "stem"), None, ""),
    "attention": (lambda: (Attends(), "layer"), None, ""),
    "attention, checkpointed": (lambda: (Attends(True), "layer"), ("warning", "checkpoint"), "SDPBackend.MATH"),
    "second order": (
        lambda: (plain(nn.Hardsigmoid(), nn.Conv2d(4, 4, 3)), "0"), ("warning", "second_order"), "choose '1'",
    ),
    "second order, dense": (
        lambda: (Segments(), "layer", IMAGES, {"target": (0, 0, 0)}), ("warning", "second_order"), "no later layer",
    ),
    "second order, before": (lambda: (plain(nn.Hardsigmoid(), nn.Conv2d(4, 4, 3)), "1"), None, ""),
    "repeated": (lambda: (RepeatedNet().eval(), "layer"), ("warning", "repeated"), "runs 2 times"),
    "unreached": (lambda: (SmallCnn().eval(), nn.Conv2d(3, 3, 3)), ("error", "unreached"), "'stem'"),
    "disconnected": (lambda: (WithAside(), "aside"), ("error", "disconnected"), "choose 'layer'"),
    "batch norm": (lambda: (TRAINED, "0"), ("warning", "batch_norm"), "from '4' on"),
    "batch norm, before": (lambda: (TRAINED, "4"), None, ""),
    "batch norm, vectors": (
        lambda: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)), "0"),
        ("warning", "batch_norm"), "with eval()",
    ),
    "mixing": (lambda: (plain(Centered(), nn.Tanh()), "0"), ("warning", "mixing"), ""),
    "small maps": (lambda: (plain(), "0", of_size(5)), ("warning", "small_maps"), "3 x 3, under 4 x 4"),
    "small maps, earlier": (lambda: (RESNET, "layer4", of_size(64)), ("warning", "small_maps"), "'layer3' (4 x 4)"),
    "large enough": (lambda: (plain(), "0", of_size(6)), None, ""),
    "one place": (lambda: (plain(), "0", of_size(3)), ("error", "small_maps"), ""),
    "no places": (lambda: (VectorNet(), "layer", of_size(2)), ("error", "small_maps"), ""),
    "zero gradient": (lambda: (zero_head(), "layer"), ("error", "zero_gradient"), ""),
    "not finite": (lambda: (plain(), "0", NOT_FINITE), ("error", "not_finite"), ""),
    "softmax": (lambda: (nn.Sequential(plain(), nn.Softmax(1)), "0.0"), ("warning", "softmax"), ""),
    "sigmoid": (lambda: (nn.Sequential(plain(), nn.Sigmoid()), "0.0"), None, ""),
    "tokens": (lambda: vit("blocks.1"), ("error", "layout"), "reshape='auto'"),
    "tokens, reshaped": (lambda: vit("blocks.1", reshape="auto"), None, ""),
    "class token": (lambda: vit("blocks.2", reshape="auto"), ("error", "class_token"), "'blocks.2.norm1' (4 x 4)"),
    "class token, before": (lambda: vit("blocks.2.norm1", reshape="auto"), None, ""),
    "several tensors": (lambda: (TupleNet().eval(), "layer"), None, ""),
    "target": (lambda: (SmallCnn().eval(), "layer", IMAGES, {"target": 99}), ("error", "target"), "got 99"),
    "output": (lambda: (SmallCnn().eval(), "layer", IMAGES, {"output": 0}), ("error", "target"), "output"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(name: str) -> None:
    make, worst, text = FAULTS[name]
    model, layer, *given = make()
    images, options = given + [IMAGES, {}][len(given) :]
    report = check(model, layer, images, **options)
    remarks = [each for each in found(report) if each[1] != "dead_cams"]
    assert remarks == ([] if worst is None else [worst])
    assert report.ok == (worst is None or worst[0] != "error")
    assert worst is None or text in message(report, worst[1])
    assert math_attention._users == 0


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


def test_the_nearest_later_layer_equals_trying_each_in_turn() -> None:
    model, images = torchvision.models.mobilenet_v3_small(num_classes=3).eval(), of_size(64)
    expected = None
    for name in [f"features.{position}" for position in range(4, 13)]:
        saved: list[Tensor] = []
        with model.get_submodule(name).register_forward_hook(lambda *args, to=saved: to.append(args[2])):
            scores = model(images)[:, 1].sum()
        (gradient,) = torch.autograd.grad(scores, saved[0], create_graph=True)
        try:
            torch.autograd.grad(gradient.square().sum(), list(model.parameters()), allow_unused=True)
        except RuntimeError:
            continue
        expected = name
        break
    assert expected == "features.11"  # the last block with a squeeze-and-excitation
    assert f"choose {expected!r}" in message(check(model, "features.4", images, 1), "second_order")


def test_after_a_batch_norm_a_whole_block_is_advised() -> None:
    """Not the norm in it: the map of the last ``bn2`` misses what takes the shortcut."""
    model = torchvision.models.resnet18(num_classes=5).train()
    images = torch.randn(3, 3, 128, 128)
    assert "from 'layer4' on" in message(check(model, "layer3", images), "batch_norm")
    assert not check(model, "layer4", images).about("batch_norm")


@pytest.mark.filterwarnings("error")
def test_compiled_models() -> None:
    model = SmallCnn().eval()
    for compiled in (torch.compile(model, backend="eager"), model):
        report = check(compiled, model.layer, IMAGES)
        assert report.ok
        assert bool(report.about("compiled")) == (compiled is not model)
        assert report.map_size == (7, 7)
    model.tail.compile(backend="aot_eager")
    assert "tail" in message(check(model, model.layer, IMAGES), "compiled")
    model = SmallCnn().eval()
    model.stem.compile(backend="aot_eager")
    assert not check(model, model.layer, IMAGES).about("compiled")


def test_channels_last() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(1, 1, 1, 1)).eval()
    images = torch.randn(2, 3, 112, 112)
    assert check(model, "layers.2", images).map_size == (7, 7)
    assert not check(model, "layers.2", images).ok
    assert check(BatchGradCam(model, "layers.2", reshape="auto"), images).ok


def test_several_layers() -> None:
    report = check(RESNET, ["layer4", RESNET.layer3], of_size(64))
    assert [figures.map_size for figures in report.layers] == [(2, 2), (4, 4)]
    assert [figures.name for figures in report.layers] == ["layer4", "layer3"]
    assert [finding.layer for finding in report.about("small_maps")] == ["layer4"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"layer": "nowhere"}, ValueError, "layer: expected the name"),
        ({"batch": [IMAGES]}, TypeError, "batch: .* got list"),
        ({"batch": IMAGES[:0]}, ValueError, r"batch: .* got \(0, 3, 16, 16\)"),
    ],
)
def test_arguments_that_do_not_fit(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(**{"model": SmallCnn().eval(), "layer": "layer", "batch": IMAGES, **options})


@pytest.mark.parametrize("options", [{"method": "layer_cam"}, {"reshape": "auto"}, {"output": 0}])
def test_options_beside_a_grad_cam(options: Any) -> None:
    (name,) = options
    with pytest.raises(TypeError, match=f"^{name}: expected none beside a BatchGradCam"):
        check(BatchGradCam(SmallCnn().eval(), "layer"), IMAGES, **options)


def test_a_report_in_words() -> None:
    report = check(plain(nn.Hardsigmoid(), nn.Conv2d(4, 4, 3)), "0", of_size(5))
    lines = str(report).splitlines()
    assert lines[0] == "ok: 2 warnings"
    assert lines[1].startswith("  0: map 3 x 3, ")
    assert sum(line.startswith("warning, ") for line in lines) == 2
    assert all(len(line) <= 100 for line in lines)
    note, error = Finding("dead_cams", "note", "a"), Finding("target", "error", "b")
    report = CheckReport([note, error, note], [])
    assert report.findings == (error, note)
    assert not report.ok


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

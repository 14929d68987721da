"""A call leaves everything as it was, in train and eval mode, and also when it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from batchcam_captum import BatchGradCam
from tests.models import SmallCnn, frozen

HOOKS = [
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
]
GLOBAL_HOOKS = [
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
]


# The networks have a BatchNorm after the layer, which attribute() says; see test_mixing.py.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*a BatchNorm with batch statistics after the explained layer:UserWarning"
)


class Fails(nn.Module):
    """Passes its input on, or raises in the middle of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        if self.armed:
            raise ArithmeticError("in the middle of the forward")
        return x


class Hidden(nn.Module):
    """A wrapper that hides the model from ``modules()``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = [model]

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.models[0](x) + shift


def make_model() -> SmallCnn:
    model = SmallCnn(norm=True, dropout=0.5)
    model.tail.insert(2, nn.BatchNorm2d(8, momentum=None))
    model.tail.insert(3, Fails())
    return model


def own_module(model: nn.Module) -> Callable[..., Tensor]:
    class WithShift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.model(x) + shift

    return WithShift().train(model.training)


FORWARDS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "module": own_module,
    "function": lambda model: lambda x, shift: model(x) + shift,
    "wrapper_that_hides_the_model": lambda model: Hidden(model).train(model.training),
    "data_parallel": lambda model: nn.DataParallel(own_module(model)),
}


class Snapshot:
    """Everything that a call could change."""

    def __init__(self, model: nn.Module, tensors: tuple[Tensor, ...]) -> None:
        self.model, self.tensors = model, tensors
        self.before = self.take()

    def take(self) -> dict[str, Any]:
        parameters = dict(self.model.named_parameters())
        return {
            "grad objects": {name: id(parameter.grad) for name, parameter in parameters.items()},
            "grads": {n: p.grad.tolist() for n, p in parameters.items() if p.grad is not None},
            "values": {n: p.tolist() for n, p in parameters.items()},
            "requires_grad": {n: p.requires_grad for n, p in parameters.items()},
            "inputs": [(t.requires_grad, t.grad, t.tolist(), t._version) for t in self.tensors],
            "training": {name: module.training for name, module in self.model.named_modules()},
            "buffers": {name: (id(b), b.tolist()) for name, b in self.model.named_buffers()},
            "hooks": {
                (name, kind): list(getattr(module, kind))
                for name, module in self.model.named_modules()
                for kind in HOOKS
                if getattr(module, kind)
            },
            "global hooks": {kind: list(getattr(global_hooks, kind)) for kind in GLOBAL_HOOKS},
            "random state": torch.get_rng_state().tolist(),
            "grad mode": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        }

    def assert_unchanged(self) -> None:
        after = self.take()
        for what, value in self.before.items():
            assert after[what] == value, f"{what} changed"


def snapshot_of(model: nn.Module, *tensors: Tensor) -> Snapshot:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.ones_like(parameter) if number % 2 else None
    return Snapshot(model, tensors)


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def model(request: pytest.FixtureRequest) -> SmallCnn:
    return make_model().train(request.param)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS.keys())
def test_a_call_that_succeeds(
    model: SmallCnn, forward: Any, is_frozen: bool, differentiable: bool, at_input: bool, context: Any
) -> None:
    if is_frozen:
        frozen(model)
    layer = model.stem[0] if at_input else model.layer
    images, shift = torch.randn(3, 3, 12, 12), torch.randn(3, 1)
    grad_cam = BatchGradCam(forward(model), layer)
    with context():
        snapshot = snapshot_of(model, images, shift)
        cams = grad_cam.attribute(images, [0, 1, 2], shift, at_input, differentiable=differentiable)
        snapshot.assert_unchanged()
    assert cams.abs().max() > 0


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize(
    "reason", ["target", "target_length", "forward", "unreached", "layer_twice", "output"]
)
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS.keys())
def test_a_call_that_raises(model: SmallCnn, forward: Any, reason: str, is_frozen: bool) -> None:
    if is_frozen:
        frozen(model)
    images, shift = torch.randn(3, 3, 12, 12), torch.randn(3, 1)
    target: Any = {"target": 99, "target_length": [0, 1]}.get(reason, 1)
    layer = nn.Conv2d(6, 8, 3) if reason == "unreached" else model.layer
    model.tail[3].armed = reason == "forward"
    run = forward(model)
    call = run
    if reason == "output":
        call = lambda x, shift: [run(x, shift)]  # noqa: E731
    if reason == "layer_twice":
        # A warning that the filter turns into an error is an error like any other.
        call = lambda x, shift: run(x, shift) + run(x, shift)  # noqa: E731
    error = {
        "forward": ArithmeticError,
        "unreached": RuntimeError,
        "output": TypeError,
        "layer_twice": UserWarning,
    }.get(reason, ValueError)
    grad_cam = BatchGradCam(call, layer)
    snapshot = snapshot_of(model, images, shift)
    with pytest.raises(error):
        grad_cam.attribute(images, target, shift)
    snapshot.assert_unchanged()


def test_inputs_that_require_a_gradient_still_do_and_get_none(model: SmallCnn) -> None:
    images = torch.randn(2, 3, 12, 12, requires_grad=True)
    BatchGradCam(model, model.layer).attribute(images, 1)
    assert images.requires_grad
    assert images.grad is None


def test_a_backward_of_differentiable_maps_leaves_the_marked_input_without_gradient() -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 12, 12)
    cams = BatchGradCam(model, model.stem[0]).attribute(
        images, 1, attribute_to_layer_input=True, differentiable=True
    )
    cams.square().sum().backward()
    assert images.grad is None
    assert not images.requires_grad


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS.keys())
def test_a_pending_training_step_can_still_go_backward(forward: Any) -> None:
    def step(explain: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = make_model().train()
        run = forward(model)
        images, shift = torch.randn(4, 3, 12, 12), torch.zeros(4, 1)
        loss = run(images, shift).square().mean()
        if explain:
            BatchGradCam(run, model.layer).attribute(images, 0, shift)
        loss.backward()
        return [*(p.grad for p in model.parameters()), *model.buffers()]

    for with_explaining, without in zip(step(True), step(False), strict=True):
        torch.testing.assert_close(with_explaining, without, rtol=0, atol=0)


def test_train_mode_batch_norm_would_move_without_care() -> None:
    # What the tests above guard against happens: the same forward, bare, moves the statistics.
    model = make_model().train()
    snapshot = snapshot_of(model)
    model(torch.randn(3, 3, 12, 12))
    with pytest.raises(AssertionError, match="buffers changed"):
        snapshot.assert_unchanged()


def test_dropout_in_train_mode_draws_the_mask_it_would_have_drawn() -> None:
    model = make_model().train()
    images = torch.randn(3, 3, 12, 12)
    torch.manual_seed(3)
    first = BatchGradCam(model, model.layer).attribute(images, 1)
    torch.manual_seed(3)
    torch.testing.assert_close(BatchGradCam(model, model.layer).attribute(images, 1), first, rtol=0, atol=0)


def test_a_module_that_replaces_its_buffer_gets_the_old_one_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = self.mean + x.detach().mean()
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Counting(), nn.Flatten(), nn.LazyLinear(5))
    images = torch.randn(2, 3, 6, 6)
    model(images)
    buffer, before = model[1].mean, model[1].mean.item()
    BatchGradCam(model, model[0]).attribute(images, 1)
    assert model[1].mean is buffer
    assert buffer.item() == before


def test_autocast_outside_stays_as_it_was(model: SmallCnn) -> None:
    images = torch.randn(3, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        snapshot = snapshot_of(model, images)
        BatchGradCam(model, model.layer).attribute(images, 1)
        with pytest.raises(ValueError, match="target"):
            BatchGradCam(model, model.layer).attribute(images, 9)
        snapshot.assert_unchanged()


class PartlyHidden(nn.Module):
    """The layer can be seen; a normalisation that trains is hidden in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.hidden = [nn.BatchNorm2d(4)]
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden[0](self.layer(images)).mean((2, 3)))


def test_a_hidden_module_that_trains_is_found_when_it_is_called() -> None:
    model = PartlyHidden().train()
    BatchGradCam(model, model.layer).attribute(torch.randn(4, 3, 8, 8), target=0)
    assert model.hidden[0].num_batches_tracked == 0
    assert torch.equal(model.hidden[0].running_mean, torch.zeros(4))


def test_a_buffer_made_by_the_forward_is_gone_again() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", None)

        def forward(self, images: Tensor) -> Tensor:
            self.calls = torch.ones(())
            return images * self.calls

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Counts(), nn.Flatten(), nn.Linear(4 * 36, 5)).train()
    BatchGradCam(model, model[0]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert model[1].calls is None

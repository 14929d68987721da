"""A call leaves everything as it was, in train and eval mode, and also when it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from batchcam_captum import BatchGradCam
from tests.models import SmallCnn

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

# The networks have a BatchNorm after the layer, of which attribute() warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*a BatchNorm with batch statistics:UserWarning")


class Fails(nn.Module):
    """Count calls in training mode, and raise if told to."""

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


class Shown(Hidden):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = model


def make_model() -> SmallCnn:
    model = SmallCnn(norm=True, dropout=0.5)
    model.tail.insert(2, nn.BatchNorm2d(8, momentum=None))
    model.tail.insert(3, Fails())
    return model


FORWARDS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "module": lambda model: Shown(model).train(model.training),
    "function": lambda model: lambda x, shift: model(x) + shift,
    "wrapper_that_hides_the_model": lambda model: Hidden(model).train(model.training),
    "data_parallel": lambda model: nn.DataParallel(Shown(model).train(model.training)),
}


class Snapshot:
    """Everything that a call could change."""

    def __init__(self, model: nn.Module, *tensors: Tensor) -> None:
        self.model, self.tensors = model, tensors
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.ones_like(parameter) if number % 2 else None
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


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def model(request: pytest.FixtureRequest) -> SmallCnn:
    return make_model().train(request.param)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_a_call_that_succeeds(model: SmallCnn, forward: Any, is_frozen: bool, context: Any) -> None:
    model.requires_grad_(not is_frozen)
    images, shift = torch.randn(3, 3, 12, 12), torch.randn(3, 1)
    run = forward(model)
    with context():
        snapshot = Snapshot(model, images, shift)
        for at_input in (False, True):
            grad_cam = BatchGradCam(run, model.stem[0] if at_input else model.layer)
            for differentiable in (False, True):
                cams = grad_cam.attribute(images, [0, 1, 2], shift, at_input, differentiable=differentiable)
                snapshot.assert_unchanged()
                assert cams.abs().max() > 0


REASONS: dict[str, tuple[type[BaseException], Any]] = {
    "target": (ValueError, 99),
    "target_length": (ValueError, [0, 1]),
    "forward": (ArithmeticError, 1),
    "unreached": (RuntimeError, 1),
    "layer_twice": (UserWarning, 1),  # an error, as the filter has it
    "output": (TypeError, 1),
}


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_a_call_that_raises(model: SmallCnn, forward: Any, reason: str, is_frozen: bool) -> None:
    model.requires_grad_(not is_frozen)
    images, shift = torch.randn(3, 3, 12, 12), torch.randn(3, 1)
    run = forward(model)
    call = {
        "output": lambda x, shift: [run(x, shift)],
        "layer_twice": lambda x, shift: run(x, shift) + run(x, shift),
    }.get(reason, run)
    model.tail[3].armed = reason == "forward"
    error, target = REASONS[reason]
    grad_cam = BatchGradCam(call, nn.Conv2d(6, 8, 3) if reason == "unreached" else model.layer)
    snapshot = Snapshot(model, images, shift)
    with pytest.raises(error):
        grad_cam.attribute(images, target, shift)
    snapshot.assert_unchanged()


def test_autocast_outside_stays_as_it_was(model: SmallCnn) -> None:
    images = torch.randn(3, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        snapshot = Snapshot(model, images)
        BatchGradCam(model, model.layer).attribute(images, 1)
        with pytest.raises(ValueError, match="target"):
            BatchGradCam(model, model.layer).attribute(images, 9)
        snapshot.assert_unchanged()


def test_a_bare_forward_in_train_mode_would_be_seen() -> None:
    # So that the tests above are known to be able to fail.
    model = make_model().train()
    snapshot = Snapshot(model)
    model(torch.randn(3, 3, 12, 12))
    with pytest.raises(AssertionError, match="buffers changed"):
        snapshot.assert_unchanged()


def test_inputs_keep_their_requires_grad_and_get_no_gradient(model: SmallCnn) -> None:
    images = torch.randn(2, 3, 12, 12, requires_grad=True)
    BatchGradCam(model, model.layer).attribute(images, 1)
    assert images.requires_grad
    assert images.grad is None
    images = torch.randn(2, 3, 12, 12)
    cams = BatchGradCam(model, model.stem[0]).attribute(images, 1, None, True, differentiable=True)
    cams.square().sum().backward()
    assert not images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
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

    assert all(map(torch.equal, step(True), step(False)))


def test_dropout_in_train_mode_draws_the_mask_that_it_would_have_drawn() -> None:
    model, images = make_model().train(), torch.randn(3, 3, 12, 12)
    torch.manual_seed(3)
    first = BatchGradCam(model, model.layer).attribute(images, 1)
    torch.manual_seed(3)
    assert torch.equal(BatchGradCam(model, model.layer).attribute(images, 1), first)


class Replaces(nn.Module):
    """Replace a buffer in the forward."""

    def __init__(self, buffer: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mean", buffer)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.detach().mean()
        return x


@pytest.mark.parametrize("buffer", [torch.zeros(()), None], ids=repr)
def test_a_buffer_that_the_forward_replaces_or_makes(buffer: Tensor | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Replaces(buffer), nn.Flatten(), nn.Linear(64, 5)).train()
    BatchGradCam(model, model[0]).attribute(torch.randn(2, 3, 6, 6), 1)
    assert model[1].mean is buffer
    assert buffer is None or buffer == 0


def test_a_hidden_module_that_trains_is_found_when_it_is_called() -> None:
    class PartlyHidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
            self.hidden = [nn.BatchNorm2d(4)]
            self.head = nn.Linear(4, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.hidden[0](self.layer(images)).mean((2, 3)))

    model = PartlyHidden().train()
    BatchGradCam(model, model.layer).attribute(torch.randn(4, 3, 8, 8), target=0)
    assert model.hidden[0].num_batches_tracked == 0
    assert not model.hidden[0].running_mean.any()

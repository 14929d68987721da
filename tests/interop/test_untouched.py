"""Whatever a library does to a model, it is gone when the context ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from batchcam_captum import BatchGradCam
from batchcam_captum.interop import untouched
from tests.models import SmallCnn

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name]
GLOBAL_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_") and "hooks" in name]


class Caching(nn.Module):
    """Keeps what it saw, in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(3.0)
        self.seen: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {"first": torch.ones(2)}
        self.names = {"a"}
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("unset", None)

    def forward(self, x: Tensor) -> Tensor:
        return x


def make_model() -> SmallCnn:
    """In mixed modes, partly frozen, some parameters with a gradient, with hooks, and with tied weights."""
    model = SmallCnn(norm=True, dropout=0.5).train()
    model.tail.append(Caching())
    model.layer.eval()
    model.stem[0].weight.requires_grad_(False)
    model.tied = model.head
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number) if number % 2 else None
    model.head.register_forward_hook(lambda *_: None)
    model.head.weight.register_hook(lambda gradient: None)
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything, by identity and by value."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), "table": model.tail[-1].table}
    return {
        "modules": {name: (id(m), type(m), m.training, sorted(vars(m))) for name, m in model.named_modules()},
        "attributes": {name: {k: id(v) for k, v in vars(m).items()} for name, m in model.named_modules()
                       if not isinstance(m, nn.Identity)},
        "tensors": {name: (id(t), t.data_ptr(), t.dtype, t.requires_grad, t.tolist()) for name, t in tensors.items()},
        "versions": {name: t._version for name, t in tensors.items()},
        "grads": {name: None if t.grad is None else (id(t.grad), t.grad.dtype, t.grad.tolist()) for name, t in tensors.items()},
        "unset": model.tail[-1].unset,
        "tensor hooks": {
            name: (list(t._backward_hooks or ()), list(t._post_accumulate_grad_hooks or ())) for name, t in tensors.items()
        },
        "hooks": {(name, kind): list(getattr(m, kind)) for name, m in model.named_modules() for kind in HOOKS},
        "kept": (list(model.tail[-1].seen), list(model.tail[-1].by_name), set(model.tail[-1].names)),
        "global hooks": {
            name: list(getattr(torch_module, name)) for name in GLOBAL_HOOKS if hasattr(getattr(torch_module, name), "keys")
        },
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "grad mode": torch.is_grad_enabled(),
    }  # fmt: skip


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def replace_everything(model: SmallCnn) -> None:
    model.stem = nn.Conv2d(3, 6, 1)
    model.head = nn.Identity()
    model.extra = nn.Linear(2, 2)
    del model.dropout


def leave_hooks(model: SmallCnn) -> None:
    for module in model.modules():
        module.register_forward_hook(lambda *_: None, always_call=True, with_kwargs=False)
        module.register_forward_hook(lambda *_, **__: None, with_kwargs=True)
        module.register_forward_pre_hook(lambda *_: None)
        module.register_forward_pre_hook(lambda *_, **__: None, with_kwargs=True)
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
        module.register_state_dict_post_hook(lambda *_: None)
        module.register_state_dict_pre_hook(lambda *_: None)
        module.register_load_state_dict_pre_hook(lambda *_: None)
        module.register_load_state_dict_post_hook(lambda *_: None)


def forget(parameter: Tensor) -> None:
    parameter.grad = None


def leave_hooks_on_tensors(model: SmallCnn) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: 2 * gradient)
            parameter.register_post_accumulate_grad_hook(forget)


def leave_hooks_for_all_modules(model: SmallCnn) -> None:
    torch_module.register_module_forward_hook(lambda *_: None)
    torch_module.register_module_forward_pre_hook(lambda *_: None)
    torch_module.register_module_full_backward_hook(lambda *_: None)
    torch_module.register_module_full_backward_pre_hook(lambda *_: None)
    torch_module.register_module_buffer_registration_hook(lambda *_: None)
    torch_module.register_module_module_registration_hook(lambda *_: None)
    torch_module.register_module_parameter_registration_hook(lambda *_: None)


def change_parameters(model: SmallCnn) -> None:
    model.head.weight.data.zero_()
    model.layer.bias.data = torch.full_like(model.layer.bias, 7.0)
    model.layer.weight = nn.Parameter(torch.zeros_like(model.layer.weight))
    with torch.no_grad():
        model.tail[1].weight.add_(1)
    model.tail[1].bias.data.fill_(torch.nan)


def train_on(model: SmallCnn) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(2, 3, 12, 12)).square().sum().backward()
        optimizer.step()


def change_gradients(model: SmallCnn) -> None:
    for number, parameter in enumerate(model.parameters()):
        if number % 4 == 1:
            parameter.grad.fill_(-1)
        else:
            parameter.grad = torch.ones_like(parameter)


def change_caches(model: SmallCnn) -> None:
    caching = model.tail[-1]
    caching.table.add_(1)
    caching.seen.append(torch.zeros(3))
    caching.by_name["first"] = torch.zeros(2)
    caching.by_name["second"] = torch.zeros(2)
    caching.names.add("b")
    caching.mean = caching.mean + 1
    caching.unset = torch.ones(())
    caching.output = torch.zeros(2)


def draw(model: SmallCnn) -> None:
    torch.rand(3)
    np.random.rand(3)
    random.random()


def patch(model: SmallCnn) -> None:
    model.forward = lambda x: x  # type: ignore[method-assign]
    model.head.__class__ = nn.Identity


HOSTILE: dict[str, tuple[Callable[[SmallCnn], Any], set[str]]] = {
    "eval": (lambda model: model.eval(), {"modules"}),
    "train": (lambda model: model.train(), {"modules"}),
    "zero_grad": (lambda model: model.zero_grad(), {"grads"}),
    "zero_grad_in_place": (lambda model: model.zero_grad(set_to_none=False), {"grads"}),
    "gradients": (change_gradients, {"grads"}),
    "requires_grad": (lambda model: model.requires_grad_(False), {"tensors"}),
    "requires_a_grad": (lambda model: model.requires_grad_(True), {"tensors"}),
    "forward": (lambda model: model(torch.randn(2, 3, 12, 12)), {"tensors", "random"}),
    "hooks": (leave_hooks, {"hooks"}),
    "tensor_hooks": (leave_hooks_on_tensors, {"tensor hooks"}),
    "hooks_for_all": (leave_hooks_for_all_modules, {"global hooks"}),
    "parameters": (change_parameters, {"tensors"}),
    "training": (train_on, {"tensors", "grads", "random"}),
    "half": (lambda model: model.half(), {"tensors", "grads"}),
    "double": (lambda model: model.double(), {"tensors", "grads"}),
    "structure": (replace_everything, {"modules"}),
    "caches": (change_caches, {"tensors", "kept", "unset"}),
    "random": (draw, {"random"}),
    "patch": (patch, {"modules"}),
    "grad_mode": (lambda model: torch.set_grad_enabled(False), {"grad mode"}),
}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Any:
    """What a test that fails would leave for the others."""
    yield
    torch.set_grad_enabled(True)
    for name in GLOBAL_HOOKS:
        hooks = getattr(torch_module, name)
        if hasattr(hooks, "clear"):
            hooks.clear()


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_left_behind(name: str, raises: bool) -> None:
    act, does = HOSTILE[name]
    model = make_model()
    before = snapshot(model)

    def body() -> None:
        with untouched(model):
            act(model)
            # Where modules are gone, nothing can be compared.
            after = None if name == "structure" else snapshot(model)
            assert after is None or does <= changed(before, after), "the peer is not hostile"
            if raises:
                raise ArithmeticError("in the middle")

    if raises:
        with pytest.raises(ArithmeticError, match="in the middle"):
            body()
    else:
        body()
    assert not changed(before, snapshot(model))


def test_all_of_it_at_once() -> None:
    model = make_model()
    before = snapshot(model)
    with untouched(model):
        for name, (act, _) in HOSTILE.items():
            if name not in ("structure", "patch", "half", "double", "gradients", "hooks", "hooks_for_all"):
                act(model)
        leave_hooks(model)
        leave_hooks_for_all_modules(model)
        patch(model)
        model.double()
        replace_everything(model)
    assert not changed(before, snapshot(model))


def test_the_model_trains_on_as_if_nothing_had_been() -> None:
    def weights(interrupted: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = make_model()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
        loss = model(torch.rand(4, 3, 12, 12)).square().mean()
        if interrupted:
            with untouched(model):
                leave_hooks(model)
                leave_hooks_on_tensors(model)
                change_parameters(model)
                change_gradients(model)
        loss.backward()  # of a graph that was there before
        optimizer.step()
        model(torch.rand(4, 3, 12, 12)).square().mean().backward()
        optimizer.step()
        return [*(p.detach() for p in model.parameters()), *model.buffers()]

    for with_peer, without in zip(weights(True), weights(False), strict=True):
        torch.testing.assert_close(with_peer, without, rtol=0, atol=0)


def test_a_handle_from_before_still_removes_its_hook() -> None:
    model = make_model()
    seen: list[str] = []
    handle = model.head.register_forward_hook(lambda *_: seen.append("called"))
    with untouched(model):
        model.head._forward_hooks.clear()
    model.eval()(torch.rand(1, 3, 12, 12))
    assert seen == ["called"]
    handle.remove()
    model(torch.rand(1, 3, 12, 12))
    assert seen == ["called"]


def test_nested() -> None:
    model = make_model()
    before = snapshot(model)
    with untouched(model):
        model.eval()
        with untouched(model):
            model.train()
        assert not model.training
    assert not changed(before, snapshot(model))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*torch.jit:FutureWarning"
)
def test_a_scripted_model() -> None:
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with untouched(model):
        model(torch.rand(2, 3, 8, 8)).sum().backward()
        model.eval()
        assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_parameter_without_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with (
        pytest.raises(ValueError, match="untouched: expected a model whose parameters have their shapes"),
        untouched(model),
    ):
        pass


def test_under_inference_mode() -> None:
    model = make_model()
    before = snapshot(model)
    with torch.inference_mode(), untouched(model):
        model(torch.rand(2, 3, 12, 12))
    assert not changed(before, snapshot(model))


def test_no_tensor_is_kept_after_the_context() -> None:
    """The copies go: a second context starts from what the model is then."""
    model = make_model()
    with untouched(model):
        pass
    model.head.weight.data.add_(1)
    after = snapshot(model)
    with untouched(model):
        BatchGradCam(model, "layer").attribute(torch.rand(2, 3, 12, 12), target=1)
    assert not changed(after, snapshot(model))

"""A model as trunk and head, for the compiled route: scores = head(trunk(images))."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from ..functional import CamMethod

_BY_HAND = (
    "split it yourself and pass your own callables to functional.head_cams, for a torchvision ResNet: trunk, head = "
    "nn.Sequential(*list(model.children())[:-2]), nn.Sequential(model.avgpool, nn.Flatten(), model.fc)"
)


#: What ``forward_features`` of timm's ViT and DeiT runs, in this order.
_VIT = ["patch_embed", "_pos_embed", "patch_drop", "norm_pre", "blocks", "norm"]


@dataclass(frozen=True)
class Split:
    """A trunk and a head with ``head(trunk(images))`` equal to ``model(images)``; unpacks to the two.

    Args:
        trunk: images -> activations.
        head: activations -> scores, (N, K).
        method: how activations and gradients become a map, as in :class:`~batchcam_captum.BatchGradCam`.
        reshape: brings activations and gradients to (N, C, *spatial), if the trunk returns something else.
    """

    trunk: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    method: str | CamMethod = "grad_cam"
    reshape: Callable[[Tensor], Tensor] | None = None

    def __iter__(self) -> Iterator[Callable[[Tensor], Tensor]]:
        return iter((self.trunk, self.head))


class _Part(nn.Module):
    """A part of a model. Its layers are the model's own, and whether it trains is the model's business."""

    _whole: tuple[nn.Module]

    def __init__(self, model: nn.Module) -> None:
        # In a tuple, which registers nothing: only the part's own layers are its children.
        object.__setattr__(self, "_whole", (model,))
        super().__init__()

    @property
    def training(self) -> bool:
        """The model's."""
        return self._whole[0].training

    @training.setter
    def training(self, mode: bool) -> None:
        """Left to the model: its layers, the children of this part, have modes of their own."""


class _Chain(_Part):
    """Modules one after the other."""

    def __init__(self, model: nn.Module, named: list[tuple[str, nn.Module]]) -> None:
        super().__init__(model)
        self._order = tuple(name.replace(".", "_") for name, _ in named)
        for name, (_, module) in zip(self._order, named, strict=True):
            self.add_module(name, module)

    def forward(self, received: Tensor) -> Tensor:
        for name in self._order:
            received = self._modules[name](received)  # type: ignore[misc]
        return received


class _Method(_Part):
    """A method of the model, such as ``forward_head``."""

    def __init__(self, model: nn.Module, method: str, names: list[str]) -> None:
        super().__init__(model)
        self._method = method
        for name in names:
            if name in model._modules:
                self.add_module(name, model._modules[name])
            elif name in model._parameters:
                self.register_parameter(name, model._parameters[name])
            else:
                self.register_buffer(name, model._buffers[name])

    def forward(self, received: Tensor) -> Tensor:
        result: Tensor = getattr(self._whole[0], self._method)(received)
        return result


class _Features(_Method):
    """``forward_features``, which has to end in one tensor."""

    def forward(self, received: Tensor) -> Tensor:
        result: Any = super().forward(received)
        if not isinstance(result, Tensor):
            raise TypeError(
                f"model: expected one tensor of activations from forward_features, got {type(result).__name__}, so that "
                f"{type(self._whole[0]).__name__} cannot be split there; {_BY_HAND}"
            )
        return result


def split_model(model: nn.Module, layer: str | None = None) -> Split:
    """Split a model into trunk and head, for :func:`~batchcam_captum.functional.head_cams`.

    The parts copy nothing: their parameters and buffers are the model's own, each in one part, and so are their modes, so
    ``model.eval()``, an optimizer of ``model.parameters()`` and ``model.state_dict()`` go on as before. Forward hooks on the
    model itself do not run.

    Args:
        model: a timm model, whose ``forward`` is its ``forward_features`` and then its ``forward_head``; or a plain
            ``nn.Sequential``.
        layer: of an ``nn.Sequential``, the last layer of the trunk: the name of a child, or a dotted name through nested ones
            (``"0.features.3"``). A timm model is split where its features end, and takes none. Where its head reads the class
            token only, every cam there would be zero: a ViT or DeiT is split before its last block, which becomes part of the
            head (``set_grad_checkpointing`` has no effect on the parts then).

    Returns:
        The trunk and the head.

    Raises:
        TypeError: no module, or one that cannot be split like this. From the trunk, when it runs: its features are not one
            tensor.
        ValueError: a layer that is not there, the last one, none for an ``nn.Sequential``, or one for a timm model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from batchcam_captum.attribution.split import split_model
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
        >>> trunk, head = split_model(model, "1")
        >>> images = torch.rand(2, 1, 8, 8)
        >>> torch.equal(head(trunk(images)), model(images))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            f"model: expected the original model, got a compiled one ({name}); split the original, then compile the step that "
            f"uses its parts"
        )
    if _runs_children_in_turn(model):
        return _split_sequential(model, layer)
    if not _is_features_then_head(model):
        raise TypeError(
            f"model: expected an nn.Sequential, or a timm model whose forward is forward_features and then forward_head, got "
            f"{name}; {_BY_HAND}"
        )
    if layer is not None:
        raise ValueError(
            f"layer: expected None for {name}, which is split between forward_features and forward_head, got {layer!r}; leave it "
            f"out, or {_BY_HAND}"
        )
    own = [*model._modules, *model._parameters, *model._buffers]
    used = _names_used(model, "forward_head")
    if _reads_class_token_only(model, used):
        return _split_before_last_block(model, own, used)
    return Split(
        _Features(model, "forward_features", [name for name in own if name not in used]),
        _Method(model, "forward_head", [name for name in own if name in used]),
    )


def _reads_class_token_only(model: nn.Module, used: set[str]) -> bool:
    """Whether a timm model says so of its pooling, and none of the modules that its head uses looks at the other places."""
    if getattr(model, "global_pool", None) not in ("token", "tok"):
        return False
    modules = {name: module for name, module in model._modules.items() if name in used and module is not None}
    # CLIP's ResNets pool by attention; VOLO's second classifier reads the other tokens.
    attends = any(
        "Attention" in type(part).__name__ for module in modules.values() for part in module.modules()
    )
    return not attends and "aux_head" not in modules


def _split_before_last_block(model: nn.Module, own: list[str], used: set[str]) -> Split:
    """Where the class token still has to look at the others, in the last block's attention."""
    code = _code(model, "forward_features")
    names = code.co_names if code else ()
    blocks: Any = model._modules.get("blocks")
    if (
        [name for name in names if name in model._modules or hasattr(type(model), name)] != _VIT
        or not _runs_children_in_turn(blocks)
        or len(blocks) < 2
        or blocks._forward_hooks
        or blocks._forward_pre_hooks
    ):
        raise TypeError(
            f"model: expected a head that reads all places, got {type(model).__name__}, whose head reads the class token only: "
            f"every cam of forward_features' output would be zero; create the model with global_pool='avg', if it is to be "
            f"trained so, or split it before its last attention: {_BY_HAND}"
        )
    chain = [(f"blocks.{name}", block) for name, block in blocks._modules.items()]
    parts: list[tuple[str, nn.Module]] = []
    for name in _VIT[:4]:
        if name in model._modules:
            parts.append((name, model._modules[name]))  # type: ignore[arg-type]
        else:  # the method
            parts.append((name, _Method(model, name, [n for n in own if n not in used and n not in _VIT])))
    head = _Method(model, "forward_head", [name for name in own if name in used])
    norm: Any = model._modules["norm"]
    return Split(
        _Chain(model, [*parts, *chain[:-1]]),
        _Chain(model, [chain[-1], ("norm", norm), ("forward_head", head)]),
    )


def _runs_children_in_turn(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Sequential) and _code(module, "forward") is nn.Sequential.forward.__code__


def _split_sequential(model: nn.Module, layer: str | None) -> Split:
    if layer is None:
        raise ValueError(
            f"layer: expected the name of the trunk's last layer, one of {', '.join(map(repr, model._modules))}, got None"
        )
    before: list[tuple[str, nn.Module]] = []
    after: list[tuple[str, nn.Module]] = []
    container, path = model, ""
    parts = layer.split(".")
    for depth, part in enumerate(parts):
        if not _runs_children_in_turn(container):
            raise TypeError(
                f"layer: expected a name through nested nn.Sequential, got {layer!r}, where {path.rstrip('.')!r} is a "
                f"{type(container).__name__}; split after {path.rstrip('.')!r}, or {_BY_HAND}"
            )
        if depth and (container._forward_hooks or container._forward_pre_hooks):
            raise TypeError(
                f"layer: expected an nn.Sequential without hooks at {path.rstrip('.')!r}, got one with hooks, which would not "
                f"run in two parts; remove them, or split at another layer"
            )
        children = [(path + name, child) for name, child in container._modules.items() if child is not None]
        names = [name for name, _ in children]
        if path + part not in names:
            raise ValueError(
                f"layer: expected one of {', '.join(map(repr, names))}, got {layer!r}; see model.named_modules()"
            )
        at = names.index(path + part)
        before += children[:at]
        after = children[at + 1 :] + after
        container = children[at][1]
        path += f"{part}."
    if not after:
        raise ValueError(
            f"layer: expected a layer with others after it, got the last one, {layer!r}; its output are the scores, choose an "
            f"earlier one"
        )
    return Split(_Chain(model, [*before, (layer, container)]), _Chain(model, after))


def _code(model: nn.Module, method: str) -> CodeType | None:
    """The code that a method of this very model runs, whether its class or somebody else has put it there."""
    code = getattr(getattr(model, method, None), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _is_features_then_head(model: nn.Module) -> bool:
    """Whether the forward calls these two and asks for nothing else, as timm's do, but for flags that are off.

    The names that its code uses tell, without an example to run.
    """
    code = _code(model, "forward")
    names = set(code.co_names) if code is not None else set()
    # Such as FastViT's fork_feat, to return the features.
    return {name for name in names if vars(model).get(name) is not False} == {
        "forward_features",
        "forward_head",
    }


def _names_used(model: nn.Module, method: str) -> set[str]:
    """Which of the model's own modules, parameters and buffers a method names, itself or through other methods.

    That decides only which part owns what: whatever the method runs, it runs.
    """
    found: set[str] = set()
    visited: set[str] = set()
    codes: list[Any] = [_code(model, method)]
    while codes:
        code = codes.pop()
        if not isinstance(code, CodeType):
            continue
        codes += code.co_consts  # the code of functions inside it is among them
        for name in set(code.co_names) - visited:
            visited.add(name)
            if name in model._modules or name in model._parameters or name in model._buffers:
                found.add(name)
            elif isinstance(getattr(type(model), name, None), FunctionType | property):
                member: Callable[..., Any] | property = getattr(type(model), name)
                codes.append(
                    getattr(member.fget if isinstance(member, property) else member, "__code__", None)
                )
    return found

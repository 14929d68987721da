"""A model as trunk and head, for the compiled route: scores = head(trunk(images))."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..functional import CamMethod

_BY_HAND = (
    "pass Split(trunk, head), two callables of your own, for a torchvision ResNet: trunk, head = "
    "nn.Sequential(*list(model.children())[:-2]), nn.Sequential(model.avgpool, nn.Flatten(), model.fc)"
)


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


def split_model(model: nn.Module, layer: str | None = None) -> Split:
    """Split a timm model or an ``nn.Sequential`` into trunk and head, for :func:`~batchcam_captum.functional.head_cams`.

    The parts copy nothing: their parameters and buffers are the model's own, each in one part, so ``model.eval()``, an optimizer
    of ``model.parameters()`` and ``model.state_dict()`` work as before. Forward hooks on the model itself do not run.

    Args:
        model: a timm model, which is split between its ``forward_features`` and ``forward_head``; or a plain ``nn.Sequential``.
        layer: of an ``nn.Sequential``, the last layer of the trunk: the name of a child, or a dotted name through nested ones
            (``"0.features.3"``). A timm model takes none. If its head reads the class token only, every cam there would be zero:
            a ViT or DeiT is split before its last block instead, which becomes part of the head.

    Returns:
        The trunk and the head.

    Raises:
        TypeError: no module, or one that cannot be split like this.
        ValueError: a layer that is not there, the last one, none for an ``nn.Sequential``, or one for a timm model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from batchcam_captum import split_model
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
        >>> trunk, head = split_model(model, "1")
        >>> images = torch.rand(2, 1, 8, 8)
        >>> torch.equal(head(trunk(images)), model(images))
        True
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {name}")
    if type(model).forward is nn.Sequential.forward:
        return _split_sequential(model, layer)
    if not (type(model).__module__.startswith("timm.models.") and hasattr(model, "forward_head")):
        raise TypeError(
            f"model: expected an nn.Sequential, or a timm model with forward_features and forward_head, got {name} (of a "
            f"compiled model pass the original); {_BY_HAND}"
        )
    if layer is not None:
        raise ValueError(
            f"layer: expected None for {name}, which is split between forward_features and forward_head, got {layer!r}; leave it "
            f"out, or {_BY_HAND}"
        )
    children = list(model._modules)
    first = min(map(children.index, filter(lambda child: _is_of_head(model, child), children)))
    head = _Method(model, "forward_head", children[first:])
    # Maps of ResNets with attention pooling are not zero: their class token is part of the head.
    reads_token_only = getattr(model, "global_pool", None) == "token" and hasattr(model, "cls_token")
    if not reads_token_only:
        return Split(_Method(model, "forward_features", children[:first], own_tensors=True), head)
    return _split_before_last_block(model, children[:first], head)


def _is_of_head(model: Any, child: str) -> bool:
    """Return True for a timm model's pooling and what holds its classifier; what follows is part of the head, too."""
    classifiers = model.get_classifier()  # DeiT has two
    inside = set(model._modules[child].modules()) if model._modules[child] is not None else set()
    return child == "global_pool" or bool(
        inside.intersection(classifiers if isinstance(classifiers, tuple) else [classifiers])
    )


class _Method(nn.Module):
    """A method of a model, such as ``forward_head``, with the children that it uses."""

    _model: tuple[nn.Module]

    def __init__(
        self, model: nn.Module, method: str, children: list[str], *, own_tensors: bool = False
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, which registers nothing
        self._method = method
        for name in children:
            self.add_module(name, model._modules[name])
        if own_tensors:
            self._parameters, self._buffers = model._parameters, model._buffers

    def forward(self, received: Tensor) -> Tensor:
        result: Tensor = getattr(self._model[0], self._method)(received)
        return result


def _split_before_last_block(model: Any, children: list[str], head: nn.Module) -> Split:
    """Split where the class token still has to look at the other tokens, in the last block's attention."""
    from_timm = [kind for kind in type(model).__mro__ if kind.__module__ == "timm.models.vision_transformer"]
    is_vit = bool(from_timm) and type(model).forward_features is from_timm[-1].forward_features  # type: ignore[attr-defined]
    if not is_vit or len(model.blocks) < 2:
        raise TypeError(
            f"model: expected a head that reads all places, got {type(model).__name__}, whose head reads the class token only: "
            f"every cam of forward_features' output would be zero; create the model with global_pool='avg', if it is to be "
            f"trained so, or {_BY_HAND}"
        )
    position = _Method(
        model, "_pos_embed", [name for name in children if name == "pos_drop"], own_tensors=True
    )
    blocks = _children(model.blocks, "blocks")
    before = [("patch_embed", model.patch_embed), ("pos_embed", position)]
    before += [(name, model._modules[name]) for name in ("patch_drop", "norm_pre")]
    return Split(_chain([*before, *blocks[:-1]]), _chain([blocks[-1], ("norm", model.norm), ("head", head)]))


def _split_sequential(model: nn.Module, layer: str | None) -> Split:
    if layer is None:
        raise ValueError(
            f"layer: expected the name of the trunk's last layer, one of {', '.join(map(repr, model._modules))}, got None"
        )
    before: list[tuple[str, nn.Module]] = []
    after: list[tuple[str, nn.Module]] = []
    container, path = model, ""
    for depth, part in enumerate(layer.split(".")):
        if type(container).forward is not nn.Sequential.forward:
            raise TypeError(
                f"layer: expected a name through nested nn.Sequential, got {layer!r}, where {path!r} is a "
                f"{type(container).__name__}; split after {path!r}, or {_BY_HAND}"
            )
        children = _children(container, path) if depth else list(model.named_children())
        path = f"{path}.{part}" if path else part
        names = [name for name, _ in children]
        if path not in names:
            raise ValueError(f"layer: expected one of {', '.join(map(repr, names))}, got {layer!r}")
        at = names.index(path)
        before, after, container = before + children[:at], children[at + 1 :] + after, children[at][1]
    if not after:
        raise ValueError(
            f"layer: expected a layer with others after it, got the last one, {layer!r}, whose output are the scores; choose an "
            f"earlier one"
        )
    return Split(_chain([*before, (layer, container)]), _chain(after))


def _children(container: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """Return the children of a container that is taken apart, by their dotted names."""
    if container._forward_hooks or container._forward_pre_hooks:
        raise TypeError(
            f"layer: expected an nn.Sequential without hooks at {path!r}, got one with hooks, which would not run in two parts; "
            f"remove them, or split at another layer"
        )
    return [(f"{path}.{name}", child) for name, child in container.named_children()]


def _chain(modules: list[tuple[str, nn.Module]]) -> nn.Module:
    return nn.Sequential(OrderedDict((name.replace(".", "_"), module) for name, module in modules))

"""Cams through a head callable: the head is a function of the activations, and its gradients come from ``torch.func``.

Without hooks and calls of autograd's engine from Python, ``torch.compile(fullgraph=True)`` compiles a whole training step: cams,
losses and scores of one run of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cam import CamMethod, apply_method, get_method
from .common import no_autocast
from .gradients import Score, select_scores
from .math_attention import MathAttention

#: What follows the explained layer: activations (N, C, *spatial) -> scores (N, K).
Head = Callable[[Tensor], Tensor]


class HeadGradients(NamedTuple):
    """What :func:`head_gradients` returns."""

    gradients: Tensor  #: ∂score/∂A, in the shape of the activations
    scores: Tensor  #: (N, K), as the head returned them


class HeadCams(NamedTuple):
    """What :func:`head_cams` returns."""

    cams: Tensor  #: (N, 1, *spatial), raw and signed
    scores: Tensor  #: (N, K), as the head returned them


def head_gradients(
    head: Head, activations: Tensor, labels: Tensor, *, score: Score = "label"
) -> HeadGradients:
    """Run the head once, and return its scores and the gradient of each sample's score with respect to the activations.

    Outside ``torch.no_grad()`` both carry a graph that reaches the parameters of the head and whatever made the activations, so
    that losses on both need one ``backward()``. There is one dropout mask, and one update of running statistics: an ``nn.Module``
    in train mode runs on copies of its buffers, which are copied back once, after everything else.

    A loss on the gradients needs a second derivative of every operator in the head. The math backend of
    ``scaled_dot_product_attention`` has one, and is selected while the head runs, unless under ``torch.no_grad()``. For other
    operators, such as ``hardsigmoid``, ``backward()`` raises ("derivative for aten::hardsigmoid_backward is not implemented"):
    replace the operator, here by ``relu6(x + 3) / 6``, or split the model after it. ``batchcam_captum.check`` finds such
    operators and names the nearest later layer.

    Args:
        head: A -> scores. An ``nn.Module``, or a callable that changes no tensor of its own: a bound method such as
            ``model.forward_head``, or a function. Only a module can update the statistics of BatchNorm in train mode.
        activations: A, (N, C, *spatial), with or without a graph; unchanged even if the head works in place.
        labels: (N,) class indices, or (N, K) soft labels.
        score: the score that is explained: ``"label"``, ``"predicted"``, ``"confused"``, ``"log_prob_sum"``, or a callable
            (scores, labels) -> (N,).

    Returns:
        The gradients, in the shape and dtype of the activations, and the scores. Unless a layer of the head mixes samples, as
        BatchNorm in train mode does, row i of the gradients belongs to the score of sample i.

    Raises:
        TypeError: a head that cannot be called or does not return a tensor, activations that are not floating, or labels of
            another kind.
        ValueError: scores without one row per sample, or labels or a score that do not fit them.
        RuntimeError: scores that do not depend on the activations, activations made under ``torch.inference_mode()``, a head
            with gradient checkpointing, or one that changes a tensor that is not a buffer of its own. While compiling, torch
            itself reports these.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        >>> head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> activations = trunk(torch.rand(2, 1, 8, 8))
        >>> gradients, scores = head_gradients(head, activations, torch.tensor([0, 2]))
        >>> gradients.shape, scores.shape
        (torch.Size([2, 4, 6, 6]), torch.Size([2, 3]))
    """
    run = run_head(head, activations, labels, [score])
    update_buffers(run)
    return HeadGradients(run.gradients[0], run.scores)


class HeadRun(NamedTuple):
    """One run of a head, whose buffers are not updated yet."""

    gradients: list[Tensor]  #: ∂score/∂A of each kind of score, in the shape of the activations
    scores: Tensor  #: (N, K), as the head returned them
    buffers: list[tuple[Tensor, Tensor]]  #: of the head, each with its value after the run


@torch.no_grad()
def update_buffers(run: HeadRun) -> None:
    """Copy the new values into the buffers of the head: last, as everything before may raise."""
    for buffer, value in run.buffers:
        buffer.copy_(value)


def run_head(head: Head, activations: Tensor, labels: Tensor, kinds: Sequence[Score]) -> HeadRun:
    """Run the head once, and take the gradients of several kinds of scores, see :func:`head_gradients`."""
    _check(head, activations)
    buffers = _changing_buffers(head) if isinstance(head, nn.Module) else {}

    def explained(received: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, dict[str, Tensor]]]:
        # Clones, because a head may work in place: on its input, which the cam still needs, and on its statistics, which
        # torch.func lets it change only if they were made in here. Compiled, a clone that nothing writes to costs nothing.
        received = received.clone()
        clones = {buffer: buffer.clone() for buffer in buffers.values()}
        held = {name: clones[buffer] for name, buffer in buffers.items()}
        if held:
            # All names of every buffer are given: functional_call would leave its own tensors in a module that occurs twice.
            scores = torch.func.functional_call(head, held, (received,), tie_weights=False)  # type: ignore[arg-type]
        else:
            scores = head(received)
        _check_scores(scores, received)
        selected = tuple(select_scores(scores, labels, kind) for kind in kinds)
        for each in selected:
            _check_dependence(each)
        return selected, (scores, held)

    try:
        with _differentiable_attention():
            selected, pull_back, (scores, held) = torch.func.vjp(explained, activations, has_aux=True)  # type: ignore[misc]
    except RuntimeError as error:
        if "saved tensor hooks" in str(error) or "setup_context staticmethod" in str(error):
            raise RuntimeError(
                "head: expected one that torch.func can differentiate, got one with gradient checkpointing, or with an "
                "autograd.Function that has no setup_context; switch checkpointing off in the head (a timm model's "
                "set_grad_checkpointing(False)), the trunk may keep it"
            ) from error
        if "mutate a captured Tensor" not in str(error):
            raise
        raise RuntimeError(
            "head: expected a function of the activations, got one that changes a tensor of its own, as BatchNorm in train mode "
            "changes its statistics; pass the nn.Module that owns these buffers as the head (split_model makes "
            "one), or call eval() on it"
        ) from error
    gradients = []
    with no_autocast(activations):
        for which in range(len(kinds)):
            ones = tuple(torch.full_like(each, float(i == which)) for i, each in enumerate(selected))
            gradients += pull_back(ones)

    return HeadRun(gradients, scores, [(buffer, held[name]) for name, buffer in buffers.items()])


def head_cams(
    head: Head,
    activations: Tensor,
    labels: Tensor,
    *,
    score: Score = "label",
    method: str | CamMethod = "grad_cam",
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> HeadCams:
    """Run the head once, and return cams to train with, and the scores.

    A training step with it compiles whole::

        @torch.compile(fullgraph=True)
        def objective(images, labels):
            cams, scores = head_cams(head, trunk(images), labels)
            return cross_entropy(scores, labels) + batch_cam_loss(cams, labels, prototypes)


        objective(images, labels).backward()

    A batch of another size may be compiled again; if a convolution follows the layer, torch 2.11 needs
    ``torch.compile(…, dynamic=False)`` for that. In a compiled loss, ``ClassPrototypes`` make their maps at every step.

    Args:
        head: A -> scores: an ``nn.Module``, or a callable that changes no tensor of its own.
        activations: A, (N, C, *spatial), with or without a graph; unchanged even if the head works in place.
        labels: (N,) class indices, or (N, K) soft labels.
        score: the score that is explained: ``"label"``, ``"predicted"``, ``"confused"``, ``"log_prob_sum"``, or a callable
            (scores, labels) -> (N,).
        method: a name in :data:`~batchcam_captum.functional.CAM_METHODS`, or a callable (activations, gradients) -> cams.
        reshape: brings activations and gradients that are not (N, C, *spatial), such as tokens, into that shape.

    Returns:
        The cams, float32 or float64, and the scores as the head returned them.

    Raises:
        TypeError: a head that cannot be called or does not return a tensor, activations that are not floating, or labels of
            another kind.
        ValueError: an unknown method, scores without one row per sample, or labels or a score that do not fit them.
        RuntimeError: scores that do not depend on the activations, activations made under ``torch.inference_mode()``, a head
            with gradient checkpointing, or one that changes a tensor that is not a buffer of its own.

    Example:
        >>> import torch
        >>> trunk, head = torch.nn.Conv2d(1, 4, 3), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
        >>> cams, scores = head_cams(head, trunk(torch.rand(2, 1, 8, 8)), torch.tensor([0, 2]))
        >>> cams.shape, cams.requires_grad
        (torch.Size([2, 1, 6, 6]), True)
    """
    method = get_method(method)
    run = run_head(head, activations, labels, [score])
    gradients = run.gradients[0]
    if reshape is not None:
        activations, gradients = reshape(activations), reshape(gradients)
    cams = apply_method(method, activations, gradients)
    update_buffers(run)
    return HeadCams(cams, run.scores)


def _changing_buffers(head: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a forward may change: those of modules in train mode."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in head.named_modules()
        if module.training
        for name, buffer in module._buffers.items()
        if buffer is not None
    }


def _differentiable_attention() -> AbstractContextManager[object]:
    """Select the math backend of attention where a graph is recorded: the fused ones have no second derivative."""
    if not torch.is_grad_enabled():
        return nullcontext()
    if torch.compiler.is_compiling():  # which traces this one only
        return sdpa_kernel(SDPBackend.MATH)
    attention = MathAttention()
    attention.start()
    return attention


def _check(head: Any, activations: Any) -> None:
    if not callable(head):
        raise TypeError(
            f"head: expected a callable that turns activations into scores, got {type(head).__name__}; pass the module that "
            f"follows the layer, or a function such as lambda activations: model.fc(activations.mean((2, 3)))"
        )
    if not isinstance(activations, Tensor) or not activations.is_floating_point():
        kind = activations.dtype if isinstance(activations, Tensor) else type(activations).__name__
        raise TypeError(f"activations: expected a floating tensor (N, C, *spatial), got {kind}")
    if activations.dim() < 2:
        raise ValueError(
            f"activations: expected (N, C, *spatial), got {tuple(activations.shape)}; split the model at another layer"
        )
    if torch.compiler.is_compiling():
        return
    if activations.is_inference() or torch.is_inference_mode_enabled():
        raise RuntimeError(
            "activations: expected a forward that can be recorded, got one under torch.inference_mode(); run trunk and head "
            "outside of it, the trunk under torch.no_grad() if need be"
        )
    if _is_compiled(head):
        raise RuntimeError(
            "head: expected the original head, got one that is compiled, which torch.func cannot look into; pass the original, "
            "and compile the whole step"
        )


def _is_compiled(head: Head) -> bool:
    parts = [head, *head.modules()] if isinstance(head, nn.Module) else [head]
    # The first is set by torch.compile(function or module), the second by module.compile().
    return any(
        hasattr(part, "_torchdynamo_orig_callable") or getattr(part, "_compiled_call_impl", None)
        for part in parts
    )


def _check_scores(scores: Any, activations: Tensor) -> None:
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"head: expected a tensor of scores (N, K), got {type(scores).__name__}; pick the scores from it, "
            f"head=lambda activations: head(activations)[…]"
        )
    if scores.dim() < 2 or scores.shape[0] != activations.shape[0]:
        raise ValueError(
            f"head: expected scores (N, K), one row for each of {activations.shape[0]} samples, got {tuple(scores.shape)}; "
            f"return the scores of every sample, before any softmax"
        )


def _check_dependence(selected: Tensor) -> None:
    # The copy belongs to the gradient in progress, and shows whether that runs through the activations; a constant itself would
    # show the graph outside.
    if not torch.compiler.is_compiling() and not selected.clone().requires_grad:
        raise RuntimeError(
            "head: expected scores that depend on the activations it was given, got scores that do not; use the argument "
            "throughout the head, and do not detach it or switch gradients off"
        )

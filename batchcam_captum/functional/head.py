"""The compiled route: the head is a function of the activations, and its gradients come from ``torch.func``.

No hook and no call into autograd's engine from Python, so ``torch.compile(fullgraph=True)`` takes a whole training step: cams,
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
    """See :func:`head_gradients`."""

    gradients: Tensor  #: ∂score/∂A, of the activations' shape
    scores: Tensor  #: (N, K), as the head returned them


class HeadCams(NamedTuple):
    """See :func:`head_cams`."""

    cams: Tensor  #: (N, 1, *spatial), raw and signed
    scores: Tensor  #: (N, K), as the head returned them


def head_gradients(
    head: Head, activations: Tensor, labels: Tensor, *, score: Score = "label"
) -> HeadGradients:
    """Run the head once; return its scores, and the gradients of each sample's score with respect to the activations.

    Both carry a graph that reaches the head's parameters and whatever made the activations (outside of ``torch.no_grad()``), so
    that a loss on either, or on both, needs one ``backward()``. There is one dropout mask, and one update of running statistics:
    an ``nn.Module`` in train mode runs on copies of its buffers, which are copied back once, when all else has worked.

    A loss on the gradients needs a second derivative of every operator in the head. Attention
    (``scaled_dot_product_attention``) has one on its math backend, which is switched on while the head runs, unless under
    ``torch.no_grad()``. Of others, such as ``hardsigmoid``, the error comes from ``backward()`` ("derivative for
    aten::hardsigmoid_backward is not implemented"): replace the operator, ``relu6(x + 3) / 6`` for this one, or split the model
    after it. ``batchcam_captum.check`` looks for them beforehand and names the nearest later layer.

    Args:
        head: A -> scores. An ``nn.Module``, or any callable that changes no tensor of its own: a bound method such as
            ``model.forward_head``, or a function, whose BatchNorms in train mode cannot update their statistics (a module's
            can).
        activations: A, (N, C, *spatial), with a graph or without one; left as they are, also where the head works in place.
        labels: see :func:`~batchcam_captum.functional.select_scores`.
        score: see :func:`~batchcam_captum.functional.select_scores`.

    Returns:
        The gradients, of the activations' shape and type, and the scores. As long as no layer of the head mixes samples (a
        BatchNorm in train mode does), row i of the gradients is that of sample i's own score.

    Raises:
        TypeError: a head that cannot be called or returns no tensor, activations that are no floating tensor, or labels of a
            wrong kind.
        ValueError: scores that are not one row a sample, or what
            :func:`~batchcam_captum.functional.select_scores` raises.
        RuntimeError: scores that do not depend on the activations, activations made under ``torch.inference_mode()``, or a head
            that changes a tensor which is no buffer of its own, or that has gradient checkpointing. The first two are not
            looked for while compiling, where torch's own words tell of checkpointing.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        >>> head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> activations = trunk(torch.rand(2, 1, 8, 8))
        >>> gradients, scores = head_gradients(head, activations, torch.tensor([0, 2]))
        >>> gradients.shape, scores.shape
        (torch.Size([2, 4, 6, 6]), torch.Size([2, 3]))
    """
    ((gradients,), scores), update = several_head_gradients(head, activations, labels, [score])
    update()
    return HeadGradients(gradients, scores)


class SeveralHeadGradients(NamedTuple):
    """See :func:`several_head_gradients`."""

    gradients: list[Tensor]  #: ∂score/∂A of each kind of score, of the activations' shape
    scores: Tensor  #: (N, K), as the head returned them


def several_head_gradients(
    head: Head, activations: Tensor, labels: Tensor, kinds: Sequence[Score]
) -> tuple[SeveralHeadGradients, Callable[[], None]]:
    """Gradients of several kinds of scores from one run of the head.

    Args:
        head: see :func:`head_gradients`.
        activations: see :func:`head_gradients`.
        labels: see :func:`head_gradients`.
        kinds: of scores, see :func:`~batchcam_captum.functional.select_scores`.

    Returns:
        The gradients and the scores; and a function that brings the head's buffers up to date, to be called when all else has
        worked.
    """
    _check(head, activations)
    buffers = _changing_buffers(head) if isinstance(head, nn.Module) else {}

    def explained(received: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, dict[str, Tensor]]]:
        # Clones, because a head may work in place: on what it receives, which the cam still needs, and on its statistics, which
        # torch.func lets it change only if they were made in here. Compiled, a clone costs nothing where nobody writes.
        received = received.clone()
        clones = {buffer: buffer.clone() for buffer in buffers.values()}
        held = {name: clones[buffer] for name, buffer in buffers.items()}
        if held:
            # Every name of a buffer is in there. Left to find the others itself, functional_call leaves its own tensors in a
            # module that occurs twice.
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

    @torch.no_grad()
    def update() -> None:
        for name, buffer in buffers.items():
            buffer.copy_(held[name])

    return SeveralHeadGradients(gradients, scores), update


def head_cams(
    head: Head,
    activations: Tensor,
    labels: Tensor,
    *,
    score: Score = "label",
    method: str | CamMethod = "grad_cam",
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> HeadCams:
    """Run the head once; return cams to train with, and the scores.

    All that a training step needs beside the trunk, and it compiles whole::

        @torch.compile(fullgraph=True)
        def objective(images, labels):
            cams, scores = head_cams(head, trunk(images), labels)
            return cross_entropy(scores, labels) + batch_cam_loss(cams, labels, prototypes)


        objective(images, labels).backward()

    A batch of another size may be compiled anew. Where a convolution follows the layer torch 2.11 needs
    ``torch.compile(…, dynamic=False)`` for that. ``ClassPrototypes`` make their maps at every step of a compiled loss.

    Args:
        head: see :func:`head_gradients`.
        activations: see :func:`head_gradients`.
        labels: see :func:`head_gradients`.
        score: see :func:`head_gradients`.
        method: a name in :data:`~batchcam_captum.functional.CAM_METHODS`, or a callable (activations, gradients) -> cams.
        reshape: applied to the activations and to the gradients before the cam is made of them, where they are not
            (N, C, *spatial), as the tokens of a transformer are not.

    Returns:
        The cams, float32 (float64 stays), and the scores as the head returned them.

    Raises:
        TypeError: see :func:`head_gradients`.
        ValueError: see :func:`head_gradients`; or an unknown method.
        RuntimeError: see :func:`head_gradients`.

    Example:
        >>> import torch
        >>> trunk, head = torch.nn.Conv2d(1, 4, 3), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
        >>> cams, scores = head_cams(head, trunk(torch.rand(2, 1, 8, 8)), torch.tensor([0, 2]))
        >>> cams.shape, cams.requires_grad
        (torch.Size([2, 1, 6, 6]), True)
    """
    method = get_method(method)
    ((gradients,), scores), update = several_head_gradients(head, activations, labels, [score])
    if reshape is not None:
        activations, gradients = reshape(activations), reshape(gradients)
    cams = apply_method(method, activations, gradients)
    update()  # last: the reshape and the weighting may raise
    return HeadCams(cams, scores)


def _changing_buffers(head: nn.Module) -> dict[str, Tensor]:
    """The buffers that a forward may change: those of modules in train mode."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in head.named_modules()
        if module.training
        for name, buffer in module._buffers.items()
        if buffer is not None
    }


def _differentiable_attention() -> AbstractContextManager[object]:
    """Where a graph is made, scaled_dot_product_attention runs on its math backend: the fused ones have no second derivative."""
    if not torch.is_grad_enabled():
        return nullcontext()
    if torch.compiler.is_compiling():  # the compiler knows it, and cannot look into the other
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
    # The first is left by torch.compile(function or module), the second by module.compile().
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
    # The copy belongs to the gradient in progress, and tells whether that runs through the activations; a constant on its own
    # would tell of the graph outside.
    if not torch.compiler.is_compiling() and not selected.clone().requires_grad:
        raise RuntimeError(
            "head: expected scores that depend on the activations it was given, got scores that do not; use the argument "
            "throughout the head, and do not detach it or switch gradients off"
        )

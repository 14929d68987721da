"""Cascading randomization: does a cam change when the model forgets what it has learned, from the top down?"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...attribution import BatchGradCam
from ...functional import cosine_similarity, prepare, rank_correlation, ssim
from ...functional.checks import check_choice, check_integer
from .perturbation import single_cams
from .scores import Targets, check_images, chunks, own_random_state, target_indices, warn_if_training

#: How maps are compared: structural similarity, Spearman's rank correlation, cosine.
Similarity = Literal["ssim", "spearman", "cosine"]

_MEASURES = {"ssim": ssim, "spearman": rank_correlation, "cosine": cosine_similarity}


class CascadingRandomization(NamedTuple):
    """The result of :func:`cascading_randomization` for L randomized layers."""

    layers: list[str]  #: L names; in row l all layers up to and including this one are randomized
    similarities: dict[str, Tensor]  #: by name (L, N), of each map to the original one; at most 1
    dead: Tensor  #: (L, N) booleans: the cam after the randomization is dead
    original_dead: Tensor  #: (N,) booleans: the original cam is dead, so there is nothing to destroy


def cascading_randomization(
    grad_cam: BatchGradCam,
    images: Tensor,
    targets: Targets,
    *,
    similarities: Sequence[Similarity] = ("ssim", "spearman", "cosine"),
    layers: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> CascadingRandomization:
    """Re-initialize a copy of the model layer by layer, from the scores down, and compare the maps with the original ones.

    Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3 (cascading randomization). A map that stays the same while
    the model is destroyed shows the image, not the model: **smaller similarities are better**. A high similarity throughout says
    so of the method, or of training that has built the map into the lowest layers.

    Layers are the modules with parameters of their own, in reverse order of the forward; then those that the forward does not
    reach. Each is re-initialized by its ``reset_parameters()``, which also resets the running statistics of a BatchNorm.
    **Parameters of a module without that method are permuted**: they keep their values, and so their mean and spread, but not
    their places; a constant one stays as it is.

    Args:
        grad_cam: of a single layer; its ``forward_func`` is a module. It is copied and stays as it is.
        images: (N, C, *spatial), as the model takes them.
        targets: class indices, one for all or one per image.
        similarities: which ones; all compare relu(C) / max at the cams' own size.
        layers: how many to randomize; None for all.
        batch_size: how many images are explained at a time.
        seed: of the new parameters. torch's random state is put back.

    Returns:
        Names (L,), similarities (L, N) in [−1, 1], and which cams are dead. A dead or all-zero cam counts as the zero map: rank
        correlation and cosine 0, which looks like a passed test, so report the share of dead cams as well; in SSIM two zero maps
        are equal, 1. Maps have no negative pixels, so the cosine of two unrelated ones is well above 0; rank correlation and SSIM
        are not.

    Raises:
        TypeError: ``grad_cam`` is not a :class:`~batchcam_captum.BatchGradCam`, its ``forward_func`` is not a module (the copy of
            a function would share the model's parameters), or images or targets are of a wrong kind.
        ValueError: a model without parameters, an unknown similarity, numbers that do not fit, or cams that are not finite.
    """
    if not isinstance(grad_cam, BatchGradCam) or not isinstance(grad_cam.forward_func, nn.Module):
        kind = type(getattr(grad_cam, "forward_func", grad_cam)).__name__
        raise TypeError(
            f"grad_cam: expected a BatchGradCam of a module, got {kind}; pass BatchGradCam(module, layer)"
        )
    for name in similarities:
        check_choice("similarities", name, Similarity)
    if layers is not None:
        check_integer("layers", layers, 1)
    check_images(images)
    indices = target_indices(targets, images)
    warn_if_training(grad_cam.forward_func)
    rows = chunks(len(images), batch_size)
    copied = deepcopy(grad_cam)  # the model and its layer together
    model: nn.Module = copied.forward_func

    def maps() -> tuple[Tensor, Tensor]:
        parts = [prepare(single_cams(copied, images[each], indices[each])) for each in rows]
        return torch.cat([part.maps for part in parts]), torch.cat([part.dead for part in parts])

    found: dict[str, list[Tensor]] = {name: [] for name in similarities}
    dead = []
    with own_random_state([images, *model.parameters(), *model.buffers()], seed):
        order = _top_down(copied, images[:1], indices[:1])[:layers]
        original, original_dead = maps()
        for _, module in order:
            randomize(module)
            present, now_dead = maps()
            dead.append(now_dead)
            for measure, values in found.items():
                values.append(_MEASURES[measure](present, original))
    stacked = {name: torch.stack(values) for name, values in found.items()}
    return CascadingRandomization([name for name, _ in order], stacked, torch.stack(dead), original_dead)


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Re-initialize a module's own parameters in place: by its ``reset_parameters()``, otherwise each one is permuted.

    Args:
        module: its submodules are left alone, unless its own method resets them.
    """
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        # Drawn on the CPU: the same on every device.
        places = torch.randperm(parameter.numel()).to(parameter.device)
        parameter.copy_(parameter.flatten()[places].reshape(parameter.shape))


def _top_down(grad_cam: BatchGradCam, images: Tensor, indices: Tensor) -> list[tuple[str, nn.Module]]:
    """Return modules with parameters of their own and their names, the last one of the forward first."""
    model: nn.Module = grad_cam.forward_func
    own = {
        module: name or type(module).__name__
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    if not own:
        raise ValueError(
            "grad_cam: expected a model with parameters, got none; there is nothing to randomize"
        )
    reached: list[nn.Module] = []
    handles = [  # Under DataParallel a replica runs instead of the module.
        module.register_forward_pre_hook(lambda _, __, module=module: reached.append(module))
        for module in own
    ]
    try:
        single_cams(grad_cam, images, indices)
    finally:
        for handle in handles:
            handle.remove()
    # A module that runs several times counts with its last run.
    ordered = dict.fromkeys([*reversed(reached), *reversed(own)])
    return [(own[module], module) for module in ordered]

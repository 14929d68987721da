"""Cascading randomisation: does a map change when the model forgets what it has learnt, from the top down?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ...attribution import BatchGradCam
from ...attribution.chunks import row_chunks
from ...attribution.state import rng_kept
from ...functional import cosine_similarity, full_precision, prepare, rank_correlation, ssim
from ...functional.metrics.common import check_whole
from .scoring import Targets, check_batch_size, check_images, target_indices, warn_of_dropout

#: How maps are compared: structural similarity, Spearman's rank correlation, cosine.
Similarity = Literal["ssim", "spearman", "cosine"]

_MEASURES = {"ssim": ssim, "spearman": rank_correlation, "cosine": cosine_similarity}


class CascadingRandomization(NamedTuple):
    """What :func:`cascading_randomization` returns; L is how many layers have been randomised so far, from the top."""

    layers: list[str]  #: L names; row l has all layers up to and including this one randomised
    similarities: dict[str, Tensor]  #: by name (L, N), of each map to the original one; at most 1
    dead: Tensor  #: (L, N) booleans: the map after the randomisation is dead
    original_dead: Tensor  #: (N,) booleans: the original map is dead, so that there is nothing to destroy


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
    """Re-initialise a copy of the model layer by layer, from the scores down, and compare the maps with the original ones.

    Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3 (cascading randomization). A map that stays the
    same while the model is destroyed shows the image, not the model: **smaller similarities are better**. A similarity that is
    high throughout says so of the method, or of training that has built the map into the lowest layers.

    Layers are the modules with parameters of their own, in the order in which a forward of the model reaches them, the last one
    first; then those that it does not reach. Each is re-initialised by its own ``reset_parameters()`` (which also resets the
    running statistics of a BatchNorm, as training from scratch would begin). **Parameters of a module without that method are
    permuted**: each keeps its values, so its mean and spread, but not their places; a constant one stays as it is.

    Args:
        grad_cam: of a single layer; its ``forward_func`` is a module. It is copied and stays as it is.
        images: (N, C, *spatial), as the model takes them.
        targets: class indices, one for all or one an image.
        similarities: which ones; all compare relu(C) / max at the cams' own size.
        layers: how many to randomise; None for all of them.
        batch_size: how many images are explained at a time.
        seed: of the new parameters. torch's random state is put back.

    Returns:
        Names (L,), similarities (L, N) in [−1, 1], and which maps are dead. A dead map, like an all-zero one, counts as the zero
        map: rank correlation and cosine 0, which looks like a passed test, so report the share of dead maps beside it; in SSIM
        two zero maps are equal, 1. Maps have no negative pixels, so the cosine of two unrelated ones is well above 0; that of
        the ranks and SSIM are not.

    Raises:
        TypeError: ``grad_cam`` is no :class:`~batchcam_captum.BatchGradCam`, its ``forward_func`` no module (a copy of a function
            would share the model's parameters), or images or targets are of a wrong kind.
        ValueError: several layers, a model without parameters, an unknown similarity, numbers that do not fit, or cams that are
            not finite.
    """
    _check(grad_cam, similarities, layers)
    check_batch_size(batch_size)
    check_whole("seed", seed)
    check_images(images)
    warn_of_dropout(grad_cam.forward_func)
    indices = target_indices(targets, images)
    # One copy of both: the layer is the copied model's own.
    copied = deepcopy(grad_cam)
    model: nn.Module = copied.forward_func
    chunks = row_chunks(len(images), batch_size) if len(images) else []

    def maps() -> tuple[Tensor, Tensor]:
        parts = [prepare(_cams(copied, images[rows], indices[rows])) for rows in chunks]
        return torch.cat([part.maps for part in parts]), torch.cat([part.dead for part in parts])

    with _seeded([images, *model.parameters(), *model.buffers()], seed):
        order = _top_down(copied, images[:1], indices[:1])[:layers]
        if not chunks:
            empty: dict[str, Tensor] = {name: images.new_zeros(len(order), 0) for name in similarities}
            none = torch.zeros(len(order), 0, dtype=torch.bool, device=images.device)
            return CascadingRandomization([name for name, _ in order], empty, none, none.new_zeros(0))
        original, original_dead = maps()
        found: dict[str, list[Tensor]] = {name: [] for name in similarities}
        dead = []
        for _, module in order:
            randomize(module)
            present, now_dead = maps()
            dead.append(now_dead)
            for name, values in found.items():
                values.append(_MEASURES[name](present, original))
    return CascadingRandomization(
        [name for name, _ in order],
        {name: torch.stack(values) for name, values in found.items()},
        torch.stack(dead),
        original_dead,
    )


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Re-initialise a module's own parameters in place: by its ``reset_parameters()``, otherwise each one is permuted.

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


def _check(grad_cam: object, similarities: Sequence[str], layers: int | None) -> None:
    if not isinstance(grad_cam, BatchGradCam):
        raise TypeError(f"grad_cam: expected a BatchGradCam, got {type(grad_cam).__name__}")
    if not isinstance(grad_cam.forward_func, nn.Module):
        raise TypeError(
            f"grad_cam: expected a model that is a module, got {type(grad_cam.forward_func).__name__}; a function is not copied "
            f"with its parameters, pass BatchGradCam(module, layer)"
        )
    if len(grad_cam.layers) != 1:
        raise ValueError(
            f"grad_cam: expected one layer, got {len(grad_cam.layers)}; measure the layers one after the other"
        )
    for name in similarities:
        if name not in get_args(Similarity):
            raise ValueError(f"similarities: expected 'ssim', 'spearman' or 'cosine', got {name!r}")
    if layers is not None:
        check_whole("layers", layers, 1)


def _cams(grad_cam: BatchGradCam, images: Tensor, indices: Tensor) -> Tensor:
    cams = grad_cam.attribute(images, target=indices)
    if not isinstance(cams, Tensor):
        raise TypeError(
            "grad_cam: expected a layer with a single tensor, got several maps; pick a layer after it"
        )
    cams = full_precision(cams)
    if not bool(cams.isfinite().all()):
        raise ValueError(
            "cams: expected finite values, got NaN or infinity; with its new parameters the model overflows, randomise fewer "
            "layers"
        )
    return cams


def _top_down(grad_cam: BatchGradCam, images: Tensor, indices: Tensor) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own and their names, the one that a forward reaches last first."""
    model: nn.Module = grad_cam.forward_func
    own = {
        module: name or type(module).__name__
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    if not own:
        raise ValueError(
            "grad_cam: expected a model with parameters, got none; there is nothing to randomise"
        )
    reached: list[nn.Module] = []
    handles = [  # Under DataParallel a replica runs in the module's place.
        module.register_forward_pre_hook(lambda _, __, module=module: reached.append(module))
        for module in own
    ]
    try:
        if len(images):
            _cams(grad_cam, images, indices)
    finally:
        for handle in handles:
            handle.remove()
    # A module that runs several times counts with its last run.
    ordered = list(dict.fromkeys(reversed(reached)))
    ordered += [module for module in reversed(own) if module not in set(ordered)]
    return [(own[module], module) for module in ordered]


@contextmanager
def _seeded(tensors: Sequence[Tensor], seed: int) -> Iterator[None]:
    """Seed torch's random state of the CPU and of the tensors' devices, and put it back."""
    with rng_kept(tensors):
        torch.default_generator.manual_seed(seed)
        for device in {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}:
            module = torch.get_device_module(device)
            with module.device(device):
                module.manual_seed(seed)
        yield

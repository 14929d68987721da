"""Losses, prototypes and weights that go together, ready to train with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..functional import Registry
from ..functional.images import PerChannel, ToChannel
from ..losses import CamLoss, ForegroundLoss, PrototypeLoss
from ..prototypes import ClassPrototypes, ForegroundPrototypes, ImagePrototypes
from ..prototypes.class_prototypes import fill
from .schedules import AutoWeight, LinearWarmup
from .terms import GivenWeight

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Ingredient:
    """One term of a recipe."""

    prototypes: type[ImagePrototypes]  #: what the cams are compared with, taken from the training images
    loss: Callable[[ImagePrototypes], CamLoss]
    weight: GivenWeight  #: λ
    warm_up: float = 0.0  #: over so many epochs λ grows from 0 to it


Recipe = Mapping[str, Ingredient]

#: Recipes by name. Your own: ``RECIPES.register("name")({"term": Ingredient(…)})``.
RECIPES: Registry[Recipe] = Registry("recipe")


def _foreground(prototypes: ImagePrototypes) -> CamLoss:
    return ForegroundLoss(prototypes)


def _shape(prototypes: ImagePrototypes) -> CamLoss:
    return PrototypeLoss(prototypes, distance="ssim")


_FOREGROUND = Ingredient(ForegroundPrototypes, _foreground, 0.1)
# In the search the shape cost Fashion-MNIST accuracy from the first step on, and none when it grew over an epoch.
_SHAPE = Ingredient(ClassPrototypes, _shape, 1.0, warm_up=1.0)

RECIPES.register("foreground_shape")({"foreground": _FOREGROUND, "shape": _SHAPE})
RECIPES.register("foreground")({"foreground": _FOREGROUND})
RECIPES.register("shape")({"shape": _SHAPE})

#: What the study found to be best: see docs/study.md.
DEFAULT_RECIPE = "foreground_shape"


def recipe_losses(
    loader: Iterable[Any],
    num_classes: int,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    steps_per_epoch: int | None = None,
    mean: PerChannel = None,
    std: PerChannel = None,
    to_channel: ToChannel | None = None,
    size: Sequence[int] | None = None,
    ignore_index: int = -100,
    device: torch.device | str | None = None,
    progress: bool = True,
    sync: bool | ProcessGroup = True,
) -> dict[str, tuple[CamLoss, GivenWeight]]:
    """The losses and weights of a recipe, for :class:`CamRegularizer`.

    - ``"foreground_shape"``, the default: the foreground loss (λ = 0.1), which keeps the evidence for and against every class
      where the class's images usually have something, and the prototype loss with SSIM to the classes' mean images (λ = 1,
      which it grows to over the first epoch), which makes the Grad-CAM of the class follow its shape.
    - ``"foreground"``: the first of them alone. ``"shape"``: the second alone, at nearly no cost in time, which does little
      against shortcuts.

    Weights and rules were chosen on validation images of MNIST and Fashion-MNIST; ``docs/study.md`` has how they did on test
    images, fresh seeds and other shortcuts, and where they fail. They are for objects in a usual place on a dark background: for
    other images see :class:`ForegroundPrototypes`, and bring the images there with ``to_channel``. A shortcut that is always
    in one place is foreground by this rule, and stays; one in random places is not, but the mean image holds a trace of it.

    Args:
        loader: of batches that begin with images (N, C, *spatial) and labels (N,), gone through once; without random
            augmentation, for prototypes that say where things are.
        num_classes: the number of classes, K.
        recipe: a name of :data:`RECIPES`, or a recipe of your own.
        steps_per_epoch: how many steps the weights that warm up take as one epoch. Default: the length of the loader. With such
            weights ``regularizer.step()`` is called beside ``optimizer.step()``.
        mean: the ``mean`` that the images were standardised with, see :class:`ClassPrototypes`.
        std: likewise.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial), in the place of the channels' average.
        size: resize the images to this size first.
        ignore_index: images with this label are left out, here and in the losses.
        device: where the images are summed up. Default: where the loader's images are.
        progress: show a bar.
        sync: add up what the ranks have seen, see :class:`ClassPrototypes`.

    Returns:
        Name of the term -> loss and weight.

    Raises:
        ValueError: an unknown recipe, no step an epoch, or images or labels that do not fit; see :class:`ForegroundPrototypes`.
        TypeError: labels or batches of another kind, a recipe of another kind, or a loader without a length and no
            ``steps_per_epoch``.

    Warns:
        UserWarning: classes without any foreground, or without anything else.

    Example:
        >>> import torch
        >>> from batchcam_captum.training import recipe_losses
        >>> images = torch.zeros(20, 1, 12, 12)
        >>> images[:, :, 4:8, 4:8] = 0.9
        >>> loader = [(images, torch.arange(20) % 2)]
        >>> losses = recipe_losses(loader, num_classes=2, progress=False)
        >>> losses["foreground"][1], losses["shape"][1]
        (0.1, LinearWarmup(weight=1.0, steps=1, start=0.0))
    """
    ingredients = _ingredients(recipe)
    weights = {name: _weight(name, each, loader, steps_per_epoch) for name, each in ingredients.items()}
    prototypes = {
        name: each.prototypes(
            num_classes, mean=mean, std=std, to_channel=to_channel, size=size, ignore_index=ignore_index
        )
        for name, each in ingredients.items()
    }
    fill(list(prototypes.values()), loader, device, progress=progress, sync=sync)
    losses = {name: each.loss(prototypes[name]) for name, each in ingredients.items()}
    for loss in losses.values():
        loss.ignore_index = ignore_index
    return {name: (loss, weights[name]) for name, loss in losses.items()}


def _ingredients(recipe: str | Recipe) -> Recipe:
    found = RECIPES[recipe] if isinstance(recipe, str) else recipe
    if not isinstance(found, Mapping) or not all(isinstance(each, Ingredient) for each in found.values()):
        raise TypeError(
            f"recipe: expected a name, or names of terms with an Ingredient each, got {type(recipe).__name__}; known names are "
            f"{', '.join(map(repr, RECIPES))}"
        )
    return found


def _weight(
    name: str, ingredient: Ingredient, loader: Iterable[Any], steps_per_epoch: int | None
) -> GivenWeight:
    if not ingredient.warm_up:
        return ingredient.weight
    if isinstance(ingredient.weight, str | AutoWeight):
        raise TypeError(
            f"recipe: expected a number or a function of the steps to warm up to for {name!r}, got 'auto'"
        )
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected 1 or more, got {steps_per_epoch}")
    if steps_per_epoch is None:
        if not isinstance(loader, Sized):
            raise TypeError(
                f"loader: expected one with a length, of which the weight of {name!r} takes how long it warms up, got "
                f"{type(loader).__name__}; pass steps_per_epoch="
            )
        steps_per_epoch = len(loader)
    return LinearWarmup(ingredient.weight, max(1, round(ingredient.warm_up * steps_per_epoch)))

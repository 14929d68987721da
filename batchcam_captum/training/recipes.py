"""Losses, prototypes and weights that go together, ready to train with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..functional import Registry
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

    prototypes: type[ImagePrototypes]  #: the kind of prototypes, computed from the training images
    loss: Callable[[ImagePrototypes], CamLoss]
    weight: GivenWeight  #: λ
    warm_up: float = 0.0  #: the number of epochs over which λ grows from 0 to ``weight``


Recipe = Mapping[str, Ingredient]

#: Recipes by name. Your own: ``RECIPES.register("name")({"term": Ingredient(…)})``.
RECIPES: Registry[Recipe] = Registry("recipe")


def _foreground(prototypes: ImagePrototypes) -> CamLoss:
    return ForegroundLoss(prototypes)


def _shape(prototypes: ImagePrototypes) -> CamLoss:
    return PrototypeLoss(prototypes, distance="ssim")


_FOREGROUND = Ingredient(ForegroundPrototypes, _foreground, 0.1)
# In the search the shape term cost accuracy on Fashion-MNIST without a warm-up, and none with a warm-up of one epoch.
_SHAPE = Ingredient(ClassPrototypes, _shape, 1.0, warm_up=1.0)

RECIPES.register("foreground_shape")({"foreground": _FOREGROUND, "shape": _SHAPE})
RECIPES.register("foreground")({"foreground": _FOREGROUND})
RECIPES.register("shape")({"shape": _SHAPE})

#: The best recipe of the study, docs/study.md.
DEFAULT_RECIPE = "foreground_shape"


def recipe_losses(
    loader: Iterable[Any],
    num_classes: int,
    *,
    recipe: str | Recipe = DEFAULT_RECIPE,
    steps_per_epoch: int | None = None,
    ignore_index: int = -100,
    device: torch.device | str | None = None,
    progress: bool = True,
    sync: bool | ProcessGroup = True,
    **options: Any,
) -> dict[str, tuple[CamLoss, GivenWeight]]:
    """Return the losses and weights of a recipe, for :class:`CamRegularizer`.

    - ``"foreground_shape"``, the default: the foreground loss (λ = 0.1), which keeps the evidence for and against every class
      where the class's images usually have something, and the prototype loss with SSIM to the mean image of the class (λ grows
      to 1 over the first epoch), which makes the Grad-CAM of the class follow its shape.
    - ``"foreground"``: the first of them alone.
    - ``"shape"``: the second alone, which costs almost no time and does little against shortcuts.

    Weights and rules were chosen on validation images of MNIST and Fashion-MNIST; ``docs/study.md`` shows how they do on test
    images, other seeds and other shortcuts, and where they fail. They suit objects in a usual place on a dark background; convert
    other images with ``to_channel``. A shortcut that is always in one place is foreground by this rule, and stays. A shortcut in
    random places is not, but the mean image holds a trace of it.

    Args:
        loader: batches that begin with images (N, C, *spatial) and labels (N,), without random augmentation; read once.
        num_classes: the number of classes, K.
        recipe: a name in :data:`RECIPES`, or a recipe of your own.
        steps_per_epoch: the length of an epoch for weights that warm up. Default: the length of the loader. If weights warm up,
            call ``regularizer.step()`` after each ``optimizer.step()``.
        ignore_index: samples with this label are ignored, here and in the losses.
        device: where the prototypes are computed and stored. Default: the CPU.
        progress: show a progress bar.
        sync: combine the images of all ranks of the process group, if there is one, or of the given group.
        **options: how images are read, as for :class:`ClassPrototypes`: ``mean`` and ``std`` of standardized images,
            ``to_channel``, ``size``.

    Returns:
        The loss and the weight of each term, by the name of the term.

    Raises:
        ValueError: the recipe is unknown, ``steps_per_epoch`` is not positive, or images or labels do not fit.
        TypeError: labels, batches or a recipe of another kind, or a loader without a length and no ``steps_per_epoch``.

    Warns:
        UserWarning: some classes have no foreground, or nothing but foreground.

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
        name: each.prototypes(num_classes, ignore_index=ignore_index, **options)
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
            f"recipe: expected a name, or an Ingredient for each name of a term, got {type(recipe).__name__}; known names are "
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
            f"recipe: expected a number or a function of the step to warm up to for {name!r}, got 'auto'"
        )
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected 1 or more, got {steps_per_epoch}")
    if steps_per_epoch is None:
        if not isinstance(loader, Sized):
            raise TypeError(
                f"loader: expected a length, over which the weight of {name!r} warms up, got {type(loader).__name__}; pass "
                f"steps_per_epoch="
            )
        steps_per_epoch = len(loader)
    return LinearWarmup(ingredient.weight, max(1, round(ingredient.warm_up * steps_per_epoch)))

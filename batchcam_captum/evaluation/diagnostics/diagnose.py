"""A data set through one model, or two, and what their maps say by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...attribution import BatchGradCam
from ...batches import batches
from ...functional import normalize, prepare
from ...functional.distance import Distance
from ...functional.images import PerChannel, undo_standardization
from ...prototypes import ClassPrototypes, Prototypes
from .result import Diagnosis, Mistakes
from .tally import ClassTally, WorstMistakes


def diagnose(
    grad_cam: BatchGradCam,
    loader: Iterable[Any],
    prototypes: Prototypes | None = None,
    *,
    before: BatchGradCam | None = None,
    class_names: Sequence[str] | None = None,
    panels: int = 8,
    distance: str | Distance = "centred_cosine",
    mean: PerChannel = None,
    std: PerChannel = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Diagnose a model by its maps, in one pass and in memory that does not grow with the data set.

    It gives for each class the mean map of the true class, which prototypes its maps are nearest to and how many are dead; and
    the worst mistakes, each with the maps of the predicted and of the true class. It sees what one process sees. Torch's global
    generator on the CPU stays as it was, whatever the loader draws; a model in training mode draws from it as ever.

    Args:
        grad_cam: the model, in the mode it should be diagnosed in, and its layer.
        loader: batches that begin with images (N, C, *spatial) and labels (N,), 0 … K−1, in an order that is the same each time.
        prototypes: of the classes. None: the mean images of the loader itself, which is then gone through twice.
        before: a second model to set beside the first, such as the one trained with cross-entropy alone.
        class_names: K names. Default: the numbers.
        panels: how many mistakes to keep, at most.
        distance: how the nearest prototype is found, see :func:`~batchcam_captum.functional.nearest_prototype`.
        mean: the ``mean`` of ``Normalize`` that the images went through, to show them and for prototypes of the loader.
        std: its ``std``.
        device: where the batches go; None leaves them.
        progress: show progress bars.

    Returns:
        What was found; :meth:`.Diagnosis.save` writes it.

    Raises:
        ValueError: an empty loader, labels out of range, scores that do not fit the prototypes, cams that are not finite.
        TypeError: batches of another kind, or a layer with several tensors.
    """
    if panels < 0:
        raise ValueError(f"panels: expected at least 0, got {panels}")
    if prototypes is None:
        source = "mean images of the diagnosed data set"
        prototypes = ClassPrototypes.from_loader(
            loader,
            _classes(grad_cam, loader, device),
            mean=mean,
            std=std,
            device=device,
            progress=progress,
            sync=False,
        )
    else:
        source = type(prototypes).__name__
    names = tuple(map(str, range(prototypes.num_classes) if class_names is None else class_names))
    if len(names) != prototypes.num_classes:
        raise ValueError(f"class_names: expected {prototypes.num_classes} names, got {len(names)}")
    models = [grad_cam] if before is None else [grad_cam, before]
    tallies = [ClassTally(prototypes, distance) for _ in models]
    worst = WorstMistakes(panels)
    size: tuple[int, ...] = ()
    for images, labels in batches(loader, device, description="diagnosis", progress=progress):
        if not len(labels):
            continue
        for model, tally in zip(models, tallies, strict=True):
            cams, scores = _cams(model, images, labels, prototypes.num_classes)
            tally.update(cams, scores, labels)
            if model is grad_cam:
                size = tuple(cams.shape[2:])
                worst.update(images, scores, labels)
    results = [tally.result() for tally in tallies]
    mistakes, in_all = _mistakes(grad_cam, worst, size)
    return Diagnosis(
        settings={
            "layer": _layer_name(grad_cam),
            "method": _method_name(grad_cam),
            "map_size": list(size),
            "prototypes": source,
            "nearest_prototype_by": distance
            if isinstance(distance, str)
            else getattr(distance, "__name__", str(distance)),
            "maps": "relu, divided by the maximum; means over the maps that are not dead",
        },
        class_names=names,
        after=results[0],
        before=results[1] if before is not None else None,
        mistakes=mistakes,
        mistakes_in_all=in_all,
        prototypes=normalize(prototypes.maps(size)).cpu(),
        pictures=_pictures(mistakes.images, mean, std),
    )


def _cams(
    grad_cam: BatchGradCam, images: Tensor, labels: Tensor, classes: int | None
) -> tuple[Tensor, Tensor]:
    cams, scores = grad_cam.attribute_with_scores(images, target=labels)
    if not isinstance(cams, Tensor):
        raise TypeError(
            f"layer: expected one layer with one tensor, got {type(cams).__name__} of maps; choose one of them"
        )
    if classes is not None and scores.shape[1] != classes:
        raise ValueError(
            f"prototypes: expected {scores.shape[1]} classes, as the model has scores, got {classes}; check num_classes"
        )
    return cams, scores


def _classes(grad_cam: BatchGradCam, loader: Iterable[Any], device: torch.device | str | None) -> int:
    """K, from the first sample."""
    if isinstance(loader, Iterator):
        raise ValueError(
            "prototypes: expected some, as the loader can be gone through only once, got None; pass prototypes, or a loader that "
            "starts anew"
        )
    for images, labels in batches(loader, device):
        if len(labels):
            return grad_cam.attribute_with_scores(images[:1], target=labels[:1])[1].shape[1]
    raise ValueError("loader: expected at least one sample, got none; check the data set and drop_last")


def _mistakes(grad_cam: BatchGradCam, worst: WorstMistakes, size: tuple[int, ...]) -> tuple[Mistakes, int]:
    kept, in_all = worst.result()
    maps = [kept.images.new_zeros(0, 1, *size)] * 2
    dead = [kept.labels.new_zeros(0, dtype=torch.bool)] * 2
    if len(kept.labels):
        prepared = [
            prepare(grad_cam.attribute(kept.images, target=target))
            for target in (kept.predictions, kept.labels)
        ]
        maps, dead = [each.maps for each in prepared], [each.dead for each in prepared]
    found = Mistakes(
        positions=kept.positions.cpu(),
        labels=kept.labels.cpu(),
        predictions=kept.predictions.cpu(),
        confidences=kept.confidences.cpu(),
        label_probabilities=kept.losses.neg().exp().cpu(),
        images=kept.images.cpu(),
        maps_of_prediction=maps[0].float().cpu(),
        maps_of_label=maps[1].float().cpu(),
        dead_of_prediction=dead[0].cpu(),
        dead_of_label=dead[1].cpu(),
    )
    return found, in_all


def _pictures(images: Tensor, mean: PerChannel, std: PerChannel) -> Tensor:
    """(P, H, W), or (P, H, W, 3) in [0, 1]. Images that leave [0, 1] although standardisation is undone are fitted into it."""
    plain = undo_standardization(images.float(), mean, std)
    if len(plain) and not (float(plain.min()) >= -0.01 and float(plain.max()) <= 1.01):
        plain = normalize(plain, "minmax")
    plain = plain.clamp(0, 1)
    return plain.permute(0, 2, 3, 1) if plain.shape[1] == 3 else plain.mean(1)


def _layer_name(grad_cam: BatchGradCam) -> str:
    return ", ".join(map(str, grad_cam.layer_names))


def _method_name(grad_cam: BatchGradCam) -> str:
    method: Any = grad_cam.method
    return method if isinstance(method, str) else getattr(method, "__name__", str(method))

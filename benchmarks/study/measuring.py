"""What is measured of a trained model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation.faithfulness import (
    cascading_randomization,
    deletion_curve,
    infidelity,
    insertion_curve,
    max_sensitivity,
    road,
)
from batchcam_captum.functional import (
    class_coherence,
    dead_cams,
    energy_in_mask,
    nearest_prototype,
    pointing_game,
    prototype_cosine,
    prototype_distance,
    shortcut_share,
)

from .data import StudyData
from .training import DivergedError, Trained

_BATCH = 500
#: Of how many validation images the maps are measured; their accuracy is that of all.
VALIDATION_MAPS = 2000


def measure(
    trained: Trained, data: StudyData, device: torch.device, *, maps: int | None = None, faithfulness: int = 0
) -> dict[str, float]:
    """Accuracy, and the Grad-CAMs of the true classes, over the evaluation images.

    Args:
        trained: the model.
        data: of the run.
        device: of the model.
        maps: with how many images the maps are measured; None: with all.
        faithfulness: with how many images it is measured how much the score hangs on what a map shows.

    Returns:
        Means over the images. Shares of the shortcut only where there is one beside the object.

    Raises:
        DivergedError: scores, cams or measures that are not finite.
    """
    found = {"accuracy": _accuracy(trained, data, device)}
    try:
        count = len(data.evaluation.labels)
        found |= _of_maps(trained, data, device, min(count, maps or count))
        if faithfulness:
            found |= _of_faithfulness(trained, data, device, faithfulness)
    except ValueError as error:  # the metrics refuse what is not finite
        if "finite" not in str(error):
            raise
        raise DivergedError(f"{error} (after training)") from error
    bad = [name for name, value in found.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(f"{', '.join(bad)} of the trained model were not finite")
    return found


def _batches(data: StudyData, device: torch.device, count: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    images = data.standardized(data.evaluation.images[:count])
    for start in range(0, count, _BATCH):
        chosen = slice(start, min(start + _BATCH, count))
        batch = images[chosen].to(device).contiguous(memory_format=torch.channels_last)
        yield batch, data.evaluation.labels[chosen].to(device), chosen


@torch.no_grad()
def _accuracy(trained: Trained, data: StudyData, device: torch.device) -> float:
    count = len(data.evaluation.labels)
    correct = [
        (trained.model(images).argmax(1) == labels).sum()
        for images, labels, _ in _batches(data, device, count)
    ]
    return float(torch.stack(correct).sum()) / count


def _of_maps(trained: Trained, data: StudyData, device: torch.device, count: int) -> dict[str, float]:
    grad_cam = BatchGradCam(trained.model, trained.layer)
    element_wise = BatchGradCam(trained.model, trained.layer, method="hires_cam")
    prototypes = data.clean_prototypes().to(device)
    part = data.evaluation
    rows: list[dict[str, Tensor]] = []
    every: list[Tensor] = []
    for images, labels, chosen in _batches(data, device, count):
        cams = grad_cam.attribute(images, target=labels)
        fine = element_wise.attribute(images, target=labels)
        references = prototypes.maps(cams.shape[2:])
        objects, shortcuts = part.objects[chosen].to(device), part.shortcuts[chosen].to(device)
        row = {
            "l1": prototype_distance(cams, labels, references, "l1"),
            "ssim": 1 - prototype_distance(cams, labels, references, "ssim"),
            "cosine": prototype_cosine(cams, labels, references),
            "nearest_prototype": (nearest_prototype(cams, references) == labels).float(),
            "dead_fraction": dead_cams(cams).float(),
            "energy_in_object": energy_in_mask(cams, objects),
            "pointing_game": pointing_game(cams, objects).float(),
            "hires_energy_in_object": energy_in_mask(fine, objects),
        }
        if part.has_shortcut_beside:
            row["energy_in_shortcut"] = shortcut_share(cams, shortcuts).share
            row["hires_energy_in_shortcut"] = shortcut_share(fine, shortcuts).share
        rows.append(row)
        every.append(cams)
    found = {key: float(torch.cat([row[key] for row in rows]).mean()) for key in rows[0]}
    coherence = class_coherence(torch.cat(every), part.labels[:count].to(device), data.num_classes)
    return found | {"coherence": float(coherence.mean())}


def _of_faithfulness(trained: Trained, data: StudyData, device: torch.device, count: int) -> dict[str, float]:
    """Of the label's Grad-CAM, on evaluation images as they are, with a shortcut where there is one."""
    grad_cam = BatchGradCam(trained.model, trained.layer)
    model = trained.model
    images, labels, _ = next(_batches(data, device, min(count, _BATCH)))
    cams = grad_cam.attribute(images, target=labels)
    sensitivity = max_sensitivity(grad_cam, images, labels, normalize="max")
    destroyed = cascading_randomization(grad_cam, images, labels, similarities=("ssim", "spearman"))
    alive = ~destroyed.original_dead & ~destroyed.dead[-1]
    found = {
        "insertion_auc": insertion_curve(model, images, cams, labels).auc.mean(),
        "deletion_auc": deletion_curve(model, images, cams, labels).auc.mean(),
        "infidelity": infidelity(model, images, cams, labels, relative=True).mean(),
        "road": road(model, images, cams, labels).combined.mean(),
        # A dead map looks perfectly stable, and like nothing else: both are of live maps, and how many there are stands beside.
        "max_sensitivity": sensitivity.values[~sensitivity.dead].mean(),
        "randomized_ssim": destroyed.similarities["ssim"][-1, alive].mean(),
        "randomized_spearman": destroyed.similarities["spearman"][-1, alive].mean(),
        "randomized_dead": destroyed.dead[-1].float().mean(),
    }
    # Without a live map these have nothing to measure; what is missing is said, and enters no mean.
    of_live_maps = ("max_sensitivity", "randomized_ssim", "randomized_spearman")
    values = {name: float(each) for name, each in found.items()}
    return {
        name: value for name, value in values.items() if name not in of_live_maps or not math.isnan(value)
    }

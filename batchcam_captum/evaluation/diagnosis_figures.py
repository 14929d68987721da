"""The figures of a diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..functional import resize
from .figures import map_grid, message_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from .diagnosis import ClassDiagnosis, Diagnosis

#: With more classes, the grid shows those whose cams resemble their class least, and the matrix has no numbers.
_MOST_CLASSES = 20


def draw_class_maps(diagnosis: Diagnosis) -> Figure:
    """Draw one row per class: its prototype, the mean cam of its samples, before and after with two models, and the difference.

    With more than 20 classes, those whose cams are least often closest to their own prototype.
    """
    after, before = diagnosis.after, diagnosis.before
    if after.mean_maps.dim() != 4:
        return message_figure("Only cams with two spatial dimensions are drawn.")
    shown = _classes_to_show(after)
    columns: dict[str, tuple[Tensor, bool | Literal["difference"]]] = {
        "prototype": (diagnosis.prototypes[shown, 0], True)
    }
    if before is None:
        columns["mean cam"] = (after.mean_maps[shown, 0], True)
    else:
        columns["mean cam\nbefore"] = (before.mean_maps[shown, 0], True)
        columns["mean cam\nafter"] = (after.mean_maps[shown, 0], True)
        change = after.mean_maps - resize(before.mean_maps, after.mean_maps.shape[2:])
        columns["after − before"] = (change[shown, 0], "difference")  # noqa: RUF001
    arrow = ", before → after" if before is not None else ""
    title = (
        "Mean cam of the true class: mean of relu(C) / max over the cams\n"
        f"that are not dead; % own: closest to their own prototype{arrow}"
    )
    if len(shown) < len(diagnosis.class_names):
        title += f"\nThe {len(shown)} of {len(diagnosis.class_names)} classes with the lowest share"
    names = [_row_name(diagnosis, label) for label in shown.tolist()]
    return map_grid(columns, names, title=title, difference="difference of mean cams")


def _row_name(diagnosis: Diagnosis, label: int) -> str:
    """Return the class, and the percentage of its cams that are closest to their own prototype."""
    shares = [
        f"{100 * int(part.map_confusion[label, label]) / max(int(part.samples[label]), 1):.0f}"
        for part in diagnosis.models.values()
    ]
    return f"{diagnosis.class_names[label]}\n{' → '.join(shares)} % own"


def _classes_to_show(part: ClassDiagnosis) -> Tensor:
    """Return classes with samples, in their order."""
    seen = (part.samples > 0).nonzero().flatten()
    own = (part.map_confusion.diagonal().double() / part.samples)[seen]
    return seen[own.argsort(stable=True)[:_MOST_CLASSES]].sort().values


def draw_map_confusion(diagnosis: Diagnosis) -> Figure:
    """Draw which prototype (column) the cams of each class (row) are closest to, in percent of the row; one matrix per model."""
    from matplotlib.figure import Figure

    models, names = diagnosis.models, diagnosis.class_names
    side = min(1.6 + 0.36 * len(names), 9.0)
    figure = Figure(figsize=(1.2 + (side + 0.6) * len(models), side + 1.3), layout="constrained")
    by = diagnosis.settings["nearest_prototype_by"].replace("_", " ")
    figure.suptitle(f"Which class's prototype a cam is closest to, {by}", fontsize=9)
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, (model, part) in zip(axes, models.items(), strict=True):
        own = f"{100 * part.nearest_prototype_accuracy:.1f} % closest to their own class"
        axis.set_title(f"{model}: {own}" if len(models) > 1 else own, fontsize=8)
        image = _draw_confusion(axis, part, names)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.04, pad=0.02)
    bar.set_label("share of the class's cams, %", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _draw_confusion(axis: Axes, part: ClassDiagnosis, names: tuple[str, ...]) -> AxesImage:
    shares = 100 * part.map_confusion.double() / part.samples.clamp(min=1).unsqueeze(1)
    image = axis.imshow(shares.numpy(), cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    axis.set_xlabel("closest prototype (none: dead or flat cams)", fontsize=8)
    axis.set_ylabel("class of the cam", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.axvline(len(names) - 0.5, color="white", linewidth=1)
    if len(names) <= _MOST_CLASSES:
        axis.set_xticks(range(len(names) + 1), [*names, "none"], fontsize=7, rotation=90)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        for row, column in (shares >= 0.5).nonzero().tolist():
            share = float(shares[row, column])
            color = "black" if share > 60 else "white"
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=color)
    return image


def draw_misclassified(diagnosis: Diagnosis) -> Figure:
    """Draw one row per mistake: image, cams of the predicted and of the true class, their difference, and both prototypes.

    A dead cam is marked, and its difference is not drawn.
    """
    mistakes, names = diagnosis.mistakes, diagnosis.class_names
    samples = int(diagnosis.after.samples.sum())
    if not diagnosis.mistakes_in_all:
        return message_figure(f"All {samples} samples are classified correctly.")
    if not len(mistakes):
        return message_figure(
            f"{diagnosis.mistakes_in_all} of {samples} samples are misclassified; none was kept."
        )
    if mistakes.images.dim() != 4:
        return message_figure("Only images with two spatial dimensions are drawn.")
    size = mistakes.images.shape[2:]
    columns: dict[str, tuple[Tensor, bool | Literal["difference"]]] = {
        "image": (diagnosis.pictures, False),
        "cam of\nprediction": (resize(mistakes.maps_of_prediction, size)[:, 0], True),
        "cam of\ntrue class": (resize(mistakes.maps_of_label, size)[:, 0], True),
        "prediction −\ntrue class": (resize(mistakes.differences, size)[:, 0], "difference"),  # noqa: RUF001
        "prototype of\nprediction": (diagnosis.prototypes[mistakes.predictions, 0], True),
        "prototype of\ntrue class": (diagnosis.prototypes[mistakes.labels, 0], True),
    }
    row_names = [
        f"{names[entry[0]]} ({100 * entry[1]:.0f} %)\ninstead of\n{names[entry[2]]} ({100 * entry[3]:.0f} %)"
        for entry in zip(
            mistakes.predictions.tolist(),
            mistakes.confidences.tolist(),
            mistakes.labels.tolist(),
            mistakes.label_probabilities.tolist(),
            strict=True,
        )
    ]
    resized = tuple(mistakes.maps_of_label.shape[2:]) != tuple(size)
    title = (
        f"The worst {len(mistakes)} of {diagnosis.mistakes_in_all} mistakes in {samples} samples, by cross-entropy\n"
        f"cams: {diagnosis.settings['method']} of {diagnosis.settings['layer']}, relu(C) / max"
        f"{', resized bilinearly to the image' if resized else ''}"
    )
    figure = map_grid(columns, row_names, title=title, difference="difference of the two cams")
    dead = torch.stack([mistakes.dead_of_prediction, mistakes.dead_of_label], dim=1)
    for row, (prediction, label) in enumerate(dead.tolist()):
        # The axes come row by row, in the order of the columns.
        _, of_prediction, of_label, difference, *_ = figure.axes[len(columns) * row :]
        for axis, marked, color, text in (
            (of_prediction, prediction, "white", "dead"),
            (of_label, label, "white", "dead"),
            (difference, prediction or label, "black", "none: a cam\nis dead"),
        ):
            if marked:
                axis.annotate(
                    text,
                    (0.5, 0.5),
                    xycoords="axes fraction",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=color,
                )
    return figure

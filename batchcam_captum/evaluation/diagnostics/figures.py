"""What a diagnosis looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ...functional import resize
from ..figures import map_grid, message_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from .result import ClassDiagnosis, Diagnosis

#: With more classes the grid shows those whose maps say least of their class, and the matrix has no numbers.
_MOST_CLASSES = 20

#: Of the figure of mistakes.
_MISTAKE_COLUMNS = 6

Columns = dict[str, tuple[Tensor, bool | Literal["difference"]]]


def class_maps(diagnosis: Diagnosis) -> Figure:
    """A row a class: its prototype, the mean map of its samples, before and after if there are two models, and what changed.

    With more than 20 classes those are shown whose maps are least often nearest to their own prototype.
    """
    after, before = diagnosis.after, diagnosis.before
    if after.mean_maps.dim() != 4:
        return message_figure("Maps with other than two spatial dimensions are not drawn.")
    chosen = _classes_to_show(after)
    columns: Columns = {"prototype": (diagnosis.prototypes[chosen, 0], True)}
    if before is None:
        columns["mean map"] = (after.mean_maps[chosen, 0], True)
    else:
        columns["mean map\nbefore"] = (before.mean_maps[chosen, 0], True)
        columns["mean map\nafter"] = (after.mean_maps[chosen, 0], True)
        changed = after.mean_maps - resize(before.mean_maps, after.mean_maps.shape[2:])
        columns["after − before"] = (changed[chosen, 0], "difference")  # noqa: RUF001
    arrow = ", before → after" if before is not None else ""
    title = (
        "Mean map of the true class: mean of relu(C) / max over the maps\n"
        f"that are not dead; % own: nearest to their own prototype{arrow}"
    )
    if len(chosen) < len(diagnosis.class_names):
        title += f"\nThe {len(chosen)} of {len(diagnosis.class_names)} classes with the lowest share"
    return map_grid(
        columns,
        [_row_name(diagnosis, label) for label in chosen.tolist()],
        title=title,
        difference="difference of mean maps",
    )


def _row_name(diagnosis: Diagnosis, label: int) -> str:
    """The class, and how many of its maps are nearest to their own prototype: before → after."""
    shares = [
        f"{100 * int(part.map_confusion[label, label]) / max(int(part.samples[label]), 1):.0f}"
        for part in (diagnosis.before, diagnosis.after)
        if part is not None
    ]
    return f"{diagnosis.class_names[label]}\n{' → '.join(shares)} % own"


def _classes_to_show(part: ClassDiagnosis) -> Tensor:
    """Classes with samples, in their order."""
    seen = (part.samples > 0).nonzero().flatten()
    own = (part.map_confusion.diagonal().double() / part.samples)[seen]
    return seen[own.argsort(stable=True)[:_MOST_CLASSES]].sort().values


def map_confusion(diagnosis: Diagnosis) -> Figure:
    """Which prototype (column) the maps of each class (row) are nearest to, in percent of the row; a matrix a model."""
    from matplotlib.figure import Figure

    models = [("", diagnosis.after)]
    if diagnosis.before is not None:
        models = [("before", diagnosis.before), ("after", diagnosis.after)]
    names = diagnosis.class_names
    side = min(1.6 + 0.36 * len(names), 9.0)
    figure = Figure(figsize=(1.2 + (side + 0.6) * len(models), side + 1.3), layout="constrained")
    figure.suptitle(
        f"Which class's prototype a map is nearest to, {diagnosis.settings['nearest_prototype_by'].replace('_', ' ')}",
        fontsize=9,
    )
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    drawn = [
        _draw_confusion(axis, heading, part, names)
        for axis, (heading, part) in zip(axes, models, strict=True)
    ]
    bar = figure.colorbar(drawn[-1], ax=list(axes), fraction=0.04, pad=0.02)
    bar.set_label("share of the class's maps, %", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _draw_confusion(axis: Axes, heading: str, part: ClassDiagnosis, names: tuple[str, ...]) -> AxesImage:
    shares = 100 * part.map_confusion.double() / part.samples.clamp(min=1).unsqueeze(1)
    image = axis.imshow(shares.numpy(), cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    own = f"{100 * part.nearest_prototype_accuracy:.1f} % nearest to their own class"
    axis.set_title(f"{heading}: {own}" if heading else own, fontsize=8)
    axis.set_xlabel("nearest prototype (none: dead or flat maps)", fontsize=8)
    axis.set_ylabel("class of the map", fontsize=8)
    if len(names) <= _MOST_CLASSES:
        axis.set_xticks(range(len(names) + 1), [*names, "none"], fontsize=7, rotation=90)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        for row, column in torch.cartesian_prod(
            torch.arange(len(names)), torch.arange(len(names) + 1)
        ).tolist():
            share = float(shares[row, column])
            if share >= 0.5:
                colour = "black" if share > 60 else "white"
                axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=colour)
    else:
        axis.tick_params(labelsize=7)
    axis.axvline(len(names) - 0.5, color="white", linewidth=1)
    return image


def misclassified(diagnosis: Diagnosis) -> Figure:
    """A row a mistake: the image, the maps of the predicted and of the true class, where they differ, and both prototypes.

    A dead map is marked as such, and the difference from it is not drawn.
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
        return message_figure("Images with other than two spatial dimensions are not drawn.")
    size = mistakes.images.shape[2:]

    def enlarged(maps: Tensor) -> Tensor:
        return resize(maps, size)[:, 0]

    steps = "relu(C) / max"
    if tuple(mistakes.maps_of_label.shape[2:]) != tuple(size):
        steps += ", resized bilinearly to the image"
    rows = zip(
        mistakes.predictions.tolist(),
        mistakes.confidences.tolist(),
        mistakes.labels.tolist(),
        mistakes.label_probabilities.tolist(),
        strict=True,
    )
    figure = map_grid(
        {
            "image": (diagnosis.pictures, False),
            "map of\nprediction": (enlarged(mistakes.maps_of_prediction), True),
            "map of\ntrue class": (enlarged(mistakes.maps_of_label), True),
            "prediction −\ntrue class": (enlarged(mistakes.differences), "difference"),  # noqa: RUF001
            "prototype of\nprediction": (diagnosis.prototypes[mistakes.predictions, 0], True),
            "prototype of\ntrue class": (diagnosis.prototypes[mistakes.labels, 0], True),
        },
        [
            f"{names[predicted]} ({100 * confidence:.0f} %)\ninstead of\n{names[true]} ({100 * probability:.0f} %)"
            for predicted, confidence, true, probability in rows
        ],
        title=f"The worst {len(mistakes)} of {diagnosis.mistakes_in_all} mistakes in {samples} samples, by cross-entropy\n"
        f"maps: {diagnosis.settings['method']} of {diagnosis.settings['layer']}, {steps}",
        difference="difference of the two maps",
    )
    dead = torch.stack([mistakes.dead_of_prediction, mistakes.dead_of_label], dim=1)
    for row, (prediction, label) in enumerate(dead.tolist()):
        # The axes come row by row, as the columns above; those of the colour bars come last.
        for column, is_dead, colour, text in (
            (1, prediction, "white", "dead"),
            (2, label, "white", "dead"),
            (3, prediction or label, "black", "none: a map\nis dead"),
        ):
            if is_dead:
                axis = figure.axes[_MISTAKE_COLUMNS * row + column]
                axis.text(
                    0.5,
                    0.5,
                    text,
                    transform=axis.transAxes,
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
    return figure

"""Data sets to explain, and how their labels become classes of a model.

A sample is (image, label), the label −1 where there is none. Reading one that is damaged raises an error of one line;
``explain_dataset`` notes it and goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..loading import Preprocessing
from ..loading.images import read_image
from .listing import Listing, names_of

_LISTED = 5


@dataclass(frozen=True)
class Classes:
    """How the labels of a data set become classes of a model. Made by :func:`match_classes`."""

    names: tuple[str, ...] | None  #: of the model's K classes
    order: Sequence[int]  #: label of the data set -> class of the model; those beyond it are not known
    remark: str | None = None  #: what the user should know

    def __call__(self, label: int) -> int:
        """The class of a label, −1 where it is not known."""
        return self.order[label] if 0 <= label < len(self.order) else -1


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files as a model takes them: (image, label), (C, H, W) float32 and a class of the model, −1 where it is not known.

    They are read by :func:`~batchcam_captum.loading.read_image`. It can be pickled, as spawned workers of a ``DataLoader`` need.

    Args:
        listing: from :func:`list_folder` or :func:`list_csv`.
        preprocessing: what the model expects, see :func:`~batchcam_captum.loading.preprocessing`.
        classes: the labels as classes of the model; None: as they are.

    Attributes:
        paths: of the files.
        ids: of the samples.
        labels: one a sample.
        class_names: None where they are not known.

    Raises:
        ValueError: a preprocessing that does not fit.
        ModuleNotFoundError: Pillow is not installed.
    """

    def __init__(
        self, listing: Listing, preprocessing: Preprocessing | None = None, classes: Classes | None = None
    ) -> None:
        self.preprocessing = preprocessing or Preprocessing()
        self.paths, self.ids = listing.paths, listing.ids
        self.labels = listing.labels if classes is None else tuple(map(classes, listing.labels))
        self.class_names = listing.names if classes is None else classes.names
        self._files = listing.files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read an image.

        Raises:
            OSError: the file is missing, damaged, truncated or no image; ``strerror`` says which.
        """
        return self.preprocessing(read_image(self._files[index])), self.labels[index]


class TorchvisionImages(Dataset[tuple[Tensor, int]]):
    """A data set of torchvision as a model takes it: (image, label), as of :class:`ImageFiles`.

    Args:
        data: the data set; its samples are (PIL image, target). Targets other than integers are taken as not known.
        preprocessing: what the model expects.
        classes: the targets as classes of the model; None: as they are.

    Attributes:
        labels: one a sample, −1 where it is not known; None where they are not known before the samples are read.
        class_names: None where they are not known.
    """

    def __init__(
        self, data: Any, preprocessing: Preprocessing | None = None, classes: Classes | None = None
    ) -> None:
        self.data = data
        self.preprocessing = preprocessing or Preprocessing()
        self.classes = classes
        targets = integers(getattr(data, "targets", None))
        self.labels = targets if targets is None or classes is None else list(map(classes, targets))
        self.class_names = names_of(data) if classes is None else classes.names

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read a sample; whatever the data set raises for a damaged one."""
        image, target = self.data[index][:2]
        try:
            label = target.__index__()
        except (AttributeError, TypeError, ValueError):  # several boxes, a mask, attributes
            label = -1
        return self.preprocessing(image), label if self.classes is None else self.classes(label)


def integers(values: Any) -> list[int] | None:
    """A list or a tensor of integers as a list; None for anything else."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, list) and all(type(each) is int for each in values):
        return values
    return None


def match_classes(
    names: Sequence[str] | None,
    classes: int,
    *,
    given: tuple[str, ...] | None = None,
    packaged: tuple[str, ...] | None = None,
    also: Mapping[str, int] | None = None,
) -> Classes:
    """Which classes of the model the labels of a data set are.

    By their names where the model's classes have names that are known; otherwise in their order, where they are as many. In every
    other case the labels mean something else, and are left out.

    Args:
        names: of the classes that the labels count; None: the labels are classes of the model.
        classes: K of the model.
        given: the names of its classes that the user gives.
        packaged: those that are known without.
        also: other words for its classes.

    Raises:
        ValueError: names that are not K, or of which only some are found among those given.
    """
    if given is not None and len(given) != classes:
        raise ValueError(
            f"classes: expected {classes} names, one for each class of the model, got {len(given)}"
        )
    known = given if given is not None else packaged
    if names is None:
        return Classes(known, range(classes))
    places = dict(also or {}) if known is not None else {}
    counts = Counter(known or ())  # two of ImageNet's classes are both called crane
    places |= {name: place for place, name in enumerate(known or ()) if counts[name] == 1}
    lacking = [name for name in names if name not in places]
    if not lacking:
        return Classes(known, [places[name] for name in names])
    if given is not None and len(lacking) < len(names):
        more = f", … and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        raise ValueError(
            f"classes: expected a name for each class of the data, got none for {', '.join(lacking[:_LISTED]) + more}; add them, "
            "or call the classes alike"
        )
    if len(names) == classes:
        return Classes(given or tuple(names), range(classes))
    return Classes(
        known,
        (),
        f"the data has {len(names)} classes and the model {classes}: samples have no label; name the model's classes with "
        "--classes FILE, as the data calls them",
    )

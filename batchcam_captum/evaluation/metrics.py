"""The metrics of ``functional`` and ``faithfulness`` as ``torchmetrics.Metric`` classes. Needs the extra ``metrics``.

Metrics of cams share one ``update(cams, labels, *, masks=None, shortcuts=None)``, so they fit into one ``MetricCollection``. The
metrics of faithfulness run the model and take ``update(images, cams, targets)``. Call a collection of both by keywords; it hands
each metric what it takes::

    collection.update(images=images, cams=cams, targets=targets, labels=labels)

To add a metric of cams, subclass :class:`CamMetric` and name its function::

    class RankAccuracy(CamMetric):
        function = staticmethod(rank_accuracy)
        needs = "masks"
        higher_is_better = True
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..attribution import BatchGradCam
from ..functional import (
    Distance,
    class_coherence,
    dead_cams,
    energy_in_mask,
    entropy,
    mask_iou,
    nearest_prototype,
    pointing_game,
    prepare,
    prototype_cosine,
    prototype_distance,
    rank_accuracy,
    resize,
    shortcut_share,
    sparsity,
    wrong_reason,
)
from ..functional.checks import check_choice, check_integer
from ..functional.class_means import check_labels
from ..functional.metrics.base import check_shape, finite
from ..functional.metrics.maps import coherence, coherence_sums
from ..functional.metrics.prototypes import labels_with_prototype
from ..optional import load
from ..prototypes import Prototypes
from . import faithfulness
from .faithfulness import Explain, Model, Targets
from .faithfulness.scores import target_indices

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = load("torchmetrics", extra="metrics", purpose="batchcam_captum.evaluation.metrics").Metric

__all__ = [
    "CamEntropy",
    "CamMetric",
    "ClassCoherence",
    "DeadFraction",
    "DeletionAUC",
    "EnergyPointingGame",
    "Infidelity",
    "InsertionAUC",
    "MaskIoU",
    "MaxSensitivity",
    "NearestPrototypeAccuracy",
    "PointingGame",
    "PrototypeCosine",
    "PrototypeDistance",
    "RankAccuracy",
    "Road",
    "ShortcutReliance",
    "Sparsity",
    "WrongReasonRate",
]

_NEEDS = {
    "labels": "class indices (N,)",
    "masks": "masks (N, 1, *spatial) of where the evidence should be",
    "shortcuts": "masks (N, 1, *spatial) of the shortcuts",
}

T = TypeVar("T")


class CamMetric(Metric):
    """The mean of a function of cams over all samples that have a value.

    Args:
        ignore_index: samples with this integer label are left out.
        **options: keyword arguments of the class's function, checked by the first ``update()``; and of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown option.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    #: cams (N, 1, *spatial), what it needs, keyword arguments -> (N,), NaN where a sample has no value
    function: ClassVar[Callable[..., Any]]
    #: What the function takes after the cams: ``"labels"``, ``"masks"``, ``"shortcuts"`` or nothing.
    needs: ClassVar[Literal["labels", "masks", "shortcuts"] | None] = None

    total: Tensor
    count: Tensor

    def __init__(self, *, ignore_index: int = -100, **options: Any) -> None:
        names = _keyword_arguments(self.function)
        super().__init__(**{name: value for name, value in options.items() if name not in names})
        self.options = {name: value for name, value in options.items() if name in names}
        self.ignore_index = ignore_index
        # A MetricCollection takes two metrics with equal states after the first batch for one and updates only one of them from
        # then on. Metrics with different settings may well agree on a batch; NaN equals nothing. It is the first state, as some
        # versions of torchmetrics compare no other.
        self.add_state("never_equal", torch.tensor(torch.nan), dist_reduce_fx="sum")
        self._add_sum("total")
        self._add_sum("count", dtype=torch.int64)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the options of the function in the signature of the class, for ``help()`` and editors."""
        super().__init_subclass__(**kwargs)
        if "function" in vars(cls):
            own = inspect.signature(cls.__init__).parameters
            first = [each for name, each in own.items() if name not in ("self", "options")]
            options = [each for name, each in _keyword_arguments(cls.function).items() if name not in own]
            cls.__signature__ = inspect.Signature([*first, *options, own["options"]])  # type: ignore[attr-defined]

    def _add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def update(
        self,
        cams: Tensor,
        labels: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        shortcuts: Tensor | None = None,
    ) -> None:
        """Add a batch. Raises before anything is added; on a GPU the check of the values waits for the device.

        Args:
            cams: (N, 1, *spatial), raw and signed.
            labels: (N,) class indices.
            masks: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should be; all zero: no annotation.
            shortcuts: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should not be; all zero: no shortcut.

        Raises:
            ValueError: something does not fit or is not finite, or an argument that this metric needs is missing.
            TypeError: cams, labels or masks of a wrong kind.
        """
        check_shape(cams)
        needed = {"labels": labels, "masks": masks, "shortcuts": shortcuts}.get(self.needs or "")
        if self.needs is not None and needed is None:
            raise ValueError(
                f"{self.needs}: expected {_NEEDS[self.needs]}, got None; {type(self).__name__} needs "
                f"update(..., {self.needs}={self.needs})"
            )
        if labels is not None:
            check_labels(labels, len(cams))
            # As int64: compared with uint8 labels, -100 would be 156.
            counted = labels.long() != self.ignore_index if labels.dim() == 1 else slice(None)
            cams = cams[counted]
            needed = needed[counted] if needed is not None and len(needed) == len(labels) else needed
        self._add(finite(cams), needed)

    def _add(self, cams: Tensor, needed: Tensor | None) -> None:
        self._add_values(self.values(cams, needed))

    def values(self, cams: Tensor, needed: Tensor | None) -> Tensor:
        """Return the value of each sample, (N,), NaN where there is none.

        Args:
            cams: (N, 1, *spatial), finite, without the ignored samples.
            needed: the argument of ``update`` that :attr:`needs` names.
        """
        given = (cams,) if self.needs is None else (cams, needed)
        values: Tensor = self.function(*given, **self.options)
        return values

    def _add_values(self, values: Tensor) -> None:
        values = values[~values.isnan()].to(self.total)
        # Not in place: a state that was updated under inference_mode() cannot be changed in place outside.
        self.total = self.total + values.sum()
        self.count = self.count + len(values)

    def compute(self) -> Tensor:
        """Return the mean over all samples so far, a scalar; NaN without samples."""
        return self.total / self.count

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of a metric with the same settings, see ``torchmetrics.Metric.merge_state``."""
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics keeps what was computed before

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Set the number type of the sums; half types become float32, as they cannot count beyond a few hundred samples."""
        exact = dst_type in (torch.float64, "torch.DoubleTensor", torch.double)
        return super().set_dtype(torch.float64 if exact else torch.float32)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, several values, or by default what ``compute()`` returns; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)


def _keyword_arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a function that a metric hands on."""
    parameters = inspect.signature(function).parameters
    reserved = ("ignore_index", "seen")
    return {
        name: each
        for name, each in parameters.items()
        if each.kind is each.KEYWORD_ONLY and name not in reserved
    }


class DeadFraction(CamMetric):
    """Share of the cams that are dead, in [0, 1]; smaller is better. An all-zero cam is dead.

    Report it beside every other metric: a dead cam is stable, far from every shortcut, and close to a dark prototype.
    """

    function = staticmethod(dead_cams)
    higher_is_better = False


class Sparsity(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.sparsity`, the Gini index of a cam, in [0, 1): 0 is flat, near 1 a few pixels.

    Neither end is good by itself. A dead cam counts as flat: 0.
    """

    function = staticmethod(sparsity)


class CamEntropy(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.entropy` of the cams, in [0, 1]: 0 is one pixel, 1 is flat.

    Neither end is good by itself. A dead cam counts as flat.
    """

    function = staticmethod(entropy)


class EnergyPointingGame(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.energy_in_mask`, the share of the positive evidence inside the mask, in [0, 1].

    Larger is better. A dead cam gets 0, a flat one the mask's share of the pixels. Samples with an empty mask are left out.

    Example:
        >>> import torch
        >>> metric = EnergyPointingGame()
        >>> metric.update(torch.tensor([[[3.0, 1.0, -2.0]]]), masks=torch.tensor([[[1, 0, 0]]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    function = staticmethod(energy_in_mask)
    needs = "masks"
    higher_is_better = True


class WrongReasonRate(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.wrong_reason`, the share of the positive evidence outside the mask, in [0, 1].

    Smaller is better. A dead cam gets 1. Samples with an empty mask are left out. For a shortcut use :class:`ShortcutReliance`.
    """

    function = staticmethod(wrong_reason)
    needs = "masks"
    higher_is_better = False


class PointingGame(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.pointing_game`: share of the cams with their maximum in the mask, in [0, 1].

    Larger is better. A dead cam misses. Samples with an empty mask are left out.
    """

    function = staticmethod(pointing_game)
    needs = "masks"
    higher_is_better = True


class MaskIoU(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.mask_iou` of the mask and the cam above a threshold, in [0, 1].

    Larger is better. A dead cam gets 0. Samples with an empty mask are left out.
    """

    function = staticmethod(mask_iou)
    needs = "masks"
    higher_is_better = True


class RankAccuracy(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.rank_accuracy`: share of the |mask| highest pixels in the mask, in [0, 1].

    Larger is better. A dead cam gets 0. Samples with an empty mask are left out.
    """

    function = staticmethod(rank_accuracy)
    needs = "masks"
    higher_is_better = True


class ShortcutReliance(CamMetric):
    """Mean of :func:`~batchcam_captum.functional.shortcut_share`: share of the positive evidence on the shortcut, in [0, 1].

    Smaller is better. A dead cam counts as a flat one. Samples without a shortcut are left out.

    Args:
        relative: divide by the mean area of the shortcuts; at least 0, 1 is chance.
        ignore_index: samples with this integer label are left out.
        **options: keyword arguments of ``torchmetrics.Metric``.
    """

    function = staticmethod(shortcut_share)
    needs = "shortcuts"
    higher_is_better = False
    plot_upper_bound = None

    area: Tensor

    def __init__(self, *, relative: bool = False, ignore_index: int = -100, **options: Any) -> None:
        super().__init__(ignore_index=ignore_index, **options)
        self.relative = relative
        self._add_sum("area")

    def values(self, cams: Tensor, needed: Tensor | None) -> Tensor:
        """Return the shares (N,), and add up the areas."""
        assert needed is not None
        share, area = self.function(cams, needed, **self.options)
        self.area = self.area + area.to(self.area).nansum()
        return share

    def compute(self) -> Tensor:
        """Return the mean share, or with ``relative`` the mean share ÷ the mean area; NaN without samples."""
        return self.total / (self.area if self.relative else self.count)


class _PrototypeMetric(CamMetric):
    """A metric of cams and prototypes; it keeps a copy of the prototypes."""

    needs = "labels"

    def __init__(self, prototypes: Prototypes | Tensor, *, ignore_index: int = -100, **options: Any) -> None:
        super().__init__(ignore_index=ignore_index, **options)
        if isinstance(prototypes, Prototypes):
            maps, seen = prototypes.maps(), prototypes.seen
        elif isinstance(prototypes, Tensor) and prototypes.is_floating_point() and prototypes.dim() >= 3:
            maps, seen = prototypes, (prototypes.flatten(1) > 0).any(1)
        else:
            got = tuple(prototypes.shape) if isinstance(prototypes, Tensor) else type(prototypes).__name__
            raise TypeError(
                f"prototypes: expected ClassPrototypes or a floating-point tensor (K, 1, *spatial), got {got}; pass "
                f"prototypes.unsqueeze(1) for maps (K, h, w)"
            )
        # Plain attributes: set_dtype() would turn the booleans into numbers.
        self.prototypes, self.seen = maps.detach().clone(), seen.detach().clone()

    def values(self, cams: Tensor, needed: Tensor | None) -> Tensor:
        """Return the value of each sample, (N,)."""
        self._move_prototypes(cams.device)
        values: Tensor = self.function(cams, needed, self.prototypes, seen=self.seen, **self.options)
        return values

    def _move_prototypes(self, device: torch.device) -> None:
        self.prototypes, self.seen = self.prototypes.to(device), self.seen.to(device)


class PrototypeDistance(_PrototypeMetric):
    """Mean of :func:`~batchcam_captum.functional.prototype_distance` of the cams to the prototypes of their classes, at least 0.

    Smaller is closer. A dead cam counts as the zero map, which is *close* to a dark prototype: report :class:`DeadFraction` too.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or a tensor (K, 1, *spatial), all zero for a class
            without a prototype. The metric keeps a copy.
        distance: a name of :data:`~batchcam_captum.functional.DISTANCES`, or a function (N, ...), (N, ...) -> (N,).
        ignore_index: samples with this integer label are left out.
        **options: keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: prototypes of another kind.

    Example:
        >>> metric = PrototypeDistance(torch.ones(2, 1, 4, 4), "l1")
        >>> metric.update(torch.tensor([[[[0.0, 2.0]]]]).expand(1, 1, 4, 2).repeat(1, 1, 1, 2), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    function = staticmethod(prototype_distance)
    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        distance: str | Distance = "l1",
        *,
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        super().__init__(prototypes, ignore_index=ignore_index, **options)
        self.options["distance"] = distance


class PrototypeCosine(_PrototypeMetric):
    """Mean of :func:`~batchcam_captum.functional.prototype_cosine` of the cams and the prototypes of their classes, in [0, 1].

    Larger is closer. A dead cam gets 0.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or a tensor (K, 1, *spatial), all zero for a class
            without a prototype. The metric keeps a copy.
        ignore_index: samples with this integer label are left out.
        **options: keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: prototypes of another kind.
    """

    function = staticmethod(prototype_cosine)
    higher_is_better = True


class NearestPrototypeAccuracy(_PrototypeMetric):
    """Share of the cams that are closest to the prototype of their own class, in [0, 1]; larger is better.

    A dead cam is close to no prototype and counts as wrong. See :func:`~batchcam_captum.functional.nearest_prototype`.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or a tensor (K, 1, *spatial), all zero for a class
            without a prototype. The metric keeps a copy.
        distance: ``"centered_cosine"``, a name of :data:`~batchcam_captum.functional.DISTANCES`, or a function
            (N, ...), (N, ...) -> (N,).
        ignore_index: samples with this integer label are left out.
        **options: keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: prototypes of another kind.
    """

    function = staticmethod(nearest_prototype)
    higher_is_better = True

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        distance: str | Distance = "centered_cosine",
        *,
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        super().__init__(prototypes, ignore_index=ignore_index, **options)
        self.options["distance"] = distance

    def values(self, cams: Tensor, needed: Tensor | None) -> Tensor:
        """Return 1 where the closest prototype is that of the label, else 0: (N,)."""
        assert needed is not None
        self._move_prototypes(cams.device)
        labels, _ = labels_with_prototype(needed, len(cams), self.prototypes, self.seen)
        nearest = self.function(cams, self.prototypes, seen=self.seen, **self.options)
        return (nearest == labels).to(cams.dtype)


class ClassCoherence(CamMetric):
    """Coherence of the cams of a class: the mean cosine over all pairs of them, in [0, 1]; larger: more alike.

    A dead cam has cosine 0 with every other. A class with fewer than two samples has no value. The metric keeps K maps, not N.
    See :func:`~batchcam_captum.functional.class_coherence`.

    Args:
        num_classes: the number of classes, K.
        size: the spatial size at which cams are compared, such as (7, 7); rectified cams of another size are resized to it.
        average: ``"macro"``: the mean over the classes that have a value; ``"none"``: (K,), NaN where there is none.
        ignore_index: samples with this integer label are left out.
        **options: keyword arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: a number of classes, a size or an average that does not fit.
        TypeError: sides or a number of classes that are not integers.
    """

    function = staticmethod(class_coherence)
    needs = "labels"
    higher_is_better = True

    directions: Tensor
    squares: Tensor
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        size: Sequence[int],
        *,
        average: Literal["macro", "none"] = "macro",
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        check_integer("num_classes", num_classes, 1)
        if not isinstance(size, Sequence) or not 1 <= len(size) <= 3:
            raise ValueError(f"size: expected 1 to 3 sides in pixels, such as (7, 7), got {size!r}")
        for side in size:
            check_integer("size", side, 1)
        check_choice("average", average, Literal["macro", "none"])
        super().__init__(ignore_index=ignore_index, **options)
        self.num_classes, self.size, self.average = num_classes, tuple(size), average
        self._add_sum("directions", num_classes, *self.size)
        self._add_sum("squares", num_classes)
        self._add_sum("counts", num_classes)

    def _add(self, cams: Tensor, needed: Tensor | None) -> None:
        assert needed is not None
        if tuple(cams.shape[2:]) != self.size:
            # Rectified before, so that negative pixels do not cancel positive ones.
            cams = resize(prepare(cams).maps, self.size)
        directions, squares, counts = coherence_sums(cams, needed, self.num_classes)
        self.directions = self.directions + directions.to(self.directions)
        self.squares = self.squares + squares.to(self.squares)
        self.counts = self.counts + counts.to(self.counts)

    def compute(self) -> Tensor:
        """Return a scalar or (K,); NaN where no class has two samples."""
        values = coherence(self.directions, self.squares, self.counts)
        return values if self.average == "none" else values.nanmean()


class _Shared(Generic[T]):
    """Holds an object of the user that the metric neither registers, moves nor copies, such as the model in training."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared[T]:
        return self


class _ModelMetric(CamMetric):
    """The mean of a measure of faithfulness over images."""

    #: The field of the function's result to average; None: the result itself.
    field: str | None = None

    def __init__(self, model: Model, *, ignore_index: int = -100, **options: Any) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or a function of images, got {type(model).__name__}")
        super().__init__(ignore_index=ignore_index, **options)
        self._model = _Shared(model)

    @property
    def model(self) -> Model:
        """The model. It is not a submodule of the metric, and clones of the metric share it."""
        return self._model.value

    def update(self, images: Tensor, cams: Tensor, targets: Targets) -> None:  # type: ignore[override]
        """Measure a batch, which runs the model many times.

        Args:
            images: (N, C, *spatial), as the model takes them.
            cams: (N, 1, *spatial), raw and signed, of any size.
            targets: class indices, one for all or one per image. Images with the target ``ignore_index`` are left out.

        Raises:
            TypeError: something of a wrong kind.
            ValueError: something does not fit or is not finite; nothing of the batch has been added.
        """
        indices = target_indices(targets, images)
        kept = indices != self.ignore_index
        if not bool(kept.all()):
            images, cams, indices = images[kept], cams[kept.to(cams.device)], indices[kept]
        result = self.function(self.model, images, cams, indices, **self.options)
        values: Tensor = result if self.field is None else getattr(result, self.field)
        self._add_values(values if values.dim() == 1 else values.mean(1))


class InsertionAUC(_ModelMetric):
    """Mean area under :func:`~batchcam_captum.evaluation.faithfulness.insertion_curve`, in [0, 1]; larger is better.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax. The metric does not register it.
        ignore_index: images with this target are left out.
        **options: keyword arguments of the function, and of ``torchmetrics.Metric``.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> metric = InsertionAUC(model, steps=4)
        >>> metric.update(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 2, 2), targets=[0, 2])
        >>> 0 < metric.compute() < 1
        tensor(True)
    """

    function = staticmethod(faithfulness.insertion_curve)
    field = "auc"
    higher_is_better = True


class DeletionAUC(_ModelMetric):
    """Mean area under :func:`~batchcam_captum.evaluation.faithfulness.deletion_curve`, in [0, 1]; smaller is better.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax. The metric does not register it.
        ignore_index: images with this target are left out.
        **options: keyword arguments of the function, and of ``torchmetrics.Metric``.
    """

    function = staticmethod(faithfulness.deletion_curve)
    field = "auc"
    higher_is_better = False


class Road(_ModelMetric):
    """Mean score of :func:`~batchcam_captum.evaluation.faithfulness.road`.

    Args:
        model: images (N, C, H, W) -> scores (N, K) before any softmax. The metric does not register it.
        order: ``"combined"``, in [−0.5, 0.5], larger is better; or the mean over the percentiles, in [0, 1], of ``"morf"``,
            smaller is better, or ``"lerf"``, larger is better.
        ignore_index: images with this target are left out.
        **options: keyword arguments of the function, and of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown order.
    """

    function = staticmethod(faithfulness.road)
    plot_lower_bound = None

    def __init__(
        self,
        model: Model,
        order: Literal["combined", "morf", "lerf"] = "combined",
        *,
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        check_choice("order", order, Literal["combined", "morf", "lerf"])
        super().__init__(model, ignore_index=ignore_index, **options)
        self.field = self.order = order

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """False for ``"morf"``, True otherwise."""
        return self.order != "morf"


class Infidelity(_ModelMetric):
    """Mean of :func:`~batchcam_captum.evaluation.faithfulness.infidelity`, at least 0; smaller is better.

    With ``relative=True`` an all-zero cam gets 1; without it, models with scores of different scales cannot be compared.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax. The metric does not register it.
        ignore_index: images with this target are left out.
        **options: keyword arguments of the function, and of ``torchmetrics.Metric``.
    """

    function = staticmethod(faithfulness.infidelity)
    higher_is_better = False
    plot_upper_bound = None


class MaxSensitivity(CamMetric):
    """Mean of :func:`~batchcam_captum.evaluation.faithfulness.max_sensitivity` of the cams, at least 0; smaller is better.

    A dead cam looks perfectly stable: report :class:`DeadFraction` too.

    Args:
        explain: a ``BatchGradCam``, or a function of images and class indices that returns cams. The metric does not register it.
        ignore_index: images with this target are left out.
        **options: keyword arguments of the function, and of ``torchmetrics.Metric``.
    """

    function = staticmethod(faithfulness.max_sensitivity)
    higher_is_better = False
    plot_upper_bound = None

    def __init__(self, explain: BatchGradCam | Explain, *, ignore_index: int = -100, **options: Any) -> None:
        super().__init__(ignore_index=ignore_index, **options)
        self._explain = _Shared(explain)

    @property
    def explain(self) -> BatchGradCam | Explain:
        """What makes the cams. Clones of the metric share it."""
        return self._explain.value

    def update(self, images: Tensor, targets: Targets) -> None:  # type: ignore[override]
        """Measure a batch, which explains it many times.

        Args:
            images: (N, C, *spatial), as the model takes them.
            targets: class indices, one for all or one per image. Images with the target ``ignore_index`` are left out.

        Raises:
            TypeError: something of a wrong kind.
            ValueError: something does not fit or is not finite; nothing of the batch has been added.
        """
        indices = target_indices(targets, images)
        kept = indices != self.ignore_index
        self._add_values(self.function(self.explain, images[kept], indices[kept], **self.options).values)

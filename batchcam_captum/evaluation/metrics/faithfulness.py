"""Measures that ask the model again, as streaming metrics: means over all images of what :mod:`..faithfulness` measures.

Their ``update(images, cams, targets)`` differs from that of the other metrics. Called by keywords they go into one
``MetricCollection`` with those all the same, which hands each what it takes::

    collection.update(images=images, cams=cams, targets=targets, labels=labels)
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, get_args

from torch import Tensor

from ...attribution import BatchGradCam
from ..faithfulness import (
    Explain,
    Model,
    Targets,
    deletion_curve,
    infidelity,
    insertion_curve,
    max_sensitivity,
    road,
)
from .base import MeanOverSamples

T = TypeVar("T")

RoadOrder = Literal["combined", "morf", "lerf"]


class _Borrowed(Generic[T]):
    """Holds what is the user's own: it is no part of the metric, so neither registered, nor moved, nor copied with it."""

    def __init__(self, thing: T) -> None:
        self.thing = thing

    def __deepcopy__(self, memo: dict[int, Any]) -> _Borrowed[T]:
        return self


class _AsksTheModel(MeanOverSamples):
    """Mean over images of a measure (images, cams, targets) -> (N,)."""

    def __init__(self, model: Model, options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or a function of images, got {type(model).__name__}")
        super().__init__(**kwargs)
        self._model = _Borrowed(model)
        self.options = options or {}
        self._identify(model, *_flat(self.options))

    @property
    def model(self) -> Model:
        """The model that is asked. The metric does not own it."""
        return self._model.thing

    def update(self, images: Tensor, cams: Tensor, targets: Targets) -> None:  # type: ignore[override]
        """Measure a batch, which calls the model many times and waits for it.

        Args:
            images: (N, C, *spatial), as the model takes them.
            cams: (N, 1, *spatial), raw and signed, of any size.
            targets: class indices, one for all or one an image.

        Raises:
            TypeError: something of a wrong kind.
            ValueError: something does not fit, or is not finite. Nothing of the batch has been added then.
        """
        values = self.measure(images, cams, targets)
        self.total = self.total + values.to(self.total).sum()
        self.count = self.count + len(values)

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """One number an image, (N,)."""
        raise NotImplementedError(f"{type(self).__name__} has to implement measure")


def _flat(options: dict[str, Any]) -> list[Any]:
    """Names and values, tensors as they are, so that their numbers count."""
    return [part for name in sorted(options) for part in (name, options[name])]


class InsertionAUC(_AsksTheModel):
    """Mean area under the insertion curves, in [0, 1]; larger is better. An all-zero cam gets what a random order gets.

    See :func:`~batchcam_captum.evaluation.faithfulness.insertion_curve`.

    Args:
        model: images -> scores (N, K) before any softmax. It is not registered as a part of the metric.
        options: of the function, such as ``{"steps": 14}``.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: a model that cannot be called.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> metric = InsertionAUC(model, {"steps": 4})
        >>> metric.update(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 2, 2), targets=[0, 2])
        >>> 0 < metric.compute() < 1
        tensor(True)
    """

    higher_is_better = True

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Areas (N,)."""
        return insertion_curve(self.model, images, cams, targets, **self.options).auc


class DeletionAUC(_AsksTheModel):
    """Mean area under the deletion curves, in [0, 1]; smaller is better. An all-zero cam gets what a random order gets.

    See :func:`~batchcam_captum.evaluation.faithfulness.deletion_curve`.

    Args:
        model: see :class:`InsertionAUC`.
        options: of the function, such as ``{"fill": "mean"}``.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: a model that cannot be called.
    """

    higher_is_better = False

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Areas (N,)."""
        return deletion_curve(self.model, images, cams, targets, **self.options).auc


class Road(_AsksTheModel):
    """Mean ROAD score. An all-zero cam gets what a random order of pixels gets, in ``"combined"`` 0 on average.

    See :func:`~batchcam_captum.evaluation.faithfulness.road`.

    Args:
        model: see :class:`InsertionAUC`.
        order: ``"combined"``, in [−0.5, 0.5], larger is better; or the mean over the percentiles, in [0, 1], of ``"morf"``,
            smaller is better, or ``"lerf"``, larger is better.
        options: of the function, such as ``{"percentiles": [20, 50, 80]}``.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: a model that cannot be called.
        ValueError: an unknown order.
    """

    plot_lower_bound = None

    def __init__(
        self,
        model: Model,
        order: RoadOrder = "combined",
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if order not in get_args(RoadOrder):
            raise ValueError(f"order: expected 'combined', 'morf' or 'lerf', got {order!r}")
        super().__init__(model, options, **kwargs)
        self.order = order
        self._identify(order, model, *_flat(self.options))

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """It depends on the order."""
        return self.order != "morf"

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Scores (N,)."""
        scores = road(self.model, images, cams, targets, **self.options)
        if self.order == "combined":
            return scores.combined
        return (scores.morf if self.order == "morf" else scores.lerf).mean(1)


class Infidelity(_AsksTheModel):
    """Mean infidelity, at least 0; smaller is better. With ``{"relative": True}`` an all-zero cam gets 1.

    See :func:`~batchcam_captum.evaluation.faithfulness.infidelity`.

    Args:
        model: see :class:`InsertionAUC`.
        options: of the function, such as ``{"relative": True}``, without which models of different scores cannot be compared.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: a model that cannot be called.
    """

    higher_is_better = False
    plot_upper_bound = None

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Infidelities (N,)."""
        return infidelity(self.model, images, cams, targets, **self.options)


class MaxSensitivity(MeanOverSamples):
    """Mean of the maximum sensitivities of the cams, at least 0; smaller is better.

    A dead cam looks perfectly stable: put :class:`~batchcam_captum.evaluation.metrics.DeadFraction` beside it. See
    :func:`~batchcam_captum.evaluation.faithfulness.max_sensitivity`.

    Args:
        explain: a ``BatchGradCam``, or a function of images and class indices that returns cams. Not a part of the metric.
        options: of the function, such as ``{"radius": 0.1}``.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: something that makes no cams.
    """

    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self, explain: BatchGradCam | Explain, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(explain, BatchGradCam) and not callable(explain):
            raise TypeError(
                f"explain: expected a BatchGradCam or a function of images and class indices, got {type(explain).__name__}"
            )
        super().__init__(**kwargs)
        self._explain = _Borrowed(explain)
        self.options = options or {}
        self._identify(type(explain).__qualname__, *_flat(self.options))

    @property
    def explain(self) -> BatchGradCam | Explain:
        """What makes the cams. The metric does not own it."""
        return self._explain.thing

    def update(self, images: Tensor, targets: Targets) -> None:  # type: ignore[override]
        """Measure a batch, whose cams are made many times.

        Args:
            images: (N, C, *spatial), as the model takes them.
            targets: class indices, one for all or one an image.

        Raises:
            TypeError: something of a wrong kind.
            ValueError: something does not fit, or is not finite. Nothing of the batch has been added then.
        """
        values = max_sensitivity(self.explain, images, targets, **self.options).values
        self.total = self.total + values.to(self.total).sum()
        self.count = self.count + len(values)

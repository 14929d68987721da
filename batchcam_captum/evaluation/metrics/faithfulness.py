"""Measures that ask the model again, as streaming metrics: means over all images of what :mod:`..faithfulness` measures.

Their ``update(images, cams, targets)`` differs from that of the other metrics. Called by keywords they go into one
``MetricCollection`` with those all the same, which hands each what it takes::

    collection.update(images=images, cams=cams, targets=targets, labels=labels)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from ...attribution import BatchGradCam
from ...functional import Normalization
from ..faithfulness import (
    PERCENTILES,
    Explain,
    Fill,
    Model,
    Perturbation,
    Score,
    Targets,
    deletion_curve,
    infidelity,
    insertion_curve,
    max_sensitivity,
    road,
)
from ..faithfulness.captum_metrics import check_infidelity_options, check_sensitivity_options
from ..faithfulness.perturbation_curves import check_curve_options
from ..faithfulness.remove_and_debias import check_road_options
from ..faithfulness.scoring import target_indices
from .identity import Borrowed
from .streaming import MeanMetric

RoadOrder = Literal["combined", "morf", "lerf"]


class _AsksTheModel(MeanMetric):
    """Mean over images of a measure (images, cams, targets) -> (N,), with checked options."""

    def __init__(
        self,
        model: Model,
        *settings: object,
        options: dict[str, Any],
        ignore_index: int,
        **kwargs: Any,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or a function of images, got {type(model).__name__}")
        super().__init__(model, *settings, *_flat(options), ignore_index=ignore_index, **kwargs)
        self._model = Borrowed(model)
        self.options = options

    @property
    def model(self) -> Model:
        """The model that is asked. The metric does not own it."""
        return self._model.thing

    def update(self, images: Tensor, cams: Tensor, targets: Targets) -> None:
        """Measure a batch, which calls the model many times and waits for it.

        Args:
            images: (N, C, *spatial), as the model takes them.
            cams: (N, 1, *spatial), raw and signed, of any size.
            targets: class indices, one for all or one an image. Images whose target is ``ignore_index`` are left out.

        Raises:
            TypeError: something of a wrong kind.
            ValueError: something does not fit, or is not finite. Nothing of the batch has been added then.
        """
        indices = target_indices(targets, images)
        kept = indices != self.ignore_index
        if not bool(kept.all()):
            images, cams, indices = images[kept], cams[kept.to(cams.device)], indices[kept]
        self._add_values(self.measure(images, cams, indices))

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """One number an image, (N,)."""
        raise NotImplementedError(f"{type(self).__name__} has to implement measure")


def _flat(options: dict[str, Any]) -> list[Any]:
    """Names and values, tensors as they are, so that their numbers count."""
    return [part for name in sorted(options) for part in (name, options[name])]


class InsertionAUC(_AsksTheModel):
    """Mean area under the insertion curves, in [0, 1]; larger is better. An all-zero cam gets what a random order gets.

    See :func:`~batchcam_captum.evaluation.faithfulness.insertion_curve`, also for the options.

    Args:
        model: images -> scores (N, K) before any softmax. It is not registered as a part of the metric.
        steps: in how many equal parts the pixels are inserted. Default: 28, or as many as there are pixels.
        start: what there is at first.
        score: ``"probability"`` or ``"logit"``.
        batch_size: how many images go through the model at a time.
        seed: of the order of pixels of equal value, one order for all images.
        ignore_index: images with this target are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: a model that cannot be called, or an option of another kind.
        ValueError: an option out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> metric = InsertionAUC(model, steps=4)
        >>> metric.update(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 2, 2), targets=[0, 2])
        >>> 0 < metric.compute() < 1
        tensor(True)
    """

    higher_is_better = True

    def __init__(
        self,
        model: Model,
        *,
        steps: int | None = None,
        start: Fill | Tensor = "blur",
        score: Score = "probability",
        batch_size: int = 256,
        seed: int = 0,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_curve_options(steps, "start", start, score, batch_size, seed)
        options = {"steps": steps, "start": start, "score": score, "batch_size": batch_size, "seed": seed}
        super().__init__(model, options=options, ignore_index=ignore_index, **kwargs)

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Areas (N,)."""
        return insertion_curve(self.model, images, cams, targets, **self.options).auc


class DeletionAUC(_AsksTheModel):
    """Mean area under the deletion curves, in [0, 1]; smaller is better. An all-zero cam gets what a random order gets.

    See :func:`~batchcam_captum.evaluation.faithfulness.deletion_curve`, also for the options.

    Args:
        model: see :class:`InsertionAUC`.
        steps: see :class:`InsertionAUC`.
        fill: what a removed pixel becomes.
        score: see :class:`InsertionAUC`.
        batch_size: see :class:`InsertionAUC`.
        seed: see :class:`InsertionAUC`.
        ignore_index: see :class:`InsertionAUC`.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: see :class:`InsertionAUC`.
        ValueError: see :class:`InsertionAUC`.
    """

    higher_is_better = False

    def __init__(
        self,
        model: Model,
        *,
        steps: int | None = None,
        fill: Fill | Tensor = "zero",
        score: Score = "probability",
        batch_size: int = 256,
        seed: int = 0,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_curve_options(steps, "fill", fill, score, batch_size, seed)
        options = {"steps": steps, "fill": fill, "score": score, "batch_size": batch_size, "seed": seed}
        super().__init__(model, options=options, ignore_index=ignore_index, **kwargs)

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Areas (N,)."""
        return deletion_curve(self.model, images, cams, targets, **self.options).auc


class Road(_AsksTheModel):
    """Mean ROAD score. An all-zero cam gets what a random order of pixels gets, in ``"combined"`` 0 on average over seeds.

    See :func:`~batchcam_captum.evaluation.faithfulness.road`, also for the options. ``higher_is_better`` depends on the order; of
    the class it is that of the default.

    Args:
        model: see :class:`InsertionAUC`.
        order: ``"combined"``, in [−0.5, 0.5], larger is better; or the mean over the percentiles, in [0, 1], of ``"morf"``,
            smaller is better, or ``"lerf"``, larger is better.
        percentiles: how many per cent of the pixels are removed.
        noise: standard deviation of what is added to the replaced pixels.
        score: see :class:`InsertionAUC`.
        batch_size: see :class:`InsertionAUC`.
        seed: of the noise and of the order of pixels of equal value, one draw for all images.
        ignore_index: see :class:`InsertionAUC`.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: see :class:`InsertionAUC`.
        ValueError: see :class:`InsertionAUC`; or an unknown order.
    """

    higher_is_better = True
    plot_lower_bound = None

    def __init__(
        self,
        model: Model,
        order: RoadOrder = "combined",
        *,
        percentiles: Sequence[float] = PERCENTILES,
        noise: float = 0.01,
        score: Score = "probability",
        batch_size: int = 256,
        seed: int = 0,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        if order not in get_args(RoadOrder):
            raise ValueError(f"order: expected 'combined', 'morf' or 'lerf', got {order!r}")
        options = {
            "percentiles": check_road_options(percentiles, noise, score, batch_size, seed),
            "noise": noise,
            "score": score,
            "batch_size": batch_size,
            "seed": seed,
        }
        super().__init__(model, order, options=options, ignore_index=ignore_index, **kwargs)
        self.order = order
        # torchmetrics takes it for a constant of the class, and refuses to have it set.
        self.__dict__["higher_is_better"] = order != "morf"

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Scores (N,)."""
        scores = road(self.model, images, cams, targets, **self.options)
        if self.order == "combined":
            return scores.combined
        return (scores.morf if self.order == "morf" else scores.lerf).mean(1)


class Infidelity(_AsksTheModel):
    """Mean infidelity, at least 0; smaller is better. With ``relative=True`` an all-zero cam gets 1.

    See :func:`~batchcam_captum.evaluation.faithfulness.infidelity`, also for the options.

    Args:
        model: see :class:`InsertionAUC`.
        perturbation: ``"square"`` removes squares, ``"noise"`` adds noise.
        side: of a square, as a share of the image's.
        fill: what a square becomes.
        noise_std: standard deviation of the noise.
        samples: how many perturbations an image.
        normalize: multiply each cam by the factor that suits it best.
        relative: divide by what the zero map gets, without which models of different scores cannot be compared.
        score: see :class:`InsertionAUC`.
        batch_size: how many perturbed images go through the model at a time.
        seed: of the perturbations, one draw for all images.
        ignore_index: see :class:`InsertionAUC`.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: see :class:`InsertionAUC`.
        ValueError: see :class:`InsertionAUC`.
    """

    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        model: Model,
        *,
        perturbation: Perturbation = "square",
        side: float = 0.25,
        fill: Fill | Tensor = "zero",
        noise_std: float = 0.1,
        samples: int = 32,
        normalize: bool = True,
        relative: bool = False,
        score: Score = "logit",
        batch_size: int = 256,
        seed: int = 0,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_infidelity_options(perturbation, side, fill, noise_std, samples, score, batch_size, seed)
        options = {
            "perturbation": perturbation,
            "side": side,
            "fill": fill,
            "noise_std": noise_std,
            "samples": samples,
            "normalize": normalize,
            "relative": relative,
            "score": score,
            "batch_size": batch_size,
            "seed": seed,
        }
        super().__init__(model, options=options, ignore_index=ignore_index, **kwargs)

    def measure(self, images: Tensor, cams: Tensor, targets: Targets) -> Tensor:
        """Infidelities (N,)."""
        return infidelity(self.model, images, cams, targets, **self.options)


class MaxSensitivity(MeanMetric):
    """Mean of the maximum sensitivities of the cams, at least 0; smaller is better.

    A dead cam looks perfectly stable: put :class:`~batchcam_captum.evaluation.metrics.DeadFraction` beside it. See
    :func:`~batchcam_captum.evaluation.faithfulness.max_sensitivity`, also for the options.

    Args:
        explain: a ``BatchGradCam``, or a function of images and class indices that returns cams. Not a part of the metric.
        radius: the largest change of a pixel, in the units of the images.
        samples: how many perturbations an image.
        normalize: how cams are rectified and brought to a common scale before they are compared; None: not at all.
        batch_size: how many perturbed images are explained at a time.
        seed: of the perturbations, one draw for all images.
        ignore_index: images with this target are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        TypeError: something that makes no cams, or an option of another kind.
        ValueError: an explainer of several layers, or an option out of range.
    """

    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        explain: BatchGradCam | Explain,
        *,
        radius: float = 0.02,
        samples: int = 10,
        normalize: Normalization | None = None,
        batch_size: int = 256,
        seed: int = 0,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_sensitivity_options(explain, radius, samples, normalize, batch_size, seed)
        options = {
            "radius": radius,
            "samples": samples,
            "normalize": normalize,
            "batch_size": batch_size,
            "seed": seed,
        }
        super().__init__(explain, *_flat(options), ignore_index=ignore_index, **kwargs)
        self._explain = Borrowed(explain)
        self.options: dict[str, Any] = options

    @property
    def explain(self) -> BatchGradCam | Explain:
        """What makes the cams. The metric does not own it."""
        return self._explain.thing

    def update(self, images: Tensor, targets: Targets) -> None:
        """Measure a batch, whose cams are made many times.

        Args:
            images: (N, C, *spatial), as the model takes them.
            targets: class indices, one for all or one an image. Images whose target is ``ignore_index`` are left out.

        Raises:
            TypeError: something of a wrong kind.
            ValueError: something does not fit, or is not finite. Nothing of the batch has been added then.
        """
        indices = target_indices(targets, images)
        kept = indices != self.ignore_index
        self._add_values(max_sensitivity(self.explain, images[kept], indices[kept], **self.options).values)

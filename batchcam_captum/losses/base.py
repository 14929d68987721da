"""What every cam loss shares."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, Self, dataclass_transform, get_origin

from torch import Tensor, nn

from ..functional import (
    CamMethod,
    Normalization,
    Reduction,
    Registry,
    Samples,
    Score,
    ValueChecks,
    get_method,
    no_autocast,
)
from ..functional.checks import both, check_choice, unless_all
from ..functional.class_means import check_labels
from ..functional.gradients import check_score
from ..functional.losses.base import check_cams, counted_samples, prepare_samples

#: Loss classes by name. Your own: ``@LOSSES.register("name")`` on a subclass of :class:`CamLoss`.
LOSSES: Registry[type[CamLoss]] = Registry("loss")


class LossOutput(NamedTuple):
    """The value of a loss, and what else it found in the batch."""

    value: Tensor  #: a scalar, or for ``reduction="none"`` one number per sample or class
    dead_fraction: (
        Tensor | None
    )  #: share of dead cams among the samples that count, detached; None for a loss on signed cams


class Batch(NamedTuple):
    """What a loss is called with."""

    cams: Tensor
    labels: Tensor
    images: Tensor | None = None
    masks: Tensor | None = None
    sample_weights: Tensor | None = None


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(field,))
class _Options(nn.Module):
    """A module whose annotated class attributes are the options of its constructor."""

    #: The values of each option that is annotated by a ``Literal``, which the constructor checks.
    choices: ClassVar[dict[str, Any]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        nn.Module.__init__(self)  # before the first option is set
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        annotations = inspect.get_annotations(cls)
        names = vars(sys.modules[cls.__module__])
        kinds = {
            name: names.get(kind) if isinstance(kind, str) else kind for name, kind in annotations.items()
        }
        cls.choices = {name: kind for name, kind in kinds.items() if get_origin(kind) is Literal}
        for base in cls.__mro__[1:]:
            cls.choices = getattr(base, "choices", {}) | cls.choices
        dataclass(eq=False, repr=False, kw_only=True)(cls)
        for option in fields(cls):  # type: ignore[arg-type]
            if option.name in vars(cls):  # a default left on the class would hide a module of this name
                delattr(cls, option.name)
        options = [*inspect.signature(cls.__init__).parameters.values()][1:]
        cls.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # for editors, which look at __new__


class CamLoss(_Options):
    """A loss on raw, signed cams.

    A subclass implements :meth:`per_sample`; what it declares as annotated class attributes become options of its constructor.
    Derive from :class:`RectifiedLoss` instead for a loss on rectified maps.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        ignore_index: samples with this label are left out.
        method: the weighting that makes the cam, a name in :data:`~batchcam_captum.functional.CAM_METHODS` or a callable.
            Default: :attr:`default_method`.
        score: the score that the cam explains: ``"label"``, ``"predicted"``, ``"confused"``, ``"log_prob_sum"`` (Σ log p over
            all classes), or a callable (scores, labels) -> (N,). Default: :attr:`default_score`.
    """

    #: The weighting of the cam unless ``method`` says otherwise; None: that of the regularizer's ``grad_cam``.
    default_method: ClassVar[str | None] = None
    #: The score that the cam explains unless ``score`` says otherwise.
    default_score: ClassVar[Score] = "label"
    #: Whether cams are rectified, so that one without positive values is dead.
    rectifies: ClassVar[bool] = False

    reduction: Reduction = "mean"
    ignore_index: int = -100
    method: str | CamMethod | None = None
    score: Score | None = None

    def __post_init__(self) -> None:
        """Check the options, and fill in the defaults of the class."""
        for name, choices in self.choices.items():
            check_choice(name, getattr(self, name), choices)
        self.method = type(self).default_method if self.method is None else self.method
        self.score = type(self).default_score if self.score is None else self.score
        if self.method is not None:
            get_method(self.method)
        check_score(self.score)
        self.checks = ValueChecks()

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores whose cams the loss is given, one channel each: ``score``, unless a subclass compares several."""
        assert self.score is not None
        return (self.score,)

    @property
    def keeps_state(self) -> bool:
        """Whether calls change what later calls return, so that one object serves one layer."""
        return False

    @property
    def num_classes(self) -> int | None:
        """How many classes the loss knows; None if it does not depend on them."""
        return None

    def forward(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the value of the loss: that of :meth:`evaluate`, which takes the same arguments."""
        return self.evaluate(cams, labels, images=images, masks=masks, sample_weights=sample_weights).value

    def evaluate(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> LossOutput:
        """Return the value of the loss, and the share of dead cams.

        A loss that learns from its batches learns once per call, in training mode.

        Args:
            cams: (N, 1, *spatial), raw and signed, as ``BatchGradCam.attribute(…, differentiable=True)`` returns them;
                (N, S, *spatial) for a loss of S :attr:`scores`.
            labels: (N,) class indices, or (N, K) soft labels, one weight per class.
            images: (N, C, *spatial), for losses that compare with the image.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            sample_weights: (N,) how much each sample counts, at least 0. Default: all alike.

        Returns:
            The value, a scalar, or for ``reduction="none"`` one number per sample or class; and the share of dead cams.

        Raises:
            ValueError: a shape or a value that does not fit; the message says what to do.
            TypeError: an argument of another kind.
        """
        with no_autocast(cams):
            samples = self.samples(Batch(cams, labels, images, masks, sample_weights))
            samples = samples._replace(labels=labels, images=images, masks=masks)
            return LossOutput(self.value(samples), samples.dead_fraction() if self.rectifies else None)

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the loss of each sample, (N,): the formula of the loss.

        Args:
            samples: the batch: ``cams``, signed; ``maps``, rectified and normalized in a :class:`RectifiedLoss`; ``labels``,
                ``images`` and ``masks`` as they were given.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement per_sample()")

    def samples(self, batch: Batch) -> Samples:
        """Check a batch, and prepare it for the formula."""
        check_cams(batch.cams, len(self.scores))
        return prepare_samples(batch.cams, self.counted(batch), batch.sample_weights, **self.preparation())

    def counted(self, batch: Batch) -> Tensor | None:
        """Check labels and weights, and return which samples are neither ignored nor of weight 0, (N,) booleans; None: all."""
        cams, labels = batch.cams, batch.labels
        check_labels(labels, cams.shape[0])
        # In int64: in a smaller type −100 may be another class. Soft labels are ignored where all K are 0.
        kept = (labels != 0).any(1) if labels.is_floating_point() else labels.long() != self.ignore_index
        return both(unless_all(kept), counted_samples(cams.shape[0], batch.sample_weights, self.checks))

    def preparation(self) -> dict[str, Any]:
        """Return how :meth:`samples` prepares the cams."""
        return {"normalization": None, "reduction": self.reduction}

    def value(self, samples: Samples) -> Tensor:
        """Reduce the losses of the samples."""
        values = self.per_sample(samples)
        if values.shape != samples.cams.shape[:1]:
            raise ValueError(
                f"per_sample: expected one number per sample, ({samples.cams.shape[0]},), got {tuple(values.shape)} from "
                f"{type(self).__name__}"
            )
        return samples.reduce(values)

    def check(self) -> None:
        """Raise what value checks have accumulated on a device.

        Raises:
            ValueError: a value did not fit in a batch since the last check.
        """
        self.checks.raise_failed()


class RectifiedLoss(CamLoss):
    """A loss on maps, M = relu(C) / max relu(C), that brings dead cams back to life.

    A subclass implements :meth:`per_sample`, in which ``samples.maps`` are the maps.

    Args:
        revive: a dead cam, one without positive values, pays 1 − cosine in [0, 2] to what it is compared with (or to a map of
            ones) instead, whose gradient brings it back to life. False: no gradient reaches a dead cam.
    """

    rectifies: ClassVar[bool] = True

    revive: bool = True

    def preparation(self) -> dict[str, Any]:
        """Return how :meth:`samples` prepares the cams."""
        return {"normalization": "max", "reduction": self.reduction, "revive": self.revive}


class NormalizedLoss(RectifiedLoss):
    """A loss on maps with a choice of how they are normalized.

    Args:
        normalization: of the rectified cams: ``"max"`` divides by the largest value, ``"minmax"`` maps the smallest value to 0
            and the largest to 1, ``"none"`` changes nothing.
    """

    normalization: Normalization = "max"

    def preparation(self) -> dict[str, Any]:
        """Return how :meth:`samples` prepares the cams."""
        return super().preparation() | {"normalization": self.normalization}

"""What every cam loss has in common."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..functional import CamMethod, Registry, Score, ValueChecks, dead_fraction, get_method
from ..functional.gradients import check_score

#: Loss classes by name. Your own: ``@LOSSES.register("name")`` on a subclass of :class:`CamLoss`.
LOSSES: Registry[type[CamLoss]] = Registry("loss")


class LossOutput(NamedTuple):
    """The value of a loss, and what else it found in the batch."""

    value: Tensor  #: a scalar, or for ``reduction="none"`` one number per sample or class
    dead_fraction: (
        Tensor | None
    )  #: share of dead cams among the samples that count, detached; None for a loss on signed cams


class CamLoss(nn.Module):
    """A loss on raw, signed cams.

    A subclass implements :meth:`compute`, and may choose another map or score than the defaults.

    Args:
        ignore_index: samples with this label are left out.
        method: which weighting makes the cam, see :data:`batchcam_captum.functional.CAM_METHODS`: a name or a function. None: the
            loss's :attr:`default_method`.
        score: which score the cam explains, see :func:`batchcam_captum.functional.select_scores`. None: the loss's
            ``default_score``.
        validate: look at values (the range of labels) at once on every device, which makes the host wait for a GPU. Without it
            what was wrong on a GPU raises at :meth:`check`; on the CPU it always raises at once.

    Raises:
        ValueError: an unknown method or score.
        TypeError: a method or a score that is neither a name nor a callable.
    """

    #: None: the weighting that the regularizer's ``grad_cam`` was made with.
    default_method: str | None = None
    default_score: Score = "label"

    #: Whether cams are rectified, so that one without positive values gives no gradient. A loss on signed cams, to which that is
    #: no failure, says False, and reports no share of dead cams.
    rectifies = True

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__()
        method = self.default_method if method is None else method
        score = self.default_score if score is None else score
        if method is not None:
            get_method(method)
        check_score(score)
        self.ignore_index = ignore_index
        self.method: str | CamMethod | None = method
        self.score: Score = score
        self.checks = ValueChecks(synchronize=validate)

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores whose cams the loss is given, one channel each: ``score``, unless a subclass compares several."""
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
        """Return the loss; see :meth:`evaluate` for the share of dead cams as well.

        Args:
            cams: (N, 1, *spatial), raw and signed, as :meth:`BatchGradCam.attribute` returns them with
                ``differentiable=True``; (N, S, *spatial) for a loss of S :attr:`scores`.
            labels: (N,) class indices, or (N, K) soft labels or several labels a sample.
            images: (N, C, *spatial), for losses that compare with the image.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            sample_weights: (N,) how much each sample counts, at least 0. Default: all alike.

        Returns:
            A scalar, or for ``reduction="none"`` one number a sample or a class.

        Raises:
            ValueError: a shape or a value that does not fit; the message says what to do.
            TypeError: a wrong kind of labels or cams.
        """
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
        """Return the loss and the share of dead cams.

        A loss that learns from its batches learns once per call, in training mode.

        Args:
            cams: as for :meth:`forward`, like the other arguments.
            labels: (N,) or (N, K).
            images: (N, C, *spatial).
            masks: (N, 1, *spatial).
            sample_weights: (N,).

        Raises:
            ValueError: a shape or a value that does not fit.
            TypeError: a wrong kind of labels or cams.
        """
        # Only where there are some: a loss that knows nothing of them works without.
        weights = {} if sample_weights is None else {"sample_weights": sample_weights}
        self.observe(cams, labels, masks=masks, **weights)
        loss = self.compute(cams, labels, images=images, masks=masks, **weights)
        if not self.rectifies:
            return LossOutput(loss, None)
        return LossOutput(loss, dead_fraction(cams[:, :1], self.counted(labels, sample_weights)))

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None,
        masks: Tensor | None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss itself, see :meth:`forward`."""
        raise NotImplementedError(f"{type(self).__name__} has to implement compute()")

    def observe(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> None:
        """Called before :meth:`compute`, for a loss that learns from its batches. Does nothing."""

    def counted(self, labels: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Which samples are neither ignored nor of weight 0: (N,) booleans. Soft labels are ignored where all K are 0."""
        # In int64: of labels of a smaller type -100 may be another class.
        counted = (labels != 0).any(1) if labels.is_floating_point() else labels.long() != self.ignore_index
        return counted if sample_weights is None else counted & (sample_weights > 0)

    def check(self) -> None:
        """Raise what value checks have accumulated on a device.

        Raises:
            ValueError: a value did not fit in a batch since the last check.
        """
        self.checks.raise_failed()

"""Losses that compare cams with prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from ..distributed import Ranks, sum_over_ranks
from ..functional import (
    Distance,
    Samples,
    full_precision,
    get_distance,
    prepare,
)
from ..functional.checks import check_choice, readable
from ..functional.losses.base import (
    check_cams,
    check_positive,
    check_prototypes,
    fit_references,
    without,
)
from ..functional.losses.prototypes import (
    ClassSums,
    ForegroundNormalization,
    Groups,
    Resolution,
    against_own,
    contrast,
    contrasted,
    foregrounds,
    outside,
    own_foreground,
    prototype_samples,
)
from ..prototypes import ClassPrototypes, ForegroundPrototypes, Prototypes
from .base import LOSSES, Batch, CamLoss, NormalizedLoss
from .masks import against_masks
from .memory import ClassSumsMemory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: For how many sizes of cams what is made of the prototypes is kept.
_SIZES = 8


class AgainstPrototypes(CamLoss):
    """A loss that holds prototypes, and keeps what it makes of them until they change.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or ready maps (K, 1, *spatial), (K, P, *spatial)
            with several per class.
    """

    #: The kind of prototypes that ready maps become.
    kind: ClassVar[type[ClassPrototypes]] = ClassPrototypes

    prototypes: Prototypes | Tensor | None = field(kw_only=False)

    def __post_init__(self) -> None:
        """Check the options, and turn ready maps into prototypes."""
        super().__post_init__()
        if isinstance(self.prototypes, Tensor):
            self.prototypes = self.kind.from_maps(self.prototypes)
        if not isinstance(self.prototypes, Prototypes):
            raise TypeError(
                f"prototypes: expected ClassPrototypes, another kind of prototypes, or a tensor (K, 1, *spatial), got "
                f"{type(self.prototypes).__name__}"
            )
        self._made: dict[Any, tuple[Tensor, int, Tensor, Tensor | None]] = {}

    @property
    def held(self) -> Prototypes:
        """The prototypes, after ready maps have become some."""
        return cast(Prototypes, self.prototypes)

    @property
    def num_classes(self) -> int | None:
        """K of the prototypes."""
        return self.held.num_classes

    @property
    def keeps_state(self) -> bool:
        """Whether the prototypes learn from the cams."""
        return self.held.learns

    def comparison_size(self, cams: Tensor) -> Sequence[int] | None:
        """Return the size at which cams and prototypes are compared; None: the prototypes' own."""
        return cams.shape[2:]

    def make(self, maps: Tensor, seen: Tensor | None, cams: Tensor) -> Tensor:
        """Return what the loss compares with, (K, P, *size), from maps (K, P, *size) of the prototypes."""
        return fit_references(maps, None, full_precision(cams).dtype)

    def samples(self, batch: Batch) -> Samples:
        """Check the batch, let prototypes learn from it, and prepare it for a comparison with them."""
        check_cams(batch.cams)
        prototypes = self.held
        if prototypes.learns and self.training:
            with torch.no_grad():
                maps = prepare(without(batch.cams.detach(), self.counted(batch))).maps
                prototypes.observe(maps, batch.labels, **self._labels(batch))
        made, seen = self._references(prototypes, batch.cams)
        given = self._labels(batch) | self.preparation()
        return prototype_samples(batch.cams, batch.labels, made, seen=seen, **given)

    def _labels(self, batch: Batch) -> dict[str, Any]:
        weights, ignored = batch.sample_weights, self.ignore_index
        return {"sample_weights": weights, "ignore_index": ignored, "checks": self.checks}

    def _references(self, prototypes: Prototypes, cams: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what to compare cams with, and which classes there are; None: all of them."""
        size = self.comparison_size(cams)
        maps = prototypes.maps(size)
        if torch.compiler.is_compiling() or maps.is_inference():  # nothing tells whether they have changed
            return self.make(maps, prototypes.seen, cams), prototypes.seen
        key = (tuple(cams.shape[2:]), full_precision(cams).dtype)
        source, version, made, seen = self._made.pop(key, (None, 0, maps, None))
        if source is not maps or version != maps._version:
            own = maps if size is None or prototypes.learns else prototypes.maps()
            check_prototypes(cams, own)
            seen = prototypes.seen
            if readable(seen) and bool(seen.all()):
                seen = None
            # A validation under inference_mode must not spoil the steps that follow.
            with torch.inference_mode(False), torch.no_grad():
                made = self.make(maps, seen, cams)
        self._made[key] = (maps, maps._version, made, seen)
        if len(self._made) > _SIZES:
            del self._made[next(iter(self._made))]
        return made, seen

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": {}}


class MapsAgainstPrototypes(AgainstPrototypes, NormalizedLoss):
    """A loss on maps that compares with the prototypes of their classes by a distance."""

    distance: str | Distance = "l1"
    resolution: Resolution = "map"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.distance = get_distance(self.distance)
        check_choice("resolution", self.resolution, Resolution)

    def comparison_size(self, cams: Tensor) -> Sequence[int] | None:
        """Return the size at which cams and prototypes are compared; None: the prototypes' own."""
        return cams.shape[2:] if self.resolution == "map" else None


@LOSSES.register("prototype")
class PrototypeLoss(MapsAgainstPrototypes):
    """The module of :func:`~batchcam_captum.functional.prototype_loss`.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or ready maps (K, 1, *spatial), (K, P, *spatial)
            with several per class, of which the nearest counts.
        distance: ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        resolution: ``"map"`` resizes the prototypes to the cams, ``"prototype"`` the maps to the prototypes.

    Example:
        >>> import torch
        >>> from batchcam_captum import PrototypeLoss
        >>> loss = PrototypeLoss(torch.rand(10, 1, 28, 28), distance="ssim")
        >>> cams = torch.randn(4, 1, 7, 7, requires_grad=True)
        >>> value, dead_fraction = loss.evaluate(cams, torch.tensor([3, 1, 0, 9]))
        >>> value.backward()
        >>> dead_fraction
        tensor(0.)
    """

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the distance of each map to the prototype of its class."""
        return samples.distances(self.distance)

    def value(self, samples: Samples) -> Tensor:
        """Reduce the losses of the samples, with those of dead cams replaced."""
        return super().value(against_own(samples))


@LOSSES.register("batch_cam")
class BatchCamLoss(MapsAgainstPrototypes):
    r"""The module of :func:`~batchcam_captum.functional.batch_cam_loss`.

    **Several processes.** In training the sums and counts of the classes are those of the batches of all ranks together: two
    ranks with 32 images each have the loss, and the gradients, of one with 64. Each forward sends one tensor of (K, pixels + 4)
    numbers, and the backward nothing. Every rank has to call the loss equally often, also one that has no image of a class, or no
    image at all; ``Join``, under which ranks run out of data before others, does not know of it. Gradients are expected to be
    averaged over the ranks, as DistributedDataParallel and FSDP do.

    **Gradient accumulation.** A class mean is not a mean over samples: by default each micro-batch has class means of its own,
    and M of them accumulate the mean of their M losses, not the loss of the whole batch. With ``memory`` = M − 1 the means are
    taken over this call and the M − 1 before it, whose sums are remembered. Let :math:`S_j` be the sums of micro-batch j and
    :math:`J_j` their derivative. The gradient of the whole batch is :math:`\sum_j J_j^\top L'(S_1 + \ldots + S_M)`. The call for
    micro-batch j knows :math:`J_j` only, so the gradient of its sums is multiplied by the number of calls that the means are
    taken over. When each loss is divided by M, as accumulation does, the M gradients add up to that of the whole batch, as far as
    the remembered sums are those of the current weights: exactly as long as no optimizer steps, nearly as long as steps are
    small. The memory slides: the first micro-batch after a step still sees the M − 1 before it. It is filled in training mode
    only, is part of ``state_dict()``, and is emptied by :meth:`reset`.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or ready maps (K, 1, *spatial), (K, P, *spatial)
            with several per class, of which the nearest counts. Every rank needs the same.
        distance: ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        resolution: ``"map"`` resizes the prototypes to the cams, ``"prototype"`` the maps to the prototypes.
        sync: True takes the means over all ranks of the process group, if there is one; a group, over that, which should be the
            one that the gradients are averaged over. In eval mode, as under :meth:`CamRegularizer.evaluate`, each rank is alone.
        memory: how many earlier calls the means are taken over as well, at least 0.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchCamLoss
        >>> loss = BatchCamLoss(torch.rand(3, 1, 28, 28), reduction="none")
        >>> loss(torch.randn(4, 1, 7, 7), torch.tensor([0, 2, 2, 2])) > 0
        tensor([ True, False,  True])
    """

    sync: bool | ProcessGroup = True
    memory: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not isinstance(self.memory, int) or isinstance(self.memory, bool) or self.memory < 0:
            raise ValueError(
                f"memory: expected how many earlier calls to remember, 0 or more, got {self.memory!r}"
            )
        self._ranks = Ranks(self.sync)
        #: The sums of the last calls; None without a memory.
        self.earlier = ClassSumsMemory(self.memory, self.held.num_classes) if self.memory else None

    @property
    def keeps_state(self) -> bool:
        """Whether the prototypes learn from the cams, or earlier calls are remembered."""
        return super().keeps_state or self.earlier is not None

    def reset(self) -> None:
        """Forget earlier calls, as after a change of the weights or of the size of the maps."""
        if self.earlier is not None:
            self.earlier.reset()

    def value(self, samples: Samples) -> Tensor:
        """Return the loss of the class means: over the samples, the ranks, and the calls that are remembered."""
        group = self._ranks.group if self.training else None
        earlier = self.earlier if self.training else None
        groups = Groups.of(samples, every_class=group is not None or earlier is not None)
        size = tuple(groups.prototypes.shape[2:])
        if earlier is not None:
            earlier.check_size(size)  # before anything is sent
        sums = ClassSums.of(samples, groups)
        packed = None
        if group is not None:
            packed = sum_over_ranks(sums.pack(), group)
            sums = sums.unpack(packed)
        if earlier is not None:
            packed = sums.pack() if packed is None else packed
            sums = sums.unpack(earlier.with_earlier(packed))
        value = groups.value(sums, self.distance, self.reduction)
        if earlier is not None and packed is not None:  # last: what raises is not remembered
            earlier.remember(packed.detach(), size)
        return value

    # A process group can be neither copied nor saved, as it stands for connections; Ranks says so.
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "sync"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.sync = self._ranks.sync


@LOSSES.register("prototype_contrastive")
class PrototypeContrastiveLoss(AgainstPrototypes):
    """The module of :func:`~batchcam_captum.functional.prototype_contrastive_loss`.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or ready maps (K, 1, *spatial), (K, P, *spatial)
            with several per class, of which the nearest gives the logit of the class.
        temperature: positive; lower is sharper.

    Example:
        >>> import torch
        >>> from batchcam_captum import PrototypeContrastiveLoss
        >>> prototypes = torch.rand(10, 1, 28, 28)
        >>> loss = PrototypeContrastiveLoss(prototypes, temperature=0.01)
        >>> bool(loss(prototypes, torch.arange(10)) < 1e-3)
        True
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_positive("temperature", self.temperature)

    def comparison_size(self, cams: Tensor) -> None:
        """Return None: the cams are resized to the prototypes."""

    def make(self, maps: Tensor, seen: Tensor | None, cams: Tensor) -> Tensor:
        """Return the prototypes without what they share, each of unit length."""
        return contrasted(super().make(maps, seen, cams), seen)

    def value(self, samples: Samples) -> Tensor:
        """Return the cross-entropy over the classes."""
        return samples.reduce(contrast(samples, self.temperature))


@LOSSES.register("foreground")
class ForegroundLoss(AgainstPrototypes):
    """The module of :func:`~batchcam_captum.functional.foreground_loss`.

    Args:
        prototypes: their maps say how much each place is foreground: any kind, or ready maps in [0, 1], (K, 1, *spatial) or
            several per class, (K, P, *spatial), which are taken as they are. None: the foreground of each sample is its mask,
            which comes with the batch; a sample whose mask is all zero is left out.
        normalization: ``"none"`` squares the raw cam outside; ``"share"`` is the share of its absolute value that lies outside.

    Example:
        >>> import torch
        >>> from batchcam_captum import ForegroundLoss
        >>> foregrounds = torch.zeros(3, 1, 12, 12)
        >>> foregrounds[..., :6] = 1  # the left half
        >>> loss = ForegroundLoss(foregrounds, normalization="share")
        >>> loss(torch.ones(2, 1, 6, 6), torch.tensor([0, 2]))
        tensor(0.5000)
    """

    kind = ForegroundPrototypes
    default_method = "hires_cam"
    default_score = "log_prob_sum"

    prototypes: Prototypes | Tensor | None = field(default=None, kw_only=False)
    normalization: ForegroundNormalization = "none"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.prototypes is None:
            CamLoss.__post_init__(self)
        else:
            super().__post_init__()

    @property
    def num_classes(self) -> int | None:
        """K of the prototypes; None with masks."""
        return None if self.prototypes is None else super().num_classes

    @property
    def keeps_state(self) -> bool:
        """Whether the prototypes learn from the cams."""
        return self.prototypes is not None and super().keeps_state

    def make(self, maps: Tensor, seen: Tensor | None, cams: Tensor) -> Tensor:
        """Return the foreground of each class."""
        return foregrounds(maps, cams, self.checks)

    def samples(self, batch: Batch) -> Samples:
        """Check the batch, and prepare it for a comparison with the foregrounds, or with the masks."""
        return (
            against_masks(self, batch) if self.prototypes is None else own_foreground(super().samples(batch))
        )

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the evidence outside the foreground."""
        return outside(samples, self.normalization)

"""What the metric classes have in common: one ``update`` for all of them, checks, and means over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...functional import ValueChecks
from ...functional.class_means import check_labels
from ...functional.metrics.common import check_metric_cams, wide_dtype
from ...optional import load

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = load("torchmetrics", extra="metrics", purpose="batchcam_captum.evaluation.metrics").Metric


class Samples(NamedTuple):
    """What a metric is given of one batch."""

    cams: Tensor  #: (N, 1, *spatial), signed
    labels: Tensor | None  #: (N,), or (N, K) soft labels
    masks: Tensor | None  #: (N, 1, *spatial), where the evidence should be
    shortcuts: Tensor | None  #: (N, 1, *spatial), where it should not be
    counted: Tensor  #: (N,) booleans, false where the label is ignored


#: What a metric asks for when it misses something.
_MISSING = {
    "labels": "class indices (N,)",
    "masks": "masks (N, 1, *spatial) of where the evidence should be",
    "shortcuts": "masks (N, 1, *spatial) of the shortcuts",
}


class CamMetric(Metric):
    """A metric of cams that streams over batches.

    Every subclass is updated in the same way, takes of it what it needs, and can be reset, merged, pickled, and put into a
    ``MetricCollection``. In a process group the sums are added up over the ranks when ``compute()`` is called, which all ranks
    have to do; a rank that has seen nothing may be among them. Before the first update ``compute()`` warns, and gives NaN.

    **Bad input.** Shapes raise at once. So do values (cams that are not finite, labels out of range) on the CPU, before
    anything is added up; on any other device looking at them would make the host wait, so that they raise in ``compute()``,
    after which the metric has to be reset. ``forward()``, which computes for each batch, waits each time; ``update()`` never
    does.

    Args:
        *settings: everything that two metrics of this class may differ in, the tensors they compare with included; a subclass
            passes it on.
        ignore_index: samples whose integer label is this are left out, whatever the metric looks at.
        **kwargs: of ``torchmetrics.Metric``, such as ``process_group`` or ``sync_on_compute``.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    #: What :meth:`update` has to be given beside the cams.
    needs: ClassVar[tuple[str, ...]] = ()

    settings: Tensor

    def __init__(self, *settings: object, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self._checks = ValueChecks()
        # The first state of all: some versions of MetricCollection compare no other.
        self._identify(ignore_index, *settings)

    def update(
        self,
        cams: Tensor,
        labels: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        shortcuts: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            cams: (N, 1, *spatial), raw and signed.
            labels: (N,) class indices, or, for what compares with prototypes by a distance, (N, K) soft labels.
            masks: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should be; all zero: no annotation.
            shortcuts: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should not be; all zero: no shortcut.

        Raises:
            ValueError: something does not fit, or this metric needs what was not given.
            TypeError: cams, labels or masks of a wrong kind.
        """
        check_metric_cams(cams)
        if cams.device != self.device:
            raise ValueError(
                f"cams: expected them on the metric's device {self.device}, got {cams.device}; call metric.to(cams.device)"
            )
        counted = torch.ones(cams.shape[0], dtype=torch.bool, device=cams.device)
        if labels is not None:
            check_labels(labels, cams.shape[0])
            counted = (labels != 0).any(1) if labels.dim() == 2 else labels.long() != self.ignore_index
        samples = Samples(cams, labels, masks, shortcuts, counted)
        for name in self.needs:
            if getattr(samples, name) is None:
                raise ValueError(
                    f"{name}: expected {_MISSING[name]}, got none; {type(self).__name__} is not defined without, pass "
                    f"update(…, {name}={name})"
                )
        self._add(samples)

    def _add(self, samples: Samples) -> None:
        raise NotImplementedError(f"{type(self).__name__} has to implement _add")

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several, or what ``compute()`` gives; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)

    def _add_sum(self, name: str, *shape: int, wide: bool = True) -> None:
        """Add a state that is summed over batches and ranks: float64 where the device has it, or integers."""
        dtype = wide_dtype(torch.get_default_device()) if wide else torch.int64
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _identify(self, *settings: object) -> None:
        """Add the settings, as bits, to the state.

        A ``MetricCollection`` takes metrics whose states are equal after the first batch for one and the same, and from then on
        updates one of them only. Two thresholds, or two kinds of shortcut, may well agree on a batch.
        """
        digest = sha256(f"{type(self).__module__}.{type(self).__qualname__}".encode())
        for setting in settings:
            if isinstance(setting, Tensor):
                digest.update(setting.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            elif callable(setting):
                name = getattr(setting, "__qualname__", type(setting).__qualname__)
                digest.update(f"{getattr(setting, '__module__', '')}.{name}".encode())
            else:
                digest.update(repr(setting).encode())
        bits = [byte >> place & 1 for byte in digest.digest()[:16] for place in range(8)]
        self.add_state("settings", torch.tensor(bits, dtype=torch.uint8), dist_reduce_fx="max")

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same kind and settings has seen.

        Args:
            incoming_state: the metric, or its ``metric_state``.

        Raises:
            ValueError: it is of another kind, or of other settings, so that a sum would mean nothing.
        """
        other = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        theirs = other.get("settings") if isinstance(other, dict) else None
        if isinstance(theirs, Tensor) and not torch.equal(theirs.cpu(), self.settings.cpu()):
            raise ValueError(
                f"incoming_state: expected that of a {type(self).__name__} with the same settings and prototypes, got another; "
                f"merge metrics that were made alike"
            )
        super().merge_state(incoming_state)

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        if wide_dtype(fn(torch.zeros(1)).device) != torch.float64:  # such a device takes no float64 at all
            for name, default in self._defaults.items():
                if isinstance(default, Tensor) and default.dtype == torch.float64:
                    self._defaults[name] = default.float()
                    setattr(self, name, getattr(self, name).float())
        return super()._apply(fn, exclude_state)


class MeanOverSamples(CamMetric):
    """The mean of a number a sample, over the samples that have one.

    A subclass implements :meth:`values`.

    Args:
        *settings: see :class:`CamMetric`.
        ignore_index: see :class:`CamMetric`.
        **kwargs: of ``torchmetrics.Metric``.
    """

    total: Tensor
    count: Tensor

    def __init__(self, *settings: object, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(*settings, ignore_index=ignore_index, **kwargs)
        self._add_sum("total")
        self._add_sum("count", wide=False)

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """(N,), NaN where a sample has no value.

        Args:
            samples: the batch.
            checks: where checks of values go.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement values")

    def _add(self, samples: Samples) -> None:
        values = self.values(samples, self._checks).detach()
        missing = values.isnan()
        # Not in place: a state that was made under inference_mode cannot be changed outside.
        self.total = self.total + values.masked_fill(missing, 0).to(self.total.dtype).sum()
        self.count = self.count + (~missing).sum()

    def compute(self) -> Tensor:
        """The mean over all samples so far, a scalar in float32; NaN where there are none.

        Raises:
            ValueError: values that could not be looked at earlier were not what they should be, see :class:`CamMetric`.
        """
        self._checks.raise_failed()
        return (self.total / self.count).float()

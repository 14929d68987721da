"""What all metric classes have in common: what tells two of them apart, sums over batches and ranks, and bad input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...functional import ValueChecks
from ...functional.metrics.common import check_whole, wide_dtype
from ...optional import load
from .identity import SETTINGS_BITS, Borrowed, alike, is_borrowed, settings_bits, things_bits

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = load("torchmetrics", extra="metrics", purpose="batchcam_captum.evaluation.metrics").Metric

#: What a metric of torchmetrics notes beside its states, and ours.
_NOTES = (
    "_update_count",
    "_computed",
    "_forward_cache",
    "_to_sync",
    "_should_unsync",
    "_enable_grad",
    "_is_synced",
    "_cache",
    "compute_on_cpu",
    "_failed",
)


class StreamingMetric(Metric):
    """A metric that streams over batches.

    Every subclass is updated in the same way, takes of it what it needs, and can be reset, merged, pickled, and put into a
    ``MetricCollection``. In a process group the sums are added up over the ranks when ``compute()`` is called, which all ranks
    have to do; a rank that has seen nothing may be among them. Before the first update ``compute()`` warns, and gives NaN.

    **Bad input.** Shapes raise at once. So do values (cams that are not finite, labels out of range) on the CPU; on any other
    device looking at them would make the host wait, so that they raise in ``compute()``: on every rank, also after a merge, and
    each time until the metric is reset. ``forward()``, which computes for each batch, waits each time; ``update()`` never
    does. An ``update()`` or ``forward()`` that raises leaves the metric as it was. A ``MetricCollection`` is not put back as a
    whole: those of its metrics that came before the one that raised have the batch, so reset it, or look at the batch before.

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

    settings: Tensor
    failures: Tensor

    def __init__(self, *settings: object, ignore_index: int = -100, **kwargs: Any) -> None:
        check_whole("ignore_index", ignore_index)
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self._borrowed: list[Borrowed[object]] = [
            Borrowed(setting) for setting in settings if is_borrowed(setting)
        ]
        # A MetricCollection takes metrics whose states are equal after the first batch for one and the same, and from then on
        # updates one of them only; two thresholds, or two models, may well agree on a batch. So the settings are a state, and
        # the first of all: some versions compare no other.
        bits = torch.cat([settings_bits(type(self), (ignore_index, *settings)), things_bits(self._borrowed)])
        self.add_state("settings", bits, dist_reduce_fx="max")
        self._add_sum("failures", wide=False)
        self._failed: dict[str, Tensor] = {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or several, or what ``compute()`` gives; see ``torchmetrics.Metric.plot``."""
        return self._plot(val, ax)

    def _add_sum(self, name: str, *shape: int, wide: bool = True) -> None:
        """Add a state that is summed over batches and ranks: float64 where the device has it, or integers."""
        dtype = wide_dtype(torch.get_default_device()) if wide else torch.int64
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric of the same kind and settings has seen.

        Args:
            incoming_state: the metric, or its ``metric_state``.

        Raises:
            ValueError: it is of another kind, or of other settings, so that a sum would mean nothing.
        """
        other = incoming_state.metric_state if isinstance(incoming_state, Metric) else incoming_state
        theirs = other.get("settings") if isinstance(other, dict) else None
        if isinstance(theirs, Tensor):
            same = torch.equal(theirs.cpu()[:SETTINGS_BITS], self.settings.cpu()[:SETTINGS_BITS])
            if same and isinstance(incoming_state, StreamingMetric):
                pairs = zip(self._borrowed, incoming_state._borrowed, strict=True)
                same = all(alike(own.thing, its.thing) for own, its in pairs)
            if not same:
                raise ValueError(
                    f"incoming_state: expected that of a {type(self).__name__} with the same settings, prototypes and model, got "
                    f"another; merge metrics that were made alike"
                )
        super().merge_state(incoming_state)
        self._computed = None
        if isinstance(incoming_state, StreamingMetric):
            self._failed = incoming_state._failed | self._failed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch as ``update`` does, and compute its own value; see ``torchmetrics.Metric.forward``."""
        with self._as_it_was_on_error():
            failed = self._failed
            value = super().forward(*args, **kwargs)
            self._failed = failed  # which a reset on the way has cleared
            return value

    def reset(self) -> None:
        """Forget all batches, and what was wrong with them."""
        super().reset()
        self._failed = {}

    def _wrap_update(self, update: Callable[..., None]) -> Callable[..., None]:
        return self._guarded(super()._wrap_update(update))

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(compute)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._raise_failures()
            return compute(*args, **kwargs)

        return self._guarded(super()._wrap_compute(checked))

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self._as_it_was_on_error():
                return method(*args, **kwargs)

        return guarded

    @contextmanager
    def _as_it_was_on_error(self) -> Iterator[None]:
        """Put the states and torchmetrics' own notes back when something raises.

        ``Metric.forward`` resets before it updates, and a ``compute()`` that raises leaves the sums of all ranks behind. No state
        is ever changed in place, so references are enough.
        """
        before = {name: self.__dict__[name] for name in _NOTES} | self.metric_state
        try:
            yield
        except BaseException:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _note_failures(self, checks: ValueChecks) -> None:
        """Add what could not be looked at yet to the state."""
        failed = checks.take_failed()
        for message, flag in failed.items():
            self.failures = self.failures + flag.to(self.failures)
            earlier = self._failed.get(message)
            self._failed = self._failed | {message: flag if earlier is None else earlier.to(flag) | flag}

    def _raise_failures(self) -> None:
        if not bool(self.failures):
            return
        messages = [message for message, flag in self._failed.items() if bool(flag)]
        raise ValueError(
            f"{'; '.join(messages) or 'values: something did not fit on another rank, look at its error'} (in a batch since the "
            f"last reset; call reset())"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # What it borrows may be a copy by now.
        things = things_bits(self._borrowed)
        for states in (self.__dict__, self._defaults):
            bits: Tensor = states["settings"]  # type: ignore[assignment]
            states["settings"] = torch.cat([bits[:SETTINGS_BITS], things.to(bits.device)])

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        if wide_dtype(fn(torch.zeros(1)).device) != torch.float64:  # such a device takes no float64 at all
            for name, default in self._defaults.items():
                if isinstance(default, Tensor) and default.dtype == torch.float64:
                    self._defaults[name] = default.float()
                    setattr(self, name, getattr(self, name).float())
        return super()._apply(fn, exclude_state)


class MeanMetric(StreamingMetric):
    """The mean of many numbers.

    Args:
        *settings: see :class:`StreamingMetric`.
        ignore_index: see :class:`StreamingMetric`.
        **kwargs: of ``torchmetrics.Metric``.
    """

    total: Tensor
    count: Tensor

    def __init__(self, *settings: object, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(*settings, ignore_index=ignore_index, **kwargs)
        self._add_sum("total")
        self._add_sum("count", wide=False)

    def _add_values(self, values: Tensor) -> None:
        """Add numbers (N,), but no NaN."""
        missing = values.isnan()
        # Not in place: a state that was made under inference_mode cannot be changed outside.
        self.total = self.total + values.masked_fill(missing, 0).to(self.total.dtype).sum()
        self.count = self.count + (~missing).sum()

    def compute(self) -> Tensor:
        """The mean over all samples so far, a scalar in float32; NaN where there are none.

        Raises:
            ValueError: values that could not be looked at earlier were not what they should be, see :class:`StreamingMetric`.
        """
        return (self.total / self.count).float()

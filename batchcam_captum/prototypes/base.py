"""What every kind of prototypes shares: the maps, how they are cast and cached, and their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..files import written_whole
from ..functional import ValueChecks, normalize, resize

_FORMAT = 2
#: How many sizes of maps the cache holds.
_CACHED_SIZES = 8
#: More spatial dimensions than any image has.
MAX_DIMENSIONS = 6


class Prototypes(nn.Module):
    """P maps of each class that cams are compared with. Every loss takes every kind.

    The maps are stored in float32 and are never cast to a half type. They travel with ``state_dict()`` and ``.to(device)``, and
    take the shape of the state that is loaded.

    A subclass fills :attr:`values` and :attr:`counts`, or overrides :meth:`maps` and :attr:`seen`. For a kind that is computed
    from the images of each class, derive from :class:`SampledPrototypes` instead.

    Args:
        num_classes: the number of classes, K.
        per_class: the number of prototypes of each class, P.

    Raises:
        ValueError: ``num_classes`` or ``per_class`` is not positive.
    """

    values: Tensor  #: (K, P, *spatial) float32; zero for a class without a prototype
    counts: Tensor  #: (K,) int64, the number of samples that each class's prototypes are computed from; 0 = no prototype yet

    #: True if losses in training mode change the prototypes, so that each layer needs its own.
    learns: ClassVar[bool] = False
    #: The options of the constructor that :meth:`save` writes.
    settings: ClassVar[tuple[str, ...]] = ()
    #: What the prototypes are computed from, and what to do while there are none.
    samples: ClassVar[str] = "images"
    remedy: ClassVar[str] = "compute them first"

    def __init__(self, num_classes: int, *, per_class: int = 1) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("per_class", per_class)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.num_classes = num_classes
        with torch.inference_mode(False):  # a training step cannot use inference tensors
            self.register_buffer("values", torch.zeros(num_classes, per_class, 0))
            self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))
        self._cache: dict[tuple[int, ...], Tensor] = {}
        self._cached_for: tuple[Tensor, int] | None = None

    @property
    def seen(self) -> Tensor:
        """(K,) booleans: which classes have a prototype."""
        return self.counts > 0

    @property
    def unseen(self) -> list[int]:
        """The classes without a prototype. Synchronizes with the device."""
        return torch.nonzero(~self.seen).flatten().tolist()

    def maps(self, size: Sequence[int] | None = None) -> Tensor:
        """Return the prototypes as maps in [0, 1].

        Args:
            size: the spatial size of the maps, that of the cams to compare with. Default: the prototypes' own size.

        Returns:
            (K, P, *size), without a graph; all zero for a class without a prototype. The tensor is cached and returned again
            until the prototypes change: do not modify it in place.

        Raises:
            RuntimeError: there are no prototypes yet.
            ValueError: ``size`` has another number of dimensions than the prototypes.
        """
        if not self.values.numel():
            raise RuntimeError(
                f"prototypes: expected prototypes of some {self.samples}, got none; {self.remedy}"
            )
        size = tuple(self.values.shape[2:] if size is None else size)
        if torch.compiler.is_compiling():  # a compiled graph cannot tell whether the values have changed
            return self._make_maps(size)
        source, version = self._cached_for or (None, 0)
        if source is not self.values or version != self.values._version or len(self._cache) > _CACHED_SIZES:
            self._cached_for, self._cache = (self.values, self.values._version), {}
        if size not in self._cache:
            # A validation under inference_mode may fill the cache for a later training step.
            with torch.inference_mode(False):
                self._cache[size] = self._make_maps(size)
        return self._cache[size]

    @torch.no_grad()
    def _make_maps(self, size: tuple[int, ...]) -> Tensor:
        """Return the maps (K, P, *size): min–max, resize by area, divide by the maximum."""
        flat = self.values.flatten(0, 1).unsqueeze(1)
        return normalize(resize(normalize(flat, "minmax"), size), "max").reshape(
            *self.values.shape[:2], *size
        )

    def observe(
        self,
        maps: Tensor,
        labels: Tensor,
        *,
        sample_weights: Tensor | None = None,
        ignore_index: int = -100,
        checks: ValueChecks | None = None,
    ) -> None:
        """Learn from a training batch; a kind with :attr:`learns` overrides this. Losses call it before they compare.

        Args:
            maps: (N, 1, *spatial), rectified and normalized cams without a graph; all zero for dead and ignored samples.
            labels: (N,) class indices, or (N, K) soft labels.
            sample_weights: (N,), or None.
            ignore_index: samples with this label are ignored.
            checks: collects value checks. Default: they raise at once.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prototypes and their settings to a file.

        Args:
            path: the file, which is replaced atomically. Functions such as ``to_channel`` are not saved.

        Raises:
            OSError: the folder does not exist or is not writable.
        """
        content = {
            "format": _FORMAT,
            "kind": type(self).__name__,
            "settings": {name: getattr(self, name) for name in self.settings},
            "state": {name: value.cpu() for name, value in self.state_dict().items()},
        }
        with written_whole(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **functions: Any) -> Self:
        """Read a file written by :meth:`save`. Nothing in the file is executed.

        Args:
            path: the file.
            **functions: options that are functions and therefore not saved, such as ``to_channel``.

        Returns:
            The prototypes, on the CPU.

        Raises:
            OSError: the file does not exist or is not readable.
            ValueError: the file holds something else.
        """
        refusal = f"{path}: expected prototypes written by {cls.__name__}.save(), got"
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception:  # torch's message recommends weights_only=False, which would run code from the file
            raise ValueError(
                f"{refusal} a damaged file, or a file of another program; save the prototypes again"
            ) from None
        try:
            if (content["format"], content["kind"]) != (_FORMAT, cls.__name__):
                raise ValueError(f"{content['kind']} in format {content['format']}")
            if unknown := set(content["settings"]) - set(cls.settings):
                raise ValueError(f"unknown settings {sorted(unknown)}")
            prototypes = cls(content["state"]["counts"].shape[0], **content["settings"], **functions)
            prototypes.load_state_dict(content["state"])
        except Exception as error:
            raise ValueError(f"{refusal} something else ({error}); save the prototypes again") from error
        return prototypes

    def extra_repr(self) -> str:
        """Describe the prototypes for ``print``."""
        several = "" if self.values.shape[1] == 1 else f", per_class={self.values.shape[1]}"
        return (
            f"num_classes={self.num_classes}{several}, size={tuple(self.values.shape[2:])}, "
            f"{self.samples}={int(self.counts.sum())}"
        )

    def __len__(self) -> int:
        return self.num_classes

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers, but keep their types: ``.half()`` and ``.double()`` of a model leave prototypes in float32."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self

    @torch.inference_mode(False)
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        own = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        values, counts = own.get(f"{prefix}values"), own.get(f"{prefix}counts")
        if values is not None and counts is not None:
            if problem := self._problem_in(values, counts):
                rest[-1].append(f"prototypes: {problem}")
                return
            if values.shape != self.values.shape:
                self.values = self.values.new_zeros(values.shape)
        for name, buffer in self.named_buffers(recurse=False):
            value = own.get(prefix + name)
            if isinstance(
                value, Tensor
            ):  # of the right type also for load_state_dict(assign=True), and no inference tensor
                own[prefix + name] = value.to(buffer.dtype, copy=value.is_inference())
        super()._load_from_state_dict(own, prefix, local_metadata, strict, *rest)

    def _problem_in(self, values: Any, counts: Any) -> str | None:
        """Return what is wrong with the values and counts of a state, or None."""
        dense = [isinstance(each, Tensor) and each.layout == torch.strided for each in (values, counts)]
        if (
            not all(dense)
            or not values.is_floating_point()
            or counts.is_floating_point()
            or counts.is_complex()
        ):
            return "expected floating-point values and integer counts, got others"
        k = self.num_classes
        if values.shape[:1] != (k,) or counts.shape != (k,):
            return (
                f"expected {k} classes, got a state with values {tuple(values.shape)} and counts {tuple(counts.shape)}; pass "
                f"the model's number of classes"
            )
        if not 3 <= values.dim() <= 2 + MAX_DIMENSIONS or not values.shape[1]:
            return f"expected values (K, P, *spatial), got {tuple(values.shape)}"
        if not values.is_meta and not (bool(values.isfinite().all()) and bool((counts >= 0).all())):
            return "expected finite values and counts of at least 0, got others"
        return None

"""Prototypes that are kept: buffers, how they are shaped, cast, cached, saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..files import written_whole
from ..functional import normalize, resize
from .base import Prototypes

_FORMAT = 1
#: For how many sizes maps are kept.
_SIZES = 8


class StoredPrototypes(Prototypes):
    """P maps of each class in float32, and how many samples each was taken over.

    They travel with ``state_dict()`` and ``.to(device)``, are never cast to a half type, and take the shape of the state that is
    loaded. A subclass fills :attr:`means` and :attr:`counts`.

    Args:
        num_classes: the number of classes, K.
        per_class: how many prototypes each class has, P.
        size: the spatial size, where it is known before the first samples.

    Raises:
        ValueError: ``num_classes`` or ``per_class`` is not positive.
    """

    means: Tensor  #: (K, P, *spatial) float32; zero where there is no prototype
    counts: Tensor  #: int64, how many samples each mean was taken over; 0 = no prototype yet

    #: What the constructor takes beside ``num_classes``, for :meth:`save`.
    _settings: ClassVar[tuple[str, ...]] = ("size",)
    #: The buffers that take the shape of the state that is loaded; the first dimension of each is K.
    _shaped_by_state: ClassVar[tuple[str, ...]] = ("means", "counts")
    #: What the prototypes are made of, and what to do where there are none yet.
    _samples: ClassVar[str] = "images"
    _remedy: ClassVar[str] = "call update() or use from_loader()"

    def __init__(self, num_classes: int, *, per_class: int = 1, size: Sequence[int] | None = None) -> None:
        super().__init__(num_classes)
        if per_class < 1:
            raise ValueError(f"per_class: expected at least 1, got {per_class}")
        self.size = None if size is None else tuple(size)
        spatial = (0,) if self.size is None else self.size
        with torch.inference_mode(False):  # or a training step could not use them
            self.register_buffer("means", torch.zeros(num_classes, per_class, *spatial))
            self.register_buffer("counts", torch.zeros(self._counts_shape(per_class), dtype=torch.long))
        self._cached_for: tuple[Tensor, int] | None = None
        self._cache: dict[tuple[int, ...], Tensor] = {}

    def _counts_shape(self, per_class: int) -> tuple[int, ...]:
        return (self.num_classes,)

    @property
    def seen(self) -> Tensor:
        """(K,) booleans: which classes have a prototype."""
        return (self.counts > 0).reshape(self.num_classes, -1).any(1)

    @property
    def unseen(self) -> list[int]:
        """The classes without a prototype. Waits for the device."""
        return torch.nonzero(~self.seen).flatten().tolist()

    def maps(self, size: Sequence[int] | None = None) -> Tensor:
        """The prototypes as maps in [0, 1]: (K, P, *size).

        Args:
            size: the spatial size of the cams to compare with. Default: their own size.

        Returns:
            Each mean after min–max, resized by area and divided by its maximum. All zero for a class without a prototype, and for
            a flat mean. They are kept for the next call, for the sizes used last: do not change them in place.

        Raises:
            RuntimeError: there are no prototypes yet.
            ValueError: ``size`` has another number of dimensions than the prototypes.
        """
        if not self.means.numel():
            raise RuntimeError(
                f"prototypes: expected prototypes of some {self._samples}, got none; {self._remedy}"
            )
        size = tuple(self.means.shape[2:] if size is None else size)
        if torch.compiler.is_compiling():  # where nothing tells whether the means have changed
            return self._made(size)
        source, version = self._cached_for or (None, 0)
        if source is not self.means or version != self.means._version:
            self._cached_for, self._cache = (self.means, self.means._version), {}
        made = self._cache.pop(size, None)
        if made is None:
            # The cache must serve a training step even if a validation under inference_mode has filled it.
            with torch.inference_mode(False):
                made = self._made(size)
        self._cache[size] = made  # the last one used comes last
        if len(self._cache) > _SIZES:
            del self._cache[next(iter(self._cache))]
        return made

    @torch.no_grad()
    def _made(self, size: tuple[int, ...]) -> Tensor:
        """The maps of this size, see :meth:`maps`."""
        flat = self.means.flatten(0, 1).unsqueeze(1)
        maps = normalize(resize(normalize(flat, "minmax"), size), "max")
        return maps.reshape(*self.means.shape[:2], *size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the maps, the counts and the settings to a file, whole or not at all.

        Args:
            path: a file that :meth:`load` reads. A setting that is code, such as ``to_channel``, is not saved.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        content = {
            "format": _FORMAT,
            "kind": type(self).__name__,
            "num_classes": self.num_classes,
            "settings": {name: getattr(self, name) for name in self._settings},
            "state": {
                name: value.cpu() if isinstance(value, Tensor) else value
                for name, value in self.state_dict().items()
            },
        }
        with written_whole(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **code: Any) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            **code: settings that are code.

        Returns:
            The prototypes, on the CPU.

        Raises:
            OSError: the file is missing or cannot be read.
            ValueError: the file holds something else.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            if content.get("kind", "ClassPrototypes") != cls.__name__:
                raise ValueError(content["kind"])
            prototypes = cls(content["num_classes"], **code, **content["settings"])
            prototypes.load_state_dict(content["state"])
        except OSError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path}: expected prototypes written by {cls.__name__}.save, got something else ({error})"
            ) from error
        return prototypes

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        several = "" if self.means.shape[1] == 1 else f", per_class={self.means.shape[1]}"
        return (
            f"num_classes={self.num_classes}{several}, size={tuple(self.means.shape[2:])}, "
            f"{self._samples}={int(self.counts.sum())}"
        )

    @torch.inference_mode(False)  # or a training step could not use what is moved
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.means
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (
            self.means.dtype != torch.float32
        ):  # .half(), .double(): the device may change, the precision may not
            self.means = before.to(self.means.device)
        self._forget()
        return self

    @torch.inference_mode(False)  # or a training step could not use what is loaded
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        state_dict = {
            name: value.clone() if isinstance(value, Tensor) and value.is_inference() else value
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        for name in self._shaped_by_state:
            value = state_dict.get(f"{prefix}{name}")
            if value is None:
                continue
            if value.shape[0] != self.num_classes:
                error_messages = rest[-1]
                error_messages.append(
                    f"prototypes: expected {self.num_classes} classes, got a state of {value.shape[0]}; the number of classes "
                    f"has to be that of the model"
                )
                return
            buffer = getattr(self, name)
            if value.shape != buffer.shape:
                setattr(self, name, buffer.new_zeros(value.shape))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)
        self.means = self.means.float()  # load_state_dict(assign=True) takes what it is given
        self._forget()

    def _forget(self) -> None:
        """Drop what is derived from the means."""
        self._cached_for, self._cache = None, {}

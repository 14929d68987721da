"""Named things that users may add to: distances, losses, CAM weightings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to objects of one kind, filled by a decorator.

    Args:
        kind: what the entries are, in the singular; used in error messages.

    Example:
        >>> from batchcam_captum.functional.registry import Registry
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(side):
        ...     return side * side
        >>> shapes["square"](3)
        9
        >>> shapes["circle"]
        Traceback (most recent call last):
        ...
        ValueError: shape: expected one of 'square', got 'circle'; ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its argument under ``name``.

        Args:
            name: by which users ask for it; taken once.

        Returns:
            The decorator, which returns what it was given.

        Raises:
            ValueError: the name is taken by another object.
        """

        def enter(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ValueError(f"{self.kind}: the name {name!r} is taken; choose another name")
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(repr(known) for known in self)
            raise ValueError(
                f"{self.kind}: expected one of {known}, got {name!r}; "
                f"pass one of these, or register your own under this name"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

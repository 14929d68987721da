"""Which classes the maps of a data set explain."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor

from ..attribution import BatchGradCam

#: The predicted class, the true one, or all; the k highest; or these classes.
ExplainTargets = Literal["predicted", "true", "all"] | int | Sequence[int]


@dataclass(frozen=True)
class ClassChoice:
    """A choice that was checked. Made by :meth:`of`."""

    kind: Literal["predicted", "true", "all", "top", "classes"]
    classes: tuple[int, ...] = ()  #: of "classes"
    k: int = 1  #: of "top"

    @classmethod
    def of(cls, targets: ExplainTargets) -> ClassChoice:
        """Check.

        Raises:
            ValueError: a name that is none, a k below 1, no classes, or one twice.
            TypeError: something else.
        """
        if isinstance(targets, str):
            if targets not in ("predicted", "true", "all"):
                raise ValueError(
                    f"targets: expected 'predicted', 'true', 'all', a number of classes or a list of them, got {targets!r}"
                )
            return cls(targets)
        with suppress(TypeError):
            k = _integer(targets)
            if k < 1:
                raise ValueError(f"targets: expected at least 1 of the highest classes, got {k}")
            return cls("top", k=k)
        try:
            classes = tuple(_integer(each) for each in targets)  # type: ignore[union-attr]
        except TypeError:
            raise TypeError(
                f"targets: expected 'predicted', 'true', 'all', an integer or a list of integers, got {targets!r}"
            ) from None
        if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
            raise ValueError(
                f"targets: expected classes from 0, at least one and each once, got {list(classes)}"
            )
        return cls("classes", classes)

    @property
    def setting(self) -> Any:
        """As a store's settings name it."""
        return (
            list(self.classes)
            if self.kind == "classes"
            else f"top {self.k}"
            if self.kind == "top"
            else self.kind
        )

    def maps(
        self, grad_cam: BatchGradCam, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From one forward.

        Args:
            grad_cam: of one layer.
            images: (N, C, *spatial).
            labels: (N,), where they are known.

        Returns:
            Maps (N, M, *spatial), scores (N, K), and the classes of the maps (N, M), −1 where scores that are NaN tell none.

        Raises:
            ValueError: scores that are not (N, K), classes that there are not, or labels that are missing.
            TypeError: a model that returns no tensor, or a layer with several.
        """
        if self.kind in ("predicted", "true"):
            if self.kind == "true" and labels is None:
                raise ValueError(
                    "targets: expected labels in the batches, as targets is 'true', got none; pass targets='predicted'"
                )
            target: Any = _highest if self.kind == "predicted" else labels
            cams, scores = grad_cam.attribute_with_scores(images, target=target)
            _check_scores(scores, len(images))
            chosen = predicted(scores) if self.kind == "predicted" else labels
            assert chosen is not None
            return _one_tensor(cams), scores, chosen.unsqueeze(1)

        def choose(scores: Tensor) -> Tensor:
            _check_scores(scores, len(images))
            size = scores.shape[1]
            if self.kind == "top":
                if self.k > size:
                    raise ValueError(
                        f"targets: expected at most {size} classes, as the model has, got {self.k}"
                    )
                return scores.topk(self.k).indices
            if self.kind == "classes" and max(self.classes) >= size:
                raise ValueError(
                    f"targets: expected classes from 0 to {size - 1}, as the model has {size}, got {max(self.classes)}"
                )
            every = torch.tensor(self.classes) if self.kind == "classes" else torch.arange(size)
            return every.expand(len(scores), -1)

        cams, scores = grad_cam.attribute_classes_with_scores(images, choose)
        chosen = choose(scores).to(scores.device)
        if self.kind == "top":  # NaN would count as the highest
            chosen = chosen.masked_fill(scores.isnan().any(1, keepdim=True), -1)
        return _one_tensor(cams), scores, chosen


def predicted(scores: Tensor) -> Tensor:
    """(N, K) -> (N,): the class with the highest score; −1 where a score is NaN, of which none is the highest."""
    return scores.argmax(1).masked_fill(scores.isnan().any(1), -1)


def _integer(value: Any) -> int:
    """Also of NumPy and torch.

    Raises:
        TypeError: something else.
    """
    dimensions: int = getattr(value, "ndim", 0)
    if isinstance(value, bool | str) or dimensions:  # a tensor with one class in it is a list of classes
        raise TypeError
    return index(value)


def _highest(scores: Tensor) -> Tensor:
    _check_scores(scores, None)
    return scores.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)


def _check_scores(scores: Tensor, samples: int | None) -> None:
    if (
        not isinstance(scores, Tensor)
        or scores.dim() != 2
        or (samples is not None and len(scores) != samples)
    ):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"model: expected scores of shape ({'N' if samples is None else samples}, K), got {got}; explain a model that "
            "returns one score a class"
        )
    if scores.shape[1] < 2:
        raise ValueError(
            "model: expected scores of at least 2 classes, got 1; wrap the model so that it returns (N, 2), such as "
            "torch.cat([-score, score], 1)"
        )


def _one_tensor(cams: Any) -> Tensor:
    if not isinstance(cams, Tensor):
        raise TypeError(
            f"layer: expected one layer with one tensor, got {type(cams).__name__} of maps; choose one of them"
        )
    return cams

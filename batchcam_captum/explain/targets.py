"""Choose the classes that the maps of a data set explain."""

from __future__ import annotations

from collections.abc import Sequence
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
    """A checked choice. Made by :meth:`of`."""

    kind: Literal["predicted", "true", "all", "top", "classes"]
    classes: tuple[int, ...] = ()  #: of "classes"
    k: int = 1  #: of "top"

    @classmethod
    def of(cls, targets: ExplainTargets) -> ClassChoice:
        """Check targets.

        Raises:
            ValueError: If a name is unknown, k is below 1, or classes are empty, negative or repeated.
            TypeError: If it is something else.
        """
        if isinstance(targets, str):
            if targets not in ("predicted", "true", "all"):
                raise ValueError(
                    f"targets: expected 'predicted', 'true', 'all', a number of classes or a list of them, got {targets!r}"
                )
            return cls(targets)
        try:
            if _is_integer(targets):
                k = index(targets)  # type: ignore[arg-type]
                if k < 1:
                    raise ValueError(f"targets: expected at least 1 of the highest classes, got {k}")
                return cls("top", k=k)
            if not all(map(_is_integer, targets)):  # type: ignore[arg-type]
                raise TypeError
            classes = tuple(map(index, targets))  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"targets: expected 'predicted', 'true', 'all', an integer or a list of integers, got {targets!r}"
            ) from None
        if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
            raise ValueError(
                f"targets: expected at least one class, each from 0 and only once, got {list(classes)}"
            )
        return cls("classes", classes)

    @property
    def setting(self) -> Any:
        """The choice as a store's settings name it."""
        return {"classes": list(self.classes), "top": f"top {self.k}"}.get(self.kind, self.kind)

    def maps(
        self, grad_cam: BatchGradCam, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Explain a batch in one forward.

        Args:
            grad_cam: Of one layer.
            images: (N, C, *spatial).
            labels: (N,) if they are known.

        Returns:
            Maps (N, M, *spatial), scores (N, K), and the classes of the maps (N, M), −1 where the scores are NaN.

        Raises:
            ValueError: If scores are not (N, K), a class does not exist, or labels are missing.
            TypeError: If the model returns no tensor, or the layer several.
        """
        if self.kind == "true" and labels is None:
            raise ValueError(
                "targets: expected labels in the batches, as targets is 'true', got none; pass targets='predicted'"
            )
        if self.kind in ("predicted", "true"):
            target: Any = _highest if self.kind == "predicted" else labels
            cams, scores = grad_cam.attribute_with_scores(images, target=target)
            _check_scores(scores, len(images))
            chosen = predicted(scores) if labels is None or self.kind == "predicted" else labels
            return _one_tensor(cams), scores, chosen.unsqueeze(1)
        cams, scores = grad_cam.attribute_classes_with_scores(images, self._choose)
        chosen = self._choose(scores).to(scores.device)
        if self.kind == "top":  # NaN would count as the highest
            chosen = chosen.masked_fill(scores.isnan().any(1, keepdim=True), -1)
        return _one_tensor(cams), scores, chosen

    def _choose(self, scores: Tensor) -> Tensor:
        """Return the classes to explain: (N, K) -> (N, M)."""
        _check_scores(scores)
        size = scores.shape[1]
        if self.kind == "top":
            if self.k > size:
                raise ValueError(f"targets: expected at most {size} classes, as the model has, got {self.k}")
            return scores.topk(self.k).indices
        if self.kind == "classes" and max(self.classes) >= size:
            raise ValueError(
                f"targets: expected classes from 0 to {size - 1}, as the model has {size}, got {max(self.classes)}"
            )
        every = torch.tensor(self.classes) if self.kind == "classes" else torch.arange(size)
        return every.expand(len(scores), -1)


def predicted(scores: Tensor) -> Tensor:
    """Return the class with the highest score, −1 where a score is NaN: (N, K) -> (N,)."""
    return scores.argmax(1).masked_fill(scores.isnan().any(1), -1)


def _is_integer(value: Any) -> bool:
    """Return True for integers, also of NumPy and torch. A tensor that holds one class is a list of classes."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and not getattr(value, "ndim", 0)


def _highest(scores: Tensor) -> Tensor:
    _check_scores(scores)
    return scores.gather(1, scores.argmax(1, keepdim=True)).squeeze(
        1
    )  # amax would share the gradient among ties


def _check_scores(scores: Tensor, samples: int | None = None) -> None:
    fits = isinstance(scores, Tensor) and scores.dim() == 2
    if not fits or (samples is not None and len(scores) != samples):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"model: expected scores of shape ({samples or 'N'}, K), got {got}; explain a model that returns one score per class"
        )
    if scores.shape[1] < 2:
        raise ValueError(
            "model: expected scores of at least 2 classes, got 1; wrap the model so that it returns (N, 2), such as "
            "torch.cat([-score, score], 1)"
        )


def _one_tensor(cams: Any) -> Tensor:
    if not isinstance(cams, Tensor):
        raise TypeError(
            f"layer: expected one layer with one tensor, got {type(cams).__name__}; choose one of them"
        )
    return cams

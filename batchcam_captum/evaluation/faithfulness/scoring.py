"""What all measures of faithfulness share: checked inputs, the target's score, and a model that is left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ...attribution.state import state_kept
from ...attribution.survey import survey
from ...attribution.target_kinds import out_of_range
from ...functional import full_precision, resize
from ...functional.metrics.common import check_whole, is_number
from ...warn import warn_user

#: The classes that are explained: one for all images, or one for each.
Targets = int | Sequence[int] | Tensor
#: What is read off the model for a target: its share of the softmax, or the score before it.
Score = Literal["probability", "logit"]
#: A model: images (N, C, *spatial) -> scores (N, K) before any softmax.
Model = Callable[[Tensor], Any]

_SPATIAL = (1, 2, 3)


def check_images(images: Tensor) -> None:
    """Check that images are (N, C, *spatial), floating and finite.

    Raises:
        TypeError: no tensor, or integers.
        ValueError: another number of dimensions, or values that are not finite.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images: expected a floating-point tensor, got {kind}; pass what the model is called with"
        )
    if images.dim() - 2 not in _SPATIAL:
        raise ValueError(
            f"images: expected (N, C, *spatial) with 1 to 3 spatial dimensions, got {tuple(images.shape)}"
        )
    if not bool(images.isfinite().all()):
        raise ValueError("images: expected finite values, got NaN or infinity; look at how they were loaded")


def heatmaps(images: Tensor, cams: Tensor) -> Tensor:
    """Check images and cams, and resize the cams to the images.

    Args:
        images: (N, C, *spatial).
        cams: (N, 1, *spatial) of any size, signed.

    Returns:
        (N, 1, *spatial) of the images' size, linearly interpolated (bilinear in two dimensions), float32 (float64 stays), on
        the images' device.

    Raises:
        TypeError: images or cams are no floating-point tensors.
        ValueError: shapes that do not fit, or cams that are not finite.
    """
    check_images(images)
    if not isinstance(cams, Tensor) or not cams.is_floating_point():
        kind = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
        raise TypeError(f"cams: expected a floating-point tensor, got {kind}; pass what attribute() returns")
    if cams.dim() != images.dim() or cams.shape[:2] != (len(images), 1):
        size = ", ".join("hwd"[: images.dim() - 2])
        raise ValueError(
            f"cams: expected ({len(images)}, 1, {size}), one map an image, got {tuple(cams.shape)} for images "
            f"{tuple(images.shape)}; pass what attribute() returns for these images"
        )
    cams = full_precision(cams.detach().to(images.device))
    if not bool(cams.isfinite().all()):
        raise ValueError(
            "cams: expected finite values, got NaN or infinity; a map with NaN has no order of pixels, look at how it was made"
        )
    return resize(cams, images.shape[2:], "linear")


def check_score(score: str) -> None:
    """Raise a ``ValueError`` unless ``score`` is one of the known ones."""
    if score not in get_args(Score):
        raise ValueError(f"score: expected 'probability' or 'logit', got {score!r}")


def target_indices(targets: Targets, images: Tensor) -> Tensor:
    """One class index an image, (N,) int64 on the images' device.

    Raises:
        TypeError: no integers.
        ValueError: another number of them.
    """
    samples = len(images)
    try:
        # An empty list has no type of its own.
        indices = torch.as_tensor(
            targets, dtype=torch.long if isinstance(targets, list) and not targets else None
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"targets: expected integers, got {targets!r}; pass class indices") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"targets: expected integers, got {indices.dtype}; pass class indices")
    if not indices.dim():
        indices = indices.expand(samples)
    if tuple(indices.shape) != (samples,):
        remedy = "pass class indices, not one-hot rows" if indices.dim() == 2 else "pass one an image"
        raise ValueError(f"targets: expected shape ({samples},), got {tuple(indices.shape)}; {remedy}")
    return indices.to(images.device, torch.long)


class TargetScores:
    """The score of every image's target.

    Args:
        model: see :data:`Model`.
        targets: class indices, −K … K−1 as Captum counts them.
        images: all of them.
        score: see :data:`Score`.

    Raises:
        TypeError: ``model`` cannot be called, or targets of a wrong kind; when called, the model does not return a tensor.
        ValueError: an unknown score, or another number of targets; when called, the model does not return (n, K), the targets do
            not fit K, or there is a single score and so no probability.
    """

    def __init__(self, model: Model, targets: Targets, images: Tensor, score: Score) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or a function of images, got {type(model).__name__}")
        check_score(score)
        self.model, self.score = model, score
        self.indices = target_indices(targets, images)
        # Read once: no further forward has to wait for a comparison with the number of classes.
        extremes = torch.stack(torch.aminmax(self.indices)) if len(images) else torch.zeros(2)
        self._extremes: list[int] = extremes.tolist()

    def _all_classes(self, images: Tensor) -> Tensor:
        """Images (n, C, *spatial) -> (n, K), probabilities or logits in float32 (float64 stays)."""
        scores = self.model(images)
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"model: expected a tensor of scores, got {type(scores).__name__}; wrap the model in a function that returns the "
                f"scores alone"
            )
        if scores.dim() != 2 or len(scores) != len(images):
            raise ValueError(
                f"model: expected scores ({len(images)}, K), got {tuple(scores.shape)}; wrap it in a function that returns a "
                f"score a class"
            )
        classes = scores.shape[1]
        for index in self._extremes:
            if not -classes <= index < classes:
                raise _named(out_of_range(classes, index))
        scores = full_precision(scores)
        if self.score == "logit":
            return scores
        if classes == 1:
            raise ValueError(
                "model: expected at least two scores an image, of which the softmax says something, got one; pass "
                "score='logit', or a model that returns torch.cat([-s, s], dim=1)"
            )
        return scores.softmax(1)

    def __call__(self, images: Tensor, rows: slice) -> Tensor:
        """Images (n, C, *spatial) in the place of these rows, or each of them several times in succession -> (n,)."""
        scores = self._all_classes(images)
        indices = self.indices[rows].remainder(scores.shape[1])
        if len(indices) != len(images):
            indices = indices.repeat_interleave(len(images) // len(indices))
        return scores.gather(1, indices.unsqueeze(1)).squeeze(1)


def _named(error: ValueError) -> ValueError:
    return ValueError(str(error).replace("target:", "targets:", 1))


def finite(values: Tensor, name: str) -> Tensor:
    """The values, if they are finite: what is not would spread through every mean, unseen.

    Raises:
        ValueError: one of them is not.
    """
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"{name}: expected finite scores of the model, got NaN or infinity; look at the weights, and at the images as they "
            f"are handed over"
        )
    return values


def check_batch_size(batch_size: int) -> None:
    """Check a number of images.

    Raises:
        TypeError: no integer.
        ValueError: less than 1.
    """
    check_whole("batch_size", batch_size, 1)


def check_number(name: str, value: float, *, zero: bool = False) -> None:
    """Check a finite number of more than 0, or of at least 0 where ``zero``.

    Raises:
        TypeError: no number.
        ValueError: out of range.
    """
    if not is_number(value):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (value >= 0 if zero else value > 0) or not math.isfinite(value):
        raise ValueError(f"{name}: expected {'at least' if zero else 'more than'} 0, and finite, got {value}")


def check_common(score: str, batch_size: int, seed: int) -> None:
    """Check the options that all measures of scores have.

    Raises:
        TypeError: no integers.
        ValueError: an unknown score, or a number out of range.
    """
    check_score(score)
    check_batch_size(batch_size)
    check_whole("seed", seed)


def warn_of_dropout(model: object) -> None:
    """Warn of a Dropout that drops, so that two equal calls differ."""
    if isinstance(model, nn.Module) and any(
        isinstance(module, _DropoutNd) and module.training and module.p for module in model.modules()
    ):
        warn_user("model: a Dropout is active, so that no two calls give the same; call model.eval() first")


@contextmanager
def measuring(model: Model, images: Tensor) -> Iterator[None]:
    """Run a model without a graph and without a trace: buffers, random state and grad mode are put back, also after an error.

    The mode stays as it is.

    Warns:
        UserWarning: a BatchNorm takes the statistics of its batch, so that an image's score depends on the others; or a Dropout
            is active.
    """
    facts = survey(model)
    # A function hides its modules; a layer that is not among those seen has them all watched.
    hidden = () if isinstance(model, nn.Module) else (nn.Identity(),)
    if isinstance(model, nn.Module) and facts.batch_norm_may_mix:
        warn_user(
            "model: a BatchNorm uses the statistics of its batch, so the scores of changed images depend on each other; call "
            "model.eval() first"
        )
    warn_of_dropout(model)
    with torch.no_grad(), state_kept(facts, hidden, [images]):
        yield

"""What the measures of faithfulness share: checked inputs, the target's score, and a model that stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ...functional import full_precision, resize
from ...functional.checks import check_choice, check_integer
from ...warn import warn_user

#: The classes that are explained: one for all images, or one per image; −K ... K−1, as in Captum.
Targets = int | Sequence[int] | Tensor
#: What is measured of a target: its softmax probability, or the score before it.
Score = Literal["probability", "logit"]
#: A model: images (N, C, *spatial) -> scores (N, K) before any softmax. A function has to leave the
#: modules that it calls unchanged.
Model = Callable[[Tensor], Any]


def check_images(images: Tensor) -> None:
    """Check that images are (N, C, *spatial), floating and finite.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another number of dimensions, or values that are not finite.
    """
    _check_floating("images", images, "what the model is called with")
    if not 3 <= images.dim() <= 5:
        raise ValueError(
            f"images: expected (N, C, *spatial) with 1 to 3 spatial dimensions, got {tuple(images.shape)}"
        )


def heatmaps(images: Tensor, cams: Tensor) -> Tensor:
    """Check images and cams, and resize the cams to the images.

    Args:
        images: (N, C, *spatial).
        cams: (N, 1, *spatial) of any size, signed.

    Returns:
        (N, 1, *spatial) of the images' size, linearly interpolated, float32 (float64 stays), on the images' device.

    Raises:
        TypeError: images or cams are not floating-point tensors.
        ValueError: shapes that do not fit, or values that are not finite.
    """
    check_images(images)
    _check_floating("cams", cams, "what attribute() returns")
    if cams.dim() != images.dim() or cams.shape[:2] != (len(images), 1):
        raise ValueError(
            f"cams: expected ({len(images)}, 1, *spatial) for images {tuple(images.shape)}, got {tuple(cams.shape)}; pass what "
            f"attribute() returns for these images"
        )
    return resize(full_precision(cams.detach().to(images.device)), images.shape[2:], "linear")


def _check_floating(name: str, tensor: object, remedy: str) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {kind}; pass {remedy}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity; check how they were made")


def target_indices(targets: Targets, images: Tensor) -> Tensor:
    """Return one class index per image, (N,) int64 on the images' device.

    Raises:
        TypeError: not integers.
        ValueError: another number of them.
    """
    samples = len(images)
    try:
        # An empty list has no type of its own.
        indices = torch.as_tensor(targets, dtype=torch.long if targets == [] else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"targets: expected integers, got {targets!r}; pass class indices") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"targets: expected integers, got {indices.dtype}; pass class indices")
    if not indices.dim():
        indices = indices.expand(samples)
    if tuple(indices.shape) != (samples,):
        remedy = "pass class indices, not one-hot rows" if indices.dim() == 2 else "pass one per image"
        raise ValueError(f"targets: expected shape ({samples},), got {tuple(indices.shape)}; {remedy}")
    return indices.to(images.device, torch.long)


class TargetScores:
    """The score of each image's target.

    Args:
        model: images (N, C, *spatial) -> scores (N, K) before any softmax.
        targets: class indices, −K ... K−1.
        images: all of them.
        score: ``"probability"`` or ``"logit"``.

    Raises:
        TypeError: the model is not callable, or targets of a wrong kind.
        ValueError: an unknown score, or another number of targets.
    """

    def __init__(self, model: Model, targets: Targets, images: Tensor, score: Score) -> None:
        if not callable(model):
            raise TypeError(f"model: expected a module or a function of images, got {type(model).__name__}")
        check_choice("score", score, Score)
        self.model, self.score = model, score
        self.indices = target_indices(targets, images)
        # Read once, so that no forward waits for the comparison with the number of classes.
        extremes = torch.stack(torch.aminmax(self.indices)) if len(images) else self.indices
        self._extremes: list[int] = extremes.tolist()

    def __call__(self, images: Tensor, rows: slice) -> Tensor:
        """Return the scores of the targets.

        Args:
            images: variants of the images in ``rows``, m of each in succession, (n·m, C, *spatial).
            rows: of all images.

        Returns:
            (n·m,), in float32 (float64 stays).

        Raises:
            TypeError: the model does not return a tensor.
            ValueError: it does not return finite scores (n·m, K), the targets do not fit K, or a probability of K = 1 classes.
        """
        scores = self.model(images)
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"model: expected a tensor of scores, got {type(scores).__name__}; wrap it in a function that returns the scores"
            )
        if scores.dim() != 2 or len(scores) != len(images):
            raise ValueError(
                f"model: expected scores ({len(images)}, K), got {tuple(scores.shape)}; wrap it in a function that returns one "
                f"score per class"
            )
        classes = scores.shape[1]
        for index in self._extremes:
            if not -classes <= index < classes:
                raise ValueError(
                    f"targets: expected class indices from {-classes} to {classes - 1}, got {index}; the model returns {classes} "
                    f"scores"
                )
        if classes == 1 and self.score == "probability":
            raise ValueError(
                "model: expected at least two scores per image for a softmax, got one; pass score='logit', or a model that "
                "returns torch.cat([-s, s], dim=1)"
            )
        scores = full_precision(scores)
        if not bool(scores.isfinite().all()):
            raise ValueError(
                "model: expected finite scores, got NaN or infinity; check the weights and the images"
            )
        scores = scores.softmax(1) if self.score == "probability" else scores
        indices = self.indices[rows].remainder(classes)
        indices = indices.repeat_interleave(len(images) // max(len(indices), 1))
        return scores.gather(1, indices.unsqueeze(1)).squeeze(1)


def chunks(samples: int, batch_size: int) -> list[slice]:
    """Return the slices of at most ``batch_size`` images that cover all samples.

    Raises:
        TypeError: not an integer.
        ValueError: less than 1.
    """
    check_integer("batch_size", batch_size, 1)
    return [slice(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)]


def warn_if_training(model: object) -> None:
    """Warn about a BatchNorm that uses the statistics of its batch, and a Dropout that drops."""
    if isinstance(model, nn.Module):
        for module in model.modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                effect = "a BatchNorm uses the statistics of its batch, so the scores of images depend on each other"
            elif isinstance(module, _DropoutNd) and module.training and module.p:
                effect = "a Dropout is active, so no two calls are equal"
            else:
                continue
            warn_user(f"model: {effect}; call model.eval() first")
            return


@contextmanager
def measuring(model: object, images: Tensor) -> Iterator[None]:
    """Run a model without a graph, and put its buffers and the random state back, also after an error.

    Warns:
        UserWarning: a BatchNorm uses the statistics of its batch, or a Dropout is active.
    """
    warn_if_training(model)
    changing = [model] if isinstance(model, nn.Module) and any(m.training for m in model.modules()) else []
    buffers = [(buffer, buffer.clone()) for module in changing for buffer in module.buffers()]
    with torch.no_grad(), own_random_state([images]):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def own_random_state(tensors: Sequence[Tensor], seed: int | None = None) -> Iterator[None]:
    """Put torch's random state of the CPU and of the tensors' devices back; seed it first if a seed is given."""
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
        yield

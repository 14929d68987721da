"""The cams of one training forward, for losses that look at it in different ways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..attribution import BatchGradCam
from ..attribution.shortcut import Shortcut, find_shortcut
from ..functional import CamMethod, Score, get_method, no_autocast, select_scores
from ..functional.cam import grad_cam as grad_cam_method
from ..functional.cam import weighted_channels
from ..losses import CamLoss
from .objective import identity
from .watch import WatchedForward

#: ∂(Σ selected)/∂ of each of the ends, which are activations or what is behind them.
TakeGradients = Callable[[Tensor, Sequence[Tensor | GradientEdge]], Sequence[Tensor]]


class ForwardCams:
    """Makes the cams that a loss asks for: one gradient a score, whatever weightings it is used in.

    Where Grad-CAM's channel weights are all that is asked for, and a pooling over the places or a linear layer is all that reads
    the layer, the gradient is taken behind that: its sums over the places follow from it, and neither it nor what a loss sends
    back through it is ever as large as the activations.

    Args:
        grad_cam: the model and its layers.
        forward: what was seen of it.
        scores: (N, K) of that forward.
        labels: (N,) or (N, K).
        losses: all that will ask.
        take: takes gradients.
        shortcuts: whether gradients may be taken behind what reads the layer.
    """

    def __init__(
        self,
        grad_cam: BatchGradCam,
        forward: WatchedForward,
        scores: Tensor,
        labels: Tensor,
        losses: Collection[CamLoss],
        take: TakeGradients,
        *,
        shortcuts: bool,
    ) -> None:
        self._grad_cam, self._forward, self._scores, self._labels = grad_cam, forward, scores, labels
        self._take = take
        self._shortcuts = shortcuts and grad_cam.reshape is None and not forward.hooked
        self._weights_suffice: dict[object, bool] = {}
        # Asked for once, and held: what a loss makes anew each time would be told from itself.
        self._scores_of = {loss: loss.scores for loss in losses}
        for loss, of_loss in self._scores_of.items():
            for score in of_loss:
                only = get_method(self._method(loss)) is grad_cam_method
                key = identity(score)
                self._weights_suffice[key] = only and self._weights_suffice.get(key, True)
        self._gradients: dict[object, list[_LayerGradients]] = {}
        self._cams: dict[object, list[Tensor]] = {}

    def __call__(self, loss: CamLoss) -> list[Tensor]:
        """The cams of each layer, (N, S, *spatial), one channel for each of the loss's scores."""
        of_scores = [self._of(loss, score) for score in self._scores_of[loss]]
        if len(of_scores) == 1:
            return of_scores[0]
        return [torch.cat(of_layer, 1) for of_layer in zip(*of_scores, strict=True)]

    def _method(self, loss: CamLoss) -> str | CamMethod:
        return loss.method or self._grad_cam.method

    def _of(self, loss: CamLoss, score: Score) -> list[Tensor]:
        method = self._method(loss)
        key = identity(method), identity(score)
        if key not in self._cams:
            if key[1] not in self._gradients:
                self._gradients[key[1]] = self._gradients_of(score)
            self._cams[key] = [
                self._cam(position, gradients, method)
                for position, gradients in enumerate(self._gradients[key[1]])
            ]
        return self._cams[key]

    def _gradients_of(self, score: Score) -> list[_LayerGradients]:
        selected = select_scores(self._scores, self._labels, score)
        behind = self._shortcuts and self._weights_suffice[identity(score)]
        shortcuts = [find_shortcut(selected, a) if behind else None for a in self._forward.activations]
        ends = [
            activations if shortcut is None else shortcut.end
            for activations, shortcut in zip(self._forward.activations, shortcuts, strict=True)
        ]
        taken = zip(self._take(selected, ends), shortcuts, strict=True)
        return [_LayerGradients(gradients, shortcut) for gradients, shortcut in taken]

    def _cam(self, position: int, gradients: _LayerGradients, method: str | CamMethod) -> Tensor:
        activations = self._forward.activations[position]
        if gradients.shortcut is not None:
            with no_autocast(activations):
                weights = gradients.shortcut.channel_weights(gradients.tensor, activations)
                return weighted_channels(weights, activations)
        cam_of = self._grad_cam.cam_of(
            activations, position=position, method=method, input_shape=self._forward.input_shape
        )
        return cam_of(gradients.tensor)


class _LayerGradients(NamedTuple):
    tensor: Tensor
    shortcut: Shortcut | None  #: where they were taken; None: at the layer

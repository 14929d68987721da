"""The cams that the terms of an objective ask for: one gradient per score, one cam per score and weighting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor

from ..attribution import Shortcut
from ..functional import CamMethod, Score, apply_method, get_method, no_autocast
from ..functional.cam import grad_cam, weighted_channels
from ..losses import CamLoss


class LayerGradient(NamedTuple):
    """The gradient of a score for one layer."""

    tensor: Tensor  #: ∂score/∂A, or what the shortcut asks for
    shortcut: Shortcut | None = None  #: where it was taken; None: at the layer

    def cam(self, activations: Tensor, method: CamMethod, rearrange: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the map, (N, 1, *spatial).

        Args:
            activations: A, as the layer returned them.
            method: the weighting; Grad-CAM where there is a shortcut.
            rearrange: brings activations and gradients to (N, C, *spatial).
        """
        if self.shortcut is None:
            return apply_method(method, rearrange(activations), rearrange(self.tensor))
        with no_autocast(activations):
            return weighted_channels(self.shortcut.channel_weights(self.tensor, activations), activations)


class TermCams:
    """The cams of one forward, for losses that explain different scores by different weightings.

    Args:
        losses: those that will be computed.
        method: the weighting for losses without one of their own.
    """

    def __init__(self, losses: Iterable[CamLoss], method: str | CamMethod) -> None:
        self._method = method
        # Asked for once, and held: a callable that a loss makes anew each time would not be recognized.
        self._scores_of = {loss: loss.scores for loss in losses}
        #: The scores to be differentiated, each once, by :func:`identity`.
        self.scores: dict[object, Score] = {
            identity(score): score for scores in self._scores_of.values() for score in scores
        }
        self._cams: dict[tuple[object, object], list[Tensor]] = {}

    def methods(self, score: object) -> list[CamMethod]:
        """Return the weightings that a score is used with; ``score`` is a key of :attr:`scores`."""
        methods: list[CamMethod] = []
        for loss, scores in self._scores_of.items():
            method = get_method(loss.method or self._method)
            if score in [identity(each) for each in scores] and method not in methods:
                methods.append(method)
        return methods

    def needs_weights_only(self, score: object) -> bool:
        """Return True if all that is needed of the gradient is Grad-CAM's channel weights."""
        return self.methods(score) == [grad_cam]

    def add(
        self,
        score: object,
        activations: Sequence[Tensor],
        gradients: Sequence[LayerGradient],
        reshapes: Sequence[Callable[[Tensor], Tensor]],
    ) -> None:
        """Make the cams of a score, of each layer.

        Args:
            score: a key of :attr:`scores`.
            activations: A of each layer.
            gradients: of each layer.
            reshapes: for each layer what brings its activations to (N, C, *spatial).
        """
        for method in self.methods(score):
            self._cams[identity(method), score] = [
                gradient.cam(a, method, rearrange)
                for gradient, a, rearrange in zip(gradients, activations, reshapes, strict=True)
            ]

    def of(self, loss: CamLoss) -> list[Tensor]:
        """Return the cams of each layer for a loss, (N, S, *spatial), one channel for each of its S scores."""
        method = identity(get_method(loss.method or self._method))
        of_scores = [self._cams[method, identity(score)] for score in self._scores_of[loss]]
        if len(of_scores) == 1:
            return of_scores[0]
        return [torch.cat(of_layer, 1) for of_layer in zip(*of_scores, strict=True)]


def identity(choice: object) -> object:
    """Return a key that tells one weighting, or one kind of score, from another; whoever compares has to hold them."""
    if isinstance(choice, MethodType):  # made anew whenever it is asked for
        return id(choice.__self__), id(choice.__func__)
    return choice if isinstance(choice, str) else id(choice)

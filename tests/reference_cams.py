"""The CAM weightings again, place by place from the papers' formulas, in exact Python numbers of one sample."""

from __future__ import annotations

import math

import torch


def _of_channels(activations, weights):
    """Σ_k w_k A_k, the weights one number a channel, or one a place."""
    cam = [0.0] * len(activations[0])
    for channel, weight in zip(activations, weights, strict=True):
        for place, value in enumerate(channel):
            cam[place] += (weight[place] if isinstance(weight, list) else weight) * value
    return cam


def _grad_cam(activations, gradients, eps):
    return _of_channels(activations, [math.fsum(g) / len(g) for g in gradients])


def _grad_cam_plus_plus(activations, gradients, eps):
    weights = []
    for a, g in zip(activations, gradients, strict=True):
        total, weight = math.fsum(a), 0.0
        for slope in g:
            denominator = 2 * slope**2 + total * slope**3 + eps
            if slope > 0 and denominator != 0:
                weight += slope**2 / denominator * slope
        weights.append(weight)
    return _of_channels(activations, weights)


def _xgrad_cam(activations, gradients, eps):
    weights = []
    for a, g in zip(activations, gradients, strict=True):
        total = math.fsum(a) + eps
        weights.append(sum(x / total * slope for x, slope in zip(a, g, strict=True)) if total else 0.0)
    return _of_channels(activations, weights)


def _hires_cam(activations, gradients, eps):
    return _of_channels(activations, gradients)


def _layer_cam(activations, gradients, eps):
    return _of_channels(activations, [[max(slope, 0.0) for slope in g] for g in gradients])


CAMS = {
    "grad_cam": _grad_cam,
    "grad_cam_plus_plus": _grad_cam_plus_plus,
    "xgrad_cam": _xgrad_cam,
    "hires_cam": _hires_cam,
    "layer_cam": _layer_cam,
}


def cams(name, activations, gradients, eps=0.0):
    """(N, C, *spatial) twice -> (N, 1, *spatial), float64, one sample at a time."""
    maps = [
        torch.tensor(CAMS[name](a.flatten(1).tolist(), g.flatten(1).tolist(), eps), dtype=torch.float64)
        for a, g in zip(activations.unsqueeze(-1), gradients.unsqueeze(-1), strict=True)
    ]
    return torch.stack(maps).reshape(len(activations), 1, *activations.shape[2:])

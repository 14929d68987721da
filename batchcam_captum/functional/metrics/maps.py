"""What can be said of a cam alone: how much of the map it fills."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..losses.comparison import check_counted
from ..maps import prepare
from ..precision import no_autocast
from .common import check_metric_cams, finite, undefined


def _prepared(cams: Tensor, counted: Tensor | None, checks: ValueChecks | None) -> tuple[Tensor, Tensor]:
    """The rectified maps (N, pixels) which peak at 1, flat ones in the place of dead ones; which samples count."""
    check_metric_cams(cams)
    counted = check_counted(cams, counted, None, checks)
    prepared = prepare(finite(cams, counted, checks))
    return prepared.maps.flatten(1).masked_fill(prepared.dead.unsqueeze(1), 1), counted


@torch.no_grad()
def sparsity(cams: Tensor, *, counted: Tensor | None = None, checks: ValueChecks | None = None) -> Tensor:
    r"""Gini index of each rectified cam: how few pixels hold the evidence.

    .. math:: \frac{\sum_{i=1}^{n} (2 i - n - 1)\, a_{(i)}}{n \sum_i a_{(i)}}, \qquad a_{(1)} \le \ldots \le a_{(n)}, \quad
        a = \mathrm{relu}(C)

    (Hurley and Rickard 2009, "Comparing Measures of Sparsity", table 1, rearranged; Chalasani et al. 2020 measure explanations
    by it.) It neither depends on the scale nor on where the evidence is.

    Args:
        cams: (N, 1, *spatial), signed.
        counted: (N,) booleans, which samples count. Default: all.
        checks: where checks of values go; default: they raise at once on every device.

    Returns:
        (N,), in [0, 1 − 1/n] with n pixels; 0: flat, 1 − 1/n: one pixel has everything. Neither end is good by itself. An
        all-zero or dead cam counts as flat: 0. NaN where a sample does not count.

    Raises:
        ValueError: a shape that does not fit, or a cam that is not finite.
        TypeError: cams of a wrong kind.
    """
    with no_autocast(cams):
        maps, counted = _prepared(cams, counted, checks)
        pixels = maps.shape[1]
        ascending = maps.sort(dim=1).values
        ranks = torch.arange(1 - pixels, pixels, 2, dtype=maps.dtype, device=maps.device)
        values = ((ranks * ascending).sum(1) / (pixels * maps.sum(1))).clamp(0, 1)
        return undefined(values, counted)


@torch.no_grad()
def entropy(
    cams: Tensor,
    *,
    relative: bool = True,
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Shannon entropy of each rectified cam, taken as a distribution over its pixels.

    .. math:: -\sum_i p_i \ln p_i, \qquad p = a / \sum_i a_i, \quad a = \mathrm{relu}(C)

    (Bhatt et al. 2020, "Evaluating and Aggregating Feature-based Model Explanations", their complexity.)

    Args:
        cams: (N, 1, *spatial), signed.
        relative: divide by ln n, the most that n pixels can have, so that maps of several sizes can be compared. False: nats.
        counted: (N,) booleans, which samples count. Default: all.
        checks: where checks of values go; default: they raise at once on every device.

    Returns:
        (N,) in [0, 1], or in nats, in [0, ln n], where not ``relative``; 0: one pixel has everything. Neither end is good by
        itself. An all-zero or dead cam counts as flat: 1, or ln n. NaN where a sample does not count.

    Raises:
        ValueError: a shape that does not fit, or a cam that is not finite.
        TypeError: cams of a wrong kind.
    """
    with no_autocast(cams):
        maps, counted = _prepared(cams, counted, checks)
        shares = maps / maps.sum(1, keepdim=True)
        most = math.log(maps.shape[1])
        values = torch.special.entr(shares).sum(1).clamp(0, most)
        if relative:
            # A map of one pixel is flat and has everything in one place at once.
            values = values / most if most else torch.ones_like(values)
        return undefined(values, counted)

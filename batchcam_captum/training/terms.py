"""The terms of a regularizer: named losses with weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from ..functional import get_method
from ..losses import LOSSES, CamLoss
from .schedules import AutoWeight, Weight

#: λ as it is given: a number, a function of how often :meth:`CamRegularizer.step` was called, an :class:`AutoWeight`, or
#: ``"auto"`` for one with its defaults.
GivenWeight = Weight | AutoWeight | Literal["auto"]
Term = CamLoss | tuple[CamLoss, GivenWeight]


def named_terms(
    losses: CamLoss | Mapping[str, Term] | Sequence[Term], weight: GivenWeight
) -> list[tuple[str, CamLoss, Weight | AutoWeight]]:
    """Check the losses and weights that a :class:`CamRegularizer` is given, and return the name, loss and weight of each term."""
    if isinstance(losses, CamLoss):
        losses = [losses]
    if not isinstance(losses, Mapping | list | tuple):
        raise TypeError(
            f"losses: expected a CamLoss, or a dict or a list of them, got {type(losses).__name__}; a loss by its name is "
            f"LOSSES[name](…)"
        )
    named = losses.items() if isinstance(losses, Mapping) else [(None, term) for term in losses]
    terms: list[tuple[str, CamLoss, Weight | AutoWeight]] = []
    for given, term in named:
        if isinstance(term, tuple) and len(term) != 2:
            raise TypeError(
                f"losses: expected a loss or a pair of a loss and its weight, got {len(term)} entries"
            )
        loss, own = term if isinstance(term, tuple) else (term, weight)
        if not isinstance(loss, CamLoss):
            where = "" if given is None else f" for {given!r}"
            raise TypeError(
                f"losses: expected a CamLoss{where}, got {type(loss).__name__}; derive your own from CamLoss"
            )
        name = _name_of(loss) if given is None else given
        if name in [earlier for earlier, _, _ in terms]:
            raise ValueError(
                f"losses: expected each name once, got {name!r} again; pass a dict with names of your own"
            )
        if (
            not isinstance(name, str)
            or not name
            or "." in name
            or "/" in name
            or name == "dead_fraction"
            or hasattr(nn.ModuleDict, name)
        ):
            raise ValueError(
                f"losses: expected a name without dots and slashes that is not taken, got {name!r}; choose another name"
            )
        if loss.method is not None:
            get_method(loss.method)
        if any(own is earlier for _, _, earlier in terms if isinstance(earlier, AutoWeight)):
            own = copy.deepcopy(own)  # λ of one term is not that of another
        terms.append((name, loss, checked_weight(name, own)))
    if not terms:
        raise ValueError("losses: expected at least one loss, got none")
    return terms


def checked_weight(name: str, weight: object) -> Weight | AutoWeight:
    """Check a weight of any kind, and return it; ``"auto"`` becomes a new :class:`AutoWeight`."""
    if isinstance(weight, str):
        if weight != "auto":
            raise ValueError(
                f"weight: expected a number, a function of the steps or 'auto' for {name!r}, got {weight!r}"
            )
        return AutoWeight()
    if isinstance(weight, AutoWeight) or callable(weight):
        return weight
    return finite_weight(name, weight)


def finite_weight(name: str, weight: object) -> float:
    """Check a weight, and return it as a float."""
    if not isinstance(weight, int | float):
        raise TypeError(
            f"weight: expected a number or a function of the steps for {name!r}, got {type(weight).__name__}"
        )
    if not math.isfinite(weight):
        raise ValueError(f"weight: expected a finite number for {name!r}, got {weight}")
    return float(weight)


def _name_of(loss: nn.Module) -> str:
    """Return the name under which the loss is registered, or that of its class."""
    return next((name for name in LOSSES if LOSSES[name] is type(loss)), type(loss).__name__)

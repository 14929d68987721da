"""What the losses share in their docstrings: each argument is described once, here, and shown whole on every page."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast, get_args, get_type_hints

from torch import Tensor

from ..common import no_autocast

F = TypeVar("F", bound=Callable[..., Tensor])

ARGUMENTS = {
    "cams": "C, (N, 1, *spatial), raw and signed.",
    "labels": "(N,) class indices, or (N, K) soft labels, one weight per class.",
    "prototypes": (
        "P, (K, 1, *spatial) in [0, 1], of any size, each divided by its maximum. With several per class, (K, P, *spatial), the "
        "nearest counts; for soft labels that is the nearest in L2, whatever ``distance`` is."
    ),
    "seen": "(K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.",
    "masks": (
        "m, (N, 1, *spatial) in [0, 1], of any size and dtype: where the evidence should be. Resized by area to the cams without "
        "lowering its peak. All zero: the sample is not annotated and is left out."
    ),
    "distance": 'D, ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).',
    "normalization": (
        'of the rectified cams: ``"max"`` divides by the largest value, ``"minmax"`` maps the smallest value to 0 and the '
        'largest to 1, ``"none"`` changes nothing.'
    ),
    "resolution": 'compare at the size of the cams, ``"map"``, or enlarge the cams to that of the ``{other}``.',
    "revive": (
        "a dead cam, one without positive values, pays 1 − cosine(C, {target}) in [0, 2] instead, whose gradient brings it back "
        "to life. False is the strict definition: no gradient reaches a dead cam."
    ),
    "reduction": '``"none"``, ``"mean"`` or ``"sum"`` over the {unit}.',
    "ignore_index": "samples with this label are left out.",
    "sample_weights": "(N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.",
    "method": (
        "the weighting that makes the cam, a name in :data:`~batchcam_captum.functional.CAM_METHODS` or a callable. Default: "
        "{method}."
    ),
    "score": (
        'the score that the cam explains: ``"label"``, ``"predicted"``, ``"confused"``, ``"log_prob_sum"`` (Σ log p over all '
        "classes), or a callable (scores, labels) -> (N,). Default: {score}."
    ),
    "validate": (
        "check values such as the range of labels at once on every device, which makes the host wait for a GPU. By default what "
        "is wrong on a GPU raises at :meth:`check`."
    ),
}
#: What the placeholders above mean unless a loss says otherwise.
WORDS = {
    "other": "prototype",
    "target": "P",
    "unit": "samples",
    "method": "that of the regularizer's ``grad_cam``",
    "score": '``"label"``',
}

#: The options that functions of losses take as ``**options``, in the order of their signatures.
DEFAULTS = {"seen": None, "revive": True, "reduction": "mean", "ignore_index": -100, "sample_weights": None}

RETURNS = """\
Returns:
    A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph."""
RAISES = """\
Raises:
    ValueError: a shape, a value or an option that does not fit; the message says what to do.
    TypeError: an argument of another kind."""

_SECTION = re.compile(r"^(Args|Returns|Raises|Example|Examples):$", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


def sections(doc: str) -> dict[str, str]:
    """Split a docstring: the text before the first section under ``""``, then each section by its name."""
    doc = inspect.cleandoc(doc)
    starts = [(match.group(1), match.start()) for match in _SECTION.finditer(doc)]
    ends = [*(start for _, start in starts), len(doc)]
    found = {"": doc[: ends[0]].strip()}
    found |= {name: doc[start:end].strip() for (name, start), end in zip(starts, ends[1:], strict=True)}
    return found


def entries(section: str) -> dict[str, str]:
    """Return the arguments that an ``Args:`` section describes, each with its text."""
    starts = list(_ENTRY.finditer(section))
    ends = [*(match.start() for match in starts[1:]), len(section)][: len(starts)]
    return {
        match.group(1): section[match.end() : end].strip() for match, end in zip(starts, ends, strict=True)
    }


def _wrapped(name: str, text: str) -> str:
    first = " " * (len(name) + 6)  # where the text begins
    lines = textwrap.fill(
        text,
        width=110,
        initial_indent=first,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.strip()


def complete(
    doc: str, names: Iterable[str], words: dict[str, str], described: dict[str, str] | None = None
) -> str:
    """Describe the arguments that a docstring leaves out, in the order of the signature.

    Args:
        doc: a docstring in Google's style.
        names: of all arguments.
        words: what the placeholders of :data:`ARGUMENTS` mean here.
        described: arguments that are described elsewhere.
    """
    parts = sections(doc)
    own = (described or {}) | entries(parts.get("Args", ""))
    texts = {
        name: own[name] if name in own else _wrapped(name, ARGUMENTS[name].format_map(WORDS | words))
        for name in names
        if name in own or name in ARGUMENTS
    }
    parts["Args"] = "Args:\n" + "\n".join(f"    {name}: {text}" for name, text in texts.items())
    parts.setdefault("Raises", RAISES)
    order = ("", "Args", "Returns", "Raises", "Example")
    return "\n\n".join(parts[name] for name in order if name in parts) + "\n"


def expanded(function: Callable[..., Tensor]) -> inspect.Signature:
    """Return the signature of a function with the options of its ``**options: Unpack[…]`` spelled out."""
    signature = inspect.signature(function)
    *parameters, last = signature.parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD:
        return signature
    (options,) = get_args(get_type_hints(function)[last.name])
    parameters += [
        last.replace(name=name, kind=last.KEYWORD_ONLY, default=default, annotation=kind.__forward_arg__)
        for name, default in DEFAULTS.items()
        if (kind := options.__annotations__.get(name)) is not None
    ]
    return signature.replace(parameters=parameters)


def loss_function(**words: str) -> Callable[[F], F]:
    """Return a decorator that completes the signature and the docstring of a loss, and runs it with autocast off.

    Args:
        **words: what the placeholders of :data:`ARGUMENTS` mean for this loss.
    """

    def decorate(function: F) -> F:
        signature = expanded(function)
        added = signature.parameters.keys() - inspect.signature(function).parameters.keys()
        defaults = {name: DEFAULTS[name] for name in DEFAULTS if name in added}

        @functools.wraps(function)
        def loss(cams: Tensor, *args: Any, **options: Any) -> Tensor:
            for name in options:
                if name not in signature.parameters:
                    raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}")
            with no_autocast(cams):
                return function(cams, *args, **{**defaults, **options})

        doc = inspect.cleandoc(function.__doc__ or "")
        returns = "" if "Returns:" in doc else f"\n\n{RETURNS}"
        loss.__doc__ = complete(doc + returns, signature.parameters, words)
        vars(loss).update(words=words, __signature__=signature)
        return cast(F, loss)

    return decorate

"""The only place that imports Captum's private names, and the boundary to a package without type stubs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from captum._utils.common import (  # type: ignore[import-untyped]
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _format_tensor_into_tuples as format_tensor_into_tuples
from captum._utils.common import _reduce_list as reduce_list
from captum._utils.common import _run_forward as run_forward
from captum._utils.common import _sort_key_list as sort_key_list
from captum._utils.gradient import (  # type: ignore[import-untyped]
    _extract_device_ids as extract_device_ids,
)
from captum.attr import GuidedGradCam, LayerGradCam  # type: ignore[import-untyped]
from captum.log import log_usage as _log_usage  # type: ignore[import-untyped]

__all__ = [
    "GuidedGradCam",
    "LayerGradCam",
    "extract_device_ids",
    "format_additional_forward_args",
    "format_tensor_into_tuples",
    "log_usage",
    "reduce_list",
    "run_forward",
    "sort_key_list",
]

F = TypeVar("F", bound=Callable[..., Any])


def log_usage(method: F) -> F:
    """Mark what Captum logs of the user's calls. Its NoiseTunnel and GuidedGradCam call the function behind the mark."""
    return cast(F, _log_usage(part_of_slo=True)(method))

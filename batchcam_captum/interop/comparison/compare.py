"""Maps of this library next to those of its peers, for one model, one layer, and some images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...attribution.reshape import Reshape
from .agreement import Agreement

#: What this library is called beside its peers.
OURS = "batchcam_captum"


@dataclass(frozen=True)
class Pair:
    """Maps of one method by one peer, and ours as that peer would have returned them."""

    method: str
    library: str
    ours: Tensor  #: (N, 1, *spatial), on the CPU
    theirs: Tensor  #: the same shape, on the CPU
    agreement: Agreement


@dataclass(frozen=True)
class Skipped:
    """What could not be compared or measured, and why."""

    method: str
    library: str
    reason: str
    batch_size: int | None = None  #: None: the maps


@dataclass(frozen=True)
class Cost:
    """What one call takes."""

    method: str
    library: str
    batch_size: int
    seconds: Any  #: median and quartiles, a Spread; None where it was not measured
    ratio_to_ours: Any  #: a Spread of the ratios of a round
    rounds: int
    peak_bytes: int | None  #: beyond model and images; None where it was not measured


@dataclass
class Comparison:
    """Everything that :func:`compare` found; :meth:`write` puts it into files."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    versions: dict[str, str | None]  #: library -> version; None: not installed
    left_out: list[str]  #: libraries that were asked for and are not installed
    images: Tensor = field(repr=False)  #: (N, C, *spatial), on the CPU
    paths: list[str]
    targets: list[int]
    failed: dict[str, str]  #: images that could not be read -> why
    raw: dict[str, Tensor] = field(repr=False)  #: method -> our raw maps, on the CPU
    pairs: list[Pair]
    skipped: list[Skipped]
    costs: list[Cost]
    notes: list[str]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write comparison.json, comparison.md and comparison.png (and comparison-2.png, … for further methods).

        Args:
            folder: is made where it is not there.

        Raises:
            OSError: the folder cannot be written to.
        """
        raise NotImplementedError

    def markdown(self) -> str:
        """The tables: agreement, time and memory, and what was left out."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Everything but the maps as plain values, ready for JSON."""
        raise NotImplementedError


def compare(
    model: nn.Module,
    layer: nn.Module | str,
    images: Tensor,
    *,
    methods: Sequence[str] = ("grad_cam",),
    targets: Sequence[int] | Tensor | None = None,
    libraries: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (),
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    reshape: Reshape = None,
    repeats: int = 20,
    progress: bool = False,
    memory: bool = True,
    name: str | None = None,
    paths: Sequence[str | os.PathLike[str]] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare the maps of this library with those of its peers, and measure what they cost.

    The model runs in eval mode, as pytorch-grad-cam runs it in any case, and is left exactly as it was, whatever the peers do to
    it. What a library cannot do, or fails at, is noted with its reason, and the others go on.

    Args:
        model: returns scores (N, K).
        layer: a module of it, or its dotted name.
        images: (N, C, *spatial), as the model expects them (standardised).
        methods: names of ways to make a map: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``,
            ``"layer_cam"``.
        targets: the class that each image's map is for, N of them. Default: the predicted ones.
        libraries: names of peers, see :data:`batchcam_captum.interop.PEERS`. Default: all.
        batch_sizes: for each of them time and peak memory are measured, on the images repeated as needed. Default: neither.
        device: where to compare. Default: where the model is. Elsewhere a copy of the model is compared.
        dtype: of the model and the images. Default: the model's. Another one is tried on a copy of the model.
        reshape: for layers that do not return (N, C, *spatial), see :class:`batchcam_captum.BatchGradCam`.
        repeats: rounds of the timing at most; each library runs once a round.
        progress: show a progress bar.
        memory: measure the peak memory as well.
        name: what the report calls the model. Default: its class.
        paths: of the images, for the report. Default: image 0, image 1, …
        failed: images that could not be read -> why, for the report.

    Returns:
        The comparison; ``comparison.write(folder)`` writes the report.

    Raises:
        ValueError: no images, targets or names that do not fit, an unknown layer, method or library, or a device that is not
            there.
        TypeError: images that are no tensor.
    """
    raise NotImplementedError


Progress = Callable[[str], None]

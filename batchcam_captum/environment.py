"""Describe the machine and the versions that a number belongs to."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the machine in plain values.

    Args:
        device: The device that computes.

    Returns:
        ``device``, ``device_name``, ``threads``, ``cpu_count``, ``platform``, ``python``, ``torch``, ``captum``,
        ``batchcam_captum``, ``allocator`` (the settings of glibc's allocator). For a CUDA device also the driver, the versions of
        CUDA and cuDNN, and whether float32 may be rounded to TF32.
    """
    on_cuda = device.type == "cuda"
    found: dict[str, Any] = {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if on_cuda else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "captum": version("captum"),
        "batchcam_captum": __version__,
        "allocator": {key: value for key, value in sorted(os.environ.items()) if key.startswith("MALLOC_")},
    }
    return found | _cuda(device) if on_cuda else found


def _cuda(device: torch.device) -> dict[str, Any]:
    return {
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": first_line_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "tf32": {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "products": torch.backends.cuda.matmul.allow_tf32,
        },
    }


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def first_line_of(*command: str) -> str | None:
    """Return the first line that a command prints; None if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _processor() -> str:
    """Return the processor's model name if Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Devices and dtypes by name."""

from __future__ import annotations

import torch

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_SHORT = {"fp32": "float32", "fp64": "float64", "fp16": "float16", "bf16": "bfloat16"}
_SHORT |= {"float": "float32", "double": "float64", "half": "float16"}


def check_device(name: str | torch.device) -> torch.device:
    """Return the device of this name, after trying whether it is there.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... or ``"mps"``.

    Raises:
        ValueError: another kind of device, or one that this machine does not have; the message says what PyTorch sees.
    """
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{device.type} is not one of cpu, cuda, mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without this kind
        reason = str(error).splitlines()[0].partition(". ")[0]  # some go on for a page
        raise ValueError(
            f"device: expected cpu, or a cuda, cuda:1, ... or mps device of this machine, got {str(name)!r} "
            f"({reason}; PyTorch {torch.__version__} sees {_seen()}); pass cpu"
        ) from error
    return device


def check_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the floating-point dtype of this name.

    Args:
        name: ``"float32"``, ``"float64"``, ``"float16"``, ``"bfloat16"``, or ``"fp32"``, ``"bf16"``, ...; or the dtype itself.

    Raises:
        ValueError: an unknown name, or a dtype that models do not run in.
    """
    if isinstance(name, torch.dtype):
        name = str(name)
    known = name.removeprefix("torch.")
    try:
        return _DTYPES[_SHORT.get(known, known)]
    except KeyError:
        raise ValueError(f"dtype: expected one of {', '.join(_DTYPES)}, got {name!r}") from None


def _seen() -> str:
    """Describe the accelerators that PyTorch can use."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    seen = [f"cuda:{index} ({name})" for index, name in enumerate(names)]
    if torch.backends.mps.is_available():
        seen.append("mps")
    return ", ".join(seen) or "no GPU"

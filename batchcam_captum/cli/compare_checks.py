"""What ``batchcam compare`` is given: checked before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress

#: The methods that can be compared; spelt out, as the help needs them before torch is imported.
METHODS = (
    *("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam"),
    "grad_cam_elementwise",
)
_VALUE = re.compile(r"-?[\d.]+(,-?[\d.]+)*,?", re.ASCII)


def libraries_named(names: Sequence[str] | None) -> list[str] | None:
    """By the names that they call themselves, however the user writes them."""
    if names is None:
        return None
    from ..interop import PEERS

    known = {_letters(name): name for name in PEERS}
    found = []
    for name in names:
        with suppress(KeyError):
            found.append(known[_letters(name)])
            continue
        raise ValueError(f"--libraries: expected some of {', '.join(PEERS)}, got {name!r}")
    absent = [PEERS[name] for name in found if PEERS[name].version() is None]
    if absent:
        names, packages = (
            ", ".join(peer.name for peer in absent),
            " ".join(peer.distribution for peer in absent),
        )
        raise ModuleNotFoundError(
            f"--libraries: expected libraries that are installed, got {names}; pip install {packages}, or leave "
            f"{'it' if len(absent) == 1 else 'them'} out",
            name=absent[0].distribution,
        )
    return found


def refuse_values(images: Sequence[str]) -> None:
    """Raise where what stands among the images is the second value of an option, after a space."""
    from ..interop import PEERS

    names = {*METHODS, *PEERS, *map(_letters, PEERS)}
    for image in images:
        if (_VALUE.fullmatch(image) or image in names) and not os.path.lexists(image):
            raise ValueError(
                f"IMAGE: expected files, folders or patterns, got {image!r}; if it belongs to an option, put a comma and no "
                "space before it, as in --size 24,30"
            )


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

"""What a run is made of, and the file that it is written to."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from batchcam_captum.files import written_whole

#: To be raised when the protocol changes in a way that the settings do not tell.
PROTOCOL = 1


class OtherStudyError(ValueError):
    """A result that was made by other settings."""


@dataclass(frozen=True)
class Settings:
    """All that a result depends on, but for machine and versions."""

    data: str
    network: str
    arm: str
    seed: int
    split: str = "test"  #: or "validation", which is held out of the training images
    train_size: int | None = None  #: how many training images; None: all
    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 1e-3
    faithfulness: int = 0  #: with how many images insertion, deletion and the like are measured
    protocol: int = PROTOCOL
    layer: str | None = None  #: that is explained; None: the network's
    test_size: int | None = None  #: how many test images are measured with; None: all

    @property
    def name(self) -> str:
        """Of the run, and of its file."""
        layer = "" if self.layer is None else f"--{self.layer}"
        reduced = "" if self.train_size is None or self.split != "test" else f"--{self.train_size}"
        return f"{self.data}--{self.network}{layer}{reduced}--{self.arm.replace('/', '.')}--s{self.seed}"

    def file(self, folder: Path) -> Path:
        """Where its result is."""
        return folder / f"{re.sub('[:~]', '_', self.name)}.json"

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """From a result's JSON."""
        return cls(**values)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} in place of a number")


def read(path: Path) -> dict[str, Any]:
    """A result.

    Raises:
        ValueError: the file is no result of this study.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
        Settings.of(result["settings"])
        if "diverged" not in result:
            dict(result["metrics"])
    except (ValueError, KeyError, TypeError) as error:  # what is no JSON or no UTF-8 is a ValueError
        raise ValueError(f"{path}: expected a result of this study, got {error!r}; remove it") from error
    return result  # type: ignore[no-any-return]


def result_of(settings: Settings, folder: Path) -> dict[str, Any] | None:
    """The run's result; None where there is none yet.

    Raises:
        OtherStudyError: there is one by other settings; it is named what differs.
        ValueError: see :func:`read`.
    """
    path = settings.file(folder)
    if not path.exists():
        return None
    result = read(path)
    there, wanted = result["settings"], asdict(settings)
    differing = [
        f"{key} = {there.get(key)!r} there, {wanted.get(key)!r} here"
        for key in sorted(there.keys() | wanted.keys())
        if there.get(key) != wanted.get(key)
    ]
    if differing:
        raise OtherStudyError(
            f"{path}: expected a result of the same settings, got {'; '.join(differing)}; choose another folder, or remove it"
        )
    return result


def finished(settings: Settings, folder: Path) -> bool:
    """Whether the run's result is there; see :func:`result_of`."""
    return result_of(settings, folder) is not None


def write(settings: Settings, folder: Path, **found: Any) -> None:
    """Write a result, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = settings.file(folder)
    text = json.dumps({"settings": asdict(settings), **found}, indent=1, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

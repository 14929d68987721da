"""Read image files, and turn them into what a model takes."""

from __future__ import annotations

import errno
import glob
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..optional import load

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: The formats that are read. Pillow knows more, some of which start other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
#: The files of a folder that are taken for images.
SUFFIXES = frozenset({".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_LISTED = 10  # paths in an error


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file as RGB with 8 bits per channel, upright.

    Grayscale, palette, CMYK and 16-bit images are converted, transparent pixels become white, the camera's orientation is
    applied, and the first frame of an animation is taken.

    Args:
        path: a regular file: JPEG, PNG, WebP, BMP, TIFF or GIF. The content decides, not the name.

    Returns:
        A ``PIL.Image.Image`` of mode ``"RGB"``.

    Raises:
        OSError: the file is missing, not a regular file, damaged, or not an image; ``strerror`` is the reason in one line.
        ModuleNotFoundError: Pillow is not installed.
    """
    pillow = _pillow()
    from PIL import ImageOps

    try:
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its writer
            raise ValueError("not a regular file")
        with pillow.open(path, formats=FORMATS) as image:
            image.load()  # raises if the file is truncated
            return in_color(ImageOps.exif_transpose(image))
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # Pillow's plugins raise anything for a damaged file
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(errno.EINVAL, reason_of(error), os.fspath(path)) from error


def reason_of(error: Exception) -> str:
    """Return the reason why a file could not be read, in one line."""
    kind = type(error).__name__
    if kind == "UnidentifiedImageError":
        return f"not an image in one of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or kind


def in_color(image: Image) -> Image:
    """Convert an image to RGB with 8 bits per channel; transparent pixels become white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = _pillow().new("RGBA", image.size, "white")
        return _pillow().alpha_composite(white, image).convert("RGB")  # type: ignore[no-any-return]
    return image.convert("RGB")


def _to_8_bits(image: Image) -> Image:
    """Scale 16-bit, 32-bit and floating images to 8 bits. Pillow's own conversion clips at 255 instead."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("its values contain NaN or infinity")
    low, high = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0  # some versions of Pillow read 16 bits as mode "I"
    if low >= 0 and high <= full:
        low, high = 0.0, full
    scaled = (values - low) / ((high - low) or 1) * 255
    return _pillow().fromarray(scaled.round().astype(np.uint8))  # type: ignore[no-any-return]


def _pillow() -> Any:
    return load("PIL.Image", purpose="images: reading one", package="pillow")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, center-crop and normalize an image, as torchvision and timm do.

    Args:
        size: (H, W) of the model's input.
        mean: one number per channel, for values in [0, 1]; a single number makes the input grayscale.
        std: likewise.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``.
        crop: the side of the center crop ÷ the side of the resized image; 1 keeps all of the shorter side.

    Calling it with a ``PIL.Image.Image`` returns the model's input, (C, H, W), float32.

    Raises:
        ValueError: an argument does not fit.
        ModuleNotFoundError: Pillow is not installed.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size: expected height and width of at least 1 pixel, got {self.size}")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(
                "mean, std: expected 3 numbers each, or 1 for a grayscale input, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std: expected numbers above 0, got {self.std}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop: expected a number above 0 and at most 1, got {self.crop}")
        methods = [method.name.lower() for method in _pillow().Resampling]
        if self.interpolation not in methods:
            raise ValueError(
                f"interpolation: expected one of {', '.join(methods)}, got {self.interpolation!r}"
            )

    def __call__(self, image: Image) -> Tensor:
        """Prepare an image: PIL image -> (C, H, W)."""
        image = in_color(image)
        if len(self.mean) == 1:
            image = image.convert("L")
        height, width = self.size
        # Rounded as torchvision and timm round, so that the model sees the same pixels.
        down, across = (math.floor(side / self.crop + 1e-6) for side in self.size)
        if across * image.height >= down * image.width:
            down = max(down, int(across * image.height / image.width))
        else:
            across = max(across, int(down * image.width / image.height))
        left, top = round((across - width) / 2), round((down - height) / 2)
        # Resize only the box that is kept: an image of 1 × 20,000 pixels would become huge otherwise.
        box = (
            left * image.width / across,
            top * image.height / down,
            min(image.width, (left + width) * image.width / across),
            min(image.height, (top + height) * image.height / down),
        )
        method = _pillow().Resampling[self.interpolation.upper()]
        resized = image.resize((width, height), method, box=box)
        values = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
        mean, std = self._statistics()
        return (values.view(height, width, -1).permute(2, 0, 1).float() / 255 - mean) / std

    def pictures(self, inputs: Tensor) -> Tensor:
        """Undo the normalization: (N, C, H, W) -> (N, H, W, 3) in [0, 1]."""
        mean, std = self._statistics()
        values = (inputs * std + mean).clamp(0, 1)
        return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)


@dataclass(frozen=True)
class LoadedImages:
    """The images that could be read, and why the others could not."""

    tensor: Tensor  #: (N, C, H, W), float32, normalized: what the model takes
    pictures: Tensor  #: (N, H, W, 3), float32 in [0, 1]: what the model sees, for figures
    paths: tuple[str, ...]  #: one per image
    failed: dict[str, str] = field(default_factory=dict)  #: path -> why it could not be read
    positions: tuple[int, ...] = ()  #: of each image among all the files that were found

    def __len__(self) -> int:
        return len(self.paths)


def load_images(
    paths: str | Path | Iterable[str | Path],
    preprocessing: Preprocessing | None = None,
    *,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> LoadedImages:
    """Read image files into one tensor; see :func:`read_image` for the formats.

    Args:
        paths: files, folders, and patterns such as ``cats/*.jpg``. Folders are searched at any depth, in the order of names,
            hidden files excepted. A file that is named twice is read once.
        preprocessing: None: 224 × 224 pixels of the whole center, with ImageNet's mean and std.
        progress: wraps the list of files, as ``tqdm`` does.

    Returns:
        The images; a file that cannot be read is left out, and named in ``failed``.

    Raises:
        ValueError: no image could be read, with the reasons.
        ModuleNotFoundError: Pillow is not installed.
    """
    prepare = preprocessing or Preprocessing()
    found = _find([paths] if isinstance(paths, str | Path) else list(paths))
    read: dict[int, Tensor] = {}
    for place, (path, reason) in enumerate(progress(list(found.items()))):
        if reason is None:
            try:
                read[place] = prepare(read_image(path))
            except OSError as error:
                found[path] = reason_of(error)
    failed = {path: reason for path, reason in found.items() if reason is not None}
    if not read:
        listed = [f"{path} ({reason})" for path, reason in failed.items()][:_LISTED]
        more = f", … and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
        raise ValueError(
            f"images: expected at least one that can be read, got {', '.join(listed) + more or 'no paths'}"
        )
    inputs = torch.stack(list(read.values()))
    names = list(found)
    return LoadedImages(
        inputs, prepare.pictures(inputs), tuple(names[place] for place in read), failed, tuple(read)
    )


def load_packaged_images(preprocessing: Preprocessing | None = None) -> LoadedImages:
    """Return four photographs that are installed with scikit-image.

    Args:
        preprocessing: None: 224 × 224 pixels of the whole center, with ImageNet's mean and std.

    Raises:
        ModuleNotFoundError: scikit-image or Pillow is not installed.
    """
    prepare = preprocessing or Preprocessing()
    photographs = load(
        "skimage.data", purpose="images: packaged photographs, as no path is given", package="scikit-image"
    )
    names = ("chelsea", "coffee", "astronaut", "rocket")
    inputs = torch.stack([prepare(_pillow().fromarray(getattr(photographs, name)())) for name in names])
    paths = tuple(f"scikit-image: {name}" for name in names)
    return LoadedImages(inputs, prepare.pictures(inputs), paths, positions=tuple(range(len(names))))


def _find(paths: list[str | Path]) -> dict[str, str | None]:
    """Return every path once and in order, with the reason where it is known to be no image."""
    found: dict[str, tuple[str, str | None]] = {}  # real path -> path as the user wrote it, reason
    for path in map(str, paths):
        unreadable: dict[str, str] = {}
        entries, nothing = [path], ""
        if os.path.isdir(path):
            entries = list(files_in(path, unreadable))
            nothing = f"no image in this folder, which is searched for {' '.join(sorted(SUFFIXES))}"
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            entries = [file for match in matches for file in _expand(match, unreadable)]
            nothing = "no file matches the pattern"
        if not entries and not unreadable:
            unreadable[path] = nothing
        for entry in (*entries, *unreadable):
            found.setdefault(os.path.realpath(entry), (entry, unreadable.get(entry)))
    return dict(found.values())


def _expand(match: str, unreadable: dict[str, str]) -> Iterable[str]:
    return files_in(match, unreadable) if os.path.isdir(match) else [match]


def files_in(folder: str, unreadable: dict[str, str]) -> Iterator[str]:
    """Yield the image files of a folder at any depth, in the order of names, hidden files and folders excepted.

    Args:
        folder: the folder.
        unreadable: filled with the folders that cannot be searched -> the reason.
    """

    def refused(error: OSError) -> None:
        unreadable[str(error.filename or folder)] = error.strerror or str(error)

    for inside, folders, files in os.walk(folder, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(inside, name)

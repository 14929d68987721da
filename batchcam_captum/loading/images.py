"""Image files into the tensor that a model takes, and the pictures that a figure shows."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..optional import load
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is looked for in folders.
SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "gif", "jp2", "jpe", "jpeg", "jpg", "pbm"),
        *("pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
#: Pictures that come with scikit-image and with scikit-learn, so that there is something to look at without a file.
_SCIKIT_IMAGE = ("chelsea", "coffee", "astronaut", "rocket")
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
_LISTED = 10


@dataclass(frozen=True)
class LoadedImages:
    """Images that could be read, and what could not."""

    tensor: Tensor  #: (N, C, H, W), float32, standardised: what the model takes
    pictures: Tensor  #: (N, H, W, 3), float32 in [0, 1]: what the model sees, for figures
    paths: tuple[str, ...]  #: of each image
    #: Path and reason of what could not be read, in the order in which it was found.
    failed: dict[str, str] = field(default_factory=dict)
    #: The place of each image among all that were found, those that could not be read included.
    positions: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def load_images(
    paths: str | Path | Iterable[str | Path],
    *,
    size: int | tuple[int, int] = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    interpolation: str = "bilinear",
    crop: float = 1.0,
    progress: Callable[[list[Any]], Iterable[Any]] | None = None,
) -> LoadedImages:
    """Read images, resize them, cut out the centre, standardise.

    What cannot be read is left out and named in ``failed``. Greyscale, palette, CMYK and 16-bit images become RGB with 8 bits a
    channel, transparent ones are put on white, the camera's orientation is applied; of an animation the first frame is taken.

    Args:
        paths: files, folders, which are searched with all that is in them, and patterns such as ``cats/*.jpg``. In a folder the
            files are taken in the order of their names, hidden ones are not. A file that is named twice is read once.
        size: (H, W) of the model's input, or one number for both.
        mean: of each channel, for values in [0, 1]; one number stands for a greyscale input.
        std: likewise.
        interpolation: of the resizing: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"`` or ``"hamming"``.
        crop: how much of the resized image's side the centre that is cut out has; 1: all of the shorter side.
        progress: wraps the list of files, as ``tqdm`` does.

    Returns:
        What the model takes, what a figure shows, and what could not be read.

    Raises:
        ValueError: no image could be read, with the reasons; arguments that do not fit.
        ModuleNotFoundError: Pillow is not installed.
    """
    prepare = preparation(size, mean, std, interpolation, crop)
    found, failed = _find([paths] if isinstance(paths, str | Path) else list(paths))
    files: list[tuple[int, str]] = [(place, path) for place, path in enumerate(found) if path not in failed]
    read: list[tuple[int, str, Tensor, Tensor]] = []
    for place, path in files if progress is None else progress(files):
        try:
            read.append((place, path, *prepare(open_image(path))))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # Pillow's plugins raise anything for a damaged file
            failed[path] = reason_of(error)
    if not read:
        listed = [f"{path} ({reason})" for path, reason in failed.items()][:_LISTED]
        more = f", … and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
        raise ValueError(
            f"images: expected at least one that can be read, got {', '.join(listed) + more or 'no paths'}"
        )
    ordered = {path: failed[path] for path in found if path in failed}
    return _together(read, ordered)


def load_packaged_images(
    *,
    size: int | tuple[int, int] = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    interpolation: str = "bilinear",
    crop: float = 1.0,
) -> LoadedImages:
    """The photographs that come with scikit-image or, where that is missing, with scikit-learn.

    Args:
        size: see :func:`load_images`.
        mean: see :func:`load_images`.
        std: see :func:`load_images`.
        interpolation: see :func:`load_images`.
        crop: see :func:`load_images`.

    Returns:
        Four photographs from scikit-image, or two from scikit-learn.

    Raises:
        ModuleNotFoundError: neither is installed, or Pillow is not.
    """
    prepare = preparation(size, mean, std, interpolation, crop)
    image = _pillow()
    read = [
        (place, name, *prepare(image.fromarray(array))) for place, (name, array) in enumerate(_packaged())
    ]
    return _together(read, {})


def _packaged() -> Iterator[tuple[str, Any]]:
    try:
        from skimage import data
    except ModuleNotFoundError:
        try:
            from sklearn.datasets import load_sample_image
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "images: expected paths, got none, and neither scikit-image nor scikit-learn is installed, whose pictures would "
                "be taken; pass files or folders",
                name="skimage",
            ) from error
        for name in _SCIKIT_LEARN:
            yield f"scikit-learn: {name}", load_sample_image(name)
    else:
        for name in _SCIKIT_IMAGE:
            yield f"scikit-image: {name}", getattr(data, name)()


def _pillow() -> Any:
    return load("PIL.Image", purpose="images: reading one", package="pillow")


def _together(read: list[tuple[int, str, Tensor, Tensor]], failed: dict[str, str]) -> LoadedImages:
    return LoadedImages(
        torch.stack([tensor for _, _, tensor, _ in read]),
        torch.stack([picture for *_, picture in read]),
        tuple(path for _, path, _, _ in read),
        failed,
        tuple(place for place, *_ in read),
    )


def _find(paths: list[str | Path]) -> tuple[list[str], dict[str, str]]:
    """Every path in its order, each file once; and what is known to be no image already, which is among them."""
    found: dict[str, str] = {}  # real path -> as the user wrote it
    failed: dict[str, str] = {}
    for path in map(str, paths):
        unreadable: dict[str, str] = {}
        if os.path.isdir(path):
            entries = list(files_in(path, unreadable))
            none = f"no image in this folder, which is searched for {' '.join(sorted(SUFFIXES))}"
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            entries = [file for match in matches for file in _files_of(match, unreadable)]
            none = "no file matches the pattern"
        else:
            entries, none = [path], ""
        if not entries and not unreadable:
            unreadable[path] = none
        for entry in (*entries, *unreadable):
            found.setdefault(os.path.realpath(entry), entry)
        failed.update(unreadable)
    return list(found.values()), {path: failed[path] for path in found.values() if path in failed}


def _files_of(match: str, unreadable: dict[str, str]) -> Iterable[str]:
    return files_in(match, unreadable) if os.path.isdir(match) else [match]


def files_in(folder: str, unreadable: dict[str, str]) -> Iterator[str]:
    """The images of a folder and of all in it, in the order of their names; hidden ones are not.

    Args:
        folder: the folder.
        unreadable: where folders go that cannot be searched, with the reason.
    """

    def refused(error: OSError) -> None:
        unreadable[str(error.filename or folder)] = error.strerror or str(error)

    for inside, folders, files in os.walk(folder, onerror=refused):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(inside, name)


def open_image(path: str) -> Image:
    """The first frame, read to its end, upright."""
    from PIL import ImageOps

    with _pillow().open(path) as image:
        image.load()  # a truncated file shows only here
        return ImageOps.exif_transpose(image)


def reason_of(error: Exception) -> str:
    """In a line, why an image could not be read."""
    kind = type(error).__name__
    if kind == "UnidentifiedImageError":
        return "not an image, or of a kind that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or kind


def in_colour(image: Image) -> Image:
    """RGB with 8 bits a channel; what is transparent becomes white."""
    pillow = _pillow()
    if image.mode.startswith("I") or image.mode == "F":
        return _of_many_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pillow.new("RGBA", image.size, "white")
        return pillow.alpha_composite(white, image).convert("RGB")  # type: ignore[no-any-return]
    return image.convert("RGB")


def _of_many_bits(image: Image) -> Image:
    """8 bits of 16, of 32 and of floats. Pillow's own conversion cuts off at 255 instead."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity among its values")
    least, most = float(values.min()), float(values.max())
    if image.mode == "F":
        low, high = (0.0, 1.0) if least >= 0 and most <= 1 else (least, most)
    else:  # an "I" may be 16 bits that an older Pillow read to 32
        low, high = (0.0, 65535.0) if least >= 0 and most <= 65535 else (least, most)
    scaled = (values - low) / ((high - low) or 1) * 255
    return _pillow().fromarray(scaled.round().astype(np.uint8))  # type: ignore[no-any-return]


def preparation(
    size: int | tuple[int, int], mean: Sequence[float], std: Sequence[float], interpolation: str, crop: float
) -> Callable[[Image], tuple[Tensor, Tensor]]:
    """A function from an image to the model's input, (C, H, W), and the picture, (H, W, 3). Arguments as of :func:`load_images`.

    Raises:
        ValueError: arguments that do not fit.
        ModuleNotFoundError: Pillow is not installed.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size: expected at least 1 x 1 pixels, got {height} x {width}")
    if len(mean) not in (1, 3) or len(std) != len(mean):
        raise ValueError(
            f"mean, std: expected 3 numbers each, or 1 for greyscale, got {len(mean)} and {len(std)}"
        )
    if not all(value > 0 for value in std):
        raise ValueError(f"std: expected numbers above 0, got {list(std)}")
    if not 0 < crop <= 1:
        raise ValueError(f"crop: expected a share above 0 and at most 1, got {crop}")
    methods = {method.name.lower(): method for method in _pillow().Resampling}
    if interpolation not in methods:
        raise ValueError(
            f"interpolation: expected one of {', '.join(sorted(methods))}, got {interpolation!r}"
        )
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))

    # Rounded as torchvision and timm do, so that a model sees the pixels that it would see there.
    whole_width, whole_height = (math.floor(side / crop + 1e-6) for side in (width, height))

    def resized(old_width: int, old_height: int) -> tuple[int, int]:
        if whole_width * old_height >= whole_height * old_width:
            return whole_width, max(whole_height, int(whole_width * old_height / old_width))
        return max(whole_width, int(whole_height * old_width / old_height)), whole_height

    def prepare(image: Image) -> tuple[Tensor, Tensor]:
        image = in_colour(image)
        if len(mean) == 1:
            image = image.convert("L")
        across, down = resized(image.width, image.height)
        left, top = round((across - width) / 2), round((down - height) / 2)
        # Only the box that is kept is resized: an image of 1 × 20,000 pixels would be huge otherwise.
        box = (
            left * image.width / across,
            top * image.height / down,
            min(image.width, (left + width) * image.width / across),
            min(image.height, (top + height) * image.height / down),
        )
        values = _values(image.resize((width, height), methods[interpolation], box=box))
        return (values - shift) / scale, values.expand(3, -1, -1).permute(1, 2, 0).contiguous()

    return prepare


def _values(image: Image) -> Tensor:
    """(C, H, W) in [0, 1]."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255

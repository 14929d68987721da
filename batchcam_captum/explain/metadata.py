"""Check a store's metadata and files before Zarr reads them: a store may come from a stranger.

Zarr does what the metadata of an array say, and its older format has codecs that run code. Only what this package writes is
opened.
"""

from __future__ import annotations

import json
import os
import re
from math import isnan
from pathlib import Path
from typing import Any

from .layout import FORMAT, KEY, MASK_METRICS, NAMES, Array, Layout

#: Zarr's file of a group or an array, and its folder of an array's chunks.
METADATA, CHUNKS = "zarr.json", "c"
#: Metadata of Zarr's older format.
_OLDER = re.compile(r"\.z(group|array|attrs|metadata)")
#: Attributes of the group, and their types.
_ABOUT = {"settings": dict, "class_names": list | None, "environments": list, "complete": bool}
#: Arrays that every store has.
_REQUIRED = tuple(Layout(samples=1, chunk=1, maps=(1,), classes=1).arrays())


def read_about(path: Path) -> dict[str, Any]:
    """Return what a store's group says about it, without opening it with Zarr.

    Args:
        path: the store's folder.

    Raises:
        ValueError: the folder holds no store of this package.
    """
    try:
        known = _read(path / METADATA)
        about = dict(known["attributes"][KEY])
        version = about["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a store of explain_dataset or batchcam explain, got something else ({type(error).__name__})"
        ) from error
    if version == FORMAT:
        _check_equal(path, {"zarr_format": 3, "node_type": "group", "consolidated_metadata": None}, known)
        for name, kind in _ABOUT.items():
            if not isinstance(about.get(name), kind):
                raise _differs(path, f"{KEY}.{name}", f"a value of type {kind}", about.get(name))
    return about


def check_store(path: Path) -> None:
    """Check that a store of the current version holds the arrays that this package writes, and nothing else for Zarr to read.

    Args:
        path: the store's folder.

    Raises:
        ValueError: an array is missing, or an array, a codec, a folder or a link is not this package's.
    """
    _check_files(path)
    names = [name for name in NAMES if (path / name).is_dir()]
    if lacking := [name for name in _REQUIRED if name not in names]:
        raise ValueError(
            f"{path}: expected a whole store, got one without {', '.join(lacking)}; explain the data set again"
        )
    known = {name: _array(path / name) for name in names}
    samples, *maps = known["maps"]["shape"]
    layout = Layout(
        samples=samples,
        chunk=known["maps"]["chunk_grid"]["configuration"]["chunk_shape"][0],
        maps=tuple(maps),
        classes=known["scores"]["shape"][-1],
        dtype="float16" if known["maps"]["data_type"] == "float16" else "float32",
        thumbnail=tuple(known["thumbnails"]["shape"][1:3]) if "thumbnails" in known else None,
        metrics=tuple(name for name in MASK_METRICS if name in known),
    )
    for name, array in layout.arrays().items():
        _check_equal(path / name, _metadata_of(array, layout.chunk), known[name])


def _metadata_of(array: Array, chunk: int) -> dict[str, Any]:
    """Return the Zarr metadata of an array as this package writes it."""
    if array.dtype == "string":
        bytes_codec: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
    else:
        endian = {} if array.dtype == "uint8" else {"endian": "little"}
        bytes_codec = {"name": "bytes", "configuration": endian}
    fill = "NaN" if isinstance(array.fill, float) and isnan(array.fill) else array.fill
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk, *array.shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [bytes_codec, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}],
        "attributes": {},
        "storage_transformers": [],
    }


def _check_equal(folder: Path, expected: dict[str, Any], got: dict[str, Any]) -> None:
    for key in sorted(expected.keys() | got.keys() - {"attributes"}):
        one, other = expected.get(key), got.get(key)
        if key == "codecs" and isinstance(other, list):  # Zarr leaves out a configuration that is empty
            other = [{"configuration": {}} | each if isinstance(each, dict) else each for each in other]
        # As text, because 1, 1.0 and true are equal in Python.
        if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            raise _differs(folder, key, repr(one), got.get(key))


def _array(folder: Path) -> dict[str, Any]:
    """Return the metadata of an array, whose shape and chunks are positive integers."""
    try:
        known = _read(folder / METADATA)
        shape, chunks = known["shape"], known["chunk_grid"]["configuration"]["chunk_shape"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{folder}: expected the metadata of a Zarr 3 array, got something else ({type(error).__name__}); explain the data "
            "set again"
        ) from error
    for key, sizes in (("shape", shape), ("chunk_grid", chunks)):
        if (
            not isinstance(sizes, list)
            or not sizes
            or not all(type(size) is int and size > 0 for size in sizes)
        ):
            raise _differs(folder, key, "positive integers", sizes)
    return known


def _read(file: Path) -> dict[str, Any]:
    """Read JSON from a regular file that is no link."""
    if file.is_symlink() or not file.is_file():
        raise FileNotFoundError(file)
    try:
        found = json.loads(file.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise TypeError("expected an object")
    return found


def _check_files(path: Path) -> None:
    """Refuse links, special files, metadata of Zarr's older format, and folders that are not an array's."""
    folders = [path]
    while folders:
        folder = folders.pop()
        for entry in _entries(folder):
            where = Path(entry.path)
            if entry.is_symlink():
                raise _foreign(where, "a symbolic link")
            if entry.is_dir(follow_symlinks=False):
                parts = where.relative_to(path).parts
                temporary = parts[0].startswith(f".{KEY}.")
                if not temporary and (parts[0] not in NAMES or parts[1:2] not in ((), (CHUNKS,))):
                    raise _foreign(where, "a folder that is not an array's")
                if not temporary:
                    folders.append(where)
            elif not entry.is_file(follow_symlinks=False):
                if os.path.lexists(where):  # another process may be writing
                    raise _foreign(where, "a special file")
            elif _OLDER.fullmatch(entry.name):
                raise _foreign(where, "metadata of Zarr's older format")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # another process has removed it
        return []


def _foreign(where: Path, what: str) -> ValueError:
    return ValueError(
        f"{where}: expected only files that this package writes in a store, got {what}; remove it if you know where it comes "
        "from, and do not open the store otherwise"
    )


def _differs(folder: Path, key: str, expected: str, got: Any) -> ValueError:
    shown = repr(got)
    return ValueError(
        f"{folder / METADATA}: expected {key} = {expected}, as this package writes it, got {shown[:200]}; explain the data set "
        "again, or ask where the store comes from"
    )

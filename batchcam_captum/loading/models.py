"""Make models by name: timm's, torchvision's, and those of a user's function."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from ..environment import version_of
from ..optional import load
from .checkpoints import MisfitError, load_checkpoint
from .devices import check_device
from .images import Preprocessing

Library = Literal["timm", "torchvision", "factory"]


def load_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    pretrained: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make a model, load its weights, and put it in eval mode.

    Args:
        name: a model of timm or torchvision, such as ``"resnet18"``, which timm is asked for first; ``"timm/resnet18"`` and
            ``"torchvision/resnet18"`` ask one of them. Or a function without arguments that returns a module,
            ``"package.module:function"`` or ``"path/to/file.py:function"``; it finds the modules beside it.
        checkpoint: a file of weights for :func:`~batchcam_captum.loading.load_checkpoint`.
        num_classes: the number of classes, K; None: that of the checkpoint, otherwise the library's default. A function decides
            itself.
        pretrained: use the weights of the library, which it may download.
        device: where the model goes.
        dtype: of its parameters; None: unchanged.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: an unknown name, with the closest ones; a function that cannot be found, raises, or returns no module; a
            checkpoint that does not fit; a model that its library cannot make; arguments that contradict each other.
        ModuleNotFoundError: the library is not installed.
        OSError: a file cannot be read.
    """
    device = check_device(device)
    if pretrained and checkpoint is not None:
        raise ValueError(
            "pretrained: expected either the library's weights or a checkpoint, got both; leave one out"
        )
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    library, plain = _parse(name)
    if library == "factory":
        if pretrained or num_classes is not None:
            given = "pretrained" if pretrained else "num_classes"
            raise ValueError(
                f"{given}: expected a model of timm or torchvision, got the function {name!r}; let it do that"
            )
        model = _call_function(name)
    else:
        model = _make(library, plain, num_classes, pretrained)
    if checkpoint is not None:
        try:
            load_checkpoint(model, checkpoint)
        except MisfitError as error:
            if library == "factory" or num_classes is not None or error.classes is None:
                raise
            model = _make(library, plain, error.classes, pretrained)
            load_checkpoint(model, checkpoint)
    return model.to(device=device, dtype=dtype).eval()


def source_of(name: str) -> tuple[Library, str | None]:
    """Return who makes the model of this name, and in which version.

    Args:
        name: as for :func:`load_model`.

    Returns:
        ``"timm"`` or ``"torchvision"`` with the version of the library, or ``"factory"`` and None for a function.

    Raises:
        ValueError: no model of this name.
        ModuleNotFoundError: the library is not installed.
    """
    library, _ = _parse(name)
    return library, None if library == "factory" else version_of(library)


def preprocessing(model: nn.Module, name: str = "") -> Preprocessing:
    """Return the preprocessing that the model was trained with, as far as its library knows it.

    Args:
        model: the model.
        name: the name that it was loaded by; only torchvision's models need it.

    Returns:
        For other models the usual preprocessing of ImageNet: 224 of 256 pixels, its mean and std.
    """
    usual = Preprocessing(crop=0.875)
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return _preprocessing_of_timm(model, usual)
    if type(model).__module__.startswith("torchvision.") and ":" not in name:
        with suppress(Exception):  # no weights of this name
            weights = load("torchvision.models", purpose="preprocessing").get_model_weights(
                name.removeprefix("torchvision/")
            )
            preset = weights.DEFAULT.transforms()
            size, resized = preset.crop_size[0], preset.resize_size[0]
            mean, std = tuple(preset.mean), tuple(preset.std)
            return Preprocessing((size, size), mean, std, preset.interpolation.value, size / resized)
    return usual


def _preprocessing_of_timm(model: nn.Module, usual: Preprocessing) -> Preprocessing:
    config = load("timm.data", purpose="preprocessing", extra="timm").resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    mean, std = (tuple(config.get(key) or getattr(usual, key)) for key in ("mean", "std"))
    if channels != len(mean):  # a grayscale model whose configuration is that of its color twin
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    interpolation = config.get("interpolation") or "bicubic"
    return Preprocessing(
        (height, width), mean, std, interpolation, float(config.get("crop_pct") or usual.crop)
    )


def _parse(name: str) -> tuple[Library, str]:
    """Return who makes the model, and its name there."""
    if ":" in name:
        return "factory", name
    prefix, _, rest = name.partition("/")
    libraries: tuple[Library, ...] = ("timm", "torchvision")
    if prefix in libraries:
        libraries, name = tuple(each for each in libraries if each == prefix), rest
    hints, absent = [], None
    for library in libraries:
        try:
            names = _names(library)
        except ModuleNotFoundError as error:
            absent = error
            hints.append(f"{library} is not installed")
            continue
        if name in names:
            return library, name
        wanted = name.partition(".")[0].lower()  # without timm's tag of weights
        plain = sorted(known for known in names if "." not in known)
        close = (
            get_close_matches(wanted, plain, n=4)
            or [known for known in plain if wanted and wanted in known][:4]
        )
        hints.append(f"{library} has {', '.join(close) or 'none like it'}")
    if absent is not None and all("installed" in hint for hint in hints):
        raise absent
    raise ValueError(
        f"model: expected a model of timm or torchvision, or a function module:function, got {name!r}; {'; '.join(hints)}"
    )


def _import_library(library: Library) -> Any:
    module = "torchvision.models" if library == "torchvision" else library
    return load(module, purpose=f"model: one of {library}", package=library)


def _names(library: Library) -> set[str]:
    """Return the models that a library knows; timm's also with tags of their weights, ``resnet18.a1_in1k``."""
    module = _import_library(library)
    return {*module.list_models(), *(module.list_pretrained() if library == "timm" else ())}


def _make(library: Library, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    module = _import_library(library)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        if library == "timm":
            model = module.create_model(name, pretrained=pretrained, **options)
        else:
            model = module.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except Exception as error:  # whatever the library, its download or a constructor raises
        weights = " and its weights, which are downloaded unless they are cached" if pretrained else ""
        raise ValueError(
            f"model: expected {library} to make {name}{weights}, got {type(error).__name__}: {error}"
        ) from error
    return model  # type: ignore[no-any-return]


def _call_function(name: str) -> nn.Module:
    where, _, function = name.rpartition(":")
    if not where or not function:
        raise ValueError(
            f"model: expected a function as module:function or path/to/file.py:function, got {name!r}"
        )
    is_file = where.endswith(".py")
    try:
        with _importable(Path(where).resolve().parent if is_file else Path.cwd()):
            module = _import_file(where) if is_file else importlib.import_module(where)
            model = getattr(module, function)()
    except Exception as error:  # whatever the user's file raises
        raise ValueError(
            f"model: expected a module from the function {name!r}, called without arguments, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: expected a torch.nn.Module from the function {name!r}, got {type(model).__name__}; return the model"
        )
    return model


def _import_file(where: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {where}")
    # A unique name, because files in several folders may have the same one.
    unique = f"_batchcam_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file: {where}")
    module = util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickle look the module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, as in ``python file.py`` there."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))

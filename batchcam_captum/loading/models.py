"""Models by name: timm's, torchvision's, and those that a user's function makes."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import util
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from ..environment import version_of
from ..optional import load
from .checkpoints import load_checkpoint
from .devices import check_device

_LIBRARIES = ("timm", "torchvision")
#: What the names of modules begin with that were made of a user's file.
_OWN = "_batchcam_"


def load_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    pretrained: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make a model, fill it, and put it in eval mode.

    Args:
        name: of a model of timm or torchvision, ``"resnet18"``, which timm is asked for first; ``"timm/resnet18"`` and
            ``"torchvision/resnet18"`` ask one of them alone. Or a function without arguments that returns a module,
            ``"package.module:function"`` or ``"path/to/file.py:function"``; modules of the current folder are found.
        checkpoint: a file of weights, see :func:`~batchcam_captum.loading.load_checkpoint`.
        num_classes: the number of classes, K; None: as the library makes it. Not for a function, which decides itself.
        pretrained: take the weights that the library has for the model, which it may download.
        device: where the model goes.
        dtype: of its parameters; None: as they are.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: no model of this name, with the nearest names; a function that cannot be found, raises, or returns no module;
            a checkpoint that does not fit; a model that its library cannot make; contradicting arguments.
        ModuleNotFoundError: the library that was asked for is not installed.
        OSError: a file that cannot be read.
    """
    device = check_device(device)
    if pretrained and checkpoint is not None:
        raise ValueError(
            "pretrained: expected either the library's weights or a checkpoint, got both; leave one out"
        )
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    library, plain = parts_of(name)
    if library == "factory":
        if pretrained or num_classes is not None:
            given = "pretrained" if pretrained else "num_classes"
            raise ValueError(
                f"{given}: expected a model of timm or torchvision, got the function {name!r}; have it do that"
            )
        model = _made_by_function(name)
    else:
        model = _made_by_library(library or _library_of(plain), plain, num_classes, pretrained)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.to(device=device, dtype=dtype).eval()


def parts_of(name: str) -> tuple[Literal["factory", "timm", "torchvision"] | None, str]:
    """Who makes the model, None where the name does not say, and the name without that."""
    if ":" in name:
        return "factory", name
    if name.startswith("timm/"):
        return "timm", name.removeprefix("timm/")
    if name.startswith("torchvision/"):
        return "torchvision", name.removeprefix("torchvision/")
    return None, name


def source_of(name: str) -> tuple[Literal["factory", "timm", "torchvision"], str | None]:
    """Who makes the model of this name, and in which version.

    Args:
        name: see :func:`load_model`.

    Returns:
        ``"factory"`` for a function, ``"timm"`` or ``"torchvision"``; and that library's version. The version is None for a
        function, and where it is not known: a library that was not installed, but lies on the path.

    Raises:
        ValueError: no model of this name.
        ModuleNotFoundError: the library is not installed.
    """
    library, plain = parts_of(name)
    library = library or _library_of(plain)
    return library, None if library == "factory" else version_of(library)


def _library_of(name: str) -> Literal["timm", "torchvision"]:
    """The first library that knows the name."""
    missing = []
    for library in _LIBRARIES:
        try:
            if name in _names(library, tagged=True):
                return "timm" if library == "timm" else "torchvision"
        except ModuleNotFoundError:
            missing.append(library)
    if len(missing) == len(_LIBRARIES):
        raise ModuleNotFoundError(
            "model: neither timm nor torchvision is installed; pip install 'batchcam-captum[timm]', or pass a function as "
            "module:function",
            name="timm",
        )
    raise _unknown(name, [library for library in _LIBRARIES if library not in missing])


def _imported(library: str) -> Any:
    module = "torchvision.models" if library == "torchvision" else library
    try:
        return load(module, purpose=f"model: one of {library}", package=library)
    except ModuleNotFoundError:
        raise
    except (ImportError, RuntimeError) as error:  # built for another version of PyTorch
        raise ValueError(
            f"model: {library} is installed but cannot be imported ({error}); install one that fits"
        ) from error


def _names(library: str, *, tagged: bool = False) -> set[str]:
    """The models that the library knows; ``tagged``: with those that name their weights too, ``resnet18.a1_in1k``."""
    module = _imported(library)
    names = set(module.list_models())
    if tagged and library == "timm":
        names |= set(module.list_pretrained())
    return names


def _unknown(name: str, libraries: list[str]) -> ValueError:
    nearest = []
    for library in libraries:
        names = sorted(_names(library))
        wanted = name.partition(".")[0].lower()  # without timm's tag of weights
        close = (
            get_close_matches(wanted, names, n=4)
            or [known for known in names if wanted and wanted in known][:4]
        )
        nearest.append(f"{library} has {', '.join(close) if close else 'none like it'}")
    absent = [library for library in _LIBRARIES if library not in libraries and not _there(library)]
    nearest += [f"{library} is not installed" for library in absent]
    return ValueError(
        f"model: expected a model of timm or torchvision, or a function module:function, got {name!r}; {'; '.join(nearest)}"
    )


def _there(library: str) -> bool:
    try:
        _imported(library)
    except (ModuleNotFoundError, ValueError):
        return False
    return True


def _made_by_library(library: str, name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    module = _imported(library)
    if name not in _names(library, tagged=True):
        raise _unknown(name, [library])
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if library == "torchvision":
        make = module.get_model
        options["weights"] = "DEFAULT" if pretrained else None
    else:
        make = module.create_model
        options["pretrained"] = pretrained
    try:
        model: nn.Module = make(name, **options)
    except Exception as error:  # whatever the library, its download or a constructor raises
        asked = "its weights (they are downloaded where they are not in the cache)" if pretrained else "it"
        raise ValueError(
            f"model: expected {library} to make {name} and {asked}, got {type(error).__name__}: {error}"
            if pretrained
            else f"model: expected {library} to make {name}, got {type(error).__name__}: {error}"
        ) from error
    return model


def _made_by_function(name: str) -> nn.Module:
    where, _, function = name.rpartition(":")
    if not where or not function:
        raise ValueError(
            f"model: expected a function as module:function or path/to/file.py:function, got {name!r}"
        )
    folder = Path(where).resolve().parent if where.endswith(".py") else Path.cwd()
    with _importable(folder):
        try:
            module = _module_of_file(where) if where.endswith(".py") else importlib.import_module(where)
        except Exception as error:  # whatever the user's file raises
            raise ValueError(
                f"model: expected to import {where} for the function {name!r}, got {type(error).__name__}: {error}"
            ) from error
        make = getattr(module, function, None)
        if not callable(make):
            found = "nothing of this name" if make is None else f"a {type(make).__name__}"
            close = get_close_matches(
                function, [key for key, value in vars(module).items() if callable(value)]
            )
            nearest = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(
                f"model: expected a function {function} in {where} for {name!r}, got {found}{nearest}"
            )
        try:
            model = make()
        except Exception as error:
            raise ValueError(
                f"model: expected a module from the function {name!r}, called without arguments; it raised "
                f"{type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: expected a torch.nn.Module from the function {name!r}, got {type(model).__name__}; return the model"
        )
    return model


def _module_of_file(where: str) -> ModuleType:
    path = Path(where).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {where}")
    # A name of its own: files of the same name must not be taken for each other.
    unique = f"{_OWN}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file: {where}")
    module = util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, as ``python file.py`` there would."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def own_files() -> dict[str, str]:
    """The files that functions of models came from, by the names that their modules have in this process alone."""
    return {
        name: str(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith(_OWN) and getattr(module, "__file__", None)
    }


def import_own_files(files: Mapping[str, str]) -> None:
    """Let another process import, by the names of :func:`own_files`, what a pickle of this one looks up.

    A file is run when its module is first asked for; what lies beside it can be imported from then on.

    Args:
        files: what :func:`own_files` gave.
    """
    sys.meta_path.append(_OwnFiles(files))


class _OwnFiles(MetaPathFinder):
    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = dict(files)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        folder = str(Path(file).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return util.spec_from_file_location(fullname, file)

"""What importing loads, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import batchcam_captum

PACKAGE = Path(batchcam_captum.__file__).parent
HEAVY = ["captum", "matplotlib", "torchvision", "tqdm", "sklearn", "skimage", "torchmetrics", "timm"]


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def with_torch():
    """Torch itself may load some of them."""
    return loaded_after("import torch")


@pytest.mark.parametrize(
    "statement", ["import batchcam_captum.functional", "from batchcam_captum import functional"]
)
def test_functional_needs_torch_alone(statement, with_torch):
    loaded = loaded_after(statement)
    assert "torch" in loaded
    assert not (loaded - with_torch) & set(HEAVY)


def test_package_itself_loads_nothing():
    assert not loaded_after("import batchcam_captum; batchcam_captum.__version__; dir(batchcam_captum)") & {
        "torch",
        *HEAVY,
    }


@pytest.mark.parametrize("name", batchcam_captum.__all__)
def test_public_names_resolve(name):
    assert getattr(batchcam_captum, name) is not None
    assert name in dir(batchcam_captum)


def test_version_is_that_of_the_distribution():
    assert batchcam_captum.__version__ == version("batchcam-captum")


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'batchcam_captum' has no attribute 'GradCam'"):
        _ = batchcam_captum.GradCam


#: What each part of the package may import from the others. The parts not named here are the upper floors.
MAY_IMPORT = {
    "functional": {"functional"},
    "batches": {"batches"},
    "files": {"files"},
    "optional": {"optional"},
    "lazy": {"lazy"},
    "warn": {"warn"},
    "environment": {"environment", "__version__"},
    "datasets": {"datasets", "files", "optional"},
    "distributed": {"distributed"},
    "attribution": {"attribution", "functional", "warn"},
    "prototypes": {"prototypes", "functional", "batches", "files", "distributed", "optional", "warn"},
    "losses": {"losses", "functional", "prototypes", "distributed"},
    "loading": {"loading", "attribution", "functional", "files", "environment", "optional", "warn"},
    "interop": {"interop", "attribution", "functional", "files", "environment", "loading", "optional"}
    | {"warn"},
    "evaluation": {
        "evaluation",
        "prototypes",
        "attribution",
        "functional",
        "batches",
        "files",
        "lazy",
        "optional",
        "warn",
    },
    "explain": {"explain", "attribution", "prototypes", "functional"}
    | {"distributed", "files", "environment", "lazy", "loading", "optional"},
    "training": {"training", "losses", "prototypes", "attribution", "functional", "distributed", "warn"},
}


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in the file, except for type checkers only."""
    module = ("batchcam_captum", *path.relative_to(PACKAGE).with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module[: -node.level]) + "." if node.level else ""
            if node.module:
                names.add(base + node.module)
            else:  # from . import name
                names |= {base + alias.name for alias in node.names}
    return names


FILES = {
    path.relative_to(PACKAGE).as_posix(): path
    for part in MAY_IMPORT
    for path in (
        [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else (PACKAGE / part).rglob("*.py")
    )
}


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_floors_are_imported_downwards_only(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    own = {name.split(".")[1] for name in imports_of(path) if name.startswith("batchcam_captum.")}
    assert own <= MAY_IMPORT[part]


@pytest.mark.parametrize(
    "path", [p for name, p in FILES.items() if name.startswith("functional/")], ids=lambda p: p.name
)
def test_functional_imports_torch_the_standard_library_and_itself(path):
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert tops <= {"torch", "batchcam_captum", *sys.stdlib_module_names}


def test_captum_is_imported_in_one_place():
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "captum" for name in imports_of(path))
    }
    assert importers == {"attribution/_captum.py"}

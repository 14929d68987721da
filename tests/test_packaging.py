"""The wheel: what is in it, and that it imports where nothing else of the project is."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import batchcam_captum

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"batchcam_captum-{batchcam_captum.__version__}-py3-none-any")
    assert "batchcam_captum/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "batchcam_captum",
        f"batchcam_captum-{batchcam_captum.__version__}.dist-info",
    }
    assert {name for name in names if name.startswith("batchcam_captum/")} == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "batchcam_captum").rglob("*")
        if path.suffix in (".py", ".typed") and "__pycache__" not in path.parts
    }


def test_unpacked_wheel_imports_and_resolves_every_public_name(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import batchcam_captum as b; [getattr(b, n) for n in b.__all__]; "
        "from batchcam_captum.cli import main; print(b.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_version_stands_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{batchcam_captum.__version__}]" in text


def test_ci_calls_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_core_dependencies_are_the_promised_ones():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {requirement.split(">")[0] for requirement in project["dependencies"]} == {
        "torch",
        "captum",
        "tqdm",
    }

"""The archives of a release, the wheel installed where nothing else of the project is, and the commands that install."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from fnmatch import fnmatch
from pathlib import Path

import pytest

import batchcam_captum

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Wheel and source archive, built as the release checklist says, but with the tools of this environment."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(archives):
    return archives[0]


@pytest.fixture(scope="module")
def sdist(archives, tmp_path_factory):
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(archives[1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"batchcam_captum-{batchcam_captum.__version__}"


def test_twine_accepts_both_archives_of_this_version(archives):
    version = batchcam_captum.__version__
    assert [path.name for path in archives] == [
        f"batchcam_captum-{version}-py3-none-any.whl",
        f"batchcam_captum-{version}.tar.gz",
    ]
    assert sum(path.stat().st_size for path in archives) < 20e6
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_pypi_shows_the_readme_with_whole_addresses(wheel):
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    shown = message_from_string(zipfile.ZipFile(wheel).read(name).decode("utf-8")).get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"", shown)
    targets = [first or second for first, second in targets]
    assert len(targets) > 3
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    at = rf"{re.escape(PROJECT['urls']['Source'])}/(blob|raw)/{re.escape(f'v{batchcam_captum.__version__}')}/"
    for kind, path in re.findall(rf"{at}([\w./-]+)", shown):
        assert (ROOT / path).is_file()
        assert (kind == "raw") == path.endswith((".png", ".svg", ".jpg", ".gif")), path
    assert re.sub(at, "", shown).strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "batchcam_captum/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "batchcam_captum",
        f"batchcam_captum-{batchcam_captum.__version__}.dist-info",
    }
    assert {name for name in names if name.startswith("batchcam_captum/")} == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "batchcam_captum").rglob("*")
        if path.suffix in (".py", ".typed", ".html", ".css", ".js") and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new virtual environment with the wheel, and where its programs lie; only the dependencies come from this one."""
    folder = tmp_path_factory.mktemp("venv").resolve()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run(
        [programs / "python", "-I", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    # After the installation, or pip would find the project installed already. Folders named in a .pth file come last in the
    # search, and .pth files in them are not read: the editable installation there stays out.
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([programs / "python", "-c", code], check=True, capture_output=True, text=True)
    Path(own.stdout.strip(), "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder, programs


def test_installed_wheel_gives_the_command(installed):
    _, programs = installed
    done = subprocess.run([programs / "batchcam", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"batchcam-captum {batchcam_captum.__version__}"


def test_installed_wheel_resolves_every_public_name_without_a_warning(installed):
    folder, programs = installed
    code = (
        "import importlib, pkgutil, batchcam_captum as b\n"
        "for module in [b, *(importlib.import_module(m.name) for m in pkgutil.walk_packages(b.__path__, 'batchcam_captum.')\n"
        "                    if not m.name.endswith('__main__'))]:\n"
        "    for name in getattr(module, '__all__', []):\n"
        "        getattr(module, name)\n"
        "print(b.__file__)"
    )
    done = subprocess.run(
        [programs / "python", "-I", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(folder)


def test_sdist_holds_what_the_tests_read(sdist):
    made = [
        line for line in (ROOT / ".gitignore").read_text().split() if "/" in line.rstrip("/")
    ]  # by builds
    expected = {
        path.relative_to(ROOT)
        for folder in ("batchcam_captum", "tests", "benchmarks", "docs", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = {path for path in expected if not any(fnmatch(f"{path}/", f"{each}*") for each in made)}
    expected |= {Path(name) for name in ("Makefile", "LICENSE", "CITATION.cff", "pyproject.toml")}
    expected |= {Path(f"{name}.md") for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")}
    assert not {str(path) for path in expected if not (sdist / path).is_file()}


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As from a new shell: what a make around the tests hands down is left out."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@needs_make
@pytest.mark.parametrize(("command", "extras"), [("demo", ["demo"]), ("test", ["demo", "test"])])
def test_make_installs_no_more_than_the_command_needs(tmp_path, command, extras):
    printed = make("--dry-run", command, f"VENV={tmp_path}").stdout
    assert re.findall(r"--editable '\.\[(\w+)\]'", printed) == extras


@needs_make
def test_make_installs_once_and_again_for_the_tests_and_after_a_change(tmp_path):
    (tmp_path / ".installed-demo").touch()
    assert "pip install" not in make("--dry-run", "demo", f"VENV={tmp_path}").stdout
    assert re.findall(r"\[(\w+)\]'", make("--dry-run", "test", f"VENV={tmp_path}").stdout) == ["test"]
    (tmp_path / ".installed-test").touch()
    assert "pip install" not in make("--dry-run", "test", f"VENV={tmp_path}").stdout
    printed = make("--dry-run", "--assume-new=pyproject.toml", "test", f"VENV={tmp_path}").stdout
    assert re.findall(r"\[(\w+)\]'", printed) == ["demo", "test"]


@needs_make
def test_make_leaves_no_stamp_of_an_installation_that_failed(tmp_path):
    """The folder has a python that cannot install anything."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(shutil.which("false"))
    assert make("unit", f"VENV={tmp_path}", "PYTHON=true").returncode != 0
    assert not list(tmp_path.glob(".installed*"))
    (tmp_path / ".installed-demo").touch()
    assert make("unit", f"VENV={tmp_path}", "PYTHON=true").returncode != 0
    assert [path.name for path in tmp_path.glob(".installed*")] == [".installed-demo"]


def test_ci_calls_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_core_dependencies_are_the_promised_ones():
    assert {requirement.split(">")[0] for requirement in PROJECT["dependencies"]} == {
        "torch",
        "captum",
        "tqdm",
    }

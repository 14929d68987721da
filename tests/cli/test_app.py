"""The commands as a whole: help, wrong use, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from batchcam_captum import __version__
from batchcam_captum.cli import main
from batchcam_captum.cli.app import Terminated, sigterm_raises

COMMANDS = ("compare", "demo", "diagnose", "explain", "report")


def test_help_is_plain_and_loads_no_torch():
    code = (
        "import sys; from batchcam_captum.cli import main; status = main(['--help']);"
        "sys.exit(status or 'torch' in sys.modules or 'numpy' in sys.modules)"
    )
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout


def test_module_can_be_run():
    command = [sys.executable, "-m", "batchcam_captum", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"batchcam-captum {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["paint"], "paint"),
        (["report"], "STORE"),
        (["report", "store", "--color", "red"], "--color"),
        (["report", "store", "--pictures", "-1"], "--pictures"),
        (["demo", "--data", "cifar"], "--data"),
        (["demo", "--seeds", "0,x"], "--seeds"),
        (["explain", "model", "--data", "d", "--output", ""], "--output"),
        (["explain", "model", "--data", "d", "--output", "o", "--targets", "best"], "--targets"),
        (["diagnose", "model"], "--data"),
        (["diagnose", "model", "--data", "d", "--batch-size", "0"], "--batch-size"),
        (["compare", "model", "--repeats", "0"], "--repeats"),
        (["compare", "model", "--size", "8,x"], "--size"),
    ],
)
def test_wrong_use_ends_with_2_and_names_the_argument(capsys, arguments, named):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert named in error.splitlines()[-1]
    assert error.startswith("Usage: batchcam")


def test_without_typer_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "batchcam_captum.cli.app")
    assert main(["--help"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'batchcam-captum[demo]'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (ValueError("seeds: two\nlines"), 1, "seeds: two lines"),
        (OSError(28, "No space left on device", "a\x1b[2Jb"), 1, r"a\x1b[2Jb: No space left on device"),
        (ModuleNotFoundError("No module named 'sklearn'", name="sklearn"), 1, "batchcam-captum[demo]"),
        (ModuleNotFoundError("install it", name="sklearn"), 1, "install it"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated("2 images stay"), 143, "terminated; 2 images stay"),
    ],
)
def test_errors_end_in_one_line_and_a_status(capsys, monkeypatch, raised, status, line):
    def run_demo(settings):
        raise raised

    monkeypatch.setattr("batchcam_captum.demo.run_demo", run_demo)
    assert main(["demo"]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("batchcam: ")
    assert printed.err.endswith(f"{line}'\n") or printed.err.endswith(f"{line}\n")
    assert printed.err.count("\n") == 1


def test_an_error_after_sigterm_is_its_consequence():
    def worker_ends():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    with pytest.raises(Terminated), sigterm_raises():
        worker_ends()
    with pytest.raises(RuntimeError, match="of its own"), sigterm_raises():
        raise RuntimeError("of its own")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

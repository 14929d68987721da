"""The commands of the pages: taken apart, held against what there is, and run where that is cheap."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from batchcam_captum.cli import _parser, main
from tests.docs import names
from tests.docs.pages import ROOT, Block

#: Programs that are not of this project, whose arguments are not looked at.
OTHERS = {"cd", "git", "pre-commit", "twine"}
_MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


class CommandError(AssertionError):
    """A command that would not be understood."""


def lines(block: Block) -> Iterator[list[str]]:
    """A block's commands, comments left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def check(words: list[str]) -> None:
    """See that there is what a command names.

    Raises:
        CommandError: there is not.
    """
    program, rest = Path(words[0]).name, words[1:]
    if program == "batchcam":
        _check_batchcam(rest)
    elif program == "torchrun":
        if rest[rest.index("-m") + 1] != "batchcam_captum":
            raise CommandError(f"expected -m batchcam_captum, got {words}")
        _check_batchcam(rest[rest.index("-m") + 2 :])
    elif program == "make":
        for word in rest:
            pattern = rf"^{word.split('=')[0]} *\?=" if "=" in word else rf"^{word}:"
            if not re.search(pattern, _MAKEFILE, re.MULTILINE):
                raise CommandError(f"expected {word} in the Makefile")
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            if not set(extra.split(",")) <= set(_EXTRAS):
                raise CommandError(f"expected extras of pyproject.toml, got {extra}")
    elif program in ("python", "python3"):
        _check_script(rest)
    elif program not in OTHERS:
        raise CommandError(f"expected a program that is known here, got {program}")


def _check_batchcam(rest: list[str]) -> argparse.Namespace | None:
    if "…" in rest or rest[1:] in ([], ["MODEL"]):  # a part of a command, which cannot be parsed whole
        given = {word for word in rest if word.startswith("-")}
        if rest[0] not in names.commands() or not given <= names.options():
            raise CommandError(f"expected a command and its options, got {rest}")
        return None
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return _parser().parse_args(rest)
    except SystemExit:
        raise CommandError(message.getvalue()) from None


def _check_script(rest: list[str]) -> None:
    if rest[0] == "-m":
        if find_spec(rest[1]) is None:
            raise CommandError(f"expected a module, got {rest[1]}")
        folder = ROOT / rest[1].split(".")[0]
    else:
        if not (ROOT / rest[0]).is_file():
            raise CommandError(f"expected a file, got {rest[0]}")
        folder = (ROOT / rest[0]).parent
    if folder != ROOT / "benchmarks":
        return
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    for word in rest:
        if word.startswith("--") and f'"{word}"' not in source:
            raise CommandError(f"expected an option that a script in {folder} has, got {word}")


def run(block: Block) -> int:
    """Run the commands whose input the page's code has made.

    Returns:
        How many these are.

    Raises:
        CommandError: one ends with another status than 0.
    """
    done = 0
    for words in lines(block):
        if words[0] != "batchcam":
            continue
        options = _check_batchcam(words[1:])
        if options is None or options.command != "report" or not Path(options.store).exists():
            continue
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = main(words[1:])
        if status != 0:
            raise CommandError(f"{block.where}: {' '.join(words)}: {errors.getvalue()}")
        done += 1
    return done

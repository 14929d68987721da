"""No public name, parameter or option comes, goes or changes by accident."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import pytest

from batchcam_captum import functional, training
from batchcam_captum.cli import explain
from batchcam_captum.demo import DemoSettings
from batchcam_captum.functional import DISTANCES, maps
from tests.public_names import FILE, INDEX, commands, inventory, packages


def changes() -> list[str]:
    """What is not as in the committed file: - the line there, + the line now."""
    then = FILE.read_text(encoding="utf-8").splitlines()
    return [
        line
        for line in difflib.unified_diff(then, inventory(), n=0, lineterm="")
        if line[:2] not in ("--", "++", "@@")
    ]


def test_public_names_are_those_of_the_committed_inventory():
    found = changes()
    assert not found, "\n".join(
        ["if this is meant, run `python -m tests.public_names` and tell users in CHANGELOG.md:", *found]
    )


def test_inventory_has_every_public_package_and_nothing_that_differs_from_run_to_run():
    text = FILE.read_text(encoding="utf-8")
    assert len(packages()) == INDEX.read_text(encoding="utf-8").count("\n   batchcam_captum.") + 1 > 10
    assert all(f"{package}." in text for package in packages())
    assert " at 0x" not in text
    assert "<" not in text


def test_another_default_is_seen(monkeypatch):
    def rectify(cams, floor=0.5):
        return cams.clamp(min=floor)

    monkeypatch.setattr(functional, "rectify", rectify)
    assert changes() == [
        "-batchcam_captum.functional.rectify function (cams: Tensor) -> Tensor",
        "+batchcam_captum.functional.rectify function (cams, floor = 0.5)",
    ]


def test_a_name_that_is_gone_is_seen_and_its_other_home_too(monkeypatch):
    names = [name for name in training.__all__ if name != "Cosine"]
    monkeypatch.setattr(training, "__all__", names)
    assert {line.split()[0] for line in changes()} == {
        "-batchcam_captum.training.Cosine",
        "-batchcam_captum.training.Cosine.__call__",
    }


def test_a_method_that_is_gone_is_seen(monkeypatch):
    monkeypatch.delattr(training.CamRegularizer, "evaluate")
    (line,) = changes()
    assert line.startswith("-batchcam_captum.training.CamRegularizer.evaluate method (images: Tensor")


def test_a_new_option_is_seen(monkeypatch):
    add = explain.add

    def with_another(commands):
        add(commands)
        commands.choices["explain"].add_argument("--shuffle", action="store_true")

    monkeypatch.setattr(explain, "add", with_another)
    assert changes() == ["+batchcam explain --shuffle"]


def test_what_a_user_registers_is_no_name_of_the_package(monkeypatch):
    monkeypatch.setitem(
        DISTANCES._entries, "largest", lambda cams, maps: (cams - maps).abs().flatten(1).amax(1)
    )
    assert not changes()


def test_another_weight_in_a_recipe_is_seen(monkeypatch):
    changed = {"shape": replace(training.RECIPES["shape"]["shape"], weight=2.0)}
    monkeypatch.setitem(training.RECIPES._entries, "shape", changed)
    gone, new = changes()
    assert gone.startswith("-batchcam_captum.training.RECIPES['shape'] entry {'shape': Ingredient(")
    assert new == gone.replace("-", "+", 1).replace("weight=1.0", "weight=2.0") != gone


def test_another_constant_is_seen(monkeypatch):
    monkeypatch.setattr(maps, "DEAD_TOLERANCE", 0.01)
    assert changes() == [
        "-batchcam_captum.functional.maps.DEAD_TOLERANCE constant 0.001",
        "+batchcam_captum.functional.maps.DEAD_TOLERANCE constant 0.01",
    ]


@pytest.mark.parametrize("option", ["--epochs", "--batch-size"])
def test_the_demos_help_says_what_is_taken_otherwise(option):
    digits, others = (
        DemoSettings(Path(), data).recipe[option == "--batch-size"] for data in ("digits", "mnist")
    )
    (line,) = (line for line in commands() if line.startswith(f"batchcam demo {option} "))
    assert line.endswith(f", otherwise {digits} for the digits, else {others}")

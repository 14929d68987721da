"""Runs all checks for several ranks in one process group of two: one test for each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.group import checks_of, run_checks

#: All files of checks in this folder, and one of another.
MODULES = [
    *(f"tests.distributed.{path.stem}" for path in sorted(Path(__file__).parent.glob("checks_*.py"))),
    "tests.training.checks_lightning",
]
KEYS = [key for key, *_ in checks_of(MODULES)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp("ranks"), *MODULES)


@pytest.mark.parametrize("key", KEYS, ids=["-".join((key[0].rpartition(".")[2], key[1])) for key in KEYS])
def test_ranks(outcomes, key):
    assert not outcomes[key], outcomes[key]

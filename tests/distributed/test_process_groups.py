"""Runs the checks of this folder in process groups of two: one test for each of them."""

from __future__ import annotations

import importlib

import pytest

from tests.distributed.group import run_checks

MODULES = [f"tests.distributed.checks_{what}" for what in ("losses", "prototypes", "split", "training")]
NAMES = [(module, name) for module in MODULES for name in importlib.import_module(module).CHECKS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs a module's checks where the first of them is asked for."""
    found = {}

    def of(module):
        if module not in found:
            found[module] = run_checks(tmp_path_factory.mktemp("ranks"), module)
        return found[module]

    return of


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[name for _, name in NAMES])
def test_ranks(outcomes, module, name):
    failed = outcomes(module)[name]
    assert not failed, failed

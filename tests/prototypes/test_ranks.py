"""Prototypes in a real process group of two: one test for each of the checks."""

from __future__ import annotations

import pytest

from tests.distributed.group import run_checks
from tests.prototypes.checks_ranks import CHECKS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp("ranks"), "tests.prototypes.checks_ranks")


@pytest.mark.parametrize("name", list(CHECKS))
def test_ranks(outcomes, name):
    assert not outcomes[name], outcomes[name]

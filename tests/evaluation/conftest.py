"""What the tests of faithfulness share."""

from __future__ import annotations

import pytest

from .networks import Case


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()

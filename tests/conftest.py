"""What every test relies on: a fixed seed, and one thread, so that results do not depend on the machine's cores."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)

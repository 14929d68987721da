"""What every test relies on: a fixed seed, and one thread, so that results do not depend on the machine's cores."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    # torch.manual_seed would also note, for each kind of accelerator that is not there, the stack of this call for later: a
    # millisecond, and memory that is never given back, before each of thousands of tests.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)

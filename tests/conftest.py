"""What every test relies on: a fixed seed, one thread, and, where ``BATCHCAM_REQUIRE_TOOLS=1``, that nothing is missing.

Without it a test whose tool or library is not installed is skipped. Continuous integration sets it, and the test fails.
"""

from __future__ import annotations

import os
import re
from typing import Any

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


def _fail_if_skipped(report: Any) -> Any:
    if os.environ.get("BATCHCAM_REQUIRE_TOOLS") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not re.search("CUDA|GPU|NCCL", reason):
            report.outcome = "failed"
            report.longrepr = f"BATCHCAM_REQUIRE_TOOLS=1: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _fail_if_skipped((yield))

"""Checks of values: at once on the CPU, accumulated elsewhere."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum.functional import ValueChecks, class_weights


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, and counts how often its value is looked at."""

    looks = 0

    @property
    def device(self):
        return torch.device("cuda", 0)

    def to(self, *_):
        return self

    def __bool__(self):
        type(self).looks += 1
        return bool(self.as_subclass(torch.Tensor))


def elsewhere(*values):
    return torch.tensor(values).as_subclass(Elsewhere)


@pytest.fixture(autouse=True)
def _no_looks():
    Elsewhere.looks = 0


def test_cpu_raises_at_once_and_says_what_came():
    checks = ValueChecks()
    checks.require(torch.tensor([True, True]), "fine")
    with pytest.raises(ValueError, match=r"^wrong \(found 3\)$"):
        checks.require(torch.tensor([True, False]), "wrong", lambda: "found 3")
    with pytest.raises(ValueError, match=r"^wrong$"):
        checks.require(torch.tensor(False), "wrong")
    checks.raise_failed()


def test_elsewhere_outcomes_accumulate_without_a_look_until_they_are_asked_for():
    checks = ValueChecks()
    checks.require(elsewhere(True, False), "first", lambda: pytest.fail("would wait for the device"))
    checks.require(elsewhere(True, True), "first")  # a later batch that holds hides nothing
    checks.require(elsewhere(True), "second")
    checks.require(elsewhere(False), "third")
    assert Elsewhere.looks == 0
    with pytest.raises(ValueError, match=r"^first; third \(in a batch since the last check\)$"):
        checks.raise_failed()
    checks.raise_failed()


def test_memory_does_not_grow_with_the_batches():
    checks = ValueChecks()
    for _ in range(100):
        checks.require(elsewhere(True), "same")
    assert len(checks._failed) == 1
    assert Elsewhere.looks == 0
    checks.raise_failed()


def test_synchronize_looks_at_once_everywhere():
    with pytest.raises(ValueError, match=r"wrong \(found 3\)"):
        ValueChecks(synchronize=True).require(elsewhere(False), "wrong", lambda: "found 3")


def test_labels_on_a_device_without_values_pass():
    checks = ValueChecks()
    belongs = class_weights(torch.zeros(3, dtype=torch.long, device="meta"), 4, checks=checks)
    assert belongs.weights.shape == (3, 4)
    assert len(checks._failed) == 1

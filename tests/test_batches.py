"""The loop over a data set: what it yields, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum.batches import batches

IMAGES, LABELS = torch.rand(10, 1, 4, 4), torch.arange(10)


@pytest.mark.parametrize("progress", [True, False])
def test_shuffled_batches_leave_the_random_state_unchanged(progress):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True)
    state, found = torch.get_rng_state(), []
    for images, labels in batches(loader, progress=progress):
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)  # the caller's own draws go on from its own state
        state = torch.get_rng_state()
        assert_close(images, IMAGES[labels])
        found += labels.tolist()
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(found) == list(range(10))


def test_every_pass_draws_as_the_loader_would():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5, shuffle=True)
    torch.manual_seed(3)
    expected = [labels for _, labels in loader]
    torch.manual_seed(3)
    assert_close([labels for _, labels in batches(loader)], expected)


def test_moves_batches_and_ignores_further_entries():
    ((images, labels),) = batches([[IMAGES, LABELS, "names"]], "meta")
    assert images.device.type == labels.device.type == "meta"


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), {"images": IMAGES, "labels": LABELS}])
def test_other_batches_raise(batch):
    with pytest.raises(TypeError, match="loader"):
        next(batches([batch]))

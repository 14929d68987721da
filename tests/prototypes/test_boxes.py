"""boxes_to_masks: against counting points, areas, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum.functional import ValueChecks
from batchcam_captum.prototypes import boxes_to_masks
from tests import reference_prototypes

#: On a grid of half a pixel of an image of 12×18, which is a sixth of a pixel of a mask of 4×6.
BOXES = {
    "none": [],
    "one": [(1.5, 2, 7, 9.5)],
    "inside one pixel": [(3.5, 0.5, 5, 2)],
    "overlapping": [(0, 0, 6.5, 5), (4, 3.5, 11, 9), (5, 4, 6, 5)],
    "apart": [(0, 0, 1, 1), (16.5, 10.5, 18, 12), (8, 0, 9, 12)],
    "over the edge": [(-4, -3, 2, 2), (15, 9, 40, 30), (30, 30, 35, 35)],
    "without an area": [(3, 3, 3, 9), (4, 4, 8, 4)],
    "everything": [(0, 0, 18, 12), (2, 2, 3, 3)],
}


@pytest.mark.parametrize("size", [(12, 18), (4, 6), (24, 36)], ids=["image", "cam", "larger"])
def test_shares_equal_counting_points(size):
    masks = boxes_to_masks([torch.tensor(b).reshape(-1, 4) for b in BOXES.values()], (12, 18), size)
    assert masks.shape == (len(BOXES), 1, *size)
    for mask, boxes in zip(masks, BOXES.values(), strict=True):
        expected = reference_prototypes.box_mask(boxes, (12, 18), size, fine=6)
        assert_close(mask[0].double(), expected, rtol=0, atol=1e-6)


def test_one_box_per_sample_and_integer_boxes():
    boxes = torch.tensor([[1, 2, 7, 9], [0, 0, 18, 12], [5, 5, 5, 5]])
    masks = boxes_to_masks(boxes, (12, 18), (5, 7))
    assert masks.dtype == torch.float32
    assert torch.equal(masks, boxes_to_masks(list(boxes.unsqueeze(1)), (12, 18), (5, 7)))
    assert torch.equal(masks, boxes_to_masks(boxes.unsqueeze(1), (12, 18), (5, 7)))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (50, 31)])
def test_area_is_exact_at_every_size(size):
    corners = torch.rand(20, 2, 2, dtype=torch.float64).sort(1).values * torch.tensor([33.0, 21.0])
    boxes = corners.flatten(1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (33 * 21)
    assert_close(boxes_to_masks(boxes, (21, 33), size).mean((1, 2, 3)), areas, rtol=1e-12, atol=1e-13)


def test_small_mask_is_the_full_one_averaged():
    boxes = torch.rand(5, 3, 2, 2).sort(2).values.flatten(2) * 28
    full, small = (boxes_to_masks(boxes, (28, 28), size) for size in ((28, 28), (7, 7)))
    assert_close(F.avg_pool2d(full, 4), small, rtol=1e-5, atol=1e-6)


def test_no_samples_and_no_boxes():
    assert boxes_to_masks([], (8, 8)).shape == (0, 1, 8, 8)
    assert boxes_to_masks(torch.zeros(0, 4), (8, 8)).shape == (0, 1, 8, 8)
    assert not boxes_to_masks(torch.zeros(2, 0, 4), (8, 8)).any()


BAD = {
    "shape": (torch.rand(2, 5), (8, 8), ValueError, r"boxes.*\(2, 5\)"),
    "shape in a list": ([torch.rand(4)], (8, 8), ValueError, r"boxes.*\(4,\)"),
    "no tensor": ([[1, 2, 3, 4]], (8, 8), TypeError, "boxes"),
    "width and height": (torch.tensor([[5.0, 5, 3, 3]]), (8, 8), ValueError, "boxes.*x1 <= x2"),
    "nan": (torch.tensor([[0.0, 0, torch.nan, 3]]), (8, 8), ValueError, "boxes.*finite"),
    "image size": (torch.rand(2, 4), (8,), ValueError, "image_size"),
}


@pytest.mark.parametrize(("boxes", "image_size", "kind", "text"), BAD.values(), ids=BAD)
def test_bad_boxes(boxes, image_size, kind, text):
    with pytest.raises(kind, match=text):
        boxes_to_masks(boxes, image_size)


def test_value_checks_can_be_deferred():
    noted = []

    class Checks(ValueChecks):
        def require(self, holds, message, detail=None):
            noted.append(bool(holds.all()))

    boxes_to_masks(torch.tensor([[5.0, 5, 3, 3]]), (8, 8), checks=Checks())
    assert noted == [False]

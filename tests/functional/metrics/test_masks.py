"""Whether cams lie where masks say."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from skimage.transform import resize as skimage_resize
from sklearn.metrics import jaccard_score
from torch.testing import assert_close

from batchcam_captum.functional import (
    energy_in_mask,
    mask_iou,
    pointing_game,
    rank_accuracy,
    shortcut_share,
    wrong_reason,
)

METRICS = [energy_in_mask, wrong_reason, pointing_game, mask_iou, rank_accuracy]


@pytest.fixture
def case():
    """Signed cams of a layer, and masks of twice their size."""
    masks = torch.zeros(6, 1, 14, 14)
    for i, mask in enumerate(masks):
        mask[0, i : i + 6, 3 : 12 - i] = 1
    return torch.randn(6, 1, 7, 7), masks


def enlarged(cam, size):
    """relu(C) / max, resized by scikit-image, as float64 NumPy."""
    a = cam[0].clamp(min=0).double().numpy()
    return skimage_resize(a / a.max(), size, order=1, mode="edge", anti_aliasing=False)


def test_energy_iou_and_rank_against_numpy_scikit_image_and_scikit_learn(case):
    cams, masks = case
    energy, iou, rank = [], [], []
    for cam, mask in zip(cams, masks, strict=True):
        a, m = enlarged(cam, (14, 14)), mask[0].numpy() > 0
        energy.append(a[m].sum() / a.sum())
        unit = (a - a.min()) / (a.max() - a.min())
        iou.append(jaccard_score(m.ravel(), (unit > 0.3).ravel()))
        highest = np.argsort(-a.ravel())[: m.sum()]
        rank.append(m.ravel()[highest].mean())
    assert_close(energy_in_mask(cams, masks), torch.tensor(energy), check_dtype=False)
    assert_close(wrong_reason(cams, masks.bool()), 1 - torch.tensor(energy), check_dtype=False)
    assert_close(mask_iou(cams, masks, threshold=0.3), torch.tensor(iou), check_dtype=False)
    # Two pixels that are equal but for rounding may change places.
    assert_close(rank_accuracy(cams, masks), torch.tensor(rank), atol=0.03, rtol=0, check_dtype=False)


def test_pointing_game_against_numpy(case):
    cams, masks = case
    expected = []
    for cam, mask in zip(cams, masks, strict=True):
        a = enlarged(cam, (14, 14))
        expected.append(mask[0].numpy()[a > a.max() - 1e-9].mean())
    assert_close(pointing_game(cams, masks), torch.tensor(expected), check_dtype=False)
    assert 0 < sum(expected) < 6


def test_ties_count_in_part():
    cams = torch.tensor([[3.0, 1, 1, 1, 0, -2]])[None]
    masks = torch.tensor([[1.0, 0, 1, 0, 1, 0]])[None]
    orders = [sum(i in (0, 2, 4) for i in (0, *order[:2])) / 3 for order in permutations((1, 2, 3))]
    assert_close(rank_accuracy(cams, masks), torch.tensor([np.mean(orders)]), check_dtype=False)
    assert_close(pointing_game(cams.clamp(max=1), masks), torch.tensor([0.5]))


def test_a_flat_map_gets_what_chance_would(case):
    _, masks = case
    flat, area = torch.full((6, 1, 7, 7), 0.2), masks.mean((1, 2, 3))
    for metric in (energy_in_mask, pointing_game, rank_accuracy):
        assert_close(metric(flat, masks), area)
    assert_close(shortcut_share(flat, masks).lift, torch.ones(6))
    assert mask_iou(flat, masks).tolist() == [0] * 6


def test_dead_cams_get_the_worst_value_and_empty_masks_none(case):
    _, masks = case
    masks[4] = 0
    for cams in (torch.zeros(6, 1, 7, 7), -torch.rand(6, 1, 7, 7)):
        for metric in METRICS:
            worst = 1.0 if metric is wrong_reason else 0.0
            expected = torch.full((6,), worst).masked_fill(torch.arange(6) == 4, torch.nan)
            assert_close(metric(cams, masks), expected, equal_nan=True, rtol=0, atol=0)
        share, area = shortcut_share(cams, masks)
        assert_close(share, area, equal_nan=True)
        assert area.isnan().tolist() == [i == 4 for i in range(6)]


def test_shortcut_share():
    cams = torch.tensor([[4.0, 0, -3, 0, 1, 0, 0, 0]])[None]
    shortcuts = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]])[None]
    shared = shortcut_share(cams, shortcuts)
    assert_close([*shared, shared.lift], [torch.tensor([0.8]), torch.tensor([0.25]), torch.tensor([3.2])])


def test_a_map_that_is_gone_after_resizing_counts_as_dead():
    cams, masks = torch.zeros(1, 1, 8, 4, 4), torch.ones(1, 1, 2, 8, 8)
    cams[0, 0, 0] = 1  # linear interpolation to two planes looks at planes 1, 2, 5 and 6
    assert energy_in_mask(cams, masks).tolist() == [0]
    assert rank_accuracy(cams, masks).tolist() == [0]


def test_half_types_inference_and_cams_that_are_not_finite(case):
    cams, masks = case
    cams = cams.bfloat16()
    for metric in METRICS:
        expected = metric(cams.float(), masks)
        with torch.inference_mode():
            assert_close(
                metric(cams.clone().requires_grad_(), masks.to(torch.uint8)), expected, rtol=0, atol=0
            )
        spoilt = cams.clone()
        spoilt[2] = torch.nan
        with pytest.raises(ValueError, match=r"cams.*\[2\]"):
            metric(spoilt, masks)


@pytest.mark.parametrize(
    ("metric", "options", "error", "name"),
    [
        (energy_in_mask, {"masks": torch.full((6, 1, 14, 14), 255.0)}, ValueError, "masks"),
        (rank_accuracy, {"masks": torch.ones(6, 14, 14)}, ValueError, "masks"),
        (mask_iou, {"threshold": 1}, ValueError, "threshold"),
        (mask_iou, {"threshold": "half"}, TypeError, "threshold"),
    ],
)
def test_bad_masks_and_options(case, metric, options, error, name):
    cams, masks = case
    with pytest.raises(error, match=name):
        metric(cams, **{"masks": masks} | options)

"""MaskPrototypes: own and mean masks against loops, samples without a mask, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, ImageLoss, MaskPrototypes, PrototypeContrastiveLoss, PrototypeLoss
from tests import reference, reference_prototypes

K = 4
LABELS = torch.tensor([0, 1, 1, 3, -100, 0])


def masks_of(n=6, size=(10, 12)):
    return (torch.rand(n, 1, *size) > 0.6).float()


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_class_maps_are_the_mean_masks_of_the_batch(labels, weighted):
    labels = LABELS if labels == "hard" else torch.rand(6, K) * torch.tensor([1, 1, 0, 1])
    masks = masks_of()
    weights = torch.rand(6) if weighted else None
    result, maps, seen = MaskPrototypes(K).references(
        labels, size=(5, 6), masks=masks, sample_weights=weights
    )
    pooled = F.avg_pool2d(masks, 2)
    importance = [1.0] * 6 if weights is None else weights.tolist()
    expected = reference_prototypes.mean_masks(pooled, reference.rows_of(labels, K), importance, K)
    assert_close(maps[:, 0].double(), expected, rtol=1e-5, atol=1e-6)
    assert seen.tolist() == [True, True, False, True]
    assert result is labels


def test_own_maps_are_the_masks():
    masks = masks_of()
    labels, maps, seen = MaskPrototypes(K).references(LABELS, size=(5, 6), masks=masks, per_sample=True)
    assert labels.tolist() == [0, 1, 2, 3, -100, 5]
    assert_close(maps[labels != -100], F.avg_pool2d(masks, 2)[labels != -100])
    assert not maps[4].any()
    assert seen.all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.float64])
def test_masks_of_any_type(dtype):
    masks = masks_of()
    expected = MaskPrototypes(K).references(LABELS, size=(5, 6), masks=masks)
    got = MaskPrototypes(K).references(LABELS, size=(5, 6), masks=masks.to(dtype))
    assert_close(got.maps.float(), expected.maps)


def test_prototype_loss_compares_each_cam_with_its_own_mask():
    cams, masks = torch.randn(6, 1, 5, 6, dtype=torch.float64), masks_of().double()
    loss = PrototypeLoss(MaskPrototypes(K), reduction="none", ignore_index=9)
    labels = LABELS.where(LABELS != -100, 9)
    masks[4] = torch.nan  # of the ignored sample
    values = loss(cams, labels, masks=masks)
    for i, (cam, mask) in enumerate(zip(cams[:, 0], masks[:, 0], strict=True)):
        target = reference.over_max(reference.resize(mask, (5, 6)))
        expected = torch.zeros(()) if i == 4 else reference.l1(reference.normalized(cam), target)
        assert_close(values[i].double(), expected.double())


def test_batch_cam_compares_mean_cams_with_mean_masks():
    cams, masks = torch.randn(6, 1, 5, 6, dtype=torch.float64), masks_of().double()
    means = reference_prototypes.mean_masks(
        F.avg_pool2d(masks, 2), reference.rows_of(LABELS, K), [1.0] * 6, K
    )
    slow = reference.reduced(reference.batch_cam_losses(cams, LABELS, means.unsqueeze(1)), "mean")
    assert_close(BatchCamLoss(MaskPrototypes(K))(cams, LABELS, masks=masks), slow)


def test_contrastive_loss_has_the_classes_of_the_batch():
    cams, masks = torch.randn(6, 1, 5, 6, dtype=torch.float64), masks_of().double()
    loss = PrototypeContrastiveLoss(MaskPrototypes(K), resolution="map")
    means = reference_prototypes.mean_masks(
        F.avg_pool2d(masks, 2), reference.rows_of(LABELS, K), [1.0] * 6, K
    )
    seen = torch.tensor([True, True, False, True])
    slow = reference.contrastive_losses(cams, LABELS, means.unsqueeze(1), resolution="map", seen=seen)
    assert_close(loss(cams, LABELS, masks=masks), reference.reduced(slow, "mean"))


@pytest.mark.parametrize("kind", [PrototypeLoss, BatchCamLoss, PrototypeContrastiveLoss])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_samples_without_a_mask_may_be_left_out(kind, labels):
    cams, masks = torch.randn(6, 1, 5, 6), masks_of()
    masks[[1, 3]] = 0
    labels = LABELS if labels == "hard" else torch.rand(6, K)
    rest = torch.tensor([0, 2, 4, 5])
    loss = kind(MaskPrototypes(K, skip_empty=True))
    expected = loss(cams[rest], labels[rest], masks=masks[rest])
    assert_close(loss(cams, labels, masks=masks), expected)
    with pytest.raises(ValueError, match=r"got an empty one; ignore the labels .*or pass skip_empty=True"):
        kind(MaskPrototypes(K))(cams, labels, masks=masks)


BAD = {
    "none": (None, r"expected masks \(N, 1, \*spatial\) for MaskPrototypes, got none; pass masks= to the loss"),
    "number": (torch.ones(5, 1, 10, 12), r"expected \(6, 1, 2 spatial dimensions\), got \(5, 1, 10, 12\)"),
    "channels": (torch.ones(6, 3, 10, 12), r"got \(6, 3, 10, 12\); pass one mask a sample"),
    "boxes": (torch.ones(6, 4), r"and boxes through boxes_to_masks\(\)"),
    "255": (255 * torch.ones(6, 1, 10, 12), "divide masks of 0 and 255 by 255"),
    "nan": (torch.full((6, 1, 10, 12), torch.nan), "expected values from 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize(("masks", "text"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("loss", [PrototypeLoss, BatchCamLoss])
def test_bad_masks(loss, masks, text):
    with pytest.raises(ValueError, match=text):
        loss(MaskPrototypes(K))(torch.randn(6, 1, 5, 6), LABELS, masks=masks)


def test_labels_are_checked_although_samples_are_compared_by_themselves():
    with pytest.raises(ValueError, match=r"indices from 0 to 3"):
        PrototypeLoss(MaskPrototypes(K))(torch.randn(1, 1, 5, 6), torch.tensor([K]), masks=masks_of(1))


def test_there_are_no_maps_without_a_batch():
    for ask in (lambda p: p.maps(), lambda p: p.seen):
        with pytest.raises(
            RuntimeError, match=r"whose maps come with each batch; call references\(labels, masks=masks\)"
        ):
            ask(MaskPrototypes(K))


def test_masks_and_images_that_are_no_tensors():
    cams, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(
        TypeError, match=r"masks: expected a tensor \(N, 1, \*spatial\), got list; pass torch.stack"
    ):
        PrototypeLoss(MaskPrototypes(2))(cams, labels, masks=list(torch.rand(2, 1, 4, 4)))
    with pytest.raises(
        TypeError, match=r"images: expected a tensor \(N, C, \*spatial\), got list; pass torch.stack"
    ):
        ImageLoss()(cams, labels, images=list(torch.rand(2, 3, 4, 4)))

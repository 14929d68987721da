"""Cases by hand, the bounds between losses, and what only one loss, or one group of them, refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    ConsistencyLoss,
    EnergyLoss,
    ForegroundLoss,
    ImageLoss,
    PrototypeLoss,
    SeparabilityLoss,
    functional,
)
from batchcam_captum.functional import (
    batch_cam_loss,
    class_means,
    class_weights,
    prototype_contrastive_loss,
    prototype_loss,
    resize,
)
from batchcam_captum.functional.losses.base import check_aspect
from tests.losses.family import MAKERS, WITH_MASKS

K = 4
LABELS = torch.tensor([0, 1, 1, 2])
CAMS = torch.rand(4, 1, 6, 8)


def some_dead(n):
    cams = torch.randn(n, 1, 5, 5, dtype=torch.float64)
    cams[::3] = -cams[::3].abs()
    return cams


def maps():
    return torch.rand(K, 1, 5, 5, dtype=torch.float64)


# Prototypes


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_batch_cam_equals_prototype_loss_with_one_image_per_class(distance, revive):
    options = {"distance": distance, "revive": revive, "reduction": "none"}
    cams, prototypes, labels = some_dead(K), maps(), torch.tensor([2, 0, 3, 1])
    by_class = batch_cam_loss(cams, labels, prototypes, **options)
    assert torch.equal(by_class[labels], prototype_loss(cams, labels, prototypes, **options))


@pytest.mark.parametrize("revive", [True, False], ids=["revive", "strict"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_batch_cam_is_at_most_the_class_balanced_mean_of_prototype_loss(distance, revive):
    for seed in range(5):
        torch.manual_seed(seed)
        cams, labels, prototypes = some_dead(20), torch.randint(K - 1, (20,)), maps()
        options = {"distance": distance, "revive": revive, "reduction": "none"}
        by_class = batch_cam_loss(cams, labels, prototypes, **options)
        by_sample = prototype_loss(cams, labels, prototypes, **options)
        balanced, counts = class_means(by_sample, class_weights(labels, K).weights)
        assert counts[-1] == by_class[-1] == 0
        assert (by_class <= balanced).all()
        assert (by_class < balanced).any()  # not vacuous


def smoothed(labels, num_classes, smoothing=0.1):
    return F.one_hot(labels, num_classes).double() * (1 - smoothing) + smoothing / num_classes


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_label_smoothing_hardly_turns_the_gradient_of_batch_cam(num_classes):
    cams = torch.randn(64, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    labels, prototypes = torch.randint(num_classes, (64,)), torch.rand(num_classes, 1, 5, 5).double()
    gradients = [
        torch.autograd.grad(batch_cam_loss(cams, given, prototypes), cams)[0].flatten()
        for given in (labels, smoothed(labels, num_classes))
    ]
    assert F.cosine_similarity(*gradients, dim=0) > 0.9


def test_a_class_of_less_than_one_image_counts_proportionally_less():
    cams, prototypes = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.rand(3, 1, 4, 4).double()
    soft = torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [1.0, 0, 0]], dtype=torch.float64)
    each = batch_cam_loss(cams, soft, prototypes, reduction="none", revive=False)
    mass = torch.tensor([1.0, 0.25, 0], dtype=torch.float64)
    assert_close(batch_cam_loss(cams, soft, prototypes, revive=False), each.sum() / mass.sum())
    light = torch.full((3,), 1e-3)  # however little samples weigh, they are whole samples
    assert_close(
        batch_cam_loss(cams, soft, prototypes, sample_weights=light), batch_cam_loss(cams, soft, prototypes)
    )


def test_contrastive_loss_of_a_flat_cam_is_log_k_without_a_gradient():
    cams = torch.full((2, 1, 5, 5), 0.3).requires_grad_()
    values = prototype_contrastive_loss(cams, torch.tensor([0, 2]), torch.rand(3, 1, 5, 5), reduction="none")
    assert_close(values, torch.full((2,), 3.0).log())
    values.sum().backward()
    assert not cams.grad.any()


def test_contrastive_loss_does_not_see_what_all_prototypes_share():
    cams, prototypes, labels = torch.randn(3, 1, 5, 5), torch.rand(3, 1, 5, 5), torch.tensor([0, 1, 1])
    prototypes /= prototypes.amax((1, 2, 3), True)
    shared = torch.cat([prototypes * 0.5, torch.ones(3, 1, 1, 5)], dim=2)  # a bright line in every prototype
    wide, lone = F.pad(cams, (0, 0, 0, 1)), (F.pad(prototypes, (0, 0, 0, 1)) * 0.5).flatten(1)
    centered = F.normalize((wide - wide.mean((1, 2, 3), True)).flatten(1))
    expected = F.cross_entropy(centered @ F.normalize(lone - lone.mean(0)).T / 0.1, labels)
    assert_close(prototype_contrastive_loss(wide, labels, shared), expected)


def test_foreground_costs_nothing_inside_for_or_against_the_class():
    foreground, inside = torch.zeros(3, 1, 12, 12), torch.zeros(2, 1, 6, 6)
    foreground[..., :6] = 1
    inside[0, ..., :3], inside[1, ..., :3] = 2, -2
    labels = torch.tensor([0, 1])
    for normalization, expected in (("none", 2**2 * 18), ("share", 1)):
        outside = functional.foreground_loss(inside.flip(-1), labels, foreground, normalization=normalization)
        assert functional.foreground_loss(inside, labels, foreground, normalization=normalization) == 0
        assert outside == expected


def test_several_labels_have_the_union_of_their_foregrounds():
    foreground = torch.zeros(3, 1, 6, 6)
    foreground[0, ..., :3], foreground[1, ..., 2:4] = 1, 1
    cams = torch.ones(1, 1, 6, 6)
    assert functional.foreground_loss(cams, torch.tensor([[1.0, 1, 0]]), foreground) == 12
    assert functional.foreground_loss(cams, torch.tensor([[0.5, 0.25, 0]]), foreground) == 12 + 6 * 0.5**2


def test_foregrounds_out_of_range_are_refused():
    for bad in (255.0, torch.nan):
        with pytest.raises(ValueError, match="prototypes: expected foregrounds"):
            functional.foreground_loss(CAMS, LABELS, torch.full((3, 1, 12, 16), bad))


def test_foreground_without_prototypes_takes_the_masks_of_the_batch():
    cams, masks = torch.randn(5, 1, 6, 6), (torch.rand(5, 1, 6, 6) > 0.6).float()
    masks[2] = 0
    labels = torch.tensor([0, 1, 2, 1, -100])
    values = ForegroundLoss(reduction="none")(cams, labels, masks=masks)
    expected = ((1 - masks) * cams).square().flatten(1).sum(1)
    expected[[2, 4]] = 0
    assert_close(values, expected)
    assert ForegroundLoss().num_classes is None
    with pytest.raises(ValueError, match="masks: expected"):
        ForegroundLoss()(cams, labels)


# Masks


def filled(value):
    masks = torch.rand(4, 1, 12, 16)
    masks[2, 0, 3, 4] = value
    return masks


BAD_MASKS = {
    "missing": (None, ValueError),
    "no tensor": ([[1]], TypeError),
    "complex": (torch.ones(4, 1, 6, 8, dtype=torch.complex64), TypeError),
    "three": (torch.ones(3, 1, 6, 8), ValueError),
    "flat": (torch.ones(4, 6, 8), ValueError),
    "channels": (torch.ones(4, 3, 6, 8), ValueError),
    "empty": (torch.ones(4, 1, 0, 8), ValueError),
    "turned": (torch.ones(4, 1, 192, 96), ValueError),
    "bytes": (torch.full((4, 1, 6, 8), 255), ValueError),
    "negative": (filled(-0.5), ValueError),
    "nan": (filled(torch.nan), ValueError),
    "infinite": (filled(torch.inf), ValueError),
}


@pytest.mark.parametrize(("masks", "kind"), BAD_MASKS.values(), ids=BAD_MASKS)
@pytest.mark.parametrize("name", WITH_MASKS)
def test_bad_masks(name, masks, kind):
    with pytest.raises(kind, match="masks: expected"):
        MAKERS[name]()(CAMS, LABELS, masks=masks)


@pytest.mark.parametrize("name", WITH_MASKS)
def test_masks_of_every_dtype(name):
    loss = MAKERS[name]()
    for dtype in (torch.bool, torch.uint8, torch.long, torch.float16):
        masks = (torch.rand(4, 1, 12, 16) > 0.5).to(dtype)
        assert torch.equal(loss(CAMS, LABELS, masks=masks), loss(CAMS, LABELS, masks=masks.float()))


@pytest.mark.parametrize("name", WITH_MASKS)
def test_a_mask_of_zeros_is_no_annotation(name):
    masks, cams, loss = torch.rand(4, 1, 12, 16), torch.randn(4, 1, 6, 8), MAKERS[name]()
    masks[[0, 3]], cams[0] = 0, torch.nan
    cams.requires_grad_()
    value = loss(cams, LABELS, masks=masks)
    assert_close(value, loss(cams[1:3], LABELS[1:3], masks=masks[1:3]))
    (gradient,) = torch.autograd.grad(value, cams)
    assert not gradient[[0, 3]].any()
    assert gradient[[1, 2]].abs().amax((1, 2, 3)).all()
    assert loss(cams, LABELS, masks=masks * 0) == 0


def test_masks_of_a_perfect_of_the_worst_and_of_a_dead_map():
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., :6] = 1
    inside = functional.resize(mask, (6, 6))
    expected = {"energy": (1, 1), "rrr_cam": (18, 0), "gradia": (1, 0.5), "hint": (1, 0.5)}
    for name, (worst, dead) in expected.items():
        loss = getattr(functional, f"{name}_loss")
        assert loss(inside, mask) == 0
        assert_close(loss(1 - inside, mask), torch.tensor(float(worst)))
        assert_close(loss(-torch.ones(1, 1, 6, 6), mask, revive=False), torch.tensor(float(dead)))
    assert functional.energy_loss(torch.ones_like(inside), mask) == 0.5


def test_an_object_smaller_than_a_pixel_of_the_map_has_a_place():
    mask, cam = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 4, 4)
    mask[..., 9, 17], cam[..., 1, 2] = 1, 3
    for name in WITH_MASKS:
        assert MAKERS[name]()(cam, LABELS[:1], masks=mask) == 0


# Sizes


@pytest.mark.parametrize(
    ("size", "cams"),
    [
        ((224, 224), (7, 7)),
        ((65, 257), (5, 17)),  # rounded up
        ((65, 257), (4, 16)),  # rounded down
        ((64, 256), (6, 30)),  # without padding
        ((7, 7), (14, 14)),
        ((32, 112, 112), (4, 28, 28)),  # a stride of 8 in time, of 4 in space
        ((100,), (7,)),
    ],
)
def test_sizes_that_go_together(size, cams):
    check_aspect("masks", size, cams)


@pytest.mark.parametrize(
    ("size", "cams"), [((640, 480), (15, 20)), ((256, 64), (6, 30)), ((8, 112, 56), (8, 14, 28))]
)
def test_sizes_that_do_not(size, cams):
    with pytest.raises(ValueError, match="masks: expected"):
        check_aspect("masks", size, cams)


def test_masks_of_the_size_of_the_cams_always_go():
    """The remedy for a network that shrinks height and width unevenly."""
    cams, masks = torch.rand(4, 1, 4, 40), torch.rand(4, 1, 64, 80)
    with pytest.raises(ValueError, match="masks: expected"):
        EnergyLoss()(cams, LABELS, masks=masks)
    assert EnergyLoss()(cams, LABELS, masks=functional.resize(masks, (4, 40))) > 0


# Images and pairs


def test_image_undoes_the_standardization():
    images = torch.rand(4, 3, 9, 12)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    standardized = (images - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(1, 3, 1, 1)
    actual = ImageLoss(mean=mean, std=std)(CAMS, LABELS, images=standardized)
    expected = functional.image_loss(CAMS, functional.image_maps(images))
    assert_close(actual, expected)
    second = ImageLoss(to_channel=lambda images: images[:, 1:2])(CAMS, LABELS, images=images)
    assert_close(second, ImageLoss()(CAMS, LABELS, images=images[:, 1:2]))


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (None, ValueError),
        ([1], TypeError),
        (torch.rand(3, 1, 6, 8), ValueError),
        (torch.rand(4, 3, 192, 96), ValueError),
    ],
    ids=["missing", "list", "three", "turned"],
)
def test_bad_images(images, kind):
    with pytest.raises(kind, match="images: expected"):
        ImageLoss()(CAMS, LABELS, images=images)


def test_separability_wants_the_cams_of_two_scores():
    with pytest.raises(ValueError, match="cams: expected"):
        SeparabilityLoss()(CAMS, LABELS)


def test_consistency_wants_both_views():
    loss = ConsistencyLoss()
    with pytest.raises(ValueError, match="cams: expected"):
        loss(CAMS[:3], LABELS[:3])
    for interleaved in (torch.tensor([0, 0, 1, 1]), torch.rand(4, 3)):
        with pytest.raises(ValueError, match="labels: expected"):
            loss(CAMS, interleaved)
    with pytest.raises(ValueError, match="transform: expected"):  # not square
        ConsistencyLoss(transform=lambda maps: maps.rot90(1, (-2, -1)))(CAMS, LABELS.new_zeros(4))


def test_consistency_takes_a_callable_and_each_number_of_dimensions():
    line, volume = torch.randn(2, 1, 9), torch.randn(2, 1, 4, 5, 5)
    moved = torch.cat([line, line.roll(3, -1)])
    assert functional.consistency_loss(moved, transform=lambda maps: maps.roll(3, -1)) == 0
    assert functional.consistency_loss(moved) > 0
    assert functional.consistency_loss(torch.cat([volume, volume.flip(-1)])) == 0


def test_a_pair_of_views_counts_if_both_do():
    loss, cams = ConsistencyLoss(ignore_index=7), torch.randn(4, 1, 6, 6)
    expected = loss(cams[[1, 3]], LABELS[[1, 1]])
    assert torch.equal(loss(cams, torch.tensor([7, 1, 7, 1])), expected)
    weights = torch.tensor([0.0, 2, 5, 2])
    assert torch.equal(loss(cams, torch.ones(4).long(), sample_weights=weights), expected)


@pytest.mark.parametrize("make", [PrototypeLoss, BatchCamLoss])
def test_at_the_resolution_of_the_prototypes(make):
    """The normalized maps are enlarged, and a dead cam is revived at that size."""
    maps, cams = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 4, 4)
    cams[2] = -cams[2].abs()
    cams.requires_grad_()
    large = resize(cams.relu() / cams.relu().amax((1, 2, 3), keepdim=True).clamp(min=1e-6), (8, 8))
    targets = make(maps).held.maps()
    targets = targets / targets.amax((2, 3), keepdim=True)
    values = (large - targets).abs().mean((1, 2, 3))
    signed = resize(cams, (8, 8)).flatten(1)
    revived = 1 - F.cosine_similarity(signed, targets.flatten(1))
    expected = torch.stack([values[0], values[1], revived[2]]).mean()
    actual = make(maps, resolution="prototype")(cams, torch.arange(3))
    assert_close(actual, expected)
    gradients = [torch.autograd.grad(value, cams, retain_graph=True)[0] for value in (actual, expected)]
    assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0][2].abs().max() > 0
    with pytest.raises(ValueError, match="resolution"):
        make(maps, resolution="screen")

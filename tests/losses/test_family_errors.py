"""Bad input of the new losses: each named clearly."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ConsistencyLoss,
    EnergyLoss,
    ForegroundLoss,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
    SeparabilityLoss,
    TotalVariationLoss,
    functional,
)
from batchcam_captum.functional import ValueChecks
from batchcam_captum.functional.losses.comparison import check_aspect
from tests.losses.family import MAKERS, NEW, WITH_MASKS, call, family
from tests.training.models import Net, batch

LABELS = torch.tensor([0, 1, 1, 2])
CAMS = torch.rand(4, 1, 6, 8)


def filled(value):
    masks = torch.rand(4, 1, 12, 16)
    masks[2, 0, 3, 4] = value
    return masks


BAD_MASKS = {
    "missing": (None, ValueError, r"masks: expected masks .*got none; pass masks= to the loss, or to the regul"),
    "no tensor": ([[1]], TypeError, "masks: expected a tensor of numbers from 0 to 1, got list"),
    "complex": (torch.ones(4, 1, 6, 8, dtype=torch.complex64), TypeError, "got torch.complex64"),
    "three": (torch.ones(3, 1, 6, 8), ValueError, r"masks: expected one for each of the 4 cams, got 3; .*zeros"),
    "flat": (torch.ones(4, 6, 8), ValueError, r"spatial dimensions as the cams \(4, 1, 6, 8\), got \(4, 6, 8\); call masks.unsq"),
    "channels": (torch.ones(4, 3, 6, 8), ValueError, r"expected \(N, 1, \*spatial\).*got \(4, 3, 6, 8\); pass one channel"),
    "empty": (torch.ones(4, 1, 0, 8), ValueError, r"got \(4, 1, 0, 8\); .*as large as the images"),
    "line": (torch.ones(4, 1, 6), ValueError, r"as many spatial dimensions as the cams \(4, 1, 6, 8\), got \(4, 1, 6\)"),
    "turned": (torch.ones(4, 1, 192, 96), ValueError, r"masks: .*ratio \(6, 8\), got \(192, 96\), which is 32 and 12 times"),
    "bytes": (torch.full((4, 1, 6, 8), 255), ValueError, r"masks: expected numbers from 0 to 1.*by 255.*\(found 255 to 255\)"),
    "negative": (filled(-0.5), ValueError, r"masks: expected numbers from 0 to 1, got others.*\(found -0.5 to"),
    "nan": (filled(torch.nan), ValueError, r"or NaN; .*mark a sample without an annotation by a mask of zeros \(found NaN\)"),
    "infinite": (filled(torch.inf), ValueError, r"\(found .* to inf\)"),
}  # fmt: skip


@pytest.mark.parametrize(("masks", "kind", "text"), BAD_MASKS.values(), ids=BAD_MASKS)
@pytest.mark.parametrize("name", WITH_MASKS)
def test_bad_masks(name, masks, kind, text):
    with pytest.raises(kind, match=text):
        MAKERS[name]()(CAMS, LABELS, masks=masks)


@pytest.mark.parametrize("name", WITH_MASKS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.long, torch.float16])
def test_masks_of_every_number_type(name, dtype):
    masks = (torch.rand(4, 1, 12, 16) > 0.5).to(dtype)
    loss = MAKERS[name]()
    assert torch.equal(loss(CAMS, LABELS, masks=masks), loss(CAMS, LABELS, masks=masks.float()))


@pytest.mark.parametrize("name", WITH_MASKS)
def test_a_mask_of_zeros_is_no_annotation(name):
    masks = torch.rand(4, 1, 12, 16)
    masks[[0, 3]] = 0
    cams = torch.randn(4, 1, 6, 8)
    cams[0] = torch.nan
    cams.requires_grad_()
    loss = MAKERS[name]()
    value = loss(cams, LABELS, masks=masks)
    torch.testing.assert_close(value, loss(cams[1:3], LABELS[1:3], masks=masks[1:3]))
    value.backward()
    assert not cams.grad[[0, 3]].any()
    assert cams.grad[[1, 2]].abs().amax((1, 2, 3)).all()
    nothing = loss(cams.detach().requires_grad_(), LABELS, masks=masks * 0)
    nothing.backward()
    assert nothing == 0


def test_energy_of_a_perfect_and_of_the_worst_map():
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., :6] = 1
    inside = functional.resize(mask, (6, 6))
    assert functional.energy_loss(inside, mask) == 0
    assert functional.energy_loss(1 - inside, mask) == 1
    assert functional.energy_loss(torch.ones_like(inside), mask) == 0.5
    for loss in (functional.rrr_cam_loss, functional.gradia_loss, functional.hint_loss):
        assert loss(inside, mask) == 0
        assert loss(1 - inside, mask) > 0


def test_an_object_smaller_than_a_pixel_of_the_map_has_a_place():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 9, 17] = 1
    cam = torch.zeros(1, 1, 4, 4)
    cam[..., 1, 2] = 3
    for name in WITH_MASKS:
        assert MAKERS[name]()(cam, LABELS[:1], masks=mask) == 0


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((4, 3), "a layer with a vector output has no map|one channel for each"),
        ((4, 3, 5, 5), "cams: expected"),
        ((4, 2, 3, 3), "at least 4 pixels a side|one channel for each|expected .N, 1"),
    ],
)
def test_bad_cams(name, shape, text):
    with pytest.raises(ValueError, match=text):
        MAKERS[name]()(torch.rand(shape), torch.zeros(4).long(), masks=torch.rand(4, 1, 12, 16))


@pytest.mark.parametrize("name", NEW)
def test_cams_that_are_no_numbers_with_a_point(name):
    loss = MAKERS[name]()
    with pytest.raises(TypeError, match="cams: expected floating cams"):
        loss(
            torch.ones(4, len(loss.scores), 6, 8).long(),
            torch.zeros(4).long(),
            masks=torch.rand(4, 1, 12, 16),
        )


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize(
    ("labels", "kind", "text"),
    [
        (torch.eye(6, 4).long(), ValueError, "not one-hot rows"),
        (torch.zeros(5).long(), ValueError, r"expected shape \(\d+,\)"),
        (torch.zeros(6, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.zeros(6), ValueError, "pass class indices as integers"),
    ],
)
def test_bad_labels(name, labels, kind, text):
    with pytest.raises(kind, match=text):
        call(MAKERS[name](), family()._replace(labels=labels))


def test_separability_wants_the_cams_of_two_scores():
    with pytest.raises(
        ValueError, match=r"cams: expected \(N, 2, \*spatial\), one channel for each of the loss"
    ):
        SeparabilityLoss()(CAMS, LABELS)
    model = Net(dropout=0.0)
    model.head[-1] = torch.nn.Linear(4 * 16, 1)
    images, _ = batch(4)
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), SeparabilityLoss())
    with regularizer:
        scores = model(images)
    with pytest.raises(ValueError, match="at least 2 classes for 'confused', got 1"):
        regularizer(scores, torch.zeros(4, dtype=torch.long))


def test_consistency_wants_both_views():
    loss = ConsistencyLoss()
    with pytest.raises(ValueError, match=r"cams: expected an even number, .*got 3; pass torch.cat"):
        loss(CAMS[:3], LABELS[:3])
    with pytest.raises(ValueError, match="labels: expected the same labels for both halves"):
        loss(CAMS, torch.tensor([0, 0, 1, 1]))  # interleaved
    with pytest.raises(ValueError, match="labels: expected the same labels for both halves"):
        loss(CAMS, torch.rand(4, 3))
    with pytest.raises(
        ValueError, match=r"transform: expected maps of the shape .*\(2, 1, 6, 8\), got \(2, 1, 8, 6\)"
    ):
        ConsistencyLoss(transform="rot90")(CAMS, LABELS.new_zeros(4))
    with pytest.raises(
        ValueError, match="transform: expected cams with at least 2 spatial dimensions for 'vflip'"
    ):
        ConsistencyLoss(transform="vflip")(torch.rand(4, 1, 9), LABELS.new_zeros(4))
    with pytest.raises(
        ValueError, match="transform: expected 'hflip', 'vflip', 'rot90' or a callable on maps, got 'flip'"
    ):
        ConsistencyLoss(transform="flip")


def test_a_pair_counts_if_both_views_do():
    loss = ConsistencyLoss(ignore_index=7)
    cams, labels = torch.randn(4, 1, 6, 6), torch.tensor([7, 1, 7, 1])
    expected = loss(cams[[1, 3]], labels[[1, 3]])
    assert torch.equal(loss(cams, labels), expected)
    weights = torch.tensor([0.0, 2, 5, 2])
    assert torch.equal(loss(cams, torch.ones(4).long(), sample_weights=weights), expected)


@pytest.mark.parametrize(
    "option", [{"threshold": -0.1}, {"threshold": 1.1}, {"sharpness": 0}, {"sharpness": float("inf")}]
)
def test_bad_soft_mask(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}: expected"):
        SeparabilityLoss(**option)


@pytest.mark.parametrize("name", NEW)
def test_bad_options(name):
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'max'"):
        MAKERS[name](reduction="max")
    if name in WITH_MASKS:
        with pytest.raises(ValueError, match="resolution: expected 'map' or 'mask', got 'image'"):
            MAKERS[name](resolution="image")
    if name not in ("energy", "foreground-share"):
        with pytest.raises(ValueError, match=r"normalization: expected .*, got 'peak'"):
            MAKERS[name](normalization="peak")


def test_bad_foregrounds():
    with pytest.raises(ValueError, match="prototypes: expected foregrounds from 0 to 1"):
        functional.foreground_loss(CAMS, LABELS, torch.full((3, 1, 12, 16), 255.0))
    with pytest.raises(ValueError, match="prototypes: expected foregrounds from 0 to 1, got others, or NaN"):
        functional.foreground_loss(CAMS, LABELS, torch.full((3, 1, 12, 16), torch.nan))
    with pytest.raises(ValueError, match=r"expected \(K, 1, \*spatial\), .*got \(3, 12, 16\)"):
        functional.foreground_loss(CAMS, LABELS, torch.rand(3, 12, 16))
    with pytest.raises(TypeError, match="another kind of prototypes"):
        ForegroundLoss([1])


@pytest.mark.parametrize("make", [PrototypeLoss, BatchCamLoss, PrototypeContrastiveLoss, ForegroundLoss])
@pytest.mark.parametrize("resolution", ["map", "prototype"])
def test_prototypes_of_another_aspect_ratio(make, resolution):
    options = {} if make is ForegroundLoss else {"resolution": resolution}
    loss = make(torch.rand(3, 1, 192, 96), **options)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"prototypes: .*aspect ratio \(6, 8\), got \(192, 96\)"):
            loss(CAMS, LABELS)
    assert make(torch.rand(3, 1, 96, 128), **options)(CAMS, LABELS) > 0


def test_images_of_another_aspect_ratio():
    with pytest.raises(ValueError, match=r"images: .*aspect ratio \(6, 8\), got \(192, 96\)"):
        ImageLoss()(CAMS, LABELS, images=torch.rand(4, 3, 192, 96))


@pytest.mark.parametrize(
    ("size", "cams"),
    [
        ((224, 224), (7, 7)),
        ((28, 28), (4, 4)),
        ((65, 257), (5, 17)),  # rounded up
        ((65, 257), (4, 16)),  # rounded down
        ((64, 256), (6, 30)),  # without padding
        ((6, 8), (6, 8)),
        ((7, 7), (14, 14)),
        ((32, 112, 112), (4, 28, 28)),  # a stride of 8 in time, of 4 in space
        ((100,), (7,)),
        ((480, 640), (15, 20)),
    ],
)
def test_sizes_that_go_together(size, cams):
    check_aspect("masks", size, cams)


@pytest.mark.parametrize(
    ("size", "cams"),
    [((640, 480), (15, 20)), ((256, 64), (6, 30)), ((224, 448), (14, 7)), ((8, 112, 56), (8, 14, 28))],
)
def test_sizes_that_do_not(size, cams):
    with pytest.raises(ValueError, match="masks: expected maps of the cams' aspect ratio"):
        check_aspect("masks", size, cams)


def test_masks_of_the_cams_size_always_go():
    """The remedy for a network that shrinks height and width unevenly."""
    cams = torch.rand(4, 1, 4, 40)
    with pytest.raises(ValueError, match=r"masks of the cams' own size"):
        EnergyLoss()(cams, LABELS, masks=torch.rand(4, 1, 64, 80))
    assert EnergyLoss()(cams, LABELS, masks=functional.resize(torch.rand(4, 1, 64, 80), (4, 40))) > 0


class OnDevice(ValueChecks):
    """Value checks as on a GPU: outcomes stay there until they are asked for."""

    def require(self, holds, message, detail=None):
        failed = ~holds.detach().all()
        earlier = self._failed.get(message)
        self._failed[message] = failed if earlier is None else earlier | failed


@pytest.mark.parametrize("name", [*WITH_MASKS, "consistency", "foreground"])
def test_value_checks_wait_where_reading_would_make_a_device_wait(name):
    loss, data = MAKERS[name](), family()
    loss.checks = OnDevice()
    call(loss, data)
    loss.check()
    if name in WITH_MASKS:
        data.masks[0] = 2
    elif name == "foreground":
        data.labels[0] = 9
    else:
        cams = torch.cat([data.cams[:, :1]] * 2)
        loss(cams, torch.arange(12))
    call(loss, data)
    with pytest.raises(ValueError, match=r"expected .* since the last check"):
        loss.check()


def test_counted_has_to_be_one_boolean_a_sample():
    for counted in (torch.ones(3, dtype=torch.bool), torch.ones(4)):
        with pytest.raises(ValueError, match=r"counted: expected booleans \(4,\)"):
            functional.total_variation_loss(CAMS, counted=counted)
    assert TotalVariationLoss()(CAMS, LABELS) > 0

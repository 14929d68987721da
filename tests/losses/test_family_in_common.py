"""What every loss has in common: who counts and how much, labels of each kind, types, scales, names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import batchcam_captum
from batchcam_captum import (
    BatchCamLoss,
    ClassPrototypes,
    ForegroundLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
    functional,
)
from batchcam_captum.losses import LOSSES
from tests.losses.family import MAKERS, NEW, WITH_MASKS, K, call, family, prototypes, with_gradient

EVERY = pytest.mark.parametrize("name", MAKERS)
#: Whose value does not depend on the scale of the cams.
SCALE_FREE = [name for name in MAKERS if name != "foreground"]
REVIVED = [
    name
    for name in MAKERS
    if name not in ("prototype_contrastive", "foreground", "foreground-share", "consistency")
]


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weight_two_is_the_sample_twice(name, reduction):
    data, loss = family(), MAKERS[name](reduction=reduction)
    weighted = with_gradient(loss, data, weights=torch.tensor([1.0, 2, 1, 2, 1, 1]))
    repeated = with_gradient(loss, data, torch.tensor([0, 1, 1, 2, 3, 3, 4, 5]))
    for first, second in zip(weighted, repeated, strict=True):
        assert first.abs().max() > 0
        assert_close(first, second, rtol=1e-10, atol=1e-13)


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weight_zero_is_the_sample_absent_whatever_it_holds(name, reduction):
    data, loss = family(), MAKERS[name](reduction=reduction)
    kept = torch.tensor([0, 2, 3, 5])
    expected, gradient = with_gradient(loss, data, kept)
    with_gradient(loss, data, kept)
    data.cams[1], data.cams[4] = torch.nan, torch.inf
    data.masks[1], data.masks[4] = torch.nan, 7
    value, spoilt = with_gradient(loss, data, weights=torch.tensor([1.0, 0, 1, 1, 0, 1]))
    assert_close(value, expected, rtol=1e-12, atol=0)
    assert_close(spoilt, gradient, rtol=1e-10, atol=1e-13)
    assert gradient[kept].abs().max() > 0


@EVERY
def test_ignored_samples_are_as_if_they_were_absent(name):
    data, loss = family(), MAKERS[name]()
    kept = torch.tensor([0, 2, 3, 5])
    expected, gradient = with_gradient(loss, data, kept)
    data.cams[1], data.masks[4] = torch.nan, torch.nan
    for ignored in (
        torch.where(torch.tensor([0, 1, 0, 0, 1, 0]) == 1, -100, data.labels),
        F.one_hot(data.labels, K).double() * torch.tensor([1, 0, 1, 1, 0, 1]).unsqueeze(1),
    ):
        value, spoilt = with_gradient(loss, data._replace(labels=ignored))
        assert_close(value, expected, rtol=1e-12, atol=0)
        assert_close(spoilt, gradient, rtol=1e-10, atol=1e-13)


@EVERY
def test_equal_weights_change_no_mean_and_a_class_of_weight_zero_needs_no_prototype(name):
    data, loss = family(), MAKERS[name]()
    assert_close(call(loss, data, torch.full((6,), 0.3)), call(loss, data), rtol=1e-12, atol=0)
    if hasattr(loss, "prototypes"):
        seen = ClassPrototypes(K)
        seen.update(torch.rand(3, 1, 9, 10), torch.tensor([0, 1, 2]))
        loss.prototypes = seen
        weights = (data.labels != 3).float()
        assert call(loss, data, weights) > 0
        with pytest.raises(ValueError, match="never seen"):
            call(loss, data)


@EVERY
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_one_hot_soft_labels_are_class_indices(name, reduction):
    data, loss = family(), MAKERS[name](reduction=reduction)
    hard = with_gradient(loss, data)
    soft = with_gradient(loss, data._replace(labels=F.one_hot(data.labels, K).double()))
    for first, second in zip(hard, soft, strict=True):
        assert_close(first, second, rtol=1e-12, atol=1e-14)


@EVERY
def test_labels_of_a_small_integer_type_are_read_as_numbers(name):
    data, loss = family(), MAKERS[name]()
    assert torch.equal(call(loss, data._replace(labels=data.labels.to(torch.uint8))), call(loss, data))


FUNCTIONS = {
    "prototype": functional.prototype_loss,
    "batch_cam": functional.batch_cam_loss,
    "prototype_contrastive": functional.prototype_contrastive_loss,
    "foreground": functional.foreground_loss,
}


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_identical_prototypes_of_a_class_are_one(name, soft):
    data = family()
    labels = torch.rand(6, K, dtype=torch.float64) if soft else data.labels
    maps, cams = prototypes().double(), data.cams[:, :1]
    once = FUNCTIONS[name](cams, labels, maps, reduction="none")
    assert_close(
        FUNCTIONS[name](cams, labels, torch.cat([maps] * 3, 1), reduction="none"),
        once,
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("name", ["prototype", "batch_cam"])
def test_one_hot_rows_find_the_nearest_of_several_prototypes_as_indices_do(name):
    """In L2, which finds the mixture's parts; a dead cam by its cosine."""
    data = family()
    maps = torch.rand(K, 3, 9, 10, dtype=torch.float64)
    one_hot = F.one_hot(data.labels, K).double()
    hard, soft = (
        FUNCTIONS[name](data.cams[:, :1], labels, maps, distance="l2", reduction="none")
        for labels in (data.labels, one_hot)
    )
    assert_close(hard, soft, rtol=1e-12, atol=1e-14)


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("nothing", ["empty", "ignored", "weightless"])
def test_nothing_to_count_gives_a_zero_with_a_graph(name, reduction, nothing):
    data, weights = family(0 if nothing == "empty" else 6), None
    if nothing == "ignored":
        data = data._replace(labels=torch.full((6,), -100))
    if nothing == "weightless":
        weights = torch.zeros(6)
    value, gradient = with_gradient(MAKERS[name](reduction=reduction), data, weights=weights)
    assert value == 0
    assert not gradient.any()


@EVERY
def test_without_reduction_there_is_one_number_a_sample_or_a_class(name):
    loss = MAKERS[name](reduction="none")
    values = call(loss, family())
    assert values.shape == (K if name == "batch_cam" else 6,)
    assert (values >= 0).all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_cams_and_autocast_give_the_float32_loss(name, dtype):
    data, loss = family(), MAKERS[name]()
    half = data._replace(cams=data.cams.to(dtype), masks=data.masks.float(), images=data.images.float())
    expected = call(loss, half._replace(cams=half.cams.float()))
    assert expected.dtype == torch.float32
    assert torch.equal(call(loss, half), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(loss, half), expected)


@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1e6])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_scale_of_the_cams_does_not_matter(name, scale):
    data = family()
    data = data._replace(cams=data.cams.float(), masks=data.masks.float(), images=data.images.float())
    loss = MAKERS[name]()
    value, gradient = with_gradient(loss, data._replace(cams=data.cams * scale))
    assert_close(value, call(loss, data), rtol=1e-4, atol=1e-5)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("fill", [0.0, -1.0, 1e-40], ids=["zero", "dead", "denormal"])
def test_flat_cams_give_a_finite_value_and_gradient(name, fill):
    data = family()
    data = data._replace(cams=torch.full((6, 2, 5, 6), fill), masks=data.masks.float())
    value, gradient = with_gradient(MAKERS[name](), data)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", REVIVED)
def test_revive_gives_a_dead_cam_a_gradient_and_strict_mode_none(name):
    data = family()
    dead = 4  # in both channels
    _, strict = with_gradient(MAKERS[name](revive=False), data)
    assert not strict[dead].any()
    assert strict[0].any()
    cams = data.cams
    for _ in range(60):
        if not functional.dead_cams(cams[:, :1])[dead]:
            break
        _, gradient = with_gradient(MAKERS[name](), data._replace(cams=cams))
        assert gradient[dead].any()
        cams = cams - gradient * (0.3 / gradient[dead].norm())
    assert not functional.dead_cams(cams[:, :1])[dead]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("energy", 1.0),
        ("rrr_cam", 0.0),
        ("gradia", None),
        ("hint", None),
        ("separability", 0.0),
        ("total_variation", 0.0),
    ],
)
def test_what_a_dead_cam_pays_in_strict_mode(name, value):
    data = family().at(torch.tensor([4]))
    if value is None:
        at_size = functional.resize(data.masks, (5, 6))
        at_size = at_size * data.masks.max() / at_size.max()
        value = float((at_size if name == "gradia" else at_size.square()).mean())
    actual = call(MAKERS[name](revive=False), data)
    assert_close(float(actual), value, rtol=1e-12, atol=0)


@EVERY
def test_losses_that_rectify_report_their_dead_fraction_and_others_none(name):
    loss = MAKERS[name]()
    fraction = call(loss.evaluate, family()).dead_fraction
    signed = name.startswith("foreground") or name == "consistency"
    assert loss.rectifies is not signed
    if signed:
        assert fraction is None
    else:
        assert_close(fraction, torch.tensor(2 / 6))
        fraction = call(loss.evaluate, family(), torch.tensor([1.0, 0, 1, 1, 1, 1])).dead_fraction
        assert_close(fraction, torch.tensor(1 / 5))


def test_every_loss_has_a_name_and_a_public_module():
    assert {name for name in MAKERS if name != "foreground-share"} <= set(LOSSES)
    for name in NEW:
        kind = LOSSES[name.removesuffix("-share")]
        assert getattr(batchcam_captum, kind.__name__) is kind
        assert isinstance(MAKERS[name](), kind)
        function = f"{name.removesuffix('-share')}_loss"
        assert function in functional.__all__


def test_defaults_of_map_and_score():
    for name, make in MAKERS.items():
        loss = make()
        if name.startswith("foreground"):
            assert (loss.method, loss.scores) == ("hires_cam", ("log_prob_sum",))
        elif name == "separability":
            assert (loss.method, loss.scores) == (None, ("label", "confused"))
            loss.score = "predicted"
            assert loss.scores == ("predicted", "confused")
        else:
            assert (loss.method, loss.scores) == (None, ("label",))


@pytest.mark.parametrize("make", [PrototypeLoss, BatchCamLoss, PrototypeContrastiveLoss, ForegroundLoss])
@pytest.mark.parametrize(
    ("weights", "kind", "text"),
    [
        ([1.0] * 6, TypeError, "sample_weights: expected a tensor, got list"),
        (torch.ones(5), ValueError, r"sample_weights: expected shape \(6,\), got \(5,\)"),
        (-torch.ones(6), ValueError, "sample_weights: expected finite numbers of at least 0"),
        (torch.full((6,), torch.nan), ValueError, "sample_weights: expected finite numbers of at least 0"),
    ],
    ids=["list", "short", "negative", "nan"],
)
def test_bad_weights_against_prototypes(make, weights, kind, text):
    with pytest.raises(kind, match=text):
        call(make(prototypes()), family(), weights)


@pytest.mark.parametrize("name", [*WITH_MASKS, "separability", "total_variation", "image"])
def test_bad_weights(name):
    for weights in (torch.ones(5), -torch.ones(6), torch.full((6,), torch.nan)):
        with pytest.raises(ValueError, match="sample_weights: expected"):
            call(MAKERS[name](), family(), weights)
    with pytest.raises(TypeError, match="sample_weights: expected a tensor, got list"):
        call(MAKERS[name](), family(), [1.0] * 6)

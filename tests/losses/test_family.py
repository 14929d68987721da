"""What every loss has in common: who counts and how much, labels of each kind, dtypes, scales, dead cams, names, errors."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import batchcam_captum
from batchcam_captum import BatchGradCam, CamRegularizer, ClassPrototypes, ForegroundLoss, functional
from batchcam_captum.functional import DISTANCES, ValueChecks
from batchcam_captum.losses import LOSSES, CamLoss, RectifiedLoss
from tests.losses.family import MAKERS, WITH_MASKS, K, call, family, prototypes, with_gradient

EVERY = pytest.mark.parametrize("name", MAKERS)
AGAINST_PROTOTYPES = ["prototype", "batch_cam", "prototype_contrastive", "foreground"]
SIGNED = ["prototype_contrastive", "foreground", "foreground-share", "consistency"]
#: The samples of the family that are neither of those that the tests leave out.
KEPT = torch.tensor([0, 2, 3, 5])


@EVERY
def test_weight_two_is_the_sample_twice(name):
    for reduction in ("mean", "sum"):
        data, loss = family(), MAKERS[name](reduction=reduction)
        weighted = with_gradient(loss, data, weights=torch.tensor([1.0, 2, 1, 2, 1, 1]))
        repeated = with_gradient(loss, data, torch.tensor([0, 1, 1, 2, 3, 3, 4, 5]))
        for first, second in zip(weighted, repeated, strict=True):
            assert first.abs().max() > 0
            assert_close(first, second, rtol=1e-10, atol=1e-13)


@EVERY
def test_samples_left_out_are_as_if_absent(name):
    """Whatever they hold: by a weight of 0, an ignored label, soft labels of 0."""
    for reduction in ("mean", "sum"):
        data, loss = family(), MAKERS[name](reduction=reduction)
        expected, gradient = with_gradient(loss, data, KEPT)
        fraction = call(loss.evaluate, data.at(KEPT)).dead_fraction
        data.cams[1], data.cams[4] = torch.nan, torch.inf
        data.masks[1], data.masks[4] = torch.nan, 7
        out = torch.tensor([0.0, 1, 0, 0, 1, 0])
        soft = F.one_hot(data.labels, K).double() * (1 - out).unsqueeze(1)
        for given, weights in [
            (data, 1 - out),
            (data._replace(labels=torch.where(out == 1, -100, data.labels)), None),
            (data._replace(labels=soft), None),
        ]:
            value, spoilt = with_gradient(loss, given, weights=weights)
            assert_close(value, expected, rtol=1e-12, atol=0)
            assert_close(spoilt, gradient, rtol=1e-10, atol=1e-13)
            assert call(loss.evaluate, given, weights).dead_fraction == fraction
        assert gradient[KEPT].abs().max() > 0


@EVERY
def test_equal_weights_change_no_mean(name):
    data, loss = family(), MAKERS[name]()
    assert_close(call(loss, data, torch.full((6,), 0.3)), call(loss, data), rtol=1e-12, atol=0)


@EVERY
def test_one_hot_soft_labels_and_small_integers_are_class_indices(name):
    for reduction in ("none", "mean", "sum"):
        data, loss = family(), MAKERS[name](reduction=reduction)
        hard = with_gradient(loss, data)
        for labels in (F.one_hot(data.labels, K).double(), data.labels.to(torch.uint8)):
            for first, second in zip(with_gradient(loss, data._replace(labels=labels)), hard, strict=True):
                assert_close(first, second, rtol=1e-12, atol=1e-14)


@EVERY
@pytest.mark.parametrize("nothing", ["empty", "ignored", "weightless"])
def test_nothing_to_count_gives_a_zero_with_a_graph(name, nothing):
    data = family(0 if nothing == "empty" else 6)
    weights = torch.zeros(6) if nothing == "weightless" else None
    if nothing == "ignored":
        data = data._replace(labels=torch.full((6,), -100))
    for reduction in ("mean", "sum"):
        value, gradient = with_gradient(MAKERS[name](reduction=reduction), data, weights=weights)
        assert value == 0
        assert not gradient.any()


@EVERY
def test_without_reduction_there_is_one_number_per_sample_or_class(name):
    values = call(MAKERS[name](reduction="none"), family())
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
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "foreground"])
def test_scale_of_the_cams_does_not_matter(name, scale):
    data, loss = family(), MAKERS[name]()
    data = data._replace(cams=data.cams.float(), masks=data.masks.float(), images=data.images.float())
    value, gradient = with_gradient(loss, data._replace(cams=data.cams * scale))
    assert_close(value, call(loss, data), rtol=1e-4, atol=1e-5)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@EVERY
@pytest.mark.parametrize("fill", [0.0, -1.0, 1e-40], ids=["zero", "dead", "denormal"])
def test_flat_cams_give_a_finite_value_and_gradient(name, fill):
    data = family()
    data = data._replace(cams=torch.full((6, 2, 5, 6), fill), masks=data.masks.float())
    for options in [{}] if name in SIGNED else [{}, {"revive": False}]:
        value, gradient = with_gradient(MAKERS[name](**options), data)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in SIGNED])
def test_revive_brings_a_dead_cam_to_life_and_strict_mode_does_not(name):
    data, dead = family(), 4  # in both channels
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


@EVERY
def test_dead_fraction_of_what_counts(name):
    loss = MAKERS[name]()
    fraction = call(loss.evaluate, family()).dead_fraction
    if name in SIGNED:
        assert fraction is None
        return
    assert_close(fraction, torch.tensor(2 / 6))
    assert not fraction.requires_grad
    fraction = call(loss.evaluate, family(), torch.tensor([1.0, 0, 1, 1, 1, 1])).dead_fraction
    assert_close(fraction, torch.tensor(1 / 5))


@pytest.mark.parametrize("name", AGAINST_PROTOTYPES)
def test_identical_prototypes_of_a_class_are_one(name):
    data, maps, function = family(), prototypes().double(), getattr(functional, f"{name}_loss")
    for labels in (data.labels, torch.rand(6, K, dtype=torch.float64)):
        once, thrice = (
            function(data.cams[:, :1], labels, torch.cat([maps] * times, 1), reduction="none")
            for times in (1, 3)
        )
        assert_close(thrice, once, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", AGAINST_PROTOTYPES)
def test_class_without_a_prototype_is_named_unless_it_does_not_count(name):
    seen = ClassPrototypes(K)
    seen.update(torch.rand(3, 1, 9, 10), torch.tensor([0, 1, 2]))
    data, loss = family(), LOSSES[name](seen)
    with pytest.raises(ValueError, match=r"prototypes: .*never seen.*\[3\]"):
        call(loss, data)
    assert call(loss, data, (data.labels != 3).float()) > 0


@EVERY
def test_names_and_defaults(name):
    loss = MAKERS[name](method="layer_cam", score="predicted")
    assert loss.method == "layer_cam"
    assert loss.score == loss.scores[0] == "predicted"
    kind = type(loss)
    assert MAKERS[name]().method == kind.default_method
    assert MAKERS[name]().score == kind.default_score
    assert getattr(batchcam_captum, kind.__name__) is kind
    assert LOSSES[name.removesuffix("-share")] is kind


def test_defaults_of_map_and_scores():
    foreground, separability = MAKERS["foreground"](), MAKERS["separability"](score="predicted")
    assert (foreground.method, foreground.scores) == ("hires_cam", ("log_prob_sum",))
    assert (separability.method, separability.scores) == (None, ("predicted", "confused"))


@EVERY
@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ({"reduction": "max"}, ValueError),
        ({"method": "grad-cam"}, ValueError),
        ({"score": "labels"}, ValueError),
        ({"score": 3}, TypeError),
        ({"normalization": "peak"}, ValueError),
        ({"distance": "l3"}, ValueError),
        ({"temperature": float("nan")}, ValueError),
        ({"temperature": 0}, ValueError),
        ({"threshold": 1.1}, ValueError),
        ({"sharpness": float("inf")}, ValueError),
        ({"transform": "flip"}, ValueError),
        ({"memory": -1}, ValueError),
        ({"memory": True}, ValueError),
    ],
    ids=str,
)
def test_bad_options(name, option, kind):
    (argument,) = option
    if argument not in inspect.signature(type(MAKERS[name]())).parameters or "share" in name:
        return
    with pytest.raises(kind, match=f"{argument}: expected"):
        MAKERS[name](**option)


BAD = {
    "one-hot": ("labels", torch.eye(6, 4).long(), ValueError),
    "short": ("labels", torch.zeros(5).long(), ValueError),
    "booleans": ("labels", torch.zeros(6, dtype=torch.bool), TypeError),
    "floating": ("labels", torch.zeros(6), ValueError),
    "list": ("labels", [0] * 6, TypeError),
    "integer cams": ("cams", torch.ones(6, 2, 5, 6).long(), TypeError),
    "small cams": ("cams", torch.rand(6, 2, 3, 3), ValueError),
    "wide": ("cams", torch.rand(6, 2, 5, 6, 4, 4), ValueError),
}


@EVERY
@pytest.mark.parametrize(("argument", "value", "kind"), BAD.values(), ids=BAD)
def test_bad_batch(name, argument, value, kind):
    if name == "consistency" and argument == "labels" and isinstance(value, list):
        return
    with pytest.raises(kind, match=f"{argument}: expected"):
        call(MAKERS[name](), family()._replace(**{argument: value}))


@EVERY
@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (torch.ones(5), ValueError),
        (-torch.ones(6), ValueError),
        (torch.full((6,), torch.nan), ValueError),
        ([1.0] * 6, TypeError),
    ],
    ids=["short", "negative", "nan", "list"],
)
def test_bad_sample_weights(name, weights, kind):
    if name != "consistency":
        with pytest.raises(kind, match="sample_weights: expected"):
            call(MAKERS[name](), family(), weights)


@pytest.mark.parametrize("name", AGAINST_PROTOTYPES)
def test_bad_prototypes_and_class_indices(name):
    with pytest.raises(ValueError, match=r"labels: expected class indices .*found \[-1, 4\]"):
        call(MAKERS[name](), family()._replace(labels=torch.tensor([0, 1, 2, 3, 4, -1])))
    with pytest.raises(ValueError, match="labels: expected"):
        call(MAKERS[name](), family()._replace(labels=torch.rand(6, 5)))
    with pytest.raises(TypeError, match="prototypes: expected"):
        LOSSES[name]([1, 2])
    with pytest.raises(ValueError, match=r"prototypes: expected .*aspect ratio"):
        call(LOSSES[name](torch.rand(K, 1, 192, 96)), family())
    with pytest.raises(ValueError, match=r"expected .*spatial dimensions"):
        LOSSES[name](prototypes())(torch.rand(6, 1, 9), family().labels)


def test_distance_of_a_wrong_shape_is_named():
    for name in ("prototype", "batch_cam", "image"):
        with pytest.raises(ValueError, match="distance: expected"):
            call(MAKERS[name](distance=lambda first, second: (first - second).abs()), family())


def test_a_distance_without_a_derivative_at_zero_spoils_no_gradient():
    def euclidean(first, second):
        return (first - second).square().flatten(1).sum(1).sqrt()

    for name in ("prototype", "batch_cam"):
        seen = ClassPrototypes(K)
        seen.update(torch.rand(8, 1, 9, 10), torch.arange(8) % 3)
        data = family()._replace(labels=torch.tensor([0, 1, 1, 1, 0, 0]))
        _, gradient = with_gradient(LOSSES[name](seen, distance=euclidean), data)
        assert gradient.isfinite().all()
        assert gradient.any()


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
        call(loss, data)
    elif name == "foreground":
        data.labels[0] = 9
        call(loss, data)
    else:
        loss(torch.cat([data.cams[:, :1]] * 2), torch.arange(12))
    with pytest.raises(ValueError, match=r"expected .* since the last check"):
        loss.check()


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft labels"])
def test_a_training_step_reads_no_value_on_the_host(soft, weighted):
    """On meta tensors, which have no values, any such read raises."""
    losses = {name: make() for name, make in MAKERS.items()} | {"own masks": ForegroundLoss()}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, K)).to("meta")
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), losses).to("meta")
    images, masks = torch.rand(8, 3, 10, 10, device="meta"), torch.rand(8, 1, 10, 10, device="meta")
    labels = torch.rand(8, K, device="meta") if soft else torch.zeros(8, dtype=torch.long, device="meta")
    weights = torch.rand(8, device="meta") if weighted else None
    with regularizer:
        scores = model(images)
    cam_loss = regularizer(scores, labels, images=images, masks=masks, sample_weights=weights)
    (F.cross_entropy(scores, labels) + cam_loss).backward()
    assert model[3].weight.grad.shape == model[3].weight.shape
    assert all(value.is_meta and not value.requires_grad for value in regularizer.values.values())
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        regularizer.check()  # here the values are read


@EVERY
def test_compiles_whole(name):
    loss, data = MAKERS[name](), family()
    weights = torch.tensor([1.0, 2, 1, 2, 1, 1])
    torch.compiler.reset()
    compiled = torch.compile(lambda data: call(loss, data, weights), fullgraph=True, backend="eager")
    assert_close(compiled(data), call(loss, data, weights))


@EVERY
def test_a_step_after_a_validation_under_inference_mode(name):
    data = family()
    with torch.inference_mode():
        loss = MAKERS[name]()
        call(loss, data)
    _, gradient = with_gradient(loss, data)
    assert gradient.any()


@pytest.fixture
def _registries(monkeypatch):
    for registry in (LOSSES, DISTANCES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.usefixtures("_registries")
def test_own_loss_and_own_distance_are_found_by_name():
    @LOSSES.register("own")
    class Own(CamLoss):
        power: int = 2

        def per_sample(self, samples):
            return samples.cams.pow(self.power).flatten(1).mean(1)

    @DISTANCES.register("largest")
    def largest(first, second):
        return (first - second).abs().flatten(1).amax(1)

    data = family()
    assert_close(
        call(LOSSES["own"](power=4, reduction="sum"), data),
        data.cams[:, 0].pow(4).flatten(1).mean(1).sum(),
    )
    maps = prototypes()
    by_name, given = (call(LOSSES["prototype"](maps, distance=d), data) for d in ("largest", largest))
    assert torch.equal(by_name, given)
    for registry, name in ((LOSSES, "own"), (DISTANCES, "largest")):
        with pytest.raises(ValueError, match=f"'{name}'"):
            registry.register(name)(lambda: None)
        with pytest.raises(ValueError, match=r"expected one of .* got 'nonsense'"):
            registry["nonsense"]


def test_own_losses_without_a_formula_or_with_a_wrong_one():
    class Unfinished(RectifiedLoss):
        pass

    class Wrong(CamLoss):
        def per_sample(self, samples):
            return samples.cams.mean()

    with pytest.raises(NotImplementedError, match="per_sample"):
        call(Unfinished(), family())
    with pytest.raises(ValueError, match="per_sample: expected"):
        call(Wrong(), family())

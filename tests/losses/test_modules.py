"""The losses as modules: options, registry, reporting, errors."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
    functional,
)
from batchcam_captum.functional import DISTANCES
from batchcam_captum.losses import LOSSES, CamLoss
from tests.losses.family import MAKERS

K = 4
AGAINST_PROTOTYPES = [PrototypeLoss, BatchCamLoss, PrototypeContrastiveLoss]


def prototypes():
    return torch.rand(K, 1, 8, 8)


@pytest.fixture
def cams():
    return torch.randn(6, 1, 5, 5)


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 1, 2, 3, 3])


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (PrototypeLoss, functional.prototype_loss),
        (BatchCamLoss, functional.batch_cam_loss),
        (PrototypeContrastiveLoss, functional.prototype_contrastive_loss),
    ],
)
@pytest.mark.parametrize("resolution", ["map", "prototype"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_module_is_its_function(module, function, resolution, reduction, cams, labels):
    options = {"reduction": reduction, "resolution": resolution, "ignore_index": 1}
    loss = module(prototypes(), **options)
    maps = loss.prototypes.maps()
    assert_close(loss(cams, labels), function(cams, labels, maps, **options))


@pytest.mark.parametrize("resolution", ["map", "image"])
def test_image_module_undoes_the_standardization(resolution, cams, labels):
    images = torch.rand(6, 3, 9, 9)
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    shape = (1, 3, 1, 1)
    standardized = (images - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)
    actual = ImageLoss(mean=mean, std=std, resolution=resolution)(cams, labels, images=standardized)
    maps = images.mean(1, keepdim=True)
    low, high = maps.amin((1, 2, 3), True), maps.amax((1, 2, 3), True)
    expected = functional.image_loss(cams, (maps - low) / (high - low), resolution=resolution)
    assert_close(actual, expected)


def test_image_loss_takes_one_channel_and_ignores_samples(cams):
    images = torch.rand(6, 3, 5, 5)
    loss = ImageLoss(to_channel=lambda images: images[:, 1:2], ignore_index=7)
    kept = torch.tensor([True, False, True, True, False, True])
    expected = ImageLoss()(cams[kept], torch.zeros(4, dtype=torch.long), images=images[kept, 1:2])
    assert_close(loss(cams, torch.where(kept, 0, 7), images=images), expected)


@pytest.mark.parametrize("module", [*AGAINST_PROTOTYPES, ImageLoss])
def test_every_loss_reports_its_dead_fraction(module, cams, labels):
    loss = module() if module is ImageLoss else module(prototypes())
    cams[:3] = -cams[:3].abs()
    _, fraction = loss.evaluate(cams.requires_grad_(), labels, images=torch.rand(6, 1, 5, 5))
    assert fraction == 0.5
    assert not fraction.requires_grad


def test_losses_are_found_by_name():
    names = {"prototype", "batch_cam", "prototype_contrastive", "image"}
    assert names <= set(LOSSES)
    assert LOSSES["batch_cam"] is BatchCamLoss


@pytest.fixture
def taken_back():
    before = {id(registry): dict(registry._entries) for registry in (LOSSES, DISTANCES)}
    yield
    for registry in (LOSSES, DISTANCES):
        registry._entries = before[id(registry)]


@pytest.mark.usefixtures("taken_back")
def test_own_loss_and_own_distance_are_found_by_name(cams, labels):
    @LOSSES.register("own")
    class Own(CamLoss):
        def compute(self, cams, labels, *, images, masks):
            return cams.square().mean()

    @DISTANCES.register("largest")
    def largest(first, second):
        return (first - second).abs().flatten(1).amax(1)

    assert LOSSES["own"]()(cams, labels) > 0
    maps = prototypes()
    by_name = PrototypeLoss(maps, distance="largest")(cams, labels)
    assert torch.equal(by_name, PrototypeLoss(maps, distance=largest)(cams, labels))
    for registry, name in ((LOSSES, "own"), (DISTANCES, "largest")):
        with pytest.raises(ValueError, match=f"the name '{name}' is taken; choose another"):
            registry.register(name)(lambda: None)
        assert registry.register(name)(registry[name]) is registry[name]


@pytest.mark.parametrize(
    ("registry", "kind"), [(LOSSES, "loss"), (DISTANCES, "distance"), (functional.CAM_METHODS, "method")]
)
def test_unknown_name_lists_the_known_ones(registry, kind):
    with pytest.raises(ValueError, match=rf"{kind}: expected one of .*, got 'nonsense'; .*register your own"):
        registry["nonsense"]


def test_a_loss_without_compute_says_so(cams, labels):
    class Unfinished(CamLoss):
        pass

    with pytest.raises(NotImplementedError, match=r"Unfinished has to implement compute\(\)"):
        Unfinished()(cams, labels)


BAD_LABELS = {
    "one-hot": (torch.eye(6, K, dtype=torch.long), ValueError, r"got \(6, 4\); pass class indices, not one-hot"),
    "short": (torch.zeros(5, dtype=torch.long), ValueError, r"expected shape \(6,\), got \(5,\); pass one class"),
    "range": (torch.tensor([0, 1, 2, 3, 4, -1]), ValueError, r"from 0 to 3, .*\(found \[-1, 4\]\)"),
    "soft": (torch.rand(6, 5), ValueError, r"soft labels \(6, 4\), got floating \(6, 5\)"),
    "float": (torch.zeros(6), ValueError, r"expected integers \(6,\) .*got floating \(6,\); pass class indices"),
    "bool": (torch.zeros(6, dtype=torch.bool), TypeError, r"got torch.bool; pass class indices"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "kind", "text"), BAD_LABELS.values(), ids=BAD_LABELS)
@pytest.mark.parametrize("module", AGAINST_PROTOTYPES)
def test_bad_labels(module, bad, kind, text, cams):
    with pytest.raises(kind, match=text):
        module(prototypes())(cams, bad)


@pytest.mark.parametrize("bad", ["one-hot", "short", "bool"])
def test_bad_labels_of_an_image_loss(bad, cams):
    labels, kind, text = BAD_LABELS[bad]
    with pytest.raises(kind, match=text):
        ImageLoss()(cams, labels, images=torch.rand(6, 1, 5, 5))


BAD_CAMS = {
    "vector": (torch.rand(6, 1), ValueError, r"got \(6, 1\); a layer with a vector output has no map"),
    "1x1": (torch.rand(6, 1, 1, 1), ValueError, r"at least 4 pixels a side, got \(1, 1\); use a larger input"),
    "3x3": (torch.rand(6, 1, 3, 3), ValueError, r"at least 4 pixels a side, got \(3, 3\)"),
    "channels": (torch.rand(6, 2, 5, 5), ValueError, r"expected \(N, 1, \*spatial\)"),
    "integer": (torch.ones(6, 1, 5, 5, dtype=torch.long), TypeError, "expected floating cams"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "kind", "text"), BAD_CAMS.values(), ids=BAD_CAMS)
@pytest.mark.parametrize("module", [*AGAINST_PROTOTYPES, ImageLoss])
def test_bad_cams(module, bad, kind, text, labels):
    loss = module() if module is ImageLoss else module(prototypes())
    with pytest.raises(kind, match=text):
        loss(bad, labels, images=torch.rand(6, 1, 5, 5))


@pytest.mark.parametrize("module", AGAINST_PROTOTYPES)
def test_label_of_an_unseen_class(module, cams, labels):
    seen = ClassPrototypes(K)
    seen.update(torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 3]))
    loss = module(seen)
    with pytest.raises(
        ValueError, match=r"labels of a class that was never seen; .*without a prototype: \[2\]"
    ):
        loss(cams, labels)
    labels[labels == 2] = -100
    assert loss(cams, labels).isfinite()


@pytest.mark.parametrize("make", [PrototypeLoss, BatchCamLoss])
def test_distance_of_a_wrong_shape(make, cams, labels):
    with pytest.raises(
        ValueError, match=r"distance: expected one number a pair, \(\d,\), got .*; average over"
    ):
        make(prototypes(), distance=lambda first, second: (first - second).abs())(cams, labels)


def test_images_are_missing_or_do_not_fit(cams, labels):
    with pytest.raises(ValueError, match=r"got none; pass images= to the loss"):
        ImageLoss()(cams, labels)
    with pytest.raises(ValueError, match=r"one image of one channel for each of the cams \(6, 1, 5, 5\)"):
        ImageLoss()(cams, labels, images=torch.rand(5, 1, 5, 5))


@pytest.mark.parametrize("module", AGAINST_PROTOTYPES)
def test_bad_options_against_prototypes(module):
    with pytest.raises(
        TypeError, match=r"another kind of prototypes, or a tensor \(K, 1, \*spatial\), got list"
    ):
        module([1, 2])
    with pytest.raises(ValueError, match=r"prototypes: expected maps \(K, 1, \*spatial\), got \(4, 8, 8\)"):
        module(torch.rand(4, 8, 8))
    with pytest.raises(ValueError, match="resolution: expected 'map' or 'prototype', got 'both'"):
        module(prototypes(), resolution="both")
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'max'"):
        module(prototypes(), reduction="max")


@pytest.mark.parametrize("make", [PrototypeLoss, BatchCamLoss, lambda maps, **kw: ImageLoss(**kw)])
def test_bad_options_of_a_comparison(make):
    with pytest.raises(ValueError, match="distance: expected one of 'cosine', 'l1'"):
        make(prototypes(), distance="l3")
    with pytest.raises(ValueError, match="normalization: expected 'max', 'minmax' or 'none', got 'mean'"):
        make(prototypes(), normalization="mean")


def test_image_loss_refuses_an_unknown_resolution():
    with pytest.raises(ValueError, match="resolution: expected 'map' or 'image', got 'both'"):
        ImageLoss(resolution="both")


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature: expected a positive number, got"):
        PrototypeContrastiveLoss(prototypes(), temperature=temperature)


def test_prototypes_of_another_number_of_dimensions(labels):
    with pytest.raises(ValueError, match=r"expected .*spatial dimensions"):
        PrototypeLoss(prototypes())(torch.rand(6, 1, 9), labels)
    with pytest.raises(ValueError, match=r"as many spatial dimensions as the cams \(6, 1, 9\)"):
        functional.prototype_loss(torch.rand(6, 1, 9), labels, prototypes())


def test_a_step_after_a_validation_under_inference_mode(cams, labels):
    loss = PrototypeLoss(prototypes(), distance="cosine")
    with torch.inference_mode():
        loss(cams, labels)
    loss(cams.requires_grad_(), labels).backward()
    assert cams.grad.abs().max() > 0


@pytest.mark.parametrize("module", [*AGAINST_PROTOTYPES, ImageLoss])
def test_ignored_samples_count_for_nothing_not_even_if_they_are_not_finite(module, cams, labels):
    loss = module() if module is ImageLoss else module(prototypes())
    cams[0], cams[1] = -1, float("nan")
    labels[:2] = -100
    cams.requires_grad_()
    value, fraction = loss.evaluate(cams, labels, images=torch.rand(6, 1, 9, 9))
    value.backward()
    assert fraction == 0
    assert cams.grad.isfinite().all()
    assert not cams.grad[:2].any()


@pytest.mark.parametrize("module", [*AGAINST_PROTOTYPES, ImageLoss])
def test_labels_have_to_be_a_tensor(module, cams):
    loss = module() if module is ImageLoss else module(prototypes())
    with pytest.raises(TypeError, match=r"labels: expected a tensor, got list; pass torch.as_tensor"):
        loss(cams, [0, 1, 1, 2, 3, 3], images=torch.rand(6, 1, 9, 9))


@pytest.mark.parametrize("module", [PrototypeLoss, BatchCamLoss])
def test_a_distance_without_a_derivative_at_zero_spoils_no_gradient(module, cams):
    def euclidean(first, second):
        return (first - second).square().flatten(1).sum(1).sqrt()

    seen = ClassPrototypes(K)
    seen.update(torch.rand(8, 1, 8, 8), torch.arange(8) % 3)
    cams[0] = -1  # dead
    cams.requires_grad_()
    module(seen, distance=euclidean)(cams, torch.tensor([0, 1, 1, 1, 0, 0])).backward()
    assert cams.grad.isfinite().all()
    assert cams.grad.any()


def test_maps_made_under_inference_mode_serve_a_training_step(cams, labels):
    with torch.inference_mode():
        loss = PrototypeLoss(prototypes())
    loss(cams.requires_grad_(), labels).backward()
    assert cams.grad.any()


@pytest.mark.parametrize("name", MAKERS)
def test_every_loss_can_choose_its_map_and_its_score(name):
    loss = MAKERS[name](method="layer_cam", score="predicted")
    assert loss.method == "layer_cam"
    assert loss.score == loss.scores[0] == "predicted"
    default = MAKERS[name]()
    assert default.method == type(default).default_method
    assert default.score == type(default).default_score
    with pytest.raises(ValueError, match=r"method: expected one of .*, got 'grad-cam'"):
        MAKERS[name](method="grad-cam")
    with pytest.raises(ValueError, match=r"score: expected 'label', .* got 'labels'"):
        MAKERS[name](score="labels")
    with pytest.raises(TypeError, match=r"score: expected 'label', .* got int"):
        MAKERS[name](score=3)


def test_the_chosen_map_and_score_are_what_the_regularizer_makes():
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(144, 4)
    )
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    seen = []

    class Seeing(CamLoss):
        def compute(self, cams, labels, *, images, masks):
            seen.append(cams.detach())
            return cams.square().sum()

    regularizer = CamRegularizer(BatchGradCam(model, "1"), Seeing(method="hires_cam", score="predicted"))
    with regularizer:
        scores = model(images)
    regularizer(scores, labels)
    expected = BatchGradCam(model, "1", method="hires_cam").attribute(images, target=scores.argmax(1))
    torch.testing.assert_close(seen[0], expected)

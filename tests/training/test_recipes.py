"""Recipes: their losses and weights, that they train, and that the default is the one that the study measured."""

import pytest
import torch
import torch.nn.functional as F

from batchcam_captum import (
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ForegroundLoss,
    ForegroundPrototypes,
    MedianPrototypes,
    PrototypeLoss,
)
from batchcam_captum.attribution import Split
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.training import RECIPES, LinearWarmup, recipe_losses
from batchcam_captum.training.recipes import DEFAULT_RECIPE, Ingredient
from benchmarks.study import arms, plans

CLASSES = 4


@pytest.fixture(scope="module")
def data():
    """A bar per class at slightly different heights, and a decoy in a corner, each corner for a quarter of a class."""
    labels = torch.arange(80) % CLASSES
    images = torch.zeros(80, 1, 28, 28)
    for index, label in enumerate(labels):
        top = 6 + 4 * label + index % 2
        images[index, 0, top : top + 3, 7:21] = 0.8
    masks = torch.zeros(images.shape, dtype=torch.bool)
    for index, (top, left) in enumerate([(0, 0), (0, 24), (24, 0), (24, 24)]):
        masks[(torch.arange(80) // CLASSES) % 4 == index, :, top : top + 4, left : left + 4] = True
    images[masks] = 0.9
    return images, labels, masks


@pytest.fixture
def loader(data):
    images, labels, _ = data
    return [(images[:50], labels[:50]), (images[50:], labels[50:])]


def losses(loader, **options):
    return recipe_losses(loader, CLASSES, progress=False, **options)


def test_the_default_is_what_the_study_measured():
    measured = [
        (each.loss, each.prototypes, each.distance, each.weight, each.warm_up)
        for each in arms.terms(plans.RECIPE)
    ]
    names = {ForegroundPrototypes: "foreground", ClassPrototypes: "mean"}
    shipped = []
    for ingredient in RECIPES[DEFAULT_RECIPE].values():
        loss = ingredient.loss(ingredient.prototypes.from_maps(torch.rand(2, 1, 4, 4)))
        kind = {ForegroundLoss: ("foreground", None), PrototypeLoss: ("prototype", "ssim")}[type(loss)]
        shipped.append(
            (kind[0], names[ingredient.prototypes], kind[1], ingredient.weight, ingredient.warm_up)
        )
    assert shipped == measured


def test_losses_equal_those_made_by_hand(data, loader):
    images, labels, _ = data
    cams = torch.randn(80, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    made = losses(loader)
    foreground = ForegroundLoss(ForegroundPrototypes.from_loader([(images, labels)], CLASSES, progress=False))
    means = torch.stack([images[labels == label].mean(0) for label in range(CLASSES)])
    shape = PrototypeLoss(means, distance="ssim")
    torch.testing.assert_close(made["foreground"][0](cams, labels), foreground(cams, labels))
    torch.testing.assert_close(made["shape"][0](cams, labels), shape(cams, labels))
    assert made["foreground"][0].method == "hires_cam"
    assert made["foreground"][0].score == "log_prob_sum"


def test_a_decoy_in_a_random_corner_is_not_foreground(data, loader):
    images, _, masks = data
    foregrounds = losses(loader)["foreground"][0].prototypes.maps((28, 28))
    assert foregrounds[:, masks.any(0)].abs().max() == 0
    assert foregrounds[:, (images * ~masks > 0).any(0)].max() == 1


def test_standardization_is_undone(data, loader):
    plain, standardized = (
        losses(given, **options)
        for given, options in (
            (loader, {}),
            ([((images - 0.2) / 0.3, labels) for images, labels in loader], {"mean": 0.2, "std": 0.3}),
        )
    )
    for name in plain:
        maps = [each[name][0].prototypes.maps() for each in (plain, standardized)]
        torch.testing.assert_close(*maps, atol=4e-3, rtol=0)


def trained(recipe, data, loader, *, regularized):
    """Return the regularizer after a few steps with cross-entropy, with or without its terms."""
    torch.manual_seed(0)
    images, labels, _ = data
    model = SimpleCNN(CLASSES)
    regularizer = CamRegularizer.from_loader(
        BatchGradCam(model, "features"), loader, CLASSES, recipe=recipe, progress=False
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        with regularizer:
            scores = model(images)
        loss = F.cross_entropy(scores, labels)
        if regularized:
            loss = loss + regularizer(scores, labels)
        loss.backward()
        optimizer.step()
        regularizer.step()
    return regularizer


@pytest.mark.parametrize("recipe", [DEFAULT_RECIPE])
def test_training_by_a_recipe_lowers_its_terms(recipe, data, loader):
    images, labels, _ = data
    plain, regularized = (
        trained(recipe, data, loader, regularized=each).evaluate(images, labels) for each in (False, True)
    )
    for name in RECIPES[recipe]:
        assert regularized[name] < 0.9 * plain[name]


def test_the_other_regularizer_takes_the_same_losses(data, loader):
    torch.manual_seed(0)
    images, labels, _ = data
    model = SimpleCNN(CLASSES)

    def head(activations):
        return model.classifier(F.relu(model.hidden(F.max_pool2d(activations, 2).flatten(1))))

    split = CamRegularizer(Split(model.features, head), losses(loader))
    regularizer = CamRegularizer(BatchGradCam(model, "features"), losses(loader))
    for each in (split, regularizer):
        each.step()  # halfway up
    with regularizer:
        scores = model(images)
    torch.testing.assert_close(split.run(images, labels)[1], regularizer(scores, labels))


def test_ignored_labels(data, loader):
    images, labels, _ = data
    ignoring = [(images, torch.where(labels == 3, 9, labels))]
    made = losses(ignoring, ignore_index=9)
    assert made["shape"][0].prototypes.seen.tolist() == [True, True, True, False]
    cams = torch.randn(80, 1, 14, 14)
    kept = labels != 3
    for loss, _ in made.values():
        torch.testing.assert_close(loss(cams, ignoring[0][1]), loss(cams[kept], labels[kept]))


def test_weights_warm_up_over_the_epochs_of_the_loader(loader):
    assert losses(loader)["shape"][1] == LinearWarmup(1.0, steps=2)
    assert losses(loader, steps_per_epoch=50)["shape"][1] == LinearWarmup(1.0, steps=50)
    assert losses(iter(loader), recipe="foreground")["foreground"][1] == 0.1
    assert losses(iter(loader), steps_per_epoch=2).keys() == {"foreground", "shape"}  # read once
    with pytest.raises(TypeError, match="steps_per_epoch="):
        losses(iter(loader), recipe="shape")
    with pytest.raises(TypeError, match="own"):
        losses(loader, recipe={"own": Ingredient(MedianPrototypes, PrototypeLoss, "auto", warm_up=1.0)})


def test_the_losses_are_on_the_device_of_the_model(loader):
    model = SimpleCNN(CLASSES).to("meta")
    with pytest.raises(RuntimeError, match="meta"):  # it tries to compute there
        CamRegularizer.from_loader(BatchGradCam(model, "features"), loader, CLASSES, progress=False)
    made = CamRegularizer.from_loader(
        BatchGradCam(model, "features"), loader, CLASSES, device="cpu", progress=False
    )
    assert made.terms["shape"].prototypes.values.device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"recipe": None}, "recipe"),
        ({"recipe": "best"}, "foreground_shape"),
        ({"recipe": {"own": PrototypeLoss}}, "recipe"),
        ({"steps_per_epoch": -5}, "steps_per_epoch"),
        ({"mena": 0.5}, "mena"),
    ],
)
def test_bad_options_are_refused(loader, options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        losses(loader, **options)


def test_a_recipe_of_your_own(loader):
    own = {"median": Ingredient(MedianPrototypes, PrototypeLoss, "auto")}
    assert losses(loader, recipe=own)["median"][1] == "auto"

"""Diagnoses against loops over single samples and sums by hand; what is written, and what the figures show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam, ClassPrototypes
from batchcam_captum.evaluation import diagnose
from batchcam_captum.evaluation import diagnosis_figures as figures
from batchcam_captum.evaluation.diagnosis import FILES
from tests.models import SmallCnn

CLASSES = 4


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(23, 3, 12, 12, generator=generator)
    return images, torch.randint(CLASSES - 1, (23,), generator=generator)  # none of the last class


@pytest.fixture(scope="module")
def loader(data):
    """Batches of images, labels, and a further entry, as data sets with masks have it."""
    return [(*(part[start : start + 5] for part in data), "masks") for start in range(0, 23, 5)]


def make(seed):
    torch.manual_seed(seed)
    model = SmallCnn(num_classes=CLASSES)
    return BatchGradCam(model, model.layer)


@pytest.fixture(scope="module")
def models():
    return make(1), make(2)


@pytest.fixture(scope="module")
def prototypes():
    return ClassPrototypes.from_maps(torch.rand(CLASSES, 1, 5, 5, generator=torch.Generator().manual_seed(6)))


NAMES = [f"class {label}" for label in range(CLASSES)]


@pytest.fixture(scope="module")
def diagnosis(models, loader, prototypes):
    return diagnose(
        models[0], loader, prototypes, before=models[1], distance="l1", panels=4, class_names=NAMES
    )


def test_sums_by_class_are_those_of_a_loop(diagnosis, models, data, prototypes):
    targets = prototypes.maps()
    targets = targets / targets.amax((1, 2, 3), keepdim=True)
    for part, grad_cam in ((diagnosis.after, models[0]), (diagnosis.before, models[1])):
        maps: dict[int, list] = {label: [] for label in range(CLASSES)}
        cosines: dict[int, list] = {label: [] for label in range(CLASSES)}
        nearest = torch.zeros(CLASSES, CLASSES + 1, dtype=torch.int64)
        predicted = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
        for image, label in zip(data[0], data[1].tolist(), strict=True):
            cam = grad_cam.attribute(image[None], target=label)[0].clamp(min=0)
            if cam.max() > 0:
                cam = cam / cam.max()
                maps[label].append(cam)
                cosines[label].append(F.cosine_similarity(cam.flatten(), targets[label].flatten(), dim=0))
                nearest[label, (targets - cam).abs().flatten(1).mean(1).argmin()] += 1
            else:
                cosines[label].append(torch.tensor(0.0))
                nearest[label, -1] += 1
            predicted[label, grad_cam.forward_func(image[None]).argmax()] += 1
        assert part.samples.tolist() == [len(cosines[label]) for label in range(CLASSES)]
        assert torch.equal(part.dead, nearest[:, -1])
        assert torch.equal(part.map_confusion, nearest)
        assert torch.equal(part.prediction_confusion, predicted)
        for label in range(CLASSES - 1):
            torch.testing.assert_close(part.mean_maps[label], torch.stack(maps[label]).mean(0))
            torch.testing.assert_close(part.cosines[label].float(), torch.stack(cosines[label]).mean())
        assert not part.mean_maps[-1].any()
        assert part.cosines[-1].isnan()
        assert part.accuracy == pytest.approx(predicted.diagonal().sum().item() / 23)
        assert part.nearest_prototype_accuracy == pytest.approx(nearest.diagonal().sum().item() / 23)
    assert diagnosis.after.accuracy != diagnosis.before.accuracy


def test_mistakes_are_those_of_highest_cross_entropy_with_their_own_maps(diagnosis, models, data):
    images, labels = data
    grad_cam = models[0]
    with torch.no_grad():
        scores = grad_cam.forward_func(images)
    losses = F.cross_entropy(scores, labels, reduction="none")
    wrong = [place for place in range(23) if scores[place].argmax() != labels[place]]
    worst = sorted(wrong, key=lambda place: -losses[place])[:4]
    mistakes = diagnosis.mistakes
    assert diagnosis.mistakes_in_all == len(wrong) > 4
    assert mistakes.positions.tolist() == worst
    assert torch.equal(mistakes.images, images[worst])
    chances = scores.softmax(1)[worst]
    torch.testing.assert_close(mistakes.confidences, chances.amax(1))
    torch.testing.assert_close(mistakes.label_probabilities, chances.gather(1, labels[worst, None])[:, 0])
    for maps, targets in (
        (mistakes.maps_of_prediction, scores[worst].argmax(1)),
        (mistakes.maps_of_label, labels[worst]),
    ):
        for map_, place, target in zip(maps, worst, targets.tolist(), strict=True):
            cam = grad_cam.attribute(images[place][None], target=target)[0].clamp(min=0)
            torch.testing.assert_close(map_, cam / cam.max().clamp(min=1e-12))
    torch.testing.assert_close(mistakes.differences, mistakes.maps_of_prediction - mistakes.maps_of_label)


class Returns:
    """An explainer with given cams and scores."""

    method, layer_names = "grad_cam", ["layer"]

    def __init__(self, cams, scores):
        self.cams, self.scores = cams, scores

    def attribute_with_scores(self, images, target):
        rows = images[:, 0, 0, 0].long()
        return self.cams[rows], self.scores[rows]

    def attribute(self, images, target):
        return self.cams[images[:, 0, 0, 0].long()]


def numbered(count):
    """Images that hold their own position, in batches of 2."""
    return torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).split(2)


def test_dead_cams_are_counted_and_left_out_of_the_mean():
    shapes = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).reshape(3, 1, 2, 2)
    own = 5 * shapes[0] - 1  # one pixel above 0
    cams = torch.stack([own, -torch.ones(1, 2, 2), 3 * shapes[1] + 6 * shapes[0], -torch.ones(1, 2, 2)])
    scores = torch.tensor([[2.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 3]])
    batches = zip(numbered(4), torch.tensor([0, 0, 0, 2]).split(2), strict=True)
    found = diagnose(Returns(cams, scores), batches, ClassPrototypes.from_maps(shapes)).after
    assert found.samples.tolist() == [3, 0, 1]
    assert found.dead.tolist() == [1, 0, 1]
    assert (found.dead_fraction, found.accuracy) == (0.5, 0.5)
    torch.testing.assert_close(found.mean_maps[0, 0], torch.tensor([[1.0, 0.25], [0, 0]]))
    assert not found.mean_maps[2].any()
    assert found.map_confusion.tolist() == [[2, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found.prediction_confusion.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert found.cosines[0].item() == pytest.approx((1 + 0 + 2 / 5**0.5) / 3)  # the dead one's is 0
    assert found.cosines[2] == 0


def test_worst_mistakes_of_equal_loss_are_the_first():
    scores = torch.tensor([[0.0, 1], [0, 9], [1, 0], [0, 9], [0, 1], [0, 1], [1, 0], [0, 9]])
    grad_cam = Returns(torch.rand(8, 1, 2, 2), scores)
    prototypes = ClassPrototypes.from_maps(torch.rand(2, 1, 2, 2))
    batches = [(images, torch.zeros(2, dtype=torch.int64)) for images in numbered(8)]
    found = diagnose(grad_cam, batches, prototypes, panels=3)
    assert found.mistakes.positions.tolist() == [1, 3, 7]
    assert found.mistakes.images[:, 0, 0, 0].tolist() == [1, 3, 7]
    assert found.mistakes_in_all == 6
    assert diagnose(grad_cam, batches[:1], prototypes, panels=3).mistakes.positions.tolist() == [1, 0]


def test_without_prototypes_they_are_the_means_of_the_loader(models, loader):
    own = ClassPrototypes.from_loader(loader, CLASSES, progress=False)
    given, taken = diagnose(models[0], loader, own), diagnose(models[0], loader)
    assert torch.equal(given.after.map_confusion, taken.after.map_confusion)
    torch.testing.assert_close(given.prototypes, taken.prototypes)
    assert given.before is None
    assert taken.settings["prototypes"] == "mean images of the diagnosed data set"
    assert taken.settings["layer"] == "layer"


def test_a_shuffling_loader_leaves_the_global_generator_as_it_was(models, data):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    # Reads the loader for the number of classes, the prototypes and the cams.
    found = diagnose(models[0], DataLoader(TensorDataset(*data), batch_size=6, shuffle=True), panels=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert int(found.after.samples.sum()) == 23


def test_a_model_in_bfloat16_is_diagnosed_and_saved(data, prototypes, tmp_path):
    model = SmallCnn(num_classes=CLASSES).bfloat16()
    found = diagnose(BatchGradCam(model, model.layer), [(data[0].bfloat16(), data[1])], prototypes)
    found.save(tmp_path)
    assert len(found.mistakes) == np.load(tmp_path / "diagnosis.npz")["mistakes_images"].shape[0] > 0


def diverged():
    model = SmallCnn(num_classes=CLASSES)
    torch.nn.init.constant_(model.head.bias, float("nan"))
    return BatchGradCam(model, model.layer)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"prototypes": None, "loader": iter([])}, ValueError, "prototypes"),
        ({"loader": []}, ValueError, "loader"),
        ({"class_names": ["a", "b"]}, ValueError, "class_names"),
        ({"prototypes": ClassPrototypes.from_maps(torch.rand(3, 1, 5, 5))}, ValueError, "prototypes"),
        ({"panels": -1}, ValueError, "panels"),
        ({"grad_cam": BatchGradCam(SmallCnn(num_classes=CLASSES), ["layer", "stem"])}, TypeError, "layer"),
        ({"grad_cam": diverged()}, ValueError, "scores"),
        ({"loader": [(torch.rand(2, 3, 12, 12), torch.tensor([0, 4]))]}, ValueError, "target|labels"),
    ],
)
def test_what_cannot_be_diagnosed(models, loader, prototypes, change, error, name):
    given = {"grad_cam": models[0], "loader": loader, "prototypes": prototypes} | change
    with pytest.raises(error, match=name):
        diagnose(**given)


def test_everything_is_written_and_can_be_read(diagnosis, tmp_path):
    tmp_path /= "new"  # is made
    assert diagnosis.save(tmp_path) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert content == diagnosis.to_dict()
    assert content["samples"] == 23
    assert content["after"]["samples"] == diagnosis.after.samples.tolist()
    assert content["after"]["cosine_to_prototype"][-1] is None  # and not NaN, which is no JSON
    assert [entry["label"] for entry in content["mistakes"]["worst"]] == [
        NAMES[label] for label in diagnosis.mistakes.labels.tolist()
    ]
    arrays = np.load(tmp_path / "diagnosis.npz")
    np.testing.assert_array_equal(arrays["after_mean_maps"], diagnosis.after.mean_maps)
    np.testing.assert_array_equal(arrays["before_map_confusion"], diagnosis.before.map_confusion)
    np.testing.assert_array_equal(arrays["mistakes_images"], diagnosis.mistakes.images)
    assert all(
        (tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith("png")
    )


def test_a_folder_that_cannot_be_made_is_named(diagnosis, tmp_path):
    with pytest.raises(OSError, match="new"):
        diagnosis.save(tmp_path / "missing" / "new")


def test_a_figure_that_fails_leaves_the_folder_as_it_was(diagnosis, tmp_path, monkeypatch):
    (tmp_path / "diagnosis.json").write_text("earlier")

    def full(found):
        raise OSError("no space left")

    monkeypatch.setattr(figures, "draw_map_confusion", full)
    with pytest.raises(OSError, match="no space left"):
        diagnosis.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diagnosis.json"]
    assert (tmp_path / "diagnosis.json").read_text() == "earlier"


def test_figure_of_class_maps_has_fixed_scales(diagnosis):
    figure = figures.draw_class_maps(diagnosis)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 3 * 4  # the fourth class has no samples
    after, before = diagnosis.after, diagnosis.before
    np.testing.assert_allclose(shown[1].images[0].get_array(), before.mean_maps[0, 0])
    np.testing.assert_allclose(shown[2].images[0].get_array(), after.mean_maps[0, 0])
    np.testing.assert_allclose(shown[7].images[0].get_array(), (after.mean_maps - before.mean_maps)[1, 0])
    assert [axis.images[0].get_clim() for axis in shown[:4]] == [(0, 1), (0, 1), (0, 1), (-1, 1)]
    own = [100 * int(part.map_confusion[0, 0]) / int(part.samples[0]) for part in (before, after)]
    assert f"{own[0]:.0f} → {own[1]:.0f} %" in shown[0].get_ylabel()


def test_figure_of_the_confusion_shows_shares_of_the_rows(diagnosis):
    before, after, _ = figures.draw_map_confusion(diagnosis).axes
    for axis, part in ((before, diagnosis.before), (after, diagnosis.after)):
        expected = 100 * part.map_confusion / part.samples.clamp(min=1)[:, None]
        np.testing.assert_allclose(axis.images[0].get_array(), expected)
        assert axis.images[0].get_clim() == (0, 100)
    assert [label.get_text() for label in after.get_xticklabels()] == [*NAMES, "none"]


def test_figure_of_mistakes(diagnosis):
    mistakes = diagnosis.mistakes
    shown = [axis for axis in figures.draw_misclassified(diagnosis).axes if axis.images]
    assert len(shown) == 4 * 6
    np.testing.assert_allclose(shown[0].images[0].get_array(), mistakes.images[0].permute(1, 2, 0), atol=1e-6)
    for column, labels in ((10, mistakes.predictions), (11, mistakes.labels)):
        np.testing.assert_array_equal(shown[column].images[0].get_array(), diagnosis.prototypes[labels[1], 0])
    assert shown[3].images[0].get_clim() == (-1, 1)
    assert shown[1].images[0].get_array().shape == (12, 12)
    assert (
        shown[0]
        .get_ylabel()
        .startswith(f"{NAMES[mistakes.predictions[0]]} ({100 * float(mistakes.confidences[0]):.0f} %)")
    )


def test_dead_cams_of_mistakes_are_marked_and_have_no_difference(tmp_path):
    """Three mistakes: the cam of the label dead, that of the prediction, none."""
    dead = [[False, True], [True, False], [False, False]]  # of the prediction, of the label

    class ByTarget(Returns):
        def attribute(self, images, target):
            cams = super().attribute(images, target)
            for row, position in enumerate(images[:, 0, 0, 0].long().tolist()):
                if dead[position][int(target[row] == 0)]:
                    cams[row] = -cams[row]
            return cams

    grad_cam = ByTarget(torch.rand(3, 1, 2, 2) + 0.1, torch.tensor([[0.0, 3], [0, 2], [0, 1]]))
    batches = [(images, torch.zeros(len(images), dtype=torch.int64)) for images in numbered(3)]
    found = diagnose(grad_cam, batches, ClassPrototypes.from_maps(torch.rand(2, 1, 2, 2)))
    mistakes = found.mistakes
    assert mistakes.positions.tolist() == [0, 1, 2]
    assert torch.stack([mistakes.dead_of_prediction, mistakes.dead_of_label], 1).tolist() == dead
    axes = figures.draw_misclassified(found).axes
    for row, entry in enumerate(found.to_dict()["mistakes"]["worst"]):
        of_prediction, of_label = dead[row]
        assert (entry["map_of_prediction_dead"], entry["map_of_label_dead"]) == (of_prediction, of_label)
        either = of_prediction or of_label
        expected = (mistakes.maps_of_prediction[row] - mistakes.maps_of_label[row]).abs().mean().item()
        assert entry["mean_difference_of_maps"] == (None if either else pytest.approx(expected))
        marked = [len(axis.texts) for axis in axes[6 * row : 6 * row + 6]]
        assert marked == [0, of_prediction, of_label, either, 0, 0]
        drawn = axes[6 * row + 3].images[0].get_array()
        assert bool(np.ma.getmaskarray(np.ma.masked_invalid(drawn)).all()) == either


def test_nothing_wrong_and_nothing_kept(models, data, prototypes):
    images, labels = data
    with torch.no_grad():
        right = models[0].forward_func(images).argmax(1)
    none_wrong = diagnose(models[0], [(images, right)], prototypes)
    assert len(none_wrong.mistakes) == 0
    assert none_wrong.mistakes_in_all == 0
    assert none_wrong.to_dict()["before"] is None
    none_kept = diagnose(models[0], [(images, labels)], prototypes, panels=0)
    assert len(none_kept.mistakes) == 0
    assert none_kept.mistakes_in_all > 0
    for found in (none_wrong, none_kept):
        assert figures.draw_misclassified(found).texts
        assert len(found.text().splitlines()) == 6


def test_many_classes_are_cut_to_those_with_the_lowest_share():
    labels = torch.arange(60) % 30
    grad_cam = Returns(torch.rand(60, 1, 4, 4), torch.rand(60, 30))
    prototypes = ClassPrototypes.from_maps(torch.rand(30, 1, 4, 4))
    batches = [(torch.arange(60.0).reshape(60, 1, 1, 1), labels)]
    many = diagnose(grad_cam, batches, prototypes, panels=0)
    figure = figures.draw_class_maps(many)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 2 * 20
    names = {int(axis.get_ylabel().split("\n")[0]) for axis in shown[::2]}
    own = many.after.map_confusion.diagonal() / many.after.samples
    assert min(own[label] for label in set(range(30)) - names) >= own.sort().values[19]
    assert not figures.draw_map_confusion(many).axes[0].texts  # numbers would not fit

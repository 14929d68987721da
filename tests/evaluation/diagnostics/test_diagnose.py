"""Diagnoses against loops over single samples, and against sums made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam, ClassPrototypes
from batchcam_captum.evaluation import diagnose
from batchcam_captum.evaluation.diagnostics.tally import ClassTally, WorstMistakes
from tests.models import SmallCnn

CLASSES = 4


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(23, 3, 12, 12, generator=generator)
    return images, torch.randint(CLASSES - 1, (23,), generator=generator)  # none of the last class


@pytest.fixture(scope="module")
def loader(data):
    """Batches of images, labels, and something further, as data sets with masks have it."""
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


@pytest.fixture(scope="module")
def diagnosis(models, loader, prototypes):
    return diagnose(models[0], loader, prototypes, before=models[1], distance="l1", panels=4)


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


def test_dead_maps_are_counted_and_left_out_of_the_mean():
    shapes = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).reshape(3, 1, 2, 2)
    tally = ClassTally(ClassPrototypes.from_maps(shapes), "centred_cosine")
    own = 5 * shapes[0] - 1  # one pixel above 0
    cams = torch.stack([own, -torch.ones(1, 2, 2), 3 * shapes[1] + 6 * shapes[0], -torch.ones(1, 2, 2)])
    scores = torch.tensor([[2.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 3]])
    tally.update(cams[:3], scores[:3], torch.tensor([0, 0, 0]))
    tally.update(cams[3:], scores[3:], torch.tensor([2]))
    found = tally.result()
    assert found.samples.tolist() == [3, 0, 1]
    assert found.dead.tolist() == [1, 0, 1]
    assert found.dead_fraction == 0.5
    torch.testing.assert_close(found.mean_maps[0, 0], torch.tensor([[1.0, 0.25], [0, 0]]))
    assert not found.mean_maps[2].any()
    assert found.map_confusion.tolist() == [[2, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert found.prediction_confusion.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert found.accuracy == 0.5
    assert found.cosines[0].item() == pytest.approx((1 + 0 + 2 / 5**0.5) / 3)  # the dead one's is 0
    assert found.cosines[2] == 0


def test_worst_mistakes_of_equal_loss_are_the_first_and_no_other_image_is_held():
    worst = WorstMistakes(3)
    images = torch.arange(8.0).reshape(8, 1, 1, 1)
    scores = torch.tensor([[0.0, 1], [0, 9], [1, 0], [0, 9], [0, 1], [0, 1], [1, 0], [0, 9]])
    labels = torch.zeros(8, dtype=torch.int64)
    for start in range(0, 8, 2):
        worst.update(images[start : start + 2], scores[start : start + 2], labels[:2])
        assert len(worst._kept.images) <= 3
    kept, in_all = worst.result()
    assert kept.positions.tolist() == [1, 3, 7]
    assert kept.images.flatten().tolist() == [1, 3, 7]
    assert in_all == 6
    worst = WorstMistakes(3)
    worst.update(images[:3], scores[:3], labels[:3])
    kept, in_all = worst.result()
    assert kept.positions.tolist() == [1, 0]  # the third is right
    assert in_all == 2


def test_without_prototypes_they_are_the_means_of_the_loader(models, loader):
    own = ClassPrototypes.from_loader(loader, CLASSES, progress=False)
    given, taken = diagnose(models[0], loader, own), diagnose(models[0], loader)
    assert torch.equal(given.after.map_confusion, taken.after.map_confusion)
    torch.testing.assert_close(given.prototypes, taken.prototypes)
    assert given.before is None
    assert taken.settings["prototypes"] == "mean images of the diagnosed data set"
    assert taken.settings["layer"] == "layer"


def test_a_shuffling_loader_leaves_the_global_generator_as_it_was(models, data):
    seen = []

    def collate(samples):
        seen.append(torch.rand(()).item())  # as a random transform draws
        return torch.stack([image for image, _ in samples]), torch.stack([label for _, label in samples])

    loader = DataLoader(TensorDataset(*data), batch_size=6, shuffle=True, collate_fn=collate)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    found = diagnose(models[0], loader, panels=1)  # iterates for the classes, the prototypes and the maps
    assert torch.equal(torch.rand(4), expected)
    assert int(found.after.samples.sum()) == 23
    assert len(seen) >= 9
    assert len(set(seen[-4:])) == 4  # each batch has draws of its own
    torch.manual_seed(3)
    wrong = DataLoader(TensorDataset(data[0]), shuffle=True)
    with pytest.raises(TypeError, match="expected batches"):
        diagnose(models[0], wrong)
    assert torch.equal(torch.rand(4), expected)


def test_what_cannot_be_diagnosed(models, loader, prototypes):
    grad_cam = models[0]
    with pytest.raises(
        ValueError, match=r"prototypes: expected some, as the loader can be gone through only once"
    ):
        diagnose(grad_cam, iter(loader))
    with pytest.raises(ValueError, match=r"loader: expected at least one sample, got none"):
        diagnose(grad_cam, [], prototypes)
    with pytest.raises(ValueError, match=r"class_names: expected 4 names, got 2"):
        diagnose(grad_cam, loader, prototypes, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"prototypes: expected 4 classes, as the model has scores, got 3"):
        diagnose(grad_cam, loader, ClassPrototypes.from_maps(torch.rand(3, 1, 5, 5)))
    with pytest.raises(ValueError, match=r"panels: expected at least 0, got -1"):
        diagnose(grad_cam, loader, prototypes, panels=-1)
    model = grad_cam.forward_func
    both = BatchGradCam(model, [model.layer, model.stem])
    with pytest.raises(TypeError, match=r"layer: expected one layer with one tensor, got list"):
        diagnose(both, loader, prototypes)
    diverged = SmallCnn(num_classes=CLASSES)
    torch.nn.init.constant_(diverged.head.bias, float("nan"))
    with pytest.raises(ValueError, match=r"scores: expected finite numbers, got others"):
        diagnose(BatchGradCam(diverged, diverged.layer), loader, prototypes)

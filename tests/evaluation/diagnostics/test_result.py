"""What is written of a diagnosis, and what its figures show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from batchcam_captum import BatchGradCam, ClassPrototypes
from batchcam_captum.evaluation.diagnostics import diagnose, figures
from batchcam_captum.evaluation.diagnostics.result import FILES
from tests.models import SmallCnn


def made(*, classes=3, count=12, before=True, panels=2, right=False):
    generator = torch.Generator().manual_seed(8)
    images = torch.rand(count, 3, 12, 12, generator=generator)
    torch.manual_seed(1)
    models = [SmallCnn(num_classes=classes) for _ in range(2)]
    labels = torch.arange(count) % (classes - 1)
    if right:
        with torch.no_grad():
            labels = models[0](images).argmax(1)
    cams = [BatchGradCam(model, model.layer) for model in models]
    prototypes = ClassPrototypes.from_maps(torch.rand(classes, 1, 5, 5, generator=generator))
    return diagnose(
        cams[0], [(images, labels)], prototypes, before=cams[1] if before else None, panels=panels,
        class_names=[f"class {label}" for label in range(classes)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def diagnosis():
    return made()


def test_everything_is_written_and_can_be_read(diagnosis, tmp_path):
    tmp_path /= "new"  # is made
    assert diagnosis.save(tmp_path) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert content == diagnosis.to_dict()
    assert content["samples"] == 12
    assert content["after"]["samples"] == [6, 6, 0]
    assert content["after"]["cosine_to_prototype"][2] is None  # and not NaN, which is no JSON
    assert [entry["label"] for entry in content["mistakes"]["worst"]] == [
        f"class {label}" for label in diagnosis.mistakes.labels.tolist()
    ]
    arrays = np.load(tmp_path / "diagnosis.npz")
    np.testing.assert_array_equal(arrays["after_mean_maps"], diagnosis.after.mean_maps)
    np.testing.assert_array_equal(arrays["before_map_confusion"], diagnosis.before.map_confusion)
    np.testing.assert_array_equal(arrays["mistakes_images"], diagnosis.mistakes.images)
    assert all(
        (tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith("png")
    )


def test_a_folder_that_cannot_be_made_is_named(diagnosis, tmp_path):
    with pytest.raises(OSError, match="new: expected a folder that exists and can be written to"):
        diagnosis.save(tmp_path / "missing" / "new")


def test_a_figure_that_fails_leaves_the_folder_as_it_was(diagnosis, tmp_path, monkeypatch):
    (tmp_path / "diagnosis.json").write_text("earlier")

    def full(found):
        raise OSError("no space left")

    monkeypatch.setattr(figures, "class_maps", lambda found: figures.message_figure("drawn"))
    monkeypatch.setattr(figures, "map_confusion", full)
    with pytest.raises(OSError, match="no space left"):
        diagnosis.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diagnosis.json"]
    assert (tmp_path / "diagnosis.json").read_text() == "earlier"


def test_figure_of_class_maps_has_fixed_scales_and_names_the_normalisation(diagnosis):
    figure = figures.class_maps(diagnosis)
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown[:4]] == [
        "prototype", "mean map\nbefore", "mean map\nafter", "after − before",  # noqa: RUF001
    ]  # fmt: skip
    assert len(shown) == 2 * 4  # the third class has no samples
    np.testing.assert_allclose(shown[2].images[0].get_array(), diagnosis.after.mean_maps[0, 0])
    np.testing.assert_allclose(
        shown[7].images[0].get_array(), (diagnosis.after.mean_maps - diagnosis.before.mean_maps)[1, 0]
    )
    assert [axis.images[0].get_clim() for axis in shown[:4]] == [(0, 1), (0, 1), (0, 1), (-1, 1)]
    assert shown[3].images[0].get_cmap().name == "RdBu_r"
    assert "relu(C) / max" in figure.get_suptitle()
    own = [100 * int(part.map_confusion[0, 0]) / 6 for part in (diagnosis.before, diagnosis.after)]
    assert shown[0].get_ylabel() == f"class 0\n{own[0]:.0f} → {own[1]:.0f} % own"


def test_figure_of_the_confusion_shows_shares_of_the_rows(diagnosis):
    figure = figures.map_confusion(diagnosis)
    before, after, bar = figure.axes
    expected = 100 * diagnosis.after.map_confusion / torch.tensor([6, 6, 1])[:, None]
    np.testing.assert_allclose(after.images[0].get_array(), expected)
    assert [label.get_text() for label in after.get_xticklabels()] == [
        "class 0",
        "class 1",
        "class 2",
        "none",
    ]
    assert after.images[0].get_clim() == (0, 100)
    assert before.get_title().startswith("before: ")
    assert "%" in bar.get_ylabel()


def test_figure_of_mistakes(diagnosis):
    mistakes = diagnosis.mistakes
    figure = figures.misclassified(diagnosis)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 2 * 6
    np.testing.assert_allclose(shown[0].images[0].get_array(), mistakes.images[0].permute(1, 2, 0), atol=1e-6)
    np.testing.assert_array_equal(
        shown[10].images[0].get_array(), diagnosis.prototypes[mistakes.predictions[1], 0]
    )
    np.testing.assert_array_equal(
        shown[11].images[0].get_array(), diagnosis.prototypes[mistakes.labels[1], 0]
    )
    assert shown[3].images[0].get_clim() == (-1, 1)
    assert shown[1].images[0].get_array().shape == (12, 12)
    name = f"class {int(mistakes.predictions[0])} ({100 * float(mistakes.confidences[0]):.0f} %)"
    assert shown[0].get_ylabel().startswith(f"{name}\ninstead of\n")
    assert f"The worst 2 of {diagnosis.mistakes_in_all} mistakes in 12 samples" in figure.get_suptitle()
    assert "bilinearly" in figure.get_suptitle()


def test_dead_maps_of_mistakes_are_marked_and_have_no_difference(tmp_path):
    """Three mistakes: the map of the label dead, that of the prediction, none."""
    generator = torch.Generator().manual_seed(8)
    images = torch.rand(3, 3, 12, 12, generator=generator)
    dead = [[False, True], [True, False], [False, False]]  # of the prediction, of the label

    class Fixed(BatchGradCam):
        """With the maps of the mistakes made dead as listed, whatever the order of the samples."""

        def attribute(self, inputs, target):
            cams = super().attribute(inputs, target=target).abs() + 0.1
            for place, image in enumerate(inputs):
                sample = next(number for number in range(3) if torch.equal(image, images[number]))
                if dead[sample][int(target[place] == labels[sample])]:
                    cams[place] = -cams[place]
            return cams

    torch.manual_seed(1)
    model = SmallCnn(num_classes=3)
    with torch.no_grad():
        labels = (model(images).argmax(1) + 1) % 3
    prototypes = ClassPrototypes.from_maps(torch.rand(3, 1, 5, 5, generator=generator))
    found = diagnose(Fixed(model, model.layer), [(images, labels)], prototypes, panels=3)
    mistakes = found.mistakes
    order = mistakes.positions.tolist()
    assert torch.stack([mistakes.dead_of_prediction, mistakes.dead_of_label], 1).tolist() == [
        dead[position] for position in order
    ]
    found.save(tmp_path)
    entries = json.loads((tmp_path / "diagnosis.json").read_text())["mistakes"]["worst"]
    arrays = np.load(tmp_path / "diagnosis.npz")
    axes = figures.misclassified(found).axes
    for row, position in enumerate(order):
        of_prediction, of_label = dead[position]
        assert (
            entries[row]["map_of_prediction_dead"]
            == arrays["mistakes_dead_of_prediction"][row]
            == of_prediction
        )
        assert entries[row]["map_of_label_dead"] == arrays["mistakes_dead_of_label"][row] == of_label
        either = of_prediction or of_label
        expected = (mistakes.maps_of_prediction[row] - mistakes.maps_of_label[row]).abs().mean().item()
        assert entries[row]["mean_difference_of_maps"] == (None if either else pytest.approx(expected))
        texts = [[text.get_text() for text in axis.texts] for axis in axes[6 * row : 6 * row + 6]]
        assert texts == [
            [], ["dead"] * of_prediction, ["dead"] * of_label, ["none: a map\nis dead"] * either, [], [],
        ]  # fmt: skip
        drawn = axes[6 * row + 3].images[0].get_array()
        assert bool(np.ma.getmaskarray(np.ma.masked_invalid(drawn)).all()) == either


def test_nothing_wrong_and_nothing_kept_are_said():
    none_wrong, none_kept = made(before=False, right=True), made(panels=0)
    assert len(none_wrong.mistakes) == 0
    assert figures.misclassified(none_wrong).texts[0].get_text() == "All 12 samples are classified correctly."
    assert "none was kept" in figures.misclassified(none_kept).texts[0].get_text()
    assert none_wrong.to_dict()["before"] is None
    assert none_wrong.text().splitlines()[0].split("|")[2].strip() == "model"


def test_many_classes_are_cut_to_those_whose_maps_say_least():
    many = made(classes=30, count=60, before=False)
    figure = figures.class_maps(many)
    assert len([axis for axis in figure.axes if axis.images]) == 2 * 20
    assert "The 20 of 30 classes with the lowest share" in figure.get_suptitle()
    own = many.after.map_confusion.diagonal()[:-1] / many.after.samples[:-1]
    left_out = set(range(29)) - set(figures._classes_to_show(many.after).tolist())
    assert min(own[label] for label in left_out) >= own.sort().values[19]
    assert not figures.map_confusion(many).axes[0].texts  # numbers would not fit

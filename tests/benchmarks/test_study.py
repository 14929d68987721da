"""The study: what is refused, what is never averaged in, what goes on after an interruption, and how choices are made."""

import json
import math
import re
import sys
from dataclasses import asdict, replace

import pytest
import torch

from batchcam_captum.datasets.mnist import GrayscaleImages
from benchmarks.study import __main__ as main
from benchmarks.study import arms, choosing, data, measuring, page, plans, run, summary, training
from benchmarks.study.development import development_mark
from benchmarks.study.settings import OtherStudyError, Settings, finished, read, write

CPU = torch.device("cpu")
SHORT = Settings("decoy-mnist", "simple_cnn", arms.PLAIN, seed=0, train_size=300, epochs=1, batch_size=100)


def drawn(name, root, *, train):
    """A bar for each class, and noise: as much of the data as the code needs to run."""
    count = 400 if train else 60
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.arange(count) % 10
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    for index, label in enumerate(labels):
        images[index, 4 + 2 * label : 6 + 2 * label, 6:22] = 200
    noise = torch.randint(0, 40, images.shape, generator=generator, dtype=torch.uint8)
    return GrayscaleImages(images + noise * (images > 0), labels, tuple("0123456789"))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "load_mnist", drawn)
    monkeypatch.setattr(data, "HELD_OUT", 50)


def runs(folder, *wanted, **options):
    return run.run_all(lambda: wanted, folder, folder, CPU, progress=False, **options)


def test_every_arm_of_the_plans_can_be_read():
    for family in plans.FAMILIES:
        assert arms.terms(f"{family}:1")
    for arm in (*plans.CANDIDATES, *plans.VARIATIONS, plans.RECIPE):
        assert arms.terms(arm)
    first, second = arms.terms("foreground:0.1+prototype-ssim@median/hires_cam/log_prob_sum:3~0.5")
    assert first == arms.Term("foreground", prototypes="foreground", weight=0.1)
    assert second == arms.Term("prototype", "ssim", "median", "hires_cam", "log_prob_sum", (), 3.0, 0.5)
    assert second.schedule(steps_per_epoch=10)(5) == 3.0
    assert arms.terms(arms.PLAIN) == []


@pytest.mark.parametrize("arm", ["", "unknown:1", "prototype-l1@nothing:1", "prototype-l1:x", "energy:1+"])
def test_an_arm_that_is_none_is_refused(arm):
    with pytest.raises(ValueError, match="arm: expected"):
        arms.terms(arm)


def test_a_run_is_written_whole_and_not_run_again(small, tmp_path):
    arm = "foreground:auto+prototype-ssim@median!strict:1"
    other = replace(SHORT, arm=arm, layer="features.1", data="mnist", faithfulness=10)
    assert runs(tmp_path, SHORT, other) == 0
    found, others = read(SHORT.file(tmp_path)), read(other.file(tmp_path))
    assert found["metrics"].keys() - others["metrics"].keys() == set(page.SHORTCUT)
    assert others["metrics"].keys() - found["metrics"].keys() == set(page.FAITHFULNESS)
    assert all(math.isfinite(value) for value in found["metrics"].values())
    before = SHORT.file(tmp_path).stat().st_mtime_ns
    assert runs(tmp_path, SHORT) == 0
    assert SHORT.file(tmp_path).stat().st_mtime_ns == before


def test_the_same_run_gives_the_same_numbers(small, tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        runs(folder, SHORT)
    first, second = (read(SHORT.file(tmp_path / name))["metrics"] for name in "ab")
    assert first == second


def test_an_interrupted_run_leaves_nothing_and_the_plan_goes_on(small, tmp_path, monkeypatch):
    other = replace(SHORT, seed=1)
    measure = run.measure

    def interrupted(*arguments, **options):
        if list(tmp_path.glob("*.json")):
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(run, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs(tmp_path, SHORT, other)
    assert [path.name for path in tmp_path.glob("*.json")] == [SHORT.file(tmp_path).name]
    monkeypatch.setattr(run, "measure", measure)
    assert runs(tmp_path, SHORT, other) == 0
    assert finished(other, tmp_path)


def test_a_run_goes_on_at_the_epoch_where_it_was_cut_off(small, tmp_path, monkeypatch):
    long = replace(SHORT, epochs=3, arm="foreground:0.1~2")
    runs(tmp_path / "whole", long)
    epoch = training._Training.epoch

    def cut_off(self, *arguments):
        if len(self.losses) == 2:
            raise KeyboardInterrupt
        epoch(self, *arguments)

    monkeypatch.setattr(training._Training, "epoch", cut_off)
    with pytest.raises(KeyboardInterrupt):
        runs(tmp_path / "cut", long)
    epochs = []
    monkeypatch.setattr(training._Training, "epoch", lambda self, *a: epochs.append(epoch(self, *a)))
    runs(tmp_path / "cut", long)
    assert len(epochs) == 1
    whole, cut = (read(long.file(tmp_path / name)) for name in ("whole", "cut"))
    assert (whole["metrics"], whole["losses"]) == (cut["metrics"], cut["losses"])
    assert not list((tmp_path / "cut").rglob("*.pt"))


def test_weights_that_are_no_numbers_after_the_last_step_are_written_as_such_and_the_plan_goes_on(
    small, tmp_path, monkeypatch
):
    step = training._Training.step

    def broken(self, *arguments):
        loss = step(self, *arguments)
        if self.settings.seed == 1:
            self.model.classifier.weight.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(training._Training, "step", broken)
    last = replace(SHORT, seed=1, batch_size=300)  # one step
    assert runs(tmp_path, last, SHORT) == 0
    assert "weights were not finite" in read(last.file(tmp_path))["diverged"]
    assert "metrics" in read(SHORT.file(tmp_path))


def test_cams_that_are_no_numbers_are_written_as_such(small, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", lambda *_, **__: measuring.measure(*_, **__))
    monkeypatch.setattr(measuring, "dead_cams", lambda cams: torch.full((len(cams),), float("nan")))
    assert runs(tmp_path, SHORT) == 0
    assert "dead_fraction of the trained model" in read(SHORT.file(tmp_path))["diverged"]


def test_a_limit_stops_a_run_at_the_end_of_an_epoch(small, tmp_path, monkeypatch):
    long = replace(SHORT, epochs=3)
    now = iter(range(10_000))
    with monkeypatch.context() as patched:
        patched.setattr(training.time, "monotonic", lambda: float(next(now)))
        assert runs(tmp_path, long, limit=6) == 1
    assert not finished(long, tmp_path)
    assert list(tmp_path.rglob("*.pt"))
    assert runs(tmp_path, long) == 0


def test_a_damaged_checkpoint_is_named(small, tmp_path):
    path = tmp_path / run.UNFINISHED / SHORT.file(tmp_path).with_suffix(".pt").name
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"s0\.pt: expected a checkpoint, got a damaged file"):
        runs(tmp_path, SHORT)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["weights", "--list"], 0, "missing"),
        (["large"], 2, "run `weights` first"),
        (["search", "--limit", "0"], 0, "missing"),
    ],
)
def test_the_command_says_what_is_missing(arguments, status, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main.os, "execve", lambda *_: None)  # it would start anew with a pinned allocator
    options = ["--data-root", str(tmp_path), "--results", str(tmp_path / "results"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["study", *arguments, *options])
    assert main.main() == status
    assert said in "".join(capsys.readouterr())


def test_missing_data_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main.os, "execve", lambda *_: None)
    options = [
        "--data-root",
        str(tmp_path / "none"),
        "--results",
        str(tmp_path / "results"),
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["study", "search", *options])
    assert main.main() == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_no_run_begins_after_the_limit_or_while_another_process_is_at_it(small, tmp_path):
    other = replace(SHORT, seed=1)
    assert runs(tmp_path, SHORT, other, limit=0) == 2
    with run.claimed(SHORT, tmp_path) as ours:
        assert ours
        assert runs(tmp_path, SHORT, other) == 1
    assert not finished(SHORT, tmp_path)
    assert finished(other, tmp_path)
    assert runs(tmp_path, SHORT, other) == 0


def test_a_result_by_other_settings_is_an_error_that_names_them(tmp_path):
    write(replace(SHORT, epochs=7), tmp_path, metrics={})
    with pytest.raises(OtherStudyError, match="epochs = 7 there, 1 here"):
        finished(SHORT, tmp_path)
    with pytest.raises(OtherStudyError, match="epochs"):
        runs(tmp_path, SHORT)


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {"data": 1}}', "[]"])
def test_a_file_that_is_no_result_is_an_error(tmp_path, text):
    SHORT.file(tmp_path).write_text(text)
    with pytest.raises(ValueError, match="expected a result of this study"):
        finished(SHORT, tmp_path)


def test_a_loss_that_is_no_number_is_written_as_such_and_enters_no_mean(small, tmp_path):
    broken = replace(SHORT, seed=1, learning_rate=1e30)
    regularized = replace(broken, arm="prototype-l1:1")
    assert runs(tmp_path, SHORT, broken, regularized) == 0
    for settings in (broken, regularized):
        assert re.search("finite.*epoch 1", read(settings.file(tmp_path))["diverged"])
    cells = summary.collected(tmp_path, [SHORT, broken])
    cell = cells[SHORT.data, SHORT.network, SHORT.arm]
    assert cell.diverged == (1,)
    assert cell.mean("accuracy") == read(SHORT.file(tmp_path))["metrics"]["accuracy"]
    assert page.written(cell, "accuracy").endswith("(1 diverged)")


def of_accuracy(folder, settings, accuracy):
    write(settings, folder, metrics={"accuracy": accuracy}, seconds_per_step=1.0)


def test_the_largest_weight_that_costs_nothing_is_chosen(tmp_path):
    plain = [replace(SHORT, data=name) for name in plans.CLEAN]
    weights = (0.1, 1, 10)
    with pytest.raises(choosing.NotYetError):
        choosing.choose_weight("energy", weights, plain, tmp_path)
    for settings, accuracy in zip(plain, (0.98, 0.88), strict=True):
        of_accuracy(tmp_path, settings, accuracy)
        of_accuracy(tmp_path, replace(settings, arm="energy:10"), accuracy - 0.003)
        of_accuracy(tmp_path, replace(settings, arm="energy:1"), accuracy - 0.001)
    assert choosing.choose_weight("energy", weights, plain, tmp_path) == 1
    for settings in plain:
        for weight in (1, 10):
            own = replace(settings, arm=f"hint:{weight}")
            write(own, tmp_path, diverged="the loss was not finite in epoch 1")
        of_accuracy(tmp_path, replace(settings, arm="hint:0.1"), 0.5)
    assert choosing.choose_weight("hint", weights, plain, tmp_path) == 0.1


def test_the_recipe_is_what_the_rule_chooses():
    clean, shortcut = (
        [plans.of_choice(name, arms.PLAIN) for name in sets] for sets in (plans.CLEAN, plans.SEARCHED[:2])
    )
    assert choosing.choose_recipe(plans.CANDIDATES, clean, shortcut, page.RESULTS) == plans.RECIPE


def test_weights_are_tried_from_the_largest_down_and_no_further_than_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "FAMILIES", {"energy": (0.1, 1, 10), "hint": (0.1, 1, 10)})
    asked = []
    for settings in plans.weights(tmp_path):
        asked.append(settings.arm)
        of_accuracy(tmp_path, settings, 0.5 if settings.arm == "energy:10" else 0.9)
    assert asked[::2] == [arms.PLAIN, "energy:10", "hint:10", "energy:1"]
    assert asked[::2] == asked[1::2]
    assert plans.chosen_arms(tmp_path).items() >= {("energy", "energy:1"), ("hint", "hint:10")}


def test_differences_are_paired_by_seed():
    first = summary.Cell({seed: {"x": value} for seed, value in enumerate([1.0, 2.0, 4.0])}, ())
    other = summary.Cell({0: {"x": 0.5}, 1: {"x": 1.0}, 2: {"x": 2.0}, 3: {"x": 100.0}}, ())
    found = summary.paired(first, other, "x")
    # 0.5, 1, 2: mean 7/6, deviation 0.7638, t = 2.6458 with two degrees of freedom; p = 1 − t / √(t² + 2).
    t = (7 / 6) / (0.763763 / math.sqrt(3))
    assert found.seeds == 3
    assert found.mean == pytest.approx(7 / 6)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2), rel=1e-4)
    assert summary.paired(first, summary.Cell({}, (0,)), "x") is None
    assert summary.paired(first, first, "x").p is None


def test_seeds_that_are_missing_from_a_number_are_said():
    found = {
        0: {"accuracy": 0.5},
        1: {"accuracy": 0.7, "max_sensitivity": 0.1},
        2: {"accuracy": 0.7, "max_sensitivity": 0.3},
    }
    plain, arm = summary.Cell(found, ()), summary.Cell({seed: found[seed] for seed in (0, 1)}, (2,))
    assert page.written(plain, "max_sensitivity") == "0.200 ± 0.141 (2 of 3 seeds)"
    assert page.written(plain, "accuracy") == "63.33 ± 11.55"
    assert page.difference(arm, plain, "accuracy") == "+0.00 (2 pairs)"
    assert page.difference(plain, arm, "accuracy") == "+0.00 (2 pairs)"
    assert page.difference(plain, plain, "accuracy") == "+0.00"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"settings": SETTINGS}',
        '{"settings": SETTINGS, "metrics": {"accuracy": NaN}}',
        "[]",
        '{"settings',
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    path = SHORT.file(tmp_path)
    path.write_text(text.replace("SETTINGS", json.dumps(asdict(SHORT))))
    with pytest.raises(
        ValueError, match=rf"{re.escape(path.name)}: expected a result of this study, got .*; remove it"
    ):
        finished(SHORT, tmp_path)


@pytest.mark.parametrize("metric", ["insertion_curve", "infidelity"])
def test_a_measure_of_faithfulness_that_is_no_number_is_divergence(small, tmp_path, monkeypatch, metric):
    made = getattr(measuring, metric)

    def broken(*arguments, **options):
        found = made(*arguments, **options)
        return found * math.nan if metric == "infidelity" else found._replace(auc=found.auc * math.nan)

    monkeypatch.setattr(measuring, metric, broken)
    settings = replace(SHORT, faithfulness=4)
    assert runs(tmp_path, settings) == 0
    assert "of the trained model were not finite" in read(settings.file(tmp_path))["diverged"]


def test_recipes_cannot_be_chosen_with_a_shortcut_that_is_reported(small, tmp_path):
    with pytest.raises(ValueError, match="chosen without this shortcut"):
        data.load("decoy-mnist", tmp_path, split="validation")
    with pytest.raises(ValueError, match="development shortcut"):
        data.load("development-mnist", tmp_path, split="test")
    with pytest.raises(ValueError, match="data: expected"):
        data.load("cifar", tmp_path)
    assert all("decoy" not in each.data and "color" not in each.data for each in plans.search(tmp_path))


def test_masks_say_where_evidence_may_be(small, tmp_path):
    clean = data.load("mnist", tmp_path).train
    assert torch.equal(clean.masks, (clean.images > 0).float())
    decoyed = data.load("decoy-mnist", tmp_path).train
    assert decoyed.shortcuts.flatten(1).sum(1).eq(16).all()
    assert torch.equal(decoyed.masks, (~decoyed.shortcuts).float())
    colored = data.load("color-mnist", tmp_path).train
    assert colored.images.shape[1] == 3
    assert torch.equal(colored.masks, clean.masks)
    assert [part.has_shortcut_beside for part in (clean, decoyed, colored)] == [False, True, False]
    for arm, told in (("energy:1", decoyed.masks), ("foreground@objects:1", decoyed.objects.float())):
        assert torch.equal(arms.masks_for(arm, decoyed), told)
    assert torch.equal(arms.masks_for("foreground@masks:1", decoyed), decoyed.masks)
    assert arms.masks_for("foreground:1", decoyed) is None


def test_the_development_shortcut_is_a_diamond_with_the_shade_of_its_class(small):
    images = torch.zeros(40, 1, 28, 28)
    labels = torch.arange(40) % 10
    marked, masks = development_mark(images, labels, train=True, generator=torch.Generator().manual_seed(0))
    assert masks.flatten(1).sum(1).eq(13).all()
    for image, mask, label in zip(marked, masks, labels, strict=True):
        assert torch.allclose(image[mask], 0.1 + 0.09 * label)
    edges = masks[:, 0, 0, 14] | masks[:, 0, 27, 14] | masks[:, 0, 14, 0] | masks[:, 0, 14, 27]
    assert edges.all()
    other, _ = development_mark(images, labels, train=False, generator=torch.Generator().manual_seed(0))
    shades = torch.stack([image.max() for image in other])
    assert not torch.allclose(shades, 0.1 + 0.09 * labels)


def test_arms_differ_in_nothing_but_the_loss(small, tmp_path):
    """The same weights to begin with and the same batches: a weight of zero is cross-entropy alone."""
    found = data.load(SHORT.data, tmp_path, train_size=300)
    plain = training.train(SHORT, found, CPU, progress=False)
    zero = training.train(replace(SHORT, arm="prototype-l1:0"), found, CPU, progress=False)
    for first, second in zip(plain.model.parameters(), zero.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_the_page_is_that_of_the_committed_results():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text
    for name, make in page.FILES.items():
        assert make(page.RESULTS) == (page.DATA / name).read_text(encoding="utf-8")


def test_committed_results_are_of_the_plans():
    """Every file is a finished run of a plan, so that none is forgotten, or counted by another name."""
    planned = [each for plan in plans.PLANS for each in plans.known(plan, page.RESULTS)[0]]
    wanted = {each.file(page.RESULTS) for each in planned if finished(each, page.RESULTS)}
    assert set(page.RESULTS.glob("*.json")) == wanted

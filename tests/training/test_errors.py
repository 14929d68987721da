"""What the regulariser refuses, in words; and that it lets go of the capture whatever happens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes, PrototypeLoss
from tests.training.models import K, Net, captured, hooks_of, prototypes, regularizer_of

IMAGES, LABELS = torch.rand(8, 1, 8, 8), torch.arange(8) % K


def refuses(model, call, kind, text):
    """The call raises, and leaves neither a hook nor a capture."""
    regularizer = regularizer_of(model)
    with pytest.raises(kind, match=text):
        call(regularizer, model)
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="expected a captured forward, got none"):
        regularizer(torch.rand(8, K), LABELS)
    assert regularizer(captured(regularizer, IMAGES), LABELS).isfinite()


def forgotten_with(regularizer, model):
    regularizer(model(IMAGES), LABELS)


def consumed(regularizer, model):
    scores = captured(regularizer, IMAGES)
    regularizer(scores, LABELS)
    regularizer(scores, LABELS)


def not_reached(regularizer, model):
    with regularizer:
        scores = Net()(IMAGES)
    regularizer(scores, LABELS)


def nested(regularizer, model):
    with regularizer, regularizer:
        pass


def second_forward(regularizer, model):
    with regularizer:
        model(IMAGES)
        model(IMAGES)


def other_forward(regularizer, model):
    captured(regularizer, IMAGES)
    regularizer(model(IMAGES), LABELS)


def freed(regularizer, model):
    scores = captured(regularizer, IMAGES)
    F.cross_entropy(scores, LABELS).backward()
    regularizer(scores, LABELS)


def detached(regularizer, model):
    regularizer(captured(regularizer, IMAGES).detach(), LABELS)


def without_graph(regularizer, model):
    with torch.no_grad():
        scores = captured(regularizer, IMAGES)
    regularizer(scores, LABELS)


def inference(regularizer, model):
    with torch.inference_mode():
        captured(regularizer, IMAGES)


def nan_scores(regularizer, model):
    regularizer(captured(regularizer, IMAGES) * torch.nan, LABELS)


def fewer_scores(regularizer, model):
    regularizer(captured(regularizer, IMAGES)[:4], LABELS[:4])


def no_tensor(regularizer, model):
    regularizer([captured(regularizer, IMAGES)], LABELS)


def short_labels(regularizer, model):
    regularizer(captured(regularizer, IMAGES), LABELS[:5])


def long_labels(regularizer, model):
    regularizer(captured(regularizer, IMAGES), LABELS.repeat(2))


def one_hot(regularizer, model):
    regularizer(captured(regularizer, IMAGES), F.one_hot(LABELS, K))


def soft_of_another_k(regularizer, model):
    regularizer(captured(regularizer, IMAGES), torch.rand(8, K + 1))


def out_of_range(regularizer, model):
    regularizer(captured(regularizer, IMAGES), LABELS + 1)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (forgotten_with, RuntimeError, "expected a captured forward, got none; run the model inside `with"),
        (consumed, RuntimeError, "call the regularizer once for each such block"),
        (not_reached, RuntimeError, "Tanh: expected one run of the layer inside `with regularizer:`, got none"),
        (nested, RuntimeError, "got a nested `with` of the same"),
        (second_forward, RuntimeError, "expected one run of the layer inside the with block, got a second one"),
        (other_forward, RuntimeError, r"computed from the captured activations \(8, 4, 6, 6\), got scores of another"),
        (freed, RuntimeError, r"earlier backward\(\) has freed; add all terms to one loss, then call backward\(\) once"),
        (detached, RuntimeError, "expected scores with a graph, got scores without one"),
        (without_graph, RuntimeError, r"expected scores with a graph.*outside torch.no_grad\(\).*call evaluate\("),
        (inference, RuntimeError, r"got one under torch.inference_mode\(\); run the forward outside"),
        (nan_scores, ValueError, "expected finite scores, got NaN or infinity; lower the learning rate"),
        (fewer_scores, ValueError, r"scores of the 8 captured samples, got shape \(4, 3\)"),
        (no_tensor, TypeError, r"scores: expected a tensor \(N, K\), got list"),
        (short_labels, ValueError, r"labels: expected shape \(8,\), got \(5,\); pass one class index a sample"),
        (long_labels, ValueError, r"labels: expected shape \(8,\), got \(16,\)"),
        (one_hot, ValueError, r"labels: expected shape \(8,\), got \(8, 3\); pass class indices, not one-hot rows"),
        (soft_of_another_k, ValueError, r"soft labels \(8, 3\), got floating \(8, 4\)"),
        (out_of_range, ValueError, r"class indices from 0 to 2, .*found \[3\]"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_refusals_name_the_remedy_and_let_go_of_the_capture(call, kind, text):
    refuses(Net(), call, kind, text)


@pytest.mark.parametrize(
    ("layer", "text"),
    [(2, r"at least 4 pixels a side, got \(1, 1\)"), (3, "a layer with a vector output has no map")],
    ids=["1x1", "vector"],
)
def test_layers_without_a_map(layer, text):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K)
    )
    regularizer = CamRegularizer(BatchGradCam(model, model[layer]), BatchCamLoss(prototypes()))
    with pytest.raises(ValueError, match=text):
        regularizer(captured(regularizer, IMAGES), LABELS)


def test_prototypes_of_another_number_of_classes():
    regularizer = regularizer_of(Net(), BatchCamLoss(torch.rand(K + 2, 1, 8, 8)))
    with pytest.raises(
        ValueError, match=r"batch_cam: expected prototypes of 3 classes, .*got 5; make them with"
    ):
        regularizer(captured(regularizer, IMAGES), LABELS)


def test_label_of_a_class_that_was_never_seen():
    seen = ClassPrototypes(K)
    seen.update(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    regularizer = regularizer_of(Net(), BatchCamLoss(seen))
    with pytest.raises(
        ValueError, match=r"a class that was never seen; .*classes without a prototype: \[2\]"
    ):
        regularizer(captured(regularizer, IMAGES), LABELS)


def test_loss_without_a_reduction():
    regularizer = regularizer_of(Net(), PrototypeLoss(prototypes(), reduction="none"))
    with pytest.raises(
        ValueError, match=r"expected a scalar of 'prototype', got \(8,\); use reduction='mean'"
    ):
        regularizer(captured(regularizer, IMAGES), LABELS)


def test_evaluate_refuses_bad_labels_and_leaves_no_hook():
    model = Net()
    regularizer = regularizer_of(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match="not one-hot rows"):
        regularizer.evaluate(IMAGES, F.one_hot(LABELS, K))
    assert hooks_of(model) == 0
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_what_cannot_be_a_regularizer():
    model = Net()
    grad_cam = BatchGradCam(model, model.layer)
    loss = BatchCamLoss(prototypes())
    with pytest.raises(TypeError, match="grad_cam: expected a BatchGradCam"):
        CamRegularizer(model, loss)
    with pytest.raises(ValueError, match="expected at least one loss, got none"):
        CamRegularizer(grad_cam, {})
    with pytest.raises(
        TypeError, match="expected a CamLoss for 'a', got MSELoss; derive your own from CamLoss"
    ):
        CamRegularizer(grad_cam, {"a": (nn.MSELoss(), 1.0)})


@pytest.mark.parametrize(
    ("losses", "kind", "text"),
    [
        (lambda loss: "batch_cam", TypeError, r"a dict or a list of them, got str; a loss by its name is LOSSES\[name\]"),
        (lambda loss: {"a": (loss,)}, TypeError, "a pair of a loss and its weight, got 1 entries"),
        (lambda loss: {"keys": loss}, ValueError, "a name without dots and slashes that is not taken, got 'keys'"),
        (lambda loss: {"a.b": loss}, ValueError, "a name without dots and slashes that is not taken, got 'a.b'"),
        (lambda loss: {"dead_fraction": loss}, ValueError, "that is not taken, got 'dead_fraction'"),
        (lambda loss: [loss, (loss, 1.0)], ValueError, "each name once, got 'batch_cam' again; pass a dict"),
        (lambda loss: {"a": (loss, "big")}, ValueError, "a function of the steps or 'auto' for 'a', got 'big'"),
        (lambda loss: {"a": (loss, None)}, TypeError, "a number or a function of the steps for 'a', got NoneType"),
        (lambda loss: {"a": (loss, float("nan"))}, ValueError, "weight: expected a finite number for 'a', got nan"),
    ],
)  # fmt: skip
def test_terms_are_checked_before_the_first_step(losses, kind, text):
    model = Net()
    with pytest.raises(kind, match=text):
        CamRegularizer(BatchGradCam(model, model.layer), losses(BatchCamLoss(prototypes())))


def test_an_unknown_method_is_refused_at_once():
    model = Net()
    loss = BatchCamLoss(prototypes())
    loss.method = "guesswork"
    with pytest.raises(ValueError, match=r"method: expected one of .*'grad_cam'.*, got 'guesswork'"):
        CamRegularizer(BatchGradCam(model, model.layer), loss)


def test_check_raises_for_every_loss_and_reading_the_values_checks():
    loss = BatchCamLoss(prototypes())
    regularizer = regularizer_of(Net(), loss)
    for check in (regularizer.check, regularizer.read_values):
        check()
        loss.checks._failed["labels: wrong"] = torch.tensor(True)
        with pytest.raises(ValueError, match=r"labels: wrong \(in a batch since the last check\)"):
            check()
        check()


def test_validate_raises_in_the_call_and_leaves_the_loss_as_it_was(monkeypatch):
    loss = BatchCamLoss(prototypes())
    regularizer = regularizer_of(Net(), loss, validate=True)
    assert not loss.checks.synchronize
    scores = captured(regularizer, IMAGES)
    loss.checks._failed["labels: wrong"] = torch.tensor(True)  # as a GPU would have noted it
    with pytest.raises(ValueError, match="labels: wrong"):
        regularizer(scores, LABELS)

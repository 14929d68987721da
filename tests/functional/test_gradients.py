"""From scores to gradients: which score, whose graph."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import activation_gradients, select_scores
from tests import reference

LABELS = torch.tensor([2, 0, 2, 1])


def scores_of(activations):
    torch.manual_seed(1)
    weight = torch.randn(activations[0].numel(), 3, dtype=activations.dtype)
    return torch.tanh(activations.flatten(1) @ weight)


@pytest.fixture
def activations():
    return torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("score", "row"),
    [
        ("label", lambda scores, label: scores[label]),
        ("predicted", lambda scores, label: max(scores.tolist())),
        ("log_prob_sum", lambda scores, label: scores.softmax(0).log().sum()),
        (lambda scores, labels: scores.sum(1), lambda scores, label: scores.sum()),
    ],
    ids=["label", "predicted", "log_prob_sum", "callable"],
)
def test_each_kind_of_score(score, row, activations):
    scores = scores_of(activations).detach()
    expected = [float(row(own, label)) for own, label in zip(scores, LABELS, strict=True)]
    assert_close(select_scores(scores, LABELS, score), torch.tensor(expected, dtype=torch.float64))


CONFUSED_LABELS = {
    "indices": LABELS,
    "small integers": LABELS.to(torch.uint8),
    "ignored": torch.tensor([2, -100, 7, 1]),
    "soft": torch.tensor([[0.6, 0.4, 0], [0.2, 0.3, 0.5], [0.5, 0.5, 0], [0, 0, 1]]),
    "several": torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]]),
}


@pytest.mark.parametrize("labels", CONFUSED_LABELS.values(), ids=CONFUSED_LABELS)
def test_confused_is_the_highest_score_of_another_class(labels, activations):
    scores = scores_of(activations).detach()
    actual = select_scores(scores, labels, "confused")
    assert_close(actual, reference.confused_scores(scores, labels))
    scores[torch.arange(4), scores.argmax(1)] += 10
    assert_close(select_scores(scores, labels, "confused"), reference.confused_scores(scores, labels))


def test_confused_score_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="score: expected"):
        select_scores(torch.rand(4, 1), torch.zeros(4, dtype=torch.long), "confused")


@pytest.mark.parametrize("score", ["label", "predicted", "confused", "log_prob_sum"])
def test_gradient_of_each_kind_of_score(score):
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: select_scores(given, LABELS, score), scores)
    soft = torch.rand(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: select_scores(given, soft, score), scores)


def test_soft_labels_weigh_the_scores(activations):
    scores = scores_of(activations)
    soft = torch.rand(4, 3, dtype=torch.float64)
    assert_close(select_scores(scores, soft), torch.stack([s @ w for s, w in zip(scores, soft, strict=True)]))
    one_hot = torch.nn.functional.one_hot(LABELS, 3).double()
    assert_close(select_scores(scores, one_hot), select_scores(scores, LABELS))


@pytest.mark.parametrize("labels", [[2, -100, 2, 1], [2, 3, 2, 1]])
def test_labels_out_of_range_select_something_and_are_left_to_the_loss(labels, activations):
    selected = select_scores(scores_of(activations), torch.tensor(labels))
    assert_close(selected[[0, 2, 3]], select_scores(scores_of(activations), LABELS)[[0, 2, 3]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", ["label", "predicted", "confused", "log_prob_sum"])
def test_half_scores_are_selected_in_float32_with_or_without_autocast(score, dtype):
    scores = torch.randn(4, 3).to(dtype)
    selected = select_scores(scores, LABELS, score)
    assert selected.dtype == torch.float32
    assert torch.equal(selected, select_scores(scores.float(), LABELS, score))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(select_scores(scores, LABELS, score), selected)


@pytest.mark.parametrize(
    ("scores", "labels", "score", "kind", "text"),
    [
        (torch.rand(4), LABELS, "label", ValueError, "scores: expected"),
        (torch.rand(4, 3), LABELS, "best", ValueError, "score: expected"),
        (torch.rand(4, 3), LABELS, lambda s, y: s, ValueError, "score: expected"),
        (torch.rand(4, 3), LABELS[:2], "label", ValueError, "labels: expected"),
        (torch.rand(4, 3), LABELS.repeat(2), "label", ValueError, "labels: expected"),
        (torch.rand(4, 3), torch.eye(4, 3).long(), "label", ValueError, "labels: expected"),
        (torch.rand(4, 3), torch.rand(4, 2), "label", ValueError, "labels: expected"),
        (torch.rand(4, 3), LABELS > 0, "label", TypeError, "labels: expected"),
    ],
)  # fmt: skip
def test_scores_that_cannot_be_selected(scores, labels, score, kind, text):
    with pytest.raises(kind, match=text):
        select_scores(scores, labels, score)


@pytest.mark.parametrize("create_graph", [True, False])
def test_batched_gradient_equals_a_loop_over_samples(create_graph, activations):
    selected = select_scores(scores_of(activations), LABELS)
    (gradients,) = activation_gradients(selected, [activations], create_graph=create_graph)
    for i in range(4):
        sample = activations[i : i + 1].detach().requires_grad_()
        (expected,) = torch.autograd.grad(scores_of(sample)[0, LABELS[i]], sample)
        assert_close(gradients[i : i + 1], expected)
    assert gradients.requires_grad is create_graph
    assert activations.grad is None


def test_autocast_does_not_reach_the_gradient_of_the_gradient():
    def second_order(autocast):
        torch.manual_seed(0)
        layer, activations = torch.nn.Linear(18, 3), torch.randn(4, 18, requires_grad=True)
        scores = torch.tanh(layer(activations))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            selected = select_scores(scores, LABELS)
            (gradients,) = activation_gradients(selected, [activations], create_graph=True)
        return torch.autograd.grad(gradients.square().sum(), layer.weight)[0]

    assert torch.equal(second_order(True), second_order(False))


def test_gradients_can_be_taken_under_no_grad(activations):
    selected = select_scores(scores_of(activations), LABELS)
    with torch.no_grad():
        (gradients,) = activation_gradients(selected, [activations], create_graph=True)
    assert gradients.requires_grad


def test_scores_without_a_graph(activations):
    with pytest.raises(RuntimeError, match="scores: expected"):
        activation_gradients(scores_of(activations).sum(1).detach(), [activations])


def test_activations_without_a_graph(activations):
    with pytest.raises(RuntimeError, match="activations: expected"):
        activation_gradients(scores_of(activations).sum(1), [activations.detach()])


def test_graph_that_a_backward_has_freed(activations):
    scores = scores_of(activations)
    scores.sum().backward()
    with pytest.raises(RuntimeError, match=r"scores: expected.*freed"):
        activation_gradients(scores.sum(1), [activations])


def test_activations_of_another_forward(activations):
    other = torch.randn(4, 2, 3, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"scores: expected.*another forward"):
        activation_gradients(scores_of(activations).sum(1), [other])


def test_other_errors_of_autograd_are_passed_on(activations):
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        activation_gradients(scores_of(activations).sum(1), [activations], grad_outputs=[torch.ones(7)] * 4)

"""Gradients, cams and scores through a head callable: equal to the hook route's, one run of the head, nothing else changed."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, hardsigmoid, relu6, scaled_dot_product_attention
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from batchcam_captum import LayerCapture
from batchcam_captum.functional import (
    CAM_METHODS,
    activation_gradients,
    batch_cam_loss,
    get_method,
    head_cams,
    head_gradients,
    select_scores,
)
from tests.models import SmallCnn, strong_heads

LABELS = torch.tensor([2, 0, 2, 1, 4, 3])


class Parts(nn.Module):
    """Trunk and head, both with BatchNorm; the head begins with an operation in place, and has a dropout."""

    def __init__(self, *, dropout: float = 0.4, norm: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Softplus()
        )
        self.head = nn.Sequential(
            nn.ELU(inplace=True),
            nn.Conv2d(6, 8, 3),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.Dropout(dropout),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
        strong_heads(self)

    def forward(self, images):
        return self.head(self.trunk(images))


def parts(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return Parts(**options).to(dtype)


def batch(dtype=torch.float64, n=6):
    torch.manual_seed(1)
    return torch.randn(n, 3, 12, 12, dtype=dtype), LABELS[:n]


def hook_route(model, images, labels, score="label", method="grad_cam"):
    with LayerCapture(model.trunk) as capture:
        scores = model(images)
    selected = select_scores(scores, labels, score)
    (gradients,) = activation_gradients(selected, [capture.activations], create_graph=True)
    return get_method(method)(capture.activations, gradients), scores


def head_route(model, images, labels, score="label", method="grad_cam"):
    return head_cams(model.head, model.trunk(images), labels, score=score, method=method)


def stepped(route, model, images, labels, **options):
    """One training step: cams, scores, loss; the parameters' gradients and the buffers are left in the model."""
    torch.manual_seed(2)  # one dropout mask
    cams, scores = route(model, images, labels, **options)
    prototypes = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    loss = cross_entropy(scores, labels) + batch_cam_loss(cams, labels, prototypes, distance="ssim")
    loss.backward()
    return cams.detach(), scores.detach(), loss.detach()


def assert_same_step(model, other, *, tolerance=1e-11):
    largest = max(float(p.grad.abs().max()) for p in other.parameters() if p.grad is not None)
    for (name, parameter), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        assert_close(parameter.grad, twin.grad, rtol=0, atol=tolerance * largest, msg=f"gradient of {name}")
    for (name, buffer), twin in zip(model.named_buffers(), other.buffers(), strict=True):
        assert_close(buffer, twin, rtol=0, atol=1e-12, msg=f"buffer {name}")


@pytest.mark.parametrize(
    ("score", "method"),
    [("label", "grad_cam"), ("log_prob_sum", "layer_cam"), (lambda s, y: s.square().sum(1), "grad_cam")],
)
def test_training_step_equals_the_hook_route(score, method):
    images, labels = batch()
    model, twin = parts(), parts()
    outcome = stepped(head_route, model, images, labels, score=score, method=method)
    expected = stepped(hook_route, twin, images, labels, score=score, method=method)
    for own, other in zip(outcome, expected, strict=True):
        assert_close(own, other, rtol=0, atol=1e-11 * float(other.abs().max()))
    assert_same_step(model, twin)


@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_every_weighting_equals_a_loop_over_samples(method):
    images, labels = batch()
    model = parts().eval()
    cams, scores = head_route(model, images, labels, method=method)
    assert_close(scores, model(images))
    for i, label in enumerate(labels):
        sample = model.trunk(images[i : i + 1]).detach().requires_grad_()
        (gradients,) = torch.autograd.grad(model.head(sample.clone())[0, label], sample)
        assert_close(cams[i : i + 1], get_method(method)(sample, gradients), rtol=1e-9, atol=1e-11)


def test_gradient_of_a_cam_loss_alone_reaches_the_head():
    images, labels = batch()
    model = parts(norm=False, dropout=0.0)
    weight = model.head[-1].weight

    def loss():
        return head_route(model, images, labels).cams.square().sum()

    loss().backward()
    step = torch.zeros_like(weight)
    step[2, 3] = 1e-5
    with torch.no_grad():
        weight += step
        above = loss()
        weight -= 2 * step
        below = loss()
    assert_close(weight.grad[2, 3], (above - below) / 2e-5, rtol=1e-5, atol=0)
    assert abs(float(weight.grad[2, 3])) > 1e-4


@pytest.mark.parametrize("dims", [1, 3])
def test_function_as_head_in_other_dimensions(dims):
    model = SmallCnn(dims).double()
    images = torch.randn(2, 3, *[11] * dims, dtype=torch.float64)
    cams, scores = head_cams(
        lambda maps: model.head(model.tail(maps)), model.layer(model.stem(images)), LABELS[:2]
    )
    with LayerCapture(model.layer) as capture:
        expected = model(images)
    (gradients,) = activation_gradients(select_scores(expected, LABELS[:2]), [capture.activations])
    assert_close(scores, expected)
    assert_close(cams, get_method("grad_cam")(capture.activations, gradients))


def test_statistics_are_updated_once_and_in_place():
    images, labels = batch()
    model, twin = parts(), parts()
    norm = model.head[2]
    buffers, versions = list(norm.buffers()), [buffer._version for buffer in norm.buffers()]
    head_route(model, images, labels)
    twin(images)
    assert [buffer._version for buffer in buffers] == [version + 1 for version in versions]
    for own, buffer, expected in zip(norm.buffers(), buffers, twin.head[2].buffers(), strict=True):
        assert own is buffer
        assert_close(own, expected)
    assert int(norm.num_batches_tracked) == 1


class Averaging(nn.Module):
    """Assigns its buffer anew in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6, 1, 1))
        self.register_buffer("unused", None)
        self.out = nn.Linear(6, 5)

    def forward(self, maps):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * maps.detach().mean((0, 2, 3)).reshape(-1, 1, 1)
        return self.out((maps - self.mean).tanh().mean((2, 3)))


def test_buffer_that_is_assigned():
    head, activations = Averaging(), torch.randn(4, 6, 5, 5)
    buffer = head.mean
    scores = head_gradients(head, activations, LABELS[:4]).scores
    assert head.mean is buffer
    assert_close(buffer.flatten(), 0.1 * activations.mean((0, 2, 3)))
    assert_close(head.eval()(activations), scores)


class Repeated(nn.Module):
    """A BatchNorm that runs twice, under two names, and one whose statistics are another's."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 6, 3)
        norm, tied = nn.BatchNorm2d(6).double(), nn.BatchNorm2d(6).double()
        tied.running_mean, tied.running_var = norm.running_mean, norm.running_var
        self.head = nn.Sequential(
            norm, nn.Conv2d(6, 6, 3), nn.Tanh(), norm, nn.Tanh(), tied, nn.Flatten(), nn.Linear(384, 5)
        )
        for layer in (self.trunk, self.head[1], self.head[7]):
            layer.double()  # one by one: the statistics have to stay tied

    def forward(self, images):
        return self.head(self.trunk(images))


def repeated():
    torch.manual_seed(0)
    return Repeated()


def test_statistics_of_a_batch_norm_that_runs_twice():
    images, labels = batch()
    model, twin = repeated(), repeated()
    buffers = list(model.head.buffers())
    for _ in range(2):
        outcome = stepped(head_route, model, images, labels)
        expected = stepped(hook_route, twin, images, labels)
    assert all(own is before for own, before in zip(model.head.buffers(), buffers, strict=True))
    assert model.head[0].running_mean is model.head[5].running_mean
    for own, other in zip(outcome, expected, strict=True):
        assert_close(own, other, rtol=0, atol=1e-11 * float(other.abs().max()))
    assert_same_step(model, twin)
    assert int(model.head[0].num_batches_tracked) == 4


class Attending(nn.Module):
    """Attention between the places, in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3)
        self.head = nn.Module()
        self.head.mix, self.head.out = nn.Linear(8, 24), nn.Linear(8, 5)
        self.head.forward = self.attend

    def attend(self, maps):
        queries, keys, values = self.head.mix(maps.flatten(2).mT)[:, None].chunk(3, -1)
        return self.head.out(scaled_dot_product_attention(queries, keys, values).mean((1, 2)).tanh())

    def forward(self, images):
        return self.attend(self.trunk(images))


def attending():
    torch.manual_seed(0)
    model = strong_heads(Attending())
    nn.init.normal_(model.head.mix.weight)
    return model.double()


def backends():
    cuda = torch.backends.cuda
    return cuda.math_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()


def test_attention_in_the_head_has_a_second_derivative():
    images, labels = batch()
    model, twin, before = attending(), attending(), backends()
    assert before[1]
    outcome = stepped(head_route, model, images, labels)
    assert backends() == before
    with sdpa_kernel(SDPBackend.MATH):
        expected = stepped(hook_route, twin, images, labels)
    for own, other in zip(outcome, expected, strict=True):
        assert_close(own, other, rtol=0, atol=1e-11 * float(other.abs().max()))
    assert_same_step(model, twin)


def test_attention_stays_fused_where_no_graph_is_made():
    seen, before = [], backends()

    def head(maps):
        seen.append(backends())
        return scores_of(maps)

    head_gradients(head, MAPS, LABELS[:4])
    with torch.no_grad():
        head_gradients(head, MAPS, LABELS[:4])
    assert seen == [(True, False, False), before]


def test_choice_of_attention_is_taken_back():
    before, first, second, seen = backends(), threading.Event(), threading.Event(), []

    def early(maps):
        first.set()
        assert second.wait(10)
        raise KeyError("after the other has begun")

    def late(maps):
        second.set()
        thread.join(10)
        seen.append(backends())
        return scores_of(maps)

    def run():
        with pytest.raises(KeyError):
            head_gradients(early, MAPS, LABELS[:4])

    thread = threading.Thread(target=run)
    thread.start()
    assert first.wait(10)
    head_gradients(late, MAPS, LABELS[:4])
    assert seen == [(True, False, False)]  # though the one that came first has left
    assert backends() == before


def test_operator_without_a_second_derivative_is_named_and_can_be_replaced():
    def cams(gate):
        return head_cams(lambda maps: scores_of(gate(maps)), MAPS, LABELS[:4]).cams

    refused, replaced = cams(hardsigmoid), cams(lambda maps: relu6(maps + 3) / 6)
    with pytest.raises(RuntimeError, match="hardsigmoid_backward is not implemented"):
        torch.autograd.grad(refused.sum(), OUT.weight)
    assert_close(refused, replaced)
    assert torch.autograd.grad(replaced.square().sum(), OUT.weight)[0].abs().max() > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_in_the_head(reentrant):
    def head(maps):
        return checkpoint(scores_of, maps, use_reentrant=reentrant)

    with pytest.raises(RuntimeError, match="head: expected"):
        head_gradients(head, MAPS, LABELS[:4])


@pytest.mark.parametrize("kind", ["frozen trunk", "recorded", "leaf"])
def test_activations_are_left_as_they_were(kind):
    images, labels = batch()
    model = parts(dropout=0.0)
    activations = model.trunk(images)
    if kind != "recorded":
        activations = activations.detach().requires_grad_(kind == "leaf")
    before, version = activations.detach().clone(), activations._version
    cams, _ = head_cams(model.head, activations, labels)
    assert torch.equal(activations, before)
    assert activations._version == version
    assert activations.requires_grad is (kind != "frozen trunk")
    cams.square().sum().backward()
    assert model.head[-1].weight.grad.abs().max() > 0
    assert (model.trunk[0].weight.grad is not None) is (kind == "recorded")
    if kind == "leaf":
        assert activations.grad.abs().max() > 0


def test_without_gradients_nothing_is_recorded():
    images, labels = batch()
    model = parts().eval()
    expected = head_route(model, images, labels)
    with torch.no_grad():
        outcome = head_route(model, images, labels)
    for own, other in zip(outcome, expected, strict=True):
        assert not own.requires_grad
        assert_close(own, other.detach())


def test_autocast_equals_the_hook_route():
    images, labels = batch(torch.float32)
    model, twin = parts(torch.float32), parts(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cams, scores, loss = stepped(head_route, model, images, labels)
        expected = stepped(hook_route, twin, images, labels)
    assert scores.dtype == torch.bfloat16
    assert cams.dtype == loss.dtype == torch.float32
    assert_close(cams, expected[0], rtol=0, atol=1e-6 * float(expected[0].abs().max()))
    assert_same_step(model, twin, tolerance=1e-6)


def test_autocast_does_not_reach_the_gradient_of_what_ran_without_it():
    def precise(maps):
        with torch.autocast("cpu", enabled=False):
            return OUT(maps.tanh().mean((2, 3))).tanh()

    def weight_gradient(enabled):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            cams, _ = head_cams(precise, MAPS, LABELS[:4])
        return torch.autograd.grad(cams.square().sum(), OUT.weight)[0]

    assert torch.equal(weight_gradient(True), weight_gradient(False))


def test_weights_that_autocast_has_cast_in_the_head_serve_after_it():
    images, labels = batch(torch.float32)
    gradients = []
    for cached in (True, False):
        model = parts(torch.float32, norm=False, dropout=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
            cams, scores = head_route(model, images, labels)
            again = model(images)
            (cams.square().mean() + cross_entropy(scores, labels) + again.square().mean()).backward()
        gradients.append(model.head[-1].weight.grad)
    assert_close(*gradients, rtol=0, atol=1e-6 * float(gradients[1].abs().max()))


def test_tokens_are_brought_to_maps():
    torch.manual_seed(0)
    tokens = torch.randn(2, 12, 6, dtype=torch.float64)
    out = nn.Linear(6, 5).double()

    def maps_of(tokens):
        return tokens.transpose(1, 2).reshape(2, 6, 3, 4)

    cams, _ = head_cams(lambda t: out(t.tanh().mean(1)), tokens, LABELS[:2], reshape=maps_of)
    expected, _ = head_cams(lambda maps: out(maps.tanh().mean((2, 3))), maps_of(tokens), LABELS[:2])
    assert cams.shape == (2, 1, 3, 4)
    assert_close(cams, expected)


def test_nothing_is_kept():
    images, labels = batch()
    model = parts()
    activations = model.trunk(images)
    gc.disable()
    try:
        outcome = head_cams(model.head, activations, labels)
        gone = [weakref.ref(tensor) for tensor in (activations, *outcome)]
        del activations, outcome
        assert [reference() for reference in gone] == [None] * 3
    finally:
        gc.enable()


OUT = nn.Linear(6, 5)


def scores_of(maps):
    return OUT(maps.tanh().mean((2, 3)))


@torch.no_grad()
def unrecorded(maps):
    return scores_of(maps)


MAPS = torch.randn(4, 6, 5, 5)


@pytest.mark.parametrize(
    ("head", "maps", "kind", "argument"),
    [
        (None, MAPS, TypeError, "head"),
        (scores_of, [MAPS], TypeError, "activations"),
        (scores_of, MAPS.long(), TypeError, "activations"),
        (scores_of, MAPS[:, 0, 0, 0], ValueError, "activations"),
        (lambda m: (scores_of(m),), MAPS, TypeError, "head"),
        (lambda m: scores_of(m)[:2], MAPS, ValueError, "head"),
        (lambda m: scores_of(m)[:, 0], MAPS, ValueError, "head"),
        (lambda m: m, MAPS, ValueError, "scores"),
        (lambda m: OUT.weight[:4], MAPS, RuntimeError, "head"),
        (lambda m: scores_of(m.detach()), MAPS, RuntimeError, "head"),
        (unrecorded, MAPS, RuntimeError, "head"),
        (
            nn.Sequential(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(150, 5)).forward,
            MAPS,
            RuntimeError,
            "head",
        ),
        (torch.compile(nn.Flatten(), backend="eager"), MAPS, RuntimeError, "head"),
        (torch.compile(scores_of, backend="eager"), MAPS, RuntimeError, "head"),
    ],
)
def test_heads_and_activations_that_do_not_fit(head, maps, kind, argument):
    with pytest.raises(kind, match=f"{argument}: expected"):
        head_cams(head, maps, LABELS[:4])


def test_inference_mode():
    with torch.inference_mode():
        made = MAPS.clone()
        with pytest.raises(RuntimeError, match="activations: expected"):
            head_gradients(scores_of, MAPS, LABELS[:4])
    with pytest.raises(RuntimeError, match="activations: expected"):
        head_gradients(scores_of, made, LABELS[:4])


def test_other_errors_of_the_head_are_passed_on():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        head_gradients(lambda maps: maps.flatten(1) @ OUT.weight, MAPS, LABELS[:4])


def test_nothing_changes_when_it_raises():
    images, labels = batch()
    model = parts()
    activations = model.trunk(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for wrong, raised in ((labels[:2], ValueError), (labels > 0, TypeError)):
        with pytest.raises(raised, match="labels: expected"):
            head_cams(model.head, activations, wrong)
    with pytest.raises(ValueError, match="method: expected one of"):
        head_cams(model.head, activations, labels, method="best")
    with pytest.raises(ValueError, match="method: expected a cam"):
        head_cams(model.head, activations, labels, method=lambda activations, gradients: activations)
    with pytest.raises(RuntimeError, match="shape '"):
        head_cams(model.head, activations, labels, reshape=lambda tensor: tensor.view(7, -1))
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())

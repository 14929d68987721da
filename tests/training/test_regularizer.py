"""CamRegularizer on hooks: a training step equals a loop over samples, and leaves nothing behind."""

from __future__ import annotations

import copy
import datetime
import threading

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
)
from batchcam_captum.losses import CamLoss
from tests.models import SmallCnn
from tests.reference_training import K, Parts, exact_maps, gradients, terms
from tests.reference_training import objective as by_hand
from tests.training.models import Net, captured, hooks_of, objective, prototypes
from tests.training.models import batch as small_batch

MAPS = exact_maps()


@pytest.fixture
def model():
    return Parts().double()


def batch(n=6):
    return torch.rand(n, 1, 8, 8, dtype=torch.double), torch.arange(n) % K


def regularizer_of(model, loss=BatchCamLoss, layer="layer", **options):
    return CamRegularizer(BatchGradCam(model, layer), loss(MAPS), **options)


def expected_of(model, images, labels, **options):
    return gradients(by_hand(model, images, labels, MAPS.double(), **options), model)


def grads(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(ours, theirs):
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 1e-3
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11 * largest, msg=name)


# ---- gradients ----


@pytest.mark.parametrize("kind", ["batch_cam", "prototype"])
@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_a_step_equals_the_loop_over_samples(model, kind, distance):
    twin, (images, labels) = copy.deepcopy(model), batch()
    loss = {"batch_cam": BatchCamLoss, "prototype": PrototypeLoss}[kind]
    regularizer = regularizer_of(model, lambda maps: loss(maps, distance=distance), weight=0.7)
    objective(regularizer, model, images, labels).backward()
    expected = expected_of(twin, images, labels, weight=0.7, kinds=[kind], distance=distance)
    assert_equal(grads(model), expected)


def test_the_cam_loss_alone_reaches_the_head(model):
    # The first-order part reaches no weight of the linear layer: its weights are the channels' weights.
    twin, (images, labels) = copy.deepcopy(model), batch()
    regularizer = regularizer_of(model)
    regularizer(captured(regularizer, images), labels).backward()
    _, found = terms(twin, images, labels, MAPS.double())
    expected = gradients(found["batch_cam"], twin)["head.1.weight"]
    assert expected.abs().max() > 1e-3
    assert_close(model.head[1].weight.grad, expected, rtol=1e-9, atol=1e-13)


def test_value_and_gradient_equal_attribute_and_a_contrastive_loss():
    model, (images, labels) = Net().eval(), small_batch()
    loss = PrototypeContrastiveLoss(prototypes())
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), loss, 0.7)
    actual = regularizer(captured(regularizer, images), labels)
    expected = 0.7 * loss(BatchGradCam(model, "layer").attribute(images, labels, differentiable=True), labels)
    assert_close(actual, expected)
    found = [torch.autograd.grad(value, model.head[4].weight)[0] for value in (actual, expected)]
    assert found[1].abs().max() > 1e-4
    assert_close(*found)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("summed", [True, False], ids=["one backward", "a backward each"])
def test_accumulated_gradients_are_those_of_all_micro_batches(model, set_to_none, summed):
    twin, micro = copy.deepcopy(model), [batch() for _ in range(3)]
    regularizer = regularizer_of(model)
    objective(regularizer, model, *batch()).backward()
    model.zero_grad(set_to_none=set_to_none)
    model.load_state_dict(twin.state_dict())
    losses = (objective(regularizer, model, *each) / len(micro) for each in micro)
    if summed:
        sum(losses).backward()
    else:
        for loss in losses:
            loss.backward()
    assert regularizer.steps == 0
    separate = [expected_of(twin, *each) for each in micro]
    assert_equal(grads(model), {name: sum(each[name] for each in separate) / 3 for name in separate[0]})


@pytest.mark.parametrize("order", ["together", "cam first", "task first", "another step after it"])
def test_orders_of_backward(model, order):
    twin, (images, labels) = copy.deepcopy(model), batch()
    regularizer = regularizer_of(model)
    scores = captured(regularizer, images)
    if order == "cam first":
        regularizer(scores, labels).backward(retain_graph=True)
        F.cross_entropy(scores, labels).backward()
    elif order == "task first":
        F.cross_entropy(scores, labels).backward(retain_graph=True)
        regularizer(scores, labels).backward()
    else:
        (regularizer(scores, labels) + F.cross_entropy(scores, labels)).backward()
    expected = expected_of(twin, images, labels)
    if order == "another step after it":
        F.cross_entropy(model(images), labels).backward()
        again = gradients(terms(twin, images, labels, MAPS.double())[0], twin)
        expected = {name: expected[name] + again[name] for name in expected}
    assert_equal(grads(model), expected)


def test_the_retained_graph_gives_the_same_gradient_again(model):
    loss = objective(regularizer_of(model), model, *batch())
    loss.backward(retain_graph=True)
    first = model.head[1].weight.grad.clone()
    loss.backward()
    assert torch.equal(model.head[1].weight.grad, 2 * first)


@pytest.mark.parametrize("alternate", [False, True], ids=["both", "alternating"])
def test_two_optimizers(model, alternate):
    twin, before, data = copy.deepcopy(model), copy.deepcopy(model), [batch() for _ in range(4)]
    regularizer = regularizer_of(model)
    for each in (model, twin):
        optimizers = [
            torch.optim.SGD(each.trunk.parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam([*each.middle.parameters(), *each.head.parameters()], lr=0.01),
        ]
        for number, (images, labels) in enumerate(data):
            each.zero_grad()
            if each is model:
                objective(regularizer, model, images, labels).backward()
            else:
                for name, gradient in expected_of(twin, images, labels).items():
                    twin.get_parameter(name).grad = gradient
            for optimizer in [optimizers[number % 2]] if alternate else optimizers:
                optimizer.step()
    for (name, parameter), ours, start in zip(
        twin.named_parameters(), model.parameters(), before.parameters(), strict=True
    ):
        assert_close(ours, parameter, rtol=1e-7, atol=1e-9, msg=name)
        # What a BatchNorm subtracts again has no gradient.
        assert name == "trunk.0.bias" or (parameter - start).abs().max() > 1e-3


def test_two_regularizers_may_nest_each_with_a_capture_of_its_own(model):
    twin, (images, labels) = copy.deepcopy(model), batch()
    first, second = regularizer_of(model), regularizer_of(model, PrototypeLoss, "middle", weight=0.5)
    with first, second:
        scores = model(images)
    cam_loss = first(scores, labels)
    with pytest.raises(RuntimeError, match="got none"):
        first(scores, labels)
    (F.cross_entropy(scores, labels) + second(scores, labels) + cam_loss).backward()
    task, found = terms(twin, images, labels, MAPS.double())
    _, others = terms(twin, images, labels, MAPS.double(), kinds=["prototype"], layers=["middle"])
    assert_equal(grads(model), gradients(task + found["batch_cam"] + 0.5 * others["prototype"], twin))
    assert hooks_of(model) == 0


FROZEN = {
    "trunk": ["trunk"],
    "all but the last linear": ["trunk", "layer", "middle"],
    "head": ["middle", "head"],
    "head's last": ["head"],
    "everything": ["trunk", "layer", "middle", "head"],
}


@pytest.mark.parametrize("running", ["train", "eval"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_not_frozen_gets_the_gradient_of_a_loop_over_samples(model, frozen, running):
    model.trunk.train(running == "train")
    twin, (images, labels) = copy.deepcopy(model), batch()
    for name in FROZEN[frozen]:
        model.get_submodule(name).requires_grad_(False)
    seen = []
    model.layer.register_forward_hook(lambda *values: seen.append(values[2]))
    regularizer, expected = regularizer_of(model), expected_of(twin, images, labels)
    for _ in range(2):  # nothing is left behind that would change the second step
        model.zero_grad()
        loss = objective(regularizer, model, images, labels)
        if frozen == "everything":
            assert regularizer.values["batch_cam"] > 0
            continue
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)
            else:
                assert parameter.grad is None
    if "trunk" in FROZEN[frozen]:
        assert not any(each.requires_grad for each in seen)


# ---- the forward ----


def test_a_step_runs_one_forward_one_batch_norm_update_and_one_dropout_draw():
    model, (images, labels) = Net(), small_batch()
    plain = copy.deepcopy(model)
    regularizer = regularizer_of(model, lambda _: BatchCamLoss(prototypes()))
    torch.manual_seed(1)
    F.cross_entropy(plain(images), labels).backward()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    objective(regularizer, model, images, labels).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.runs == 1
    assert model.trunk[1].num_batches_tracked == 1
    assert torch.equal(model.trunk[1].running_mean, plain.trunk[1].running_mean)
    assert not torch.equal(model.head[4].weight.grad, plain.head[4].weight.grad)


class Tokens(nn.Module):
    """The layer returns (N, H·W, C): the grid is known from the image alone."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 1)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.layer(tokens).relu().mean(1))


class Shape(CamLoss):
    """Note the shape of the cams."""

    def per_sample(self, samples):
        self.shape = tuple(samples.cams.shape)
        return samples.cams.square().flatten(1).mean(1)


def in_another_thread(regularizer, images):
    thread = threading.Thread(target=lambda: regularizer.grad_cam.forward_func(images))
    thread.start()
    thread.join()


BESIDE = {
    "evaluate": lambda regularizer, images: regularizer.evaluate(images, torch.arange(len(images)) % 5),
    "attribute": lambda regularizer, images: regularizer.grad_cam.attribute(images, target=0),
    "thread": in_another_thread,
}


@pytest.mark.parametrize("beside", BESIDE)
def test_the_grid_of_tokens_is_that_of_the_training_images(beside):
    model, loss = Tokens(), Shape()
    regularizer = CamRegularizer(BatchGradCam(model, model.layer, reshape="tokens"), loss)
    with regularizer:
        scores = model(torch.rand(10, 1, 4, 9))
        BESIDE[beside](regularizer, torch.rand(10, 1, 6, 6))  # as many tokens
    regularizer(scores, torch.arange(10) % 5)
    assert loss.shape == (10, 1, 4, 9)


@pytest.fixture
def group():
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("option", ["static_graph", "find_unused_parameters"])
def test_the_scores_are_those_of_the_training_forward(option):
    model, images, labels = SmallCnn(), torch.randn(10, 3, 9, 9), torch.arange(10) % 5
    wrapped = DistributedDataParallel(model, **{option: True})
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), BatchCamLoss(torch.rand(5, 1, 4, 4)))
    expected = regularizer(captured(regularizer, images), labels)
    for beside in BESIDE.values():
        with regularizer:
            beside(regularizer, images[:4])
            scores = wrapped(images)
            beside(regularizer, images[:4])
        value = regularizer(scores, labels)
        (scores.square().mean() + value).backward()
        assert_close(value, expected)


# ---- evaluate() ----


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_evaluate_leaves_everything_as_it_was(context, training):
    model, (images, labels) = Net().train(training), small_batch()
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), [BatchCamLoss(prototypes()), ImageLoss()])
    with regularizer:
        scores = model(images)
    regularizer(scores, labels, images=images).backward()
    values, rng = dict(regularizer.values), torch.get_rng_state()
    state = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with context():
        result = regularizer.evaluate(images.clone(), labels.clone())  # made inside, as a loader does
    assert not any(value.requires_grad for value in result.values())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training is training
    assert hooks_of(model) == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert_close(grads, [p.grad for p in model.parameters()], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert regularizer.values == values
    assert result.keys() == values.keys()
    if not training:
        assert_close(result, values)


def test_evaluate_keeps_no_graph_before_the_layer():
    model, (images, labels) = Net().eval(), small_batch()
    saved = []

    def note(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    regularizer = CamRegularizer(BatchGradCam(model, "layer"), BatchCamLoss(prototypes()))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        regularizer.evaluate(images, labels)
    assert saved
    assert tuple(images.shape) not in saved, "the first convolution keeps its input only where it is recorded"


# ---- copies, averages and state ----


@pytest.mark.parametrize("when", ["inside", "captured"])
@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: ModelEmaV3(model, decay=0.5, min_decay=0.0)])
def test_copies_of_a_model_with_a_regularizer_around_it(model, make, when):
    twin, (images, labels) = copy.deepcopy(model), batch()
    regularizer = regularizer_of(model)
    with regularizer:
        scores = model(images)
        made = make(model) if when == "inside" else None
    made = make(model) if made is None else made
    made = made if isinstance(made, Parts) else made.module
    made.train()  # timm's is in eval mode
    (F.cross_entropy(scores, labels) + regularizer(scores, labels)).backward()
    assert_equal(grads(model), expected_of(twin, images, labels))
    with regularizer:
        scores = model(images)
        with torch.no_grad():
            assert_close(made(images), scores)  # another model: not captured
    assert hooks_of(model) == hooks_of(made) == 0
    assert regularizer(scores, labels).isfinite()
    # The copy is explained, and trained, by itself.
    its_own = regularizer_of(made)
    assert objective(its_own, made, images, labels).isfinite()
    assert its_own.evaluate(images, labels)["batch_cam"] > 0


def test_an_average_is_evaluated_and_its_statistics_are_updated(model):
    images, labels = batch()
    regularizer, average = regularizer_of(model), AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        objective(regularizer, model, images, labels).backward()
        optimizer.step()
        average.update_parameters(model)
    update_bn([images], average)
    average.eval()
    _, found = terms(average.module, images, labels, MAPS.double())
    for each in (average.module, average):
        grad_cam = BatchGradCam(each, average.module.layer)
        value = CamRegularizer(grad_cam, BatchCamLoss(MAPS)).evaluate(images, labels)["batch_cam"]
        assert_close(value, found["batch_cam"].detach(), rtol=1e-9, atol=0)
    assert hooks_of(average) == 0


@pytest.mark.parametrize("when", ["inside the block", "after it"])
def test_copies_of_a_regularizer_have_a_model_and_no_capture(model, when, tmp_path):
    images, labels = batch()
    regularizer = regularizer_of(model)
    copies = []

    def make_copies():
        copies.append(copy.deepcopy(regularizer))
        torch.save(regularizer, tmp_path / "regularizer.pt")
        copies.append(torch.load(tmp_path / "regularizer.pt", weights_only=False))

    with regularizer:
        scores = model(images)
        if when == "inside the block":
            make_copies()
    if when == "after it":
        make_copies()
    regularizer(scores, labels).backward()
    for other in copies:
        network = other.grad_cam.forward_func
        with pytest.raises(RuntimeError, match="got none"):
            other(scores, labels)
        other(captured(other, images), labels).backward()
        assert network is not model
        assert_close(grads(network), grads(model), rtol=0, atol=0)


def test_state_holds_prototypes_and_steps_and_nothing_of_the_model(model):
    regularizer = regularizer_of(model)
    regularizer.step()
    state = regularizer.state_dict()
    assert set(state) == {
        "_extra_state",
        "terms.batch_cam.prototypes.values",
        "terms.batch_cam.prototypes.counts",
    }
    other = regularizer_of(model, lambda _: BatchCamLoss(ClassPrototypes(K)))
    other.load_state_dict(state)
    assert other.steps == 1
    assert torch.equal(other.terms["batch_cam"].prototypes.values, state["terms.batch_cam.prototypes.values"])
    regularizer.half().eval()
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not list(regularizer.parameters())

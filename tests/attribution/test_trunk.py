"""The trunk runs without a graph: when that gives the same maps, and when everything is recorded after all."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from batchcam_captum import BatchGradCam
from tests.models import SmallCnn, frozen, strong_heads


class Watch(nn.Module):
    """Notes whether recording is on when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(torch.is_grad_enabled())
        return images


def watched() -> nn.Sequential:
    return nn.Sequential(
        Watch(), nn.Conv2d(3, 4, 3), nn.ReLU(), Watch(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_recording_is_on_from_the_layer_on_only(context: Any) -> None:
    model = watched()
    with context():
        BatchGradCam(model, model[2]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert model[0].seen == [False]
    assert model[3].seen == [True]


def test_a_differentiable_map_records_everything() -> None:
    model = watched()
    cams = BatchGradCam(model, model[2]).attribute(torch.randn(2, 3, 8, 8), target=0, differentiable=True)
    cams.square().sum().backward()
    assert model[0].seen == [True]
    assert model[1].weight.grad.abs().max() > 0


class Around(nn.Module):
    """A path around the layer: what the layer returned, or received, is used a second time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = layer
        self.tail = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        return self.head((self.tail(self.layer(stem)).tanh() + stem).mean((2, 3)))


class UsedBefore(Around):
    """The path around the layer is taken before the layer runs."""

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        around = self.tail(stem).tanh()
        return self.head((self.layer(stem) * around).mean((2, 3)))


class ChainedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = self.conv(images)
        return first, first.tanh()


class WithPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = ChainedPair()
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.layer(self.stem(images))
        return self.head((first * second).mean((2, 3)))


LAYERS = {"identity": nn.Identity(), "dropout": nn.Dropout(0.5), "convolution": nn.Conv2d(4, 4, 1)}


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("make", [Around, UsedBefore])
def test_paths_around_the_layer_count_as_in_a_recorded_forward(
    make: type[Around], layer: nn.Module, is_frozen: bool, at_input: bool
) -> None:
    model = strong_heads(make(layer)).double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    # Before freezing: of a frozen model Captum misses what was made of the tensor before the layer ran.
    expected = LayerGradCam(model, model.layer).attribute(images, 1, attribute_to_layer_input=at_input)
    if is_frozen:
        frozen(model)
    grad_cam = BatchGradCam(model, model.layer)
    got = grad_cam.attribute(images, 1, attribute_to_layer_input=at_input)
    torch.testing.assert_close(grad_cam.attribute(images, 1, attribute_to_layer_input=at_input), got)
    assert not images.requires_grad
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-11 * expected.abs().max().item())


def test_an_output_that_is_made_of_another_counts_for_both() -> None:
    model = strong_heads(WithPair()).double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    got = BatchGradCam(model, model.layer).attribute(images, 1)
    expected = LayerGradCam(model, model.layer).attribute(images, 1)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-11 * theirs.abs().max().item())


def test_a_frozen_model_that_works_in_place_on_the_marked_tensor() -> None:
    class InPlace(Around):
        def forward(self, images: Tensor) -> Tensor:
            stem = self.stem(images)
            layer = self.layer(stem)
            stem += 1
            return self.head((self.tail(layer).tanh() + stem).mean((2, 3)))

    torch.manual_seed(0)
    model = strong_heads(InPlace(nn.Identity())).double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    expected = LayerGradCam(model, model.layer).attribute(images, 1)
    got = BatchGradCam(frozen(model), model.layer).attribute(images, 1)
    torch.testing.assert_close(got, expected.detach())
    assert not images.requires_grad


class InnerGradient(nn.Module):
    """A trunk that differentiates in its forward, which needs a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = strong_heads(SmallCnn(channels=3))
        self.runs = 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        probe = images.detach().requires_grad_()
        self.cnn.stem(probe).square().sum().backward()
        return self.cnn(images + probe.grad)


class NoGradAround(nn.Module):
    """A ``no_grad`` of the model's own that ends after the layer; the head sees the layer through another path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 5)
        self.runs = 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # restores the trunk's mode after the layer
            activations = self.relu(self.stem(images))
        return self.head((activations * 2).mean((2, 3)))


@pytest.mark.parametrize("make", [InnerGradient, NoGradAround])
def test_what_cannot_run_without_a_graph_is_recorded_and_the_next_call_knows(make: Any) -> None:
    model = make().eval().requires_grad_(False)
    layer = model.cnn.layer if make is InnerGradient else model.relu
    images = torch.randn(2, 3, 8, 8)
    grad_cam = BatchGradCam(model, layer)
    got = grad_cam.attribute(images, 1)
    assert model.runs == 2
    grad_cam.attribute(images, 1)
    assert model.runs == 3
    expected = LayerGradCam(model, layer).attribute(images, 1)
    torch.testing.assert_close(got, expected.detach())


def test_the_second_run_draws_the_same_random_numbers() -> None:
    class Noisy(NoGradAround):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + torch.randn_like(images))

    model, images = Noisy().eval(), torch.randn(2, 3, 8, 8)
    torch.manual_seed(3)
    got = BatchGradCam(model, model.relu).attribute(images, 1)
    torch.manual_seed(3)
    expected = LayerGradCam(model, model.relu).attribute(images, 1)
    torch.testing.assert_close(got, expected.detach())


def test_an_error_of_the_model_itself_stands_alone() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError(f"broken {self.layer(images).shape[0]}")

    model = Broken()
    with pytest.raises(RuntimeError, match=r"^broken 2$") as raised:
        BatchGradCam(model, model.layer).attribute(torch.randn(2, 3, 8, 8), 1)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_an_output_that_is_changed_in_place_through_its_base_later_on(is_frozen: bool) -> None:
    class Halves(nn.Module):
        """The layer returns a view; afterwards the whole is changed."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.layer = FirstHalf()
            self.head = nn.Linear(8, 5)

        def forward(self, images: Tensor) -> Tensor:
            whole = self.stem(images)
            half = self.layer(whole)
            whole.mul_(2)
            return self.head(torch.cat([half, whole[:, 4:]], 1).tanh().mean((2, 3)))

    class FirstHalf(nn.Module):
        def forward(self, whole: Tensor) -> Tensor:
            return whole[:, :4]

    model = strong_heads(Halves()).double().eval()
    if is_frozen:
        frozen(model)
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    # In the graph the kept view is then a view of what came later, which the head does not read.
    with pytest.raises(RuntimeError, match="activations"):
        BatchGradCam(model, model.layer).attribute(images, 1)


def test_what_is_wrong_with_an_argument_costs_one_forward() -> None:
    model, runs = watched(), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    with pytest.raises(ValueError, match="target"):
        BatchGradCam(model, model[2]).attribute(torch.randn(2, 3, 8, 8), target=7)
    assert len(runs) == 1


def test_running_out_of_memory_is_not_tried_again() -> None:
    class Full(nn.Module):
        runs = 0

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            Full.runs += 1
            raise torch.OutOfMemoryError("full")

    model = Full()
    with pytest.raises(torch.OutOfMemoryError):
        BatchGradCam(model, model.layer).attribute(torch.randn(2, 3, 8, 8), 1)
    assert Full.runs == 1


def test_data_parallel_records_from_the_start() -> None:
    model = nn.DataParallel(watched())
    BatchGradCam(model, model.module[2]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert model.module[0].seen == [True]
    # In a function it is met before any of its modules has run.
    grad_cam = BatchGradCam(lambda images: model(images), model.module[2])
    grad_cam.attribute(torch.randn(2, 3, 8, 8), target=0)
    assert model.module[0].seen == [True, True]


class Stash(nn.Module):
    """A layer that keeps something made of its own output, for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        output = self.conv(images)
        self.kept = output.tanh()
        return output


class UsesStash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = Stash()
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.layer(self.stem(images)) * self.layer.kept).mean((2, 3)))


class UserHook(UsesStash):
    """The user's own hook keeps it, and was there first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)
        self.layer.register_forward_hook(lambda module, _, output: setattr(module, "kept", output.tanh()))


class First(nn.Module):
    def forward(self, entries: list[Tensor]) -> Tensor:
        return entries[0]


class PicksFromList(nn.Module):
    """The layer returns an entry of a list, which was used before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = First()
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        before = stem.tanh()
        return self.head((self.layer([stem, before]) * before).mean((2, 3)))


class OwnGradModes(nn.Module):
    """Blocks under grad modes of the model's own, and a path between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = nn.Conv2d(4, 4, 1)
        self.tail = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            activations = self.layer(self.stem(images))
        gate = activations.tanh()
        with torch.enable_grad():
            return self.head((self.tail(activations) * gate).mean((2, 3)))


@pytest.mark.parametrize("make", [UsesStash, UserHook, PicksFromList, OwnGradModes])
def test_nothing_that_is_made_of_the_activations_is_missed(make: type[nn.Module]) -> None:
    model = strong_heads(make()).double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    got = BatchGradCam(model, model.layer).attribute(images, 1)
    expected = LayerGradCam(model, model.layer).attribute(images, 1)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-11 * expected.abs().max().item())


def test_recording_is_on_from_the_layer_on_only_in_a_function_too() -> None:
    model = watched()
    BatchGradCam(lambda images: model(images) * 2, model[2]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert model[0].seen == [False]
    assert model[3].seen == [True]


@pytest.mark.parametrize("hidden", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("name", ["encoder", "encoder.layers.0", "encoder.layers.0.norm2", "head"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformers_of_torch_do_not_take_their_path_without_gradients(name: str, hidden: bool) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(block, 2)
            self.head = nn.Linear(8, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
            padding[0, 3:] = True
            return self.head(self.encoder(tokens, src_key_padding_mask=padding).mean(1))

    model = strong_heads(Padded()).eval()
    tokens = torch.randn(2, 6, 8)
    layer = model.get_submodule(name)
    forward_func = (lambda given: model(given)) if hidden else model
    expected = LayerGradCam(forward_func, layer).attribute(tokens, 1).detach()
    got = BatchGradCam(forward_func, layer).attribute(tokens, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_cached_parametrizations_keep_their_graph() -> None:
    model = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()
    images = torch.randn(2, 3, 8, 8)
    with parametrize.cached():
        BatchGradCam(model, model[1]).attribute(images, target=0)
        model(images).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None


def test_a_forward_that_changes_its_input_is_not_run_again() -> None:
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()
            self.head = nn.Linear(3, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.layer(images.mul_(2)).mean((2, 3)))

    model, images = Doubles().eval(), torch.ones(2, 3, 8, 8)
    with pytest.raises(RuntimeError):
        BatchGradCam(model, model.layer).attribute(images, 1)
    assert images.unique().tolist() == [2]


def test_what_the_layer_saves_for_its_own_backward_is_not_kept() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.layer = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh())
            self.head = nn.Linear(4, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.layer(self.stem(images)).mean((2, 3)))

    model, inside = strong_heads(Deep()), []
    model.layer[1].register_forward_hook(lambda _, __, output: inside.append(weakref.ref(output)))
    alive = []

    def first_score(scores: Tensor) -> Tensor:
        alive.append(inside[-1]() is not None)
        return scores[:, 0]

    grad_cam = BatchGradCam(model, model.layer)
    images = torch.randn(2, 3, 9, 9)
    got = grad_cam.attribute(images, first_score)
    assert alive == [False]
    assert grad_cam.attribute(images, first_score, differentiable=True).requires_grad
    assert alive == [False, True]
    expected = LayerGradCam(model, model.layer).attribute(images, 0).detach()
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("make", [UsesStash, UserHook])
def test_what_is_made_of_the_output_inside_the_layer_takes_a_second_run(make: type[nn.Module]) -> None:
    model, runs = strong_heads(make()), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    grad_cam = BatchGradCam(model, model.layer)
    images = torch.randn(2, 3, 8, 8)
    grad_cam.attribute(images, 1)
    assert len(runs) == 2
    grad_cam.attribute_classes(images)
    assert len(runs) == 3


def test_an_error_inside_the_layer_leaves_no_hook_on_saved_tensors() -> None:
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ArithmeticError("inside")

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Fails())
    with pytest.raises(ArithmeticError):
        BatchGradCam(model, model[1]).attribute(torch.randn(2, 3, 8, 8), 1)
    weights = torch.ones(3, requires_grad=True)
    (weights * weights).sum().backward()
    assert torch.equal(weights.grad, torch.full((3,), 2.0))

"""A forward of an attribution's own: its trunk has no graph, unless that would change the maps; norms that mix samples."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from tests.attribution.captum_parity import assert_close_to
from tests.models import strong_heads


def images_of() -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64)


def captums(model: Any, layer: nn.Module, images: Tensor, target: Any = 1, **arguments: Any) -> Tensor:
    return LayerGradCam(model, layer).attribute(images, target, **arguments)


# ---- the trunk without a graph ----


class Watch(nn.Module):
    """Note whether recording is on."""

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
@pytest.mark.parametrize("hidden", [False, True], ids=["module", "function"])
def test_recording_is_on_from_the_layer_on_only(hidden: bool, context: Any) -> None:
    model = watched()
    forward_func = (lambda images: model(images) * 2) if hidden else model
    with context():
        BatchGradCam(forward_func, model[2]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert (model[0].seen, model[3].seen) == ([False], [True])


def test_a_differentiable_map_records_everything() -> None:
    model = watched()
    cams = BatchGradCam(model, model[2]).attribute(torch.randn(2, 3, 8, 8), target=0, differentiable=True)
    cams.square().sum().backward()
    assert model[0].seen == [True]
    assert model[1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("hidden", [False, True], ids=["module", "function"])
def test_data_parallel_records_from_the_start(hidden: bool) -> None:
    model = nn.DataParallel(watched())
    forward_func = (lambda images: model(images)) if hidden else model
    BatchGradCam(forward_func, model.module[2]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert model.module[0].seen == [True]


class Around(nn.Module):
    """What the layer receives is used a second time, after the layer has run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer = layer
        self.tail = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.runs = 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        return self.head(self.features(self.stem(images)).mean((2, 3)))

    def features(self, stem: Tensor) -> Tensor:
        return self.tail(self.layer(stem)).tanh() + stem


class UsedBefore(Around):
    """It is used before the layer runs."""

    def features(self, stem: Tensor) -> Tensor:
        around = self.tail(stem).tanh()
        return self.layer(stem) * around


class InPlaceAfterwards(Around):
    """It is changed in place afterwards."""

    def features(self, stem: Tensor) -> Tensor:
        layer = self.layer(stem)
        stem += 1
        return self.tail(layer).tanh() + stem


class Stash(nn.Conv2d):
    """A layer that keeps something made of its own output."""

    def forward(self, images: Tensor) -> Tensor:
        output = super().forward(images)
        self.kept = output.tanh()
        return output


class UsesStash(Around):
    def features(self, stem: Tensor) -> Tensor:
        return self.layer(stem) * self.layer.kept


def hooked_by_the_user(layer: nn.Module) -> nn.Module:
    """Keep it in a hook of the user's, which was there first."""
    layer.register_forward_hook(lambda module, _, output: setattr(module, "kept", output.tanh()))
    return layer


class First(nn.Module):
    def forward(self, entries: list[Tensor]) -> Tensor:
        return entries[0]


class PicksFromList(Around):
    """The layer returns an entry of a list, which was used before."""

    def features(self, stem: Tensor) -> Tensor:
        before = stem.tanh()
        return self.layer([stem, before]) * before


class OwnGradModes(Around):
    """Blocks under grad modes of the model's own, and a path between them."""

    def features(self, stem: Tensor) -> Tensor:
        with torch.enable_grad():
            activations = self.layer(stem)
        gate = activations.tanh()
        with torch.enable_grad():
            return self.tail(activations) * gate


class GradModeThatEnds(Around):
    """A grad mode of the model's own restores the trunk's after the layer."""

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            activations = self.layer(self.stem(images + self.noise(images)))
        return self.head((activations * 2).mean((2, 3)))

    def noise(self, images: Tensor) -> Tensor:
        return torch.zeros_like(images)


class Noisy(GradModeThatEnds):
    def noise(self, images: Tensor) -> Tensor:
        return torch.randn_like(images)


class InnerGradient(Around):
    """A trunk that differentiates in its forward, which needs a graph."""

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        probe = images.detach().requires_grad_()
        self.stem(probe).square().sum().backward(inputs=[probe])
        return self.head((self.layer(self.stem(images + probe.grad)) * 2).mean((2, 3)))


class ChainedPair(nn.Conv2d):
    """Return two tensors, the second made of the first."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = super().forward(images)
        return first, first.tanh()


class WithPair(Around):
    def features(self, stem: Tensor) -> Tensor:
        first, second = self.layer(stem)
        return first * second


def conv(kind: Any = nn.Conv2d) -> nn.Module:
    return kind(4, 4, 1)


#: Networks, and how often the first call runs them.
PATHS: dict[str, tuple[Any, int]] = {
    "identity": (lambda: Around(nn.Identity()), 2),
    "dropout": (lambda: Around(nn.Dropout(0.5)), 2),
    "convolution": (lambda: Around(conv()), 1),
    "identity used before": (lambda: UsedBefore(nn.Identity()), 2),
    "dropout used before": (lambda: UsedBefore(nn.Dropout(0.5)), 2),
    "convolution used before": (lambda: UsedBefore(conv()), 1),
    "in place afterwards": (lambda: InPlaceAfterwards(nn.Identity()), 2),
    "stash": (lambda: UsesStash(conv(Stash)), 2),
    "hook of the user": (lambda: UsesStash(hooked_by_the_user(conv())), 2),
    "entry of a list": (lambda: PicksFromList(First()), 2),
    "own grad modes": (lambda: OwnGradModes(conv()), 2),
    "grad mode that ends": (lambda: GradModeThatEnds(conv()), 2),
    "random numbers": (lambda: Noisy(conv()), 2),
    "inner gradient": (lambda: InnerGradient(conv()), 2),
    "pair": (lambda: WithPair(conv(ChainedPair)), 2),
}


#: Of a frozen model, what is made of the activations inside the layer is missed, as in Captum.
INSIDE = ("stash", "hook of the user", "pair")


@pytest.mark.parametrize(
    ("name", "is_frozen"),
    [(name, is_frozen) for name in PATHS for is_frozen in [False, True][: 1 if name in INSIDE else 2]],
)
def test_no_path_from_the_layer_is_missed_and_the_next_call_knows(name: str, is_frozen: bool) -> None:
    make, runs = PATHS[name]
    model, images = strong_heads(make()).double().eval(), images_of()
    # Before freezing: of a frozen model Captum misses what was made of the tensor before the layer ran.
    torch.manual_seed(3)
    expected = captums(model, model.layer, images.clone())
    model.requires_grad_(not is_frozen)
    grad_cam = BatchGradCam(model, model.layer)
    for number in range(2):
        model.runs = 0
        torch.manual_seed(3)
        assert_close_to(grad_cam.attribute(images, 1), expected, torch.float64)
        assert model.runs == (runs if number == 0 else 1)
        assert not images.requires_grad


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("name", ["identity", "convolution", "identity used before", "convolution used before"])  # fmt: skip
def test_paths_around_the_input_of_the_layer(name: str, is_frozen: bool) -> None:
    model, images = strong_heads(PATHS[name][0]()).double().eval(), images_of()
    expected = captums(model, model.layer, images.clone(), attribute_to_layer_input=True)
    model.requires_grad_(not is_frozen)
    cams = BatchGradCam(model, model.layer).attribute(images, 1, attribute_to_layer_input=True)
    assert_close_to(cams, expected, torch.float64)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_a_view_whose_base_is_changed_later_on_is_refused(is_frozen: bool) -> None:
    class Halves(Around):
        def features(self, stem: Tensor) -> Tensor:
            half = self.layer(stem)
            stem.mul_(2)
            return torch.cat([half, stem[:, 2:]], 1).tanh()

    class FirstHalf(nn.Module):
        def forward(self, whole: Tensor) -> Tensor:
            return whole[:, :2]

    model = Halves(FirstHalf()).double().eval().requires_grad_(not is_frozen)
    # In the graph the view is then a view of what came later, which the head does not read.
    with pytest.raises(RuntimeError, match="activations"):
        BatchGradCam(model, model.layer).attribute(images_of(), 1)


class Raises(nn.Module):
    """Raise after the layer."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error, self.runs = nn.Conv2d(3, 4, 3), error, 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += 1
        self.layer(images)
        raise self.error


def test_an_error_of_the_model_stands_alone_and_out_of_memory_is_not_tried_again() -> None:
    model = Raises(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match=r"^broken$") as raised:
        BatchGradCam(model, model.layer).attribute(torch.randn(2, 3, 8, 8), 1)
    assert raised.value.__context__ is None
    model = Raises(torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        BatchGradCam(model, model.layer).attribute(torch.randn(2, 3, 8, 8), 1)
    assert model.runs == 1


def test_a_wrong_argument_and_a_forward_that_changes_its_input_cost_one_forward() -> None:
    model = Around(conv())
    with pytest.raises(ValueError, match="target"):
        BatchGradCam(model, model.layer).attribute(torch.randn(2, 3, 8, 8), target=7)
    assert model.runs == 1

    class Doubles(Around):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.mul_(2))

    model, images = Doubles(nn.Identity()).eval(), torch.ones(2, 3, 8, 8)
    with pytest.raises(RuntimeError):
        BatchGradCam(model, model.layer).attribute(images, 1)
    assert images.unique().tolist() == [2]


@pytest.mark.parametrize("hidden", [False, True], ids=["module", "function"])
@pytest.mark.parametrize("name", ["encoder", "encoder.layers.0.norm2", "head"])
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

    model, tokens = strong_heads(Padded()).eval(), torch.randn(2, 6, 8)
    layer = model.get_submodule(name)
    forward_func = (lambda given: model(given)) if hidden else model
    cams = BatchGradCam(forward_func, layer).attribute(tokens, 1)
    assert_close_to(cams, captums(forward_func, layer, tokens), torch.float32)


def test_cached_parametrizations_keep_their_graph() -> None:
    model = nn.Sequential(
        spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).eval()
    images = torch.randn(2, 3, 8, 8)
    with parametrize.cached():
        BatchGradCam(model, model[1]).attribute(images, target=0)
        model(images).sum().backward()
    assert model[0].parametrizations.weight.original.grad is not None


def test_what_the_layer_saves_for_its_own_backward_is_not_kept() -> None:
    model = Around(nn.Sequential(conv(), nn.Tanh(), conv(), nn.Tanh()))
    inside: list[Any] = []
    alive: list[bool] = []
    model.layer[1].register_forward_hook(lambda _, __, output: inside.append(weakref.ref(output)))

    def first_score(scores: Tensor) -> Tensor:
        alive.append(inside[-1]() is not None)
        return scores[:, 0]

    grad_cam, images = BatchGradCam(model, model.layer), torch.randn(2, 3, 9, 9)
    grad_cam.attribute(images, first_score)
    grad_cam.attribute(images, first_score, differentiable=True)
    assert alive == [False, True]


def test_an_error_inside_the_layer_leaves_no_hook_on_saved_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Raises(ArithmeticError("inside")))
    with pytest.raises(ArithmeticError):
        BatchGradCam(model, model[1]).attribute(torch.randn(2, 3, 8, 8), 1)
    weights = torch.ones(3, requires_grad=True)
    (weights * weights).sum().backward()
    assert weights.grad.tolist() == [2, 2, 2]


# ---- the warning that a BatchNorm after the layer mixes samples ----

MIXING = r"^3: .*BatchNorm.* eval\(\).* from 5 on"
IMAGES, LABELS = torch.rand(4, 3, 10, 10), torch.arange(4)


def network(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), norm(4), nn.Conv2d(4, 4, 3), norm(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 36, 5),
    ).train()  # fmt: skip


def regularizer_of(model: nn.Module, layer: Any) -> CamRegularizer:
    return CamRegularizer(BatchGradCam(model, layer), BatchCamLoss(torch.rand(5, 1, 32, 32)))


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trains", "layer in eval mode"])
def test_norms_that_mix_are_named_and_the_caller_is_blamed(is_frozen: bool) -> None:
    model = network()
    model[2].train(not is_frozen)
    with pytest.warns(UserWarning, match=MIXING) as record:
        BatchGradCam(model, model[2]).attribute(IMAGES, target=LABELS)
    assert record[0].filename == __file__
    regularizer = regularizer_of(model, model[2])
    with pytest.warns(UserWarning, match=MIXING) as record, regularizer:
        model(IMAGES)
    assert record[0].filename == __file__
    with regularizer:  # warns once; warnings are errors here
        model(IMAGES)


@pytest.mark.filterwarnings("ignore:.*a BatchNorm with batch statistics:UserWarning")
def test_the_warning_is_true() -> None:
    model, changes = network().double(), []
    for layer in (2, 5):
        grad_cam = BatchGradCam(model, model[layer])
        cams, others = (
            grad_cam.attribute(IMAGES.double(), target) for target in ([0, 1, 2, 3], [0, 4, 4, 4])
        )
        changes.append((cams[0] - others[0]).abs().max() / cams[0].abs().max())
    assert changes[0] > 1e-3
    assert changes[1] < 1e-12


@pytest.mark.parametrize(
    ("norm", "training", "mixes"),
    [
        (nn.BatchNorm2d, True, True),
        (nn.BatchNorm2d, False, False),
        (lambda channels: nn.BatchNorm2d(channels, track_running_stats=False), False, True),
        (nn.InstanceNorm2d, True, False),
        (lambda channels: nn.GroupNorm(2, channels), True, False),
    ],
)
def test_which_norms_mix(norm: Any, training: bool, mixes: bool) -> None:
    model = network(norm).train(training)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        BatchGradCam(model, model[2]).attribute(IMAGES, target=LABELS)
    assert len(record) == mixes
    BatchGradCam(model, model[5]).attribute(IMAGES, target=LABELS)


def test_a_warning_that_is_an_error_leaves_no_hook() -> None:
    model = network()
    with pytest.raises(UserWarning, match="BatchNorm"), regularizer_of(model, model[2]):
        model(IMAGES)
    assert not model[2]._forward_hooks
    model(IMAGES)


@pytest.mark.parametrize(
    ("make", "block"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), "layer4"),
        (lambda: nn.Sequential(torchvision.models.resnet18(num_classes=5)), "0.layer4"),
        (lambda: torchvision.models.densenet121(num_classes=5), "features"),
    ],
    ids=["resnet", "wrapped resnet", "densenet"],
)
def test_the_layer_to_explain_is_one_that_no_path_leads_around(make: Any, block: str) -> None:
    model, images = make().train(), torch.rand(2, 3, 64, 64)
    early = next(module for module in model.modules() if isinstance(module, nn.MaxPool2d))
    with pytest.warns(UserWarning, match=f"from {block} on"):
        BatchGradCam(model, early).attribute(images, target=LABELS[:2])
    BatchGradCam(model, block).attribute(images, target=LABELS[:2])


def test_small_images_find_the_way_out_that_is_advised() -> None:
    # A stem of stride 1: otherwise the advice turns in a circle, layer4 because of the BatchNorm, an earlier layer for the size.
    model = torchvision.models.resnet18(num_classes=5).train()
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    images = torch.rand(4, 3, 32, 32)
    regularizer = regularizer_of(model, "layer4")
    with regularizer:
        scores = model(images)
    regularizer(scores, LABELS).backward()


def in_another_thread(model: nn.Module) -> None:
    thread = threading.Thread(target=lambda: model(IMAGES))
    thread.start()
    thread.join()


BESIDE: dict[str, Any] = {
    "evaluate": lambda regularizer, _: regularizer.evaluate(IMAGES, LABELS),
    "attribute": lambda regularizer, _: regularizer.grad_cam.attribute(IMAGES, target=LABELS),
    "teacher": lambda _, model: copy.deepcopy(model)(IMAGES),
    "thread": lambda _, model: in_another_thread(model),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_a_forward_beside_the_training_forward_does_not_count(beside: str) -> None:
    model = network()
    regularizer = regularizer_of(model, model[6])
    with regularizer:  # no warning
        model(IMAGES)
        BESIDE[beside](regularizer, model)
    if beside in ("teacher", "thread"):
        regularizer = regularizer_of(model, model[2])

        def train() -> None:
            with regularizer:
                model(IMAGES)
                BESIDE[beside](regularizer, model)

        with pytest.warns(UserWarning, match=MIXING):
            train()

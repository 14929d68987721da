"""compare(): each library's maps next to ours, failures with their reasons, and the model as it was."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from batchcam_captum import BatchGradCam
from batchcam_captum.interop import OURS, PEERS
from batchcam_captum.interop.comparison import compare
from batchcam_captum.loading import LoadedImages
from tests.models import DenseNetOutput, SmallCnn, VectorNet

from .networks import Tokens

INSTALLED = [name for name, peer in PEERS.items() if peer.version() is not None]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SmallCnn(norm=True).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def comparison(model, images):
    return compare(
        model,
        model.layer,
        images,
        methods=["grad_cam", "layer_cam"],
        batch_sizes=[4, 1],
        repeats=2,
        memory=False,
    )


def by_library(found, method="grad_cam"):
    return {pair.library: pair for pair in found.pairs if pair.method == method}


def test_every_installed_library_is_next_to_ours(comparison, model, images):
    assert set(by_library(comparison)) == set(INSTALLED)
    with torch.no_grad():
        assert comparison.targets == model(images).argmax(1).tolist()
    for pair in comparison.pairs:
        assert pair.ours.shape == pair.theirs.shape
        assert len(pair.agreement.maps) == 3
        assert pair.agreement.max_difference < 1e-5
    raw = BatchGradCam(model, "layer").attribute(images, target=comparison.targets)
    assert torch.equal(comparison.raw["grad_cam"], raw)
    assert comparison.left_out == [name for name in PEERS if name not in INSTALLED]


def test_theirs_is_what_the_libraries_return_to_their_users(comparison, model, images):
    from captum.attr import LayerGradCam

    model, targets = copy.deepcopy(model), comparison.targets
    expected = LayerGradCam(model, model.layer).attribute(images, target=targets).detach()
    assert torch.equal(by_library(comparison)["Captum"].theirs, expected)
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with pytorch_grad_cam.LayerCAM(model, [model.layer]) as cam:
        maps = cam(images, [ClassifierOutputTarget(target) for target in targets])
    pair = by_library(comparison, "layer_cam")["pytorch-grad-cam"]
    np.testing.assert_array_equal(pair.theirs[:, 0].numpy(), maps)


def test_what_a_library_does_not_offer_is_named(comparison):
    absent = [entry for entry in comparison.skipped if entry.library == "Captum"]
    assert [(entry.method, entry.reason, entry.batch_size) for entry in absent] == [
        ("layer_cam", "Captum does not offer it", None)
    ]


def test_every_library_is_timed_at_every_batch_size(comparison):
    timed = {(cost.method, cost.library, cost.batch_size) for cost in comparison.costs}
    able = {(pair.method, pair.library) for pair in comparison.pairs}
    able |= {(method, OURS.name) for method in ("grad_cam", "layer_cam")}
    assert timed == {(*case, size) for case in able for size in (1, 4)}
    for cost in comparison.costs:
        assert cost.rounds == 2
        assert 0 < cost.seconds.q1 <= cost.seconds.median <= cost.seconds.q3
        assert cost.peak_bytes is None
        if cost.library == OURS.name:
            assert cost.ratio_to_ours.median == 1


def test_the_same_again_gives_the_same_numbers(comparison, model, images):
    again = compare(model, "layer", images, methods="grad_cam", libraries=["Captum"])
    pair = again.pairs[0]
    assert pair.agreement == by_library(comparison)["Captum"].agreement
    assert torch.equal(pair.theirs, by_library(comparison)["Captum"].theirs)
    assert not again.costs
    assert list(again.versions) == ["Captum"]


def test_environment_and_settings_are_told(comparison):
    assert comparison.environment["torch"] == torch.__version__
    assert comparison.environment["device_name"]
    assert comparison.versions["Captum"] == PEERS["Captum"].version()
    expected = {
        "model": "SmallCnn",
        "layer": "layer",
        "dtype": "float32",
        "mode": "eval",
        "batch_sizes": [1, 4],
    }
    assert expected.items() <= comparison.settings.items()


class Spoiler(SmallCnn):
    """Draws numbers, so that the random state would move."""

    def forward(self, x):
        return super().forward(x) + 1e-3 * torch.rand(5)


def spoilt(model):
    """What a peer could do to a model, then raise."""

    @contextmanager
    def hooked(self, model, layer, method, reshape):
        model.train()
        model.requires_grad_(False)
        layer.register_forward_hook(lambda *_: None)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
        model.stem[0].weight.grad = None
        if model.head.weight.grad is not None:  # a copy of a model has none
            model.head.weight.grad.fill_(7)
        torch.rand(3)
        raise RuntimeError("it broke\nat length")
        yield

    return hooked


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def values_of(model):
    values = {f"value of {name}": tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    values |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: tensor.detach().clone() for name, tensor in values.items()}


def facts_of(model):
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "identities": [(id(tensor), id(tensor.grad)) for tensor in tensors],
        "requires_grad": [tensor.requires_grad for tensor in tensors],
        "modes": [module.training for module in model.modules()],
        "hooks": [[list(getattr(module, kind).items()) for kind in HOOKS] for module in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "random state": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_model_is_left_bit_for_bit_as_it_was_even_when_a_peer_raises(monkeypatch, images, dtype):
    model = Spoiler(norm=True)
    model.tail.eval()
    model.stem[0].requires_grad_(False)
    model.stem[0].weight.grad = torch.rand_like(model.stem[0].weight)
    model(images).sum().backward()
    calls = []
    model.layer.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(type(PEERS["Captum"]), "_hooked", spoilt(model))
    facts, values = facts_of(model), values_of(model)
    found = compare(model, "layer", images, batch_sizes=[2], repeats=2, memory=False, dtype=dtype)
    assert facts_of(model) == facts
    torch.testing.assert_close(values_of(model), values, rtol=0, atol=0)
    assert calls, "hooks that were there before are called"
    broken = [entry.reason for entry in found.skipped if entry.library == "Captum"]
    assert broken == ["Captum cannot do this: RuntimeError: it broke"]
    assert set(by_library(found)) == set(INSTALLED) - {"Captum"}
    # The others have the same random numbers, so the same maps, although the model draws.
    assert all(pair.agreement.max_difference < 1e-5 for pair in found.pairs)


def test_memory_that_runs_out_at_one_batch_size_leaves_the_others(monkeypatch, model, images):
    whole = type(PEERS["Captum"])._hooked

    @contextmanager
    def hooked(self, *arguments):
        with whole(self, *arguments) as call:

            def small(images, targets):
                if len(images) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return call(images, targets)

            yield small

    monkeypatch.setattr(type(PEERS["Captum"]), "_hooked", hooked)
    found = compare(model, "layer", images, libraries=["Captum"], batch_sizes=[1, 8], repeats=2, memory=False)
    costs = {(cost.library, cost.batch_size): cost for cost in found.costs}
    assert costs["Captum", 1].seconds
    assert costs["Captum", 8].seconds is None
    assert costs["Captum", 8].ratio_to_ours is None
    assert costs[OURS.name, 8].seconds
    assert [(entry.library, entry.batch_size, entry.reason) for entry in found.skipped] == [
        ("Captum", 8, "out of memory")
    ]


def test_a_library_that_is_not_installed_is_named_and_left_out(monkeypatch, model, images):
    monkeypatch.setattr(type(PEERS["TorchCAM"]), "version", lambda self: None)
    found = compare(model, "layer", images, libraries=["TorchCAM", "Captum"])
    assert found.left_out == ["TorchCAM"]
    assert found.versions["TorchCAM"] is None
    assert [pair.library for pair in found.pairs] == ["Captum"]


def test_half_precision_is_compared_on_a_copy_and_what_fails_is_named(model, images):
    found = compare(model, "layer", images, libraries=["pytorch-grad-cam", "Captum"], dtype=torch.bfloat16)
    assert found.settings["dtype"] == "bfloat16"
    assert next(model.parameters()).dtype == torch.float32
    assert [pair.library for pair in found.pairs] == ["Captum"]
    if "pytorch-grad-cam" in INSTALLED:
        assert "BFloat16" in found.skipped[0].reason


def test_double_precision_agrees_further(model, images):
    found = compare(model, "layer", images, dtype=torch.float64)
    assert all(pair.agreement.max_difference < 5e-7 for pair in found.pairs)
    assert by_library(found)["Captum"].agreement.max_difference < 1e-13


@pytest.mark.parametrize("reshape", ["tokens", "function"])
def test_layers_of_tokens_are_reshaped_for_every_library(reshape):
    model, images = Tokens().eval(), torch.rand(2, 3, 16, 16)
    if reshape == "function":
        reshape = lambda tokens: tokens[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1)  # noqa: E731
    found = compare(model, "layer", images, reshape=reshape)
    assert found.raw["grad_cam"].shape == (2, 1, 4, 4)
    assert set(by_library(found)) == set(INSTALLED)
    assert all(pair.agreement.max_difference < 1e-5 for pair in found.pairs)


def test_a_layer_that_nobody_can_do_is_named_for_every_library():
    found = compare(VectorNet().eval(), "layer", torch.rand(2, 3, 4, 4), batch_sizes=[2], memory=False)
    assert {entry.library for entry in found.skipped} == {OURS.name, *INSTALLED}
    assert all(entry.reason for entry in found.skipped)
    assert not found.pairs
    assert not found.raw
    assert not found.costs
    assert "Nothing could be compared" in found.markdown()


def test_given_targets_and_read_images(model, images):
    loaded = LoadedImages(
        tensor=images,
        pictures=torch.rand(3, 16, 20, 3),
        paths=("a.jpg", "b.jpg", "c.jpg"),
        failed={"d.jpg": "cut short"},
    )
    found = compare(model, "layer", loaded, targets=torch.tensor([4, 0, 2]), libraries=["Captum"])
    assert found.targets == [4, 0, 2]
    assert found.paths == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.failed == {"d.jpg": "cut short"}
    expected = BatchGradCam(model, "layer").attribute(images, target=[4, 0, 2])
    assert torch.equal(found.raw["grad_cam"], expected)


def test_more_images_than_go_together_give_the_maps_of_each(model):
    images = torch.rand(19, 3, 10, 10)
    found = compare(model, "layer", images, libraries=["Captum"])
    last = compare(model, "layer", images[18:], libraries=["Captum"])
    assert found.pairs[0].theirs.shape[0] == 19
    torch.testing.assert_close(found.pairs[0].theirs[18:], last.pairs[0].theirs)


def test_under_inference_mode_everything_is_compared(model):
    with torch.inference_mode():
        found = compare(model, "layer", torch.rand(2, 3, 16, 20))
    assert set(by_library(found)) == set(INSTALLED)
    assert all(pair.agreement.max_difference < 1e-5 for pair in found.pairs)


def test_under_no_grad_and_with_a_progress_bar(model, images, capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with torch.no_grad():
        found = compare(model, "layer", images, libraries=["Captum"], progress=True)
    assert found.pairs[0].agreement.max_difference < 1e-6
    assert "compare:   0%" in capsys.readouterr().err


@pytest.mark.parametrize("shown", [True, False])
def test_where_no_bar_can_move_each_measurement_has_a_line(model, images, capsys, shown):
    options = {"batch_sizes": [1, 2], "repeats": 1, "memory": False}
    compare(model, "layer", images, libraries=["Captum"], progress=shown, **options)
    expected = [f"compare: time, grad_cam, batch {size}" for size in (1, 2)] if shown else []
    assert capsys.readouterr().err.splitlines() == expected


def test_scores_that_are_not_finite_and_dead_maps_are_remarked_on(images):
    model = SmallCnn().eval()
    bad = images.clone()
    bad[1] = float("nan")
    found = compare(model, "layer", bad, libraries=["Captum"])
    [remark] = found.remarks
    assert "scores of 1 of 3 images hold NaN or infinity" in remark
    torch.nn.init.zeros_(model.head.weight)  # no gradient reaches the layer
    found = compare(model, "layer", images, libraries=["Captum"])
    [remark] = found.remarks
    assert remark.startswith(
        "grad_cam: both maps, ours and that of Captum, are zero everywhere for 3 of 3 images"
    )
    assert not compare(SmallCnn().eval(), "layer", images, libraries=["Captum"]).remarks


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["grad_kam"]}, "methods: expected some of 'grad_cam'.*got 'grad_kam'"),
        ({"methods": []}, "methods: expected some of .*got none"),
        ({"libraries": ["Zennit"]}, "libraries: expected some of 'pytorch-grad-cam', .*got 'Zennit'"),
        ({"layer": "layers"}, "layer: expected the name of a layer of SmallCnn, got 'layers'"),
        ({"layer": torch.nn.ReLU()}, "layer: expected a module inside SmallCnn"),
        ({"targets": [0, 1]}, "targets: expected 3 classes from 0 to 4, one for each image"),
        ({"targets": [0, 1, 5]}, "targets: expected 3 classes from 0 to 4"),
        ({"targets": torch.tensor(1)}, "targets: expected 3 classes"),
        ({"batch_sizes": [0]}, "batch_sizes: expected integers of at least 1, got \\[0\\]"),
        ({"repeats": 0}, "repeats: expected at least 1, got 0"),
        ({"reshape": "grid"}, "reshape: expected 'auto'"),
        ({"device": "nowhere"}, "device: expected cpu, cuda"),
        ({"dtype": torch.int64}, "dtype: expected a floating one, got torch.int64"),
        ({"paths": ["a"]}, "paths: expected one for each of 3 images, got 1"),
        ({"pictures": torch.rand(2, 4, 4, 3)}, "pictures: expected one for each of 3 images, got 2"),
        ({"images": torch.rand(0, 3, 8, 8)}, "images: expected at least one"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "images: expected at least one, floating"),
        ({"model": DenseNetOutput()}, "model: expected scores \\(3, K\\) for 3 images, got \\(3, 5, 3, 3\\)"),
    ],
)  # fmt: skip
def test_bad_input_is_explained(model, images, given, message):
    given = {"model": model, "layer": "layer", "images": images} | given
    with pytest.raises(ValueError, match=message):
        compare(given.pop("model"), given.pop("layer"), given.pop("images"), **given)


def test_images_that_are_no_tensor(model, images):
    with pytest.raises(TypeError, match="images: expected a tensor"):
        compare(model, "layer", images.numpy())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named(model, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"device: expected .* got 'cuda'"):
            compare(model, "layer", images, device="cuda")

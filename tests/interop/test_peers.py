"""The peers themselves, called through one face, against our maps with their presets; and what they cannot do."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, environment
from batchcam_captum.interop import OURS, PEERS, Peer, PeerError, peers
from tests.interop.networks import CASES, Network, network
from tests.models import RepeatedNet, SmallCnn, TupleNet

installed = {name: peer for name, peer in PEERS.items() if peer.version()}
every_peer = pytest.mark.parametrize("peer", installed.values(), ids=installed)
CLASSES = [4, 1]


@pytest.fixture(scope="module", params=CASES)
def known(request: pytest.FixtureRequest) -> Network:
    """One instance for all peers and weightings."""
    return network(request.param)


class Recorded:
    """Our weighting of one forward after the other: what it was given is kept for the peers' weightings."""

    def __call__(self, activations: Tensor, gradients: Tensor) -> Tensor:
        self.given = activations, gradients
        return activations.sum(1, keepdim=True)


def error_of(peer: Peer, actual: Tensor, expected: Tensor) -> float:
    """The largest difference; of raw maps as a share of the map's maximum."""
    assert actual.shape == expected.shape
    peaks = expected.abs().amax(tuple(range(1, expected.dim())))
    # A picture without positive values is zero in both; but not for every image.
    assert peaks.max() > 0.9 if peer.scale == "unit" else peaks.min() > 1e-5, "a vanishing map shows nothing"
    difference = (actual - expected).abs().max().item()
    return difference if peer.scale == "unit" else difference / peaks.min().item()


TOLERANCE = {
    ("unit", torch.float64): 5e-7,
    ("unit", torch.float32): 1e-4,
    ("raw", torch.float64): 1e-10,
    ("raw", torch.float32): 1e-5,
}


@every_peer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_our_maps_with_the_preset_are_theirs(
    known: Network, dtype: torch.dtype, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = known.model.to(dtype), known.images.to(dtype)
    recorded = Recorded()
    BatchGradCam(model, known.layer, method=recorded, reshape=known.reshape and "auto").attribute(
        images, target=CLASSES
    )
    raw = raw_maps(monkeypatch) if peer.name == "pytorch-grad-cam" else []
    for method in peer.methods:
        with peer.opened(model, known.layer, method, reshape=known.reshape) as call:
            expected = call(images, CLASSES)
        cams = peer.cam_method(method)(*recorded.given)
        assert cams.dtype == dtype
        error = error_of(peer, peer.preset(cams, images.shape[2:]), expected)
        assert error <= TOLERANCE[peer.scale, dtype], f"{method}: {error}"
        if peer.name == "pytorch-grad-cam":
            # In float64 only the order of the sums differs, in float32 near-zero denominators enlarge that.
            expected_raw = torch.from_numpy(raw.pop()).unsqueeze(1)
            assert cams.shape == expected_raw.shape
            peaks = expected_raw.abs().amax((2, 3), keepdim=True)
            assert peaks.min() > 1e-5, "a vanishing map shows nothing"
            error = ((cams - expected_raw).abs() / peaks).max().item()
            assert error <= {torch.float64: 1e-10, torch.float32: 1e-4}[dtype], f"raw {method}: {error}"


def raw_maps(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What pytorch-grad-cam is going to make pictures of: its scaling would hide a factor."""
    kept: list[np.ndarray] = []

    def keeping(original: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def keep(*given: Any) -> np.ndarray:
            kept.append(original(*given))
            return kept[-1]

        return keep

    pytorch_grad_cam = import_module("pytorch_grad_cam")
    for name in {"BaseCAM", *peers._PYTORCH_GRAD_CAM_CLASSES.values()}:
        kind = getattr(pytorch_grad_cam.base_cam if name == "BaseCAM" else pytorch_grad_cam, name)
        if "get_cam_image" in vars(kind):
            monkeypatch.setattr(kind, "get_cam_image", keeping(kind.get_cam_image))
    return kept


def ours(peer: Peer, model: nn.Module, images: Tensor, method: str = "grad_cam") -> Tensor:
    cams = BatchGradCam(model, "layer", method=peer.cam_method(method)).attribute(images, target=[3])
    return peer.preset(cams, images.shape[2:])


@every_peer
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_signals_and_volumes(dims: int, peer: Peer) -> None:
    model = SmallCnn(dims).double().eval()
    images = torch.rand(1, 3, *(12, 9, 10)[:dims], dtype=torch.float64)
    with peer.opened(model, "layer", "grad_cam") as call:
        if dims == 1 and peer.name == "pytorch-grad-cam":
            with pytest.raises(PeerError, match="pytorch-grad-cam cannot do this: ValueError"):
                call(images, [3])
            return
        theirs = call(images, [3])
    assert error_of(peer, ours(peer, model, images), theirs) <= 5e-7


def state(model: nn.Module) -> dict[str, Any]:
    """What the peers are known to change; test_untouched.py looks at all."""
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "buffers": [buffer.tolist() for buffer in model.buffers()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": torch.get_rng_state().tolist(),
    }


FREEZING: dict[str, Callable[[nn.Module], object]] = {
    "trained": lambda model: None,
    "frozen": lambda model: model.requires_grad_(False),
    "frozen_up_to_the_layer": lambda model: (
        model.stem.requires_grad_(False),
        model.layer.requires_grad_(False),
    ),
}


@every_peer
@pytest.mark.parametrize("freeze", FREEZING.values(), ids=FREEZING)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_frozen_models_in_any_grad_mode(peer: Peer, freeze: Any, mode: Any) -> None:
    model = SmallCnn(norm=True).double().eval()
    freeze(model)
    with mode():
        images = torch.rand(1, 3, 12, 11, dtype=torch.float64)
        before = state(model)
        with peer.opened(model, "layer", "grad_cam") as call:
            theirs = call(images, [3])
        assert not theirs.requires_grad
        assert state(model) == before
        assert not images.requires_grad
    assert error_of(peer, ours(peer, model, images), theirs) <= 5e-7


@every_peer
def test_a_model_in_train_mode(peer: Peer) -> None:
    """What the peer makes of it is its own; the model is in train mode afterwards, and its statistics have not moved."""
    model = SmallCnn(norm=True, dropout=0.5).train()
    model.layer.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    images = torch.rand(3, 3, 12, 11)
    before = state(model)
    with peer.opened(model, "layer", "grad_cam") as call:
        first, trained = call(images, [3, 1, 0]), model.training
        second = call(images, [3, 1, 0])
    assert state(model) == before
    assert trained == (peer.name != "pytorch-grad-cam")
    # Dropout draws other masks, unless the peer has put the model in eval mode.
    assert torch.equal(first, second) == (peer.name == "pytorch-grad-cam")


@pytest.mark.parametrize("peer", [*installed.values(), OURS], ids=[*installed, "ours"])
def test_the_model_is_put_back_after_an_exception(peer: Peer) -> None:
    model = SmallCnn(norm=True).train()
    images = torch.rand(2, 3, 12, 11)
    before = state(model)

    def use(targets: list[int]) -> None:
        with peer.opened(model, "layer", "grad_cam") as call:
            call(images, targets)
            # pytorch-grad-cam's own context would swallow it.
            raise IndexError("of the body")

    with pytest.raises(IndexError, match="of the body"):
        use([3, 1])
    assert state(model) == before
    with pytest.raises(PeerError, match="cannot do this"):
        use([3, 99])
    assert state(model) == before


@pytest.mark.parametrize("peer", [*installed.values(), OURS], ids=[*installed, "ours"])
def test_several_calls_with_batches_of_different_sizes(peer: Peer) -> None:
    model = SmallCnn().double().eval()
    images = torch.rand(3, 3, 12, 11, dtype=torch.float64)
    with peer.opened(model, model.layer, "grad_cam") as call:
        together = call(images, [3, 1, 0])
        alone = torch.cat([call(images[n : n + 1], [target]) for n, target in enumerate([3, 1, 0])])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("peer", [*installed.values(), OURS], ids=[*installed, "ours"])
def test_several_calls_with_a_reshape(peer: Peer) -> None:
    known = network("vit")
    with peer.opened(known.model, known.layer, "grad_cam", reshape=known.reshape) as call:
        together, again = call(known.images, CLASSES), call(known.images, CLASSES)
        alone = call(known.images[1:], CLASSES[1:])
    assert torch.equal(together, again)
    torch.testing.assert_close(alone, together[1:], rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in known.model.modules())


def test_ours_is_the_attribution_itself() -> None:
    known = network("vit")
    for method in OURS.methods:
        cam_method = OURS.cam_method(method)
        grad_cam = BatchGradCam(known.model, known.layer, method=cam_method, reshape=known.reshape)
        expected = grad_cam.attribute(known.images, target=CLASSES)
        with OURS.opened(known.model, known.layer, method, reshape=known.reshape) as call:
            cams = call(known.images, CLASSES)
        assert torch.equal(cams, expected)
        assert OURS.preset(cams, (64, 96)) is cams
    assert OURS.version()


# What they cannot do


def cannot(peer: Peer, model: nn.Module, images: Tensor, targets: list[int], match: str) -> None:
    with (
        pytest.raises(PeerError, match=rf"^{peer.name}.*{match}"),
        peer.opened(model, "layer", "grad_cam") as call,
    ):
        call(images, targets)


@every_peer
def test_too_few_targets(peer: Peer) -> None:
    cannot(peer, SmallCnn().eval(), torch.rand(3, 3, 12, 12), [1], "one target for each of 3 images, got 1")


@every_peer
def test_no_images(peer: Peer) -> None:
    """Maps for none of them, or an error that names the library."""
    model, none = SmallCnn().eval(), torch.rand(0, 3, 12, 12)
    if peer.name != "TorchCAM":
        cannot(peer, model, none, [], "cannot do this")
        return
    with peer.opened(model, "layer", "grad_cam") as call:
        assert call(none, []).shape == (0, 1, 5, 5)


@every_peer
def test_a_layer_that_the_forward_does_not_reach(peer: Peer) -> None:
    model = SmallCnn().eval()
    model.layer, model.other = nn.Conv2d(6, 8, 3), model.layer
    model.forward = lambda x: model.head(model.tail(model.other(model.stem(x))))  # type: ignore[method-assign]
    cannot(peer, model, torch.rand(2, 3, 12, 12), [1, 2], "cannot do this")
    assert "forward" in model.__dict__


@every_peer
def test_a_layer_with_several_tensors(peer: Peer) -> None:
    cannot(peer, TupleNet().eval(), torch.rand(2, 3, 12, 12), [1, 2], "")


def test_bfloat16_has_no_place_in_numpy() -> None:
    pytest.importorskip("pytorch_grad_cam")
    model, images = SmallCnn().eval().bfloat16(), torch.rand(2, 3, 12, 12).bfloat16()
    cannot(PEERS["pytorch-grad-cam"], model, images, [1, 2], "cannot do this: TypeError.*BFloat16")


def test_pytorch_grad_cam_and_a_layer_that_runs_twice() -> None:
    pytest.importorskip("pytorch_grad_cam")
    peer = PEERS["pytorch-grad-cam"]
    cannot(peer, RepeatedNet().eval(), torch.rand(1, 3, 12, 12), [1], "a layer that runs 2 times")


def test_pytorch_grad_cam_and_a_model_without_parameters() -> None:
    pytest.importorskip("pytorch_grad_cam")
    model = nn.Sequential()
    model.layer = nn.Identity()
    cannot(PEERS["pytorch-grad-cam"], model, torch.rand(1, 3, 12, 12), [1], "a model without parameters")


def test_torchcam_counts_no_class_from_the_end() -> None:
    pytest.importorskip("torchcam")
    cannot(PEERS["TorchCAM"], SmallCnn().eval(), torch.rand(1, 3, 12, 12), [-1], "class_idx")


def test_captum_is_shown_no_reshape_that_computes() -> None:
    known = network("vit")
    for computes in (
        lambda t: 2 * known.reshape(t),
        lambda t: known.reshape(t).mean(2),
        lambda t: known.reshape(t).relu(),  # of counts the same
        lambda t: known.reshape(t)[:, :1].expand(-1, 2, -1, -1),
    ):
        with (
            pytest.raises(
                PeerError, match=r"^Captum cannot do this.*reshape: expected one that only selects"
            ),
            PEERS["Captum"].opened(known.model, known.layer, "grad_cam", reshape=computes) as call,
        ):
            call(known.images, CLASSES)


def test_showing_captum_maps_changes_no_scores() -> None:
    known = network("vit")
    scores: list[Tensor] = []
    handle = known.model.register_forward_hook(lambda module, inputs, output: scores.append(output.detach()))
    with PEERS["Captum"].opened(known.model, known.layer, "grad_cam", reshape=known.reshape) as call:
        call(known.images, CLASSES)
    expected = known.model(known.images)
    handle.remove()
    assert torch.equal(scores[0], expected)


@every_peer
def test_a_weighting_that_it_has_not(peer: Peer) -> None:
    with (
        pytest.raises(PeerError, match=f"{peer.name} cannot do 'score_cam'; it has 'grad_cam'"),
        peer.opened(SmallCnn(), "layer", "score_cam"),
    ):
        pass


@every_peer
def test_a_layer_that_the_model_has_not(peer: Peer) -> None:
    with (
        pytest.raises(ValueError, match=r"got 'stem\.9'; it has .*stem") as caught,
        peer.opened(SmallCnn(), "stem.9", "grad_cam"),
    ):
        pass
    assert not isinstance(caught.value, PeerError), "the case is wrong, whoever is asked"


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_library_that_is_not_installed(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", missing)
    assert peer.version() is None
    model = SmallCnn()
    with (
        pytest.raises(
            ModuleNotFoundError, match=rf"{peer.name} is not installed.*batchcam-captum\[compare\]"
        ),
        peer.opened(model, "layer", "grad_cam"),
    ):
        pass


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@every_peer
def test_memory_that_runs_out_is_not_blamed_on_the_library(peer: Peer, error: type[BaseException]) -> None:
    model = SmallCnn().eval()

    def fail(*_: Any) -> None:
        raise error

    handle = model.tail.register_forward_pre_hook(fail)
    with pytest.raises(error), peer.opened(model, "layer", "grad_cam") as call:
        call(torch.rand(1, 3, 12, 12), [1])
    handle.remove()

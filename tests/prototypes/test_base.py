"""What every kind of prototypes shares: maps, losses that take them, types, states and files."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ForegroundLoss,
    ForegroundPrototypes,
    PrototypeContrastiveLoss,
    PrototypeLoss,
    functional,
)
from batchcam_captum.prototypes import Prototypes
from tests.prototypes.kinds import MAKERS, K

LABELS = torch.tensor([0, 1, 1, 3, -100, 2])
LOSSES = {
    "prototype": (PrototypeLoss, functional.prototype_loss, "map"),
    "batch_cam": (BatchCamLoss, functional.batch_cam_loss, "map"),
    "contrastive": (PrototypeContrastiveLoss, functional.prototype_contrastive_loss, "prototype"),
    "foreground": (ForegroundLoss, functional.foreground_loss, "map"),
}


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_the_function_of_the_maps(kind, loss):
    module, function, resolution = LOSSES[loss]
    prototypes = MAKERS[kind]()
    cams = torch.randn(6, 1, 5, 6, requires_grad=True)
    value = module(prototypes)(cams, LABELS)
    # Afterwards: RunningPrototypes learn from this batch before they are compared with it.
    maps = prototypes.maps((5, 6) if resolution == "map" else None)
    held = cams.detach().clone().requires_grad_()
    expected = function(held, LABELS, maps, seen=prototypes.seen)
    assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    assert_close(cams.grad, held.grad, rtol=1e-4, atol=1e-6)
    assert cams.grad[[0, 1, 2, 3, 5]].flatten(1).any(1).all()
    assert not cams.grad[4].any()


def test_gradient_reaches_the_head_through_a_regularizer(kind):
    """The channel weights hold the head's weights: with constant channel weights the head would have no gradient."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.Tanh(),
        torch.nn.Sequential(
            torch.nn.Conv2d(4, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(4 * 3 * 4, K)
        ),
    )
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), BatchCamLoss(MAKERS[kind]()))
    with regularizer:
        scores = model(torch.rand(9, 1, 7, 8))
    regularizer(scores, torch.arange(9) % K).backward()
    assert all(p.grad.abs().max() > 1e-9 for p in model[2].parameters() if p.dim() > 1)


def test_training_does_not_synchronize(kind):
    """Tensors on the meta device have no values, so reading one on the host raises."""
    module = BatchCamLoss(MAKERS[kind]()).to("meta")
    cams = torch.randn(6, 1, 5, 6, device="meta", requires_grad=True)
    for _ in range(2):
        module(cams, LABELS.to("meta"), sample_weights=torch.rand(6, device="meta")).backward()
    assert cams.grad.is_meta


@pytest.mark.parametrize("loss", LOSSES)
def test_a_class_without_a_prototype_is_named(loss):
    prototypes = MAKERS["class"]()
    prototypes.counts[2] = 0
    module = LOSSES[loss][0](prototypes)
    with pytest.raises(ValueError, match=r"\[2\]"):
        module(torch.randn(6, 1, 5, 6), LABELS)
    module(torch.randn(5, 1, 5, 6), LABELS[:5])


def test_maps_are_cached_until_the_values_change(kind):
    prototypes = MAKERS[kind]()
    small, own = prototypes.maps((2, 2)), prototypes.maps()
    assert prototypes.maps((2, 2)) is small
    assert prototypes.maps() is own
    for side in range(3, 40):
        prototypes.maps((side, side))
    assert len(prototypes._cache) < 20
    prototypes.values.mul_(torch.rand(1, 1, *prototypes.values.shape[2:]))
    assert not torch.equal(prototypes.maps(), own)


def test_there_are_no_prototypes_yet(kind):
    fresh = type(MAKERS[kind]())(K)
    assert fresh.unseen == list(range(K))
    with pytest.raises(RuntimeError, match="prototypes"):
        fresh.maps()


def test_made_under_inference_mode_they_serve_training(kind):
    with torch.inference_mode():
        prototypes = MAKERS[kind]()
        prototypes.maps((5, 6))
    cams = torch.randn(6, 1, 5, 6, requires_grad=True)
    PrototypeLoss(prototypes)(cams, LABELS).backward()
    assert cams.grad.any()


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_a_model_keeps_float32_and_moving_moves(kind, cast):
    prototypes = MAKERS[kind]()
    before, maps = copy.deepcopy(prototypes.state_dict()), prototypes.maps((5, 6)).clone()
    parent = torch.nn.ModuleDict({"loss": PrototypeLoss(prototypes), "layer": torch.nn.Linear(2, 2)})
    getattr(parent, cast)()
    for name, value in prototypes.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert torch.equal(prototypes.maps((5, 6)), maps)
    moved = parent.to("meta")["loss"].prototypes
    assert {moved.values.device.type, moved.counts.device.type, moved.maps().device.type} == {"meta"}


def test_half_cams_are_compared_in_float32(kind):
    prototypes = MAKERS[kind]()
    cams = torch.randn(6, 1, 5, 6).bfloat16()
    exact = PrototypeLoss(copy.deepcopy(prototypes))(cams.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(PrototypeLoss(prototypes)(cams, LABELS), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(kind, copied):
    prototypes = MAKERS[kind]()
    before = prototypes.maps().clone()
    twin = copied(prototypes)
    assert torch.equal(twin.maps(), before)
    twin.values.zero_()
    assert not twin.maps().any()
    assert torch.equal(prototypes.maps(), before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_state_dict_round_trip(kind, assign, inference):
    prototypes = MAKERS[kind]()
    fresh = type(prototypes)(K)
    with torch.inference_mode(inference):
        state = {name: value.double() if value.is_floating_point() else value.clone()
                 for name, value in prototypes.state_dict().items()}  # fmt: skip
        assert not fresh.load_state_dict(state, strict=True, assign=assign).missing_keys
    assert {"values", "counts"} <= set(state)
    assert not any(buffer.is_inference() for buffer in fresh.buffers())
    assert fresh.values.dtype == torch.float32
    assert torch.equal(fresh.counts, prototypes.counts)
    for size in (None, (5, 6)):
        assert torch.equal(fresh.maps(size), prototypes.maps(size))


BAD_STATES = {
    "classes": lambda state: {name: value[:3] for name, value in state.items()},
    "NaN": lambda state: state | {"values": state["values"] * torch.nan},
    "dimensions": lambda state: state | {"values": torch.rand(K, *[1] * 8)},
    "no prototype": lambda state: state | {"values": torch.rand(K, 0, 5, 5)},
    "negative counts": lambda state: state | {"counts": -state["counts"]},
    "floating counts": lambda state: state | {"counts": state["counts"].float()},
    "complex": lambda state: state | {"values": state["values"] * 1j},
    "sparse": lambda state: state | {"values": state["values"].to_sparse()},
    "number": lambda state: state | {"values": 1.0},
}


@pytest.mark.parametrize("bad", BAD_STATES.values(), ids=BAD_STATES)
def test_bad_states_are_refused_and_change_nothing(bad, tmp_path):
    prototypes = MAKERS["class"]()
    before = copy.deepcopy(prototypes.state_dict())
    with pytest.raises(RuntimeError, match="prototypes: expected"):
        prototypes.load_state_dict(bad(before))
    assert all(torch.equal(before[name], value) for name, value in prototypes.state_dict().items())
    prototypes.save(tmp_path / "prototypes.pt")
    content = torch.load(tmp_path / "prototypes.pt")
    if bad is not BAD_STATES["classes"]:  # fewer classes are fine in a file
        torch.save(content | {"state": bad(content["state"])}, tmp_path / "prototypes.pt")
        with pytest.raises(ValueError, match=r"prototypes\.pt: expected prototypes"):
            ClassPrototypes.load(tmp_path / "prototypes.pt")


def test_file_round_trip(kind, tmp_path):
    prototypes = MAKERS[kind]()
    prototypes.save(tmp_path / "prototypes.pt")
    with torch.inference_mode():
        loaded = type(prototypes).load(tmp_path / "prototypes.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["prototypes.pt"]
    assert not any(buffer.is_inference() for buffer in loaded.buffers())
    assert torch.equal(loaded.maps((5, 6)), prototypes.maps((5, 6)))
    assert repr(loaded) == repr(prototypes)
    for name in prototypes.settings:
        assert getattr(loaded, name) == getattr(prototypes, name)
    other = ClassPrototypes if kind != "class" else ForegroundPrototypes
    with pytest.raises(ValueError, match=other.__name__):
        other.load(tmp_path / "prototypes.pt")


class Code:
    def __reduce__(self):
        return print, ("executed",)


BAD_FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not a file of torch"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "foreign": lambda path: torch.save({"means": torch.rand(3)}, path),
    "code": lambda path: torch.save(Code(), path),
    "code inside": lambda path: torch.save(torch.load(path) | {"format": Code()}, path),
    "to_channel": lambda path: torch.save(torch.load(path) | {"settings": {"to_channel": "mean"}}, path),
    "size": lambda path: torch.save(torch.load(path) | {"settings": {"size": "ab"}}, path),
    "ignore_index": lambda path: torch.save(torch.load(path) | {"settings": {"ignore_index": "0"}}, path),
}


@pytest.mark.parametrize("damage", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused(damage, tmp_path, capsys):
    path = tmp_path / "prototypes.pt"
    MAKERS["class"]().save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"prototypes\.pt: expected prototypes written by") as caught:
        ClassPrototypes.load(path)
    printed = "".join(traceback.format_exception(caught.value))
    assert "weights_only=False" not in printed  # torch recommends it
    assert "executed" not in capsys.readouterr().out


def test_missing_file_and_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        ClassPrototypes.load(tmp_path / "nowhere.pt")
    with pytest.raises(OSError, match="folder"):
        MAKERS["class"]().save(tmp_path / "nowhere" / "prototypes.pt")


@pytest.mark.parametrize("per_class", [1, 2])
def test_from_maps(per_class):
    maps = torch.rand(K, per_class, 5, 5, requires_grad=True)
    prototypes = ClassPrototypes.from_maps(maps)
    assert torch.equal(prototypes.values, maps.detach())
    assert prototypes.counts.tolist() == [1] * K
    assert not prototypes.maps().requires_grad
    assert not list(prototypes.parameters())
    assert len(prototypes) == K
    with pytest.raises(ValueError, match=r"prototypes: .*\(4, 5\)"):
        ClassPrototypes.from_maps(torch.rand(K, 5))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_kind_of_your_own(loss):
    class Ones(Prototypes):
        @property
        def seen(self):
            return torch.ones(self.num_classes, dtype=torch.bool)

        def maps(self, size=None):
            return torch.ones(self.num_classes, 1, *(size or (5, 6)))

    assert LOSSES[loss][0](Ones(K))(torch.randn(6, 1, 5, 6), LABELS).isfinite()
    with pytest.raises(ValueError, match="num_classes"):
        Ones(0)

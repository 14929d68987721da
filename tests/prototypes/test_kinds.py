"""Every kind of prototypes in every loss that takes them, and what all kinds that keep maps have in common."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ForegroundLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
    functional,
)
from batchcam_captum.functional import ValueChecks
from batchcam_captum.prototypes import Prototypes, boxes_to_masks
from tests.prototypes.kinds import FRESH, MAKERS, STORED, K

LABELS = torch.tensor([0, 1, 1, 3, -100, 2])
LOSSES = {
    "prototype": (PrototypeLoss, functional.prototype_loss, "map"),
    "batch_cam": (BatchCamLoss, functional.batch_cam_loss, "map"),
    "contrastive": (PrototypeContrastiveLoss, functional.prototype_contrastive_loss, "prototype"),
    "foreground": (ForegroundLoss, functional.foreground_loss, "map"),
}


def labels_of(kind):
    if kind == "hard":
        return LABELS
    mixed = torch.nn.functional.one_hot(LABELS.clamp(min=0), K).float()
    mixed = 0.8 * mixed + 0.2 * mixed.roll(1, 0)
    mixed[4] = 0
    return mixed


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MAKERS)
def test_loss_is_the_function_of_the_maps(kind, loss, labels):
    module, function, resolution = LOSSES[loss]
    labels, prototypes = labels_of(labels), MAKERS[kind]()
    cams = torch.randn(6, 1, 5, 6, requires_grad=True)
    masks = (torch.rand(6, 1, 10, 12) > 0.6).float()
    value = module(prototypes)(cams, labels, masks=masks)
    # Afterwards, as those that learn have learnt from this very batch.
    if kind != "mask":
        maps = prototypes.maps((5, 6) if resolution == "map" else None)
        own_labels, seen = labels, prototypes.seen
    elif loss in ("prototype", "foreground"):
        own_labels, maps, seen = torch.tensor([0, 1, 2, 3, -100, 5]), masks, None
    else:
        weights = functional.class_weights(labels, K).weights
        maps, counts = functional.class_means(
            masks if resolution == "prototype" else functional.resize(masks, (5, 6)), weights
        )
        own_labels, seen = labels, counts > 0
    held = cams.detach().clone().requires_grad_()
    expected = function(held, own_labels, maps, seen=seen)
    assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    assert_close(cams.grad, held.grad, rtol=1e-4, atol=1e-6)
    assert cams.grad[[0, 1, 2, 3, 5]].flatten(1).any(1).all()
    assert not cams.grad[4].any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MAKERS)
def test_gradient_reaches_the_head_through_a_regularizer(kind, loss):
    """The channel weights hold the head's weights: a cam whose weights are constants would leave them without a gradient."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.Tanh(),
        torch.nn.Sequential(
            torch.nn.Conv2d(4, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(4 * 3 * 4, K)
        ),
    )
    term = LOSSES[loss][0](MAKERS[kind]())
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), term)
    images, labels = torch.rand(9, 1, 7, 8), torch.arange(9) % K
    masks = (torch.rand(9, 1, 7, 8) > 0.6).float()
    with regularizer:
        scores = model(images)
    regularizer(scores, labels, masks=masks).backward()
    assert all(p.grad.abs().max() > 1e-9 for p in model[2].parameters() if p.dim() > 1)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MAKERS)
def test_training_reads_no_value_on_the_host(kind, loss, labels):
    """On tensors that have no values, any such read raises; a GPU would be waited for."""
    prototypes = FRESH[kind]() if kind == "running" else MAKERS[kind]()
    module = LOSSES[loss][0](prototypes).to("meta")
    cams = torch.randn(6, 1, 5, 6, device="meta", requires_grad=True)
    masks = boxes_to_masks(torch.rand(6, 4, device="meta"), (10, 12), checks=ValueChecks())
    weights = torch.rand(6, device="meta")
    for _ in range(2):
        module(cams, labels_of(labels).to("meta"), masks=masks, sample_weights=weights).backward()
    assert cams.grad.is_meta


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["class", "cluster", "foreground", "median"])
def test_class_without_a_prototype_is_named(kind, loss):
    prototypes = MAKERS[kind]()
    prototypes.counts[2] = 0
    module = LOSSES[loss][0](prototypes)
    with pytest.raises(
        ValueError, match=r"a class that was never seen; .*classes without a prototype: \[2\]"
    ):
        module(torch.randn(6, 1, 5, 6), LABELS)
    module(torch.randn(5, 1, 5, 6), LABELS[:5])


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_of_samples_are_those_of_the_function(kind):
    """A weight of 2 is a sample that is there twice, in what is compared with as in what is compared."""
    cams, labels = torch.randn(6, 1, 5, 6), LABELS
    masks = (torch.rand(6, 1, 10, 12) > 0.6).float()
    twice = torch.tensor([0, 1, 1, 2, 3, 4, 5])
    prototypes = MAKERS[kind]()
    weighted = BatchCamLoss(copy.deepcopy(prototypes))(
        cams, labels, masks=masks, sample_weights=torch.tensor([1.0, 2, 1, 1, 1, 1])
    )
    repeated = BatchCamLoss(prototypes)(cams[twice], labels[twice], masks=masks[twice])
    assert_close(weighted, repeated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", STORED)
def test_state_dict_round_trip(kind, assign):
    prototypes, fresh = MAKERS[kind](), FRESH[kind]()
    state = copy.deepcopy(prototypes.state_dict())
    assert {"means", "counts"} <= set(state)
    assert ("_extra_state" in state) == (kind in ("foreground", "median"))
    result = fresh.load_state_dict(state, strict=True, assign=assign)
    assert not result.missing_keys
    assert torch.equal(fresh.means, prototypes.means)
    assert torch.equal(fresh.counts, prototypes.counts)
    for size in (None, (5, 6)):
        assert torch.equal(fresh.maps(size), prototypes.maps(size))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", STORED)
def test_what_is_loaded_under_inference_mode_serves_a_later_training_step(kind, assign, tmp_path):
    prototypes = MAKERS[kind]()
    prototypes.save(tmp_path / "prototypes.pt")
    with torch.inference_mode():
        fresh, moved = FRESH[kind](), copy.deepcopy(prototypes).to("meta")
        state = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in prototypes.state_dict().items()
        }
        assert state["means"].is_inference()
        fresh.load_state_dict(state, assign=assign)
        loaded = type(prototypes).load(tmp_path / "prototypes.pt")
    assert not moved.means.is_inference()
    assert not moved.counts.is_inference()
    for each in (fresh, loaded):
        assert not any(buffer.is_inference() for buffer in each.buffers())
        assert torch.equal(each.means, prototypes.means)
        cams = torch.randn(6, 1, 5, 6, requires_grad=True)
        PrototypeLoss(each)(cams, LABELS).backward()
        assert cams.grad.any()


@pytest.mark.parametrize("kind", STORED)
def test_maps_of_the_sizes_used_last_are_kept_and_no_more(kind):
    prototypes = MAKERS[kind]()
    first, own = prototypes.maps((2, 2)), prototypes.maps()
    for side in range(3, 9):
        prototypes.maps((side, side))
    assert prototypes.maps((2, 2)) is first  # the eighth size, and now the last one used
    prototypes.maps((9, 9))
    assert prototypes.maps((2, 2)) is first
    again = prototypes.maps()
    assert again is not own  # it was the one not used for longest
    assert torch.equal(again, own)
    assert len(prototypes._cache) == 8


@pytest.mark.parametrize("kind", STORED)
def test_state_of_another_number_of_classes(kind):
    state = MAKERS[kind]().state_dict()
    state = {name: value[:3] if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    with pytest.raises(RuntimeError, match="expected 4 classes, got a state of 3; the number of classes has"):
        FRESH[kind]().load_state_dict(state)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("kind", MAKERS)
def test_copies_are_apart(kind, copied):
    prototypes = MAKERS[kind]()
    if kind != "mask":
        before = prototypes.maps().clone()
        twin = copied(prototypes)
        assert torch.equal(twin.maps(), before)
        twin.means.zero_()
        assert not twin.maps().any()
        assert torch.equal(prototypes.maps(), before)
    assert type(copied(PrototypeLoss(prototypes)).prototypes) is type(prototypes)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("kind", STORED)
def test_casting_keeps_float32_and_moving_moves(kind, cast):
    prototypes = MAKERS[kind]()
    before, maps = prototypes.means.clone(), prototypes.maps((5, 6)).clone()
    parent = torch.nn.ModuleDict({"loss": PrototypeLoss(prototypes), "layer": torch.nn.Linear(2, 2)})
    getattr(parent, cast)()
    assert prototypes.means.dtype == torch.float32
    assert torch.equal(prototypes.means, before)
    assert torch.equal(prototypes.maps((5, 6)), maps)
    moved = prototypes.to("meta")
    assert {moved.means.device.type, moved.counts.device.type, moved.maps().device.type} == {"meta"}


@pytest.mark.parametrize("kind", STORED)
def test_file_round_trip(kind, tmp_path):
    prototypes = MAKERS[kind]()
    prototypes.save(tmp_path / "prototypes.pt")
    loaded = type(prototypes).load(tmp_path / "prototypes.pt")
    assert torch.equal(loaded.means, prototypes.means)
    assert torch.equal(loaded.maps((5, 6)), prototypes.maps((5, 6)))
    assert repr(loaded) == repr(prototypes)
    other = next(type(MAKERS[name]()) for name in STORED if name != kind)
    with pytest.raises(ValueError, match=rf"written by {other.__name__}.save, got something else"):
        other.load(tmp_path / "prototypes.pt")


@pytest.mark.parametrize("kind", STORED)
def test_maps_are_computed_once_until_they_change(kind):
    prototypes = MAKERS[kind]()
    first = prototypes.maps((5, 6))
    assert prototypes.maps((5, 6)) is first
    prototypes.means.mul_(torch.rand(1, 1, *prototypes.means.shape[2:]))
    assert prototypes.maps((5, 6)) is not first


@pytest.mark.parametrize("kind", ["cluster", "foreground", "median", "running"])
def test_made_under_inference_mode_they_serve_training(kind):
    with torch.inference_mode():
        prototypes = MAKERS[kind]()
        prototypes.maps((5, 6))
    cams = torch.randn(6, 1, 5, 6, requires_grad=True)
    PrototypeLoss(prototypes)(cams, LABELS).backward()
    assert cams.grad.any()


@pytest.mark.parametrize("kind", STORED)
def test_half_cams_are_compared_in_float32(kind):
    prototypes = MAKERS[kind]()
    cams = torch.randn(6, 1, 5, 6).bfloat16()
    exact = PrototypeLoss(copy.deepcopy(prototypes))(cams.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(PrototypeLoss(prototypes)(cams, LABELS), exact, rtol=1e-6, atol=1e-7)


def test_what_a_kind_of_ones_own_has_to_say():
    class Mine(Prototypes):
        pass

    for ask in (lambda p: p.maps(), lambda p: p.seen):
        with pytest.raises(NotImplementedError, match="Mine has to implement"):
            ask(Mine(3))

    class Rings(Prototypes):
        """A kind in five lines, as the base class promises."""

        def maps(self, size=None):
            return torch.ones(self.num_classes, 1, *(size or (4, 4)))

        @property
        def seen(self):
            return torch.ones(self.num_classes, dtype=torch.bool)

    for module, _, _ in LOSSES.values():
        assert module(Rings(K))(torch.randn(6, 1, 5, 6), LABELS).isfinite()

"""RunningPrototypes: the running mean against a loop, what does not enter it, precision, and resuming."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    PrototypeLoss,
    RunningPrototypes,
)
from tests import reference, reference_prototypes
from tests.training.models import Net

K = 4


def batches(labels="hard", number=5):
    """Cams of 5×6, some dead; class 3 comes late, class 2 never."""
    made = []
    for step in range(number):
        cams = torch.randn(7, 1, 5, 6)
        cams[step % 7] = -cams[step % 7].abs() - 0.1
        if labels == "hard":
            own = torch.tensor([0, 1, 1, 0, 3 if step > 2 else 0, -100, 1])
        else:
            own = torch.rand(7, K)
            own[:, 2] = 0
            own[:, 3] *= step > 2
            own[5] = 0
        made.append((cams, own, torch.rand(7) if labels == "weighted" else None))
    return made


def trained(prototypes, parts, loss=PrototypeLoss, **options):
    loss = loss(prototypes, **options)
    for cams, labels, weights in parts:
        loss(cams, labels, sample_weights=weights)
    return prototypes


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("labels", ["hard", "soft", "weighted"])
def test_running_mean_equals_a_loop(labels, momentum):
    parts = batches(labels)
    expected = reference_prototypes.running_means(
        [
            (cams, reference.rows_of(own, K), [1.0] * 7 if weights is None else weights.tolist())
            for cams, own, weights in parts
        ],
        K,
        momentum,
    )
    prototypes = trained(RunningPrototypes(K, momentum), parts)
    assert prototypes.unseen == [2]
    for c, mean in enumerate(expected):
        wanted = torch.zeros(5, 6, dtype=torch.float64) if mean is None else mean
        assert_close(prototypes.values[c, 0].double(), wanted, rtol=1e-5, atol=1e-6)
        assert_close(prototypes.maps()[c, 0].double(), reference.over_max(wanted), rtol=1e-5, atol=1e-6)


def test_first_batch_of_a_class_is_compared_with_its_own_mean():
    cams = torch.randn(1, 1, 5, 6).abs()
    loss = PrototypeLoss(RunningPrototypes(K))
    assert loss(cams, torch.tensor([2])) < 1e-6
    assert loss(torch.randn(1, 1, 5, 6), torch.tensor([2])) > 1e-2


def test_dead_cams_do_not_enter_the_mean():
    prototypes = RunningPrototypes(K)
    loss = PrototypeLoss(prototypes)
    dead, alive = -torch.rand(1, 1, 5, 6) - 0.1, torch.rand(1, 1, 5, 6)
    assert loss(dead, torch.tensor([1])).isfinite()
    assert prototypes.seen.tolist() == [False, True, False, False]
    assert not prototypes.values.any()
    loss(alive, torch.tensor([1]))
    assert_close(prototypes.values[1, 0], alive[0, 0] / alive.max())
    before = prototypes.values.clone()
    loss(dead, torch.tensor([1]))
    assert torch.equal(prototypes.values, before)  # a dead cam does not pull the mean down
    assert prototypes.counts.tolist() == [0, 3, 0, 0]


def test_cams_that_are_not_finite_do_not_enter_the_mean():
    prototypes = RunningPrototypes(K)
    maps = torch.rand(3, 1, 5, 6)
    maps[1] = torch.nan
    prototypes.observe(maps, torch.zeros(3, dtype=torch.long))
    expected = (maps[0] / maps[0].max() + maps[2] / maps[2].max()) / 2
    assert_close(prototypes.values[0], expected)


def test_ignored_samples():
    cams = torch.randn(4, 1, 5, 6)
    labels = torch.tensor([0, 9, 1, 9])
    clean = trained(RunningPrototypes(K), [(cams[::2], labels[::2], None)])
    cams[1::2] = torch.nan
    prototypes = trained(RunningPrototypes(K), [(cams, labels, None)], ignore_index=9)
    assert torch.equal(prototypes.values, clean.values)
    assert prototypes.counts.tolist() == [1, 1, 0, 0]


def test_only_training_changes_them():
    cams, labels, _ = batches()[0]
    loss = PrototypeLoss(RunningPrototypes(K))
    with pytest.raises(RuntimeError, match="training mode"):
        loss.eval()(cams, labels)
    loss.train()(cams, labels)
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(torch.randn(7, 1, 5, 6), labels)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    with pytest.raises(ValueError, match=r"\[2\]"):
        loss(cams[:1], torch.tensor([2]))


def test_prototypes_have_no_gradient():
    cams, labels, _ = batches()[0]
    cams.requires_grad_()
    prototypes = RunningPrototypes(K)
    PrototypeLoss(prototypes)(cams, labels).backward()
    assert not prototypes.values.requires_grad
    held = cams.detach().clone().requires_grad_()
    constant = RunningPrototypes(K)
    constant.load_state_dict(prototypes.state_dict())
    PrototypeLoss(constant).eval()(held, labels).backward()
    assert torch.equal(cams.grad, held.grad)
    assert cams.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_cams_of_any_type_are_averaged_in_float32(dtype):
    cams, labels, _ = batches()[0]
    prototypes = trained(RunningPrototypes(K), [(cams.to(dtype), labels, None)])
    assert prototypes.values.dtype == torch.float32
    exact = trained(RunningPrototypes(K), [(cams.to(dtype).float(), labels, None)])
    assert_close(prototypes.values, exact.values, rtol=1e-6, atol=1e-7)


def test_small_steps_are_not_lost_under_autocast():
    cams = torch.rand(2, 1, 5, 6)
    prototypes = RunningPrototypes(1, 0.999)
    with torch.autocast("cpu", torch.bfloat16):
        trained(prototypes, [(cams[:1], torch.tensor([0]), None), (cams[1:], torch.tensor([0]), None)])
    first, second = (cam.double() / cam.max().double() for cam in cams)
    assert_close(prototypes.values[0].double(), 0.999 * first + 0.001 * second, rtol=1e-6, atol=1e-7)


def test_size_is_kept_for_cams_of_other_sizes():
    prototypes = RunningPrototypes(1, 0.5, size=(4, 4))
    large, small = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 4, 4)
    trained(prototypes, [(large, torch.tensor([0]), None), (small, torch.tensor([0]), None)])
    pooled = F.avg_pool2d(large, 2)
    assert_close(prototypes.values[0], (pooled[0] / pooled.max() + small[0] / small.max()) / 2)
    lazy = trained(RunningPrototypes(1), [(small, torch.tensor([0]), None)])
    trained(lazy, [(large, torch.tensor([0]), None)])
    assert lazy.values.shape == (1, 1, 4, 4)


def test_empty_batch_changes_nothing():
    prototypes = trained(RunningPrototypes(K), batches())
    before = prototypes.values.clone()
    trained(prototypes, [(torch.zeros(0, 1, 5, 6), torch.zeros(0, dtype=torch.long), None)])
    assert torch.equal(prototypes.values, before)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0,), "num_classes"),
        ((K, 1.0), "momentum"),
    ],
)
def test_bad_settings(arguments, text):
    with pytest.raises(ValueError, match=text):
        RunningPrototypes(*arguments)


def test_cams_of_another_number_of_dimensions():
    prototypes = trained(RunningPrototypes(K), batches())
    with pytest.raises(ValueError, match="cams"):
        prototypes.observe(torch.rand(2, 1, 9), torch.tensor([0, 1]))


def test_labels_out_of_range_change_nothing():
    prototypes = trained(RunningPrototypes(K), batches())
    before = prototypes.values.clone()
    with pytest.raises(ValueError, match="labels"):
        trained(prototypes, [(torch.rand(2, 1, 5, 6), torch.tensor([0, K]), None)])
    assert torch.equal(prototypes.values, before)


def test_one_object_serves_one_layer():
    model = Net()
    with pytest.raises(ValueError, match="2 layers"):
        CamRegularizer(BatchGradCam(model, [model.trunk, model.layer]), PrototypeLoss(RunningPrototypes(3)))


@pytest.mark.parametrize("loss", [PrototypeLoss, BatchCamLoss])
def test_resumed_run_continues_bit_for_bit(loss):
    """The maps have no shape before the first batch: a fresh object takes that of the state."""

    def made():
        torch.manual_seed(0)
        model = Net(dropout=0.0)
        regularizer = CamRegularizer(
            BatchGradCam(model, model.layer), loss(RunningPrototypes(3, 0.8)), weight=2.0
        )
        return model, regularizer, torch.optim.Adam(model.parameters(), 1e-2)

    def run(parts, steps):
        model, regularizer, optimizer = parts
        for step in steps:
            torch.manual_seed(100 + step)
            images, labels = torch.rand(6, 1, 8, 8), torch.randint(3, (6,))
            with regularizer:
                scores = model(images)
            objective = F.cross_entropy(scores, labels) + regularizer(scores, labels)
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()

    straight = made()
    run(straight, range(6))
    stopped = made()
    run(stopped, range(3))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in stopped], file)
    file.seek(0)
    resumed = made()
    for part, state in zip(resumed, torch.load(file), strict=True):
        part.load_state_dict(state)
    run(resumed, range(3, 6))
    for expected, got in zip(straight[:2], resumed[:2], strict=True):
        states = expected.state_dict(), got.state_dict()
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, states[1][name]), name
    # Without the running means it would have gone another way.
    forgot = made()
    for part, state in zip(forgot[::2], [stopped[0].state_dict(), stopped[2].state_dict()], strict=True):
        part.load_state_dict(state)
    run(forgot, range(3, 6))
    assert not torch.equal(forgot[0].head[-1].weight, straight[0].head[-1].weight)


def test_compiled_they_learn_as_eagerly():
    cams = torch.randn(3, 8, 1, 5, 6)
    results = []
    for compiled in (False, True):
        prototypes = RunningPrototypes(K, 0.5)
        loss = PrototypeLoss(prototypes)
        step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
        for batch in cams:  # the first batch makes the values, which the compiled graph has to see
            given = batch.clone().requires_grad_()
            step(given, torch.arange(8) % (K - 1)).backward()
        results.append((prototypes.values, prototypes.counts, given.grad))
        assert prototypes.unseen == [K - 1]
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_fractions_of_a_sample_move_the_mean_by_as_little():
    def smoothed(n):  # soft labels of class 0
        return torch.nn.functional.one_hot(torch.zeros(n, dtype=torch.long), 6).double() * 0.9 + 0.1 / 6

    place = torch.eye(6).reshape(6, 1, 6, 1).expand(6, 1, 6, 6).contiguous()  # class c's cams have row c
    prototypes = RunningPrototypes(6)
    loss = PrototypeLoss(prototypes)
    for _ in range(5):
        loss(place[[0] * 4], smoothed(4))
    loss(place[[5]], torch.tensor([5]))
    assert prototypes.values[5, 0, 5].mean() > 0.5 > prototypes.values[5, 0, 0].mean()
    before = prototypes.values[5].clone()
    loss(place[[0] * 8], smoothed(8))
    moved = (prototypes.values[5] - before).abs().max()
    assert 0 < moved < 0.1 * 8 * 0.1 / 6 + 1e-3  # a tenth, times the share of the class
    assert prototypes.half().evidence.dtype == torch.float32

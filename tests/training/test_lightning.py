"""Lightning's real Trainer around the regulariser."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss, split_model
from batchcam_captum.training import LinearWarmup
from batchcam_captum.training.lightning import CamCallback, CamRegularizerMixin
from tests.training.lightning_models import (
    PROTOTYPES,
    Classifier,
    K,
    data,
    loader,
    network,
    plain_loop,
    trainer,
)

# Advice of Lightning's own: few workers, a GPU that is not used, a folder that is not empty.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]


def same(first, second):
    """Bit for bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    assert set(ours) == set(theirs)
    return all(torch.equal(ours[name], theirs[name]) for name in ours if torch.is_tensor(ours[name]))


# ---- a submodule like any other ----


@pytest.mark.parametrize("own", [False, True], ids=["of the network", "of the module"])
def test_the_module_owns_the_network_once(own):
    module = Classifier(own=own)
    assert [name for name, _ in module.named_parameters()] == [
        f"model.{n}" for n, _ in network().named_parameters()
    ]
    assert len(list(module.modules())) == len(set(module.modules()))
    names = set(module.state_dict())
    assert {"regularizer.terms.ramp.prototypes.values", "regularizer.auto_weights.auto.weight"} <= names
    assert not any("grad_cam" in name for name in names)
    assert repr(module).count("CamRegularizer") == 1
    module.to("meta")
    assert all(buffer.is_meta for buffer in module.buffers())
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("own", [False, True], ids=["of the network", "of the module"])
def test_copies_have_a_regularizer_of_their_own(own, tmp_path):
    module = Classifier(own=own)
    trainer(tmp_path, limit_train_batches=3).fit(module, loader())
    assert module.regularizer.steps == 3
    module.weights, module.objectives = [], []
    module.trainer = None
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.regularizer.grad_cam.forward_func is (other if own else other.model)
        assert other.regularizer.grad_cam.layers[0] is other.model[2]
        trainer(tmp_path, limit_train_batches=2).fit(other, loader())
        assert other.regularizer.steps == 5
        assert not same(other.model, module.model)
    assert module.regularizer.steps == 3


# ---- the same steps as written out ----


@pytest.mark.parametrize("own", [False, True], ids=["of the network", "of the module"])
def test_one_line_is_the_loop_written_out(own, tmp_path):
    module = Classifier(own=own, norm=nn.BatchNorm2d)
    trainer(tmp_path).fit(module, loader())
    model, regularizer = plain_loop(batches=loader(), norm=nn.BatchNorm2d)
    assert same(module.model, model)
    assert same(module.regularizer, regularizer)
    assert module.regularizer.steps == 8
    assert [weights["ramp"] for weights in module.weights[:4]] == pytest.approx(
        [0, 0.25, 0.5, 0.75], rel=0.02
    )
    without = network(norm=nn.BatchNorm2d)
    assert not same(without, model)


def test_schedules_advance_with_the_optimizer_when_gradients_accumulate(tmp_path):
    module = Classifier()
    trainer(tmp_path, accumulate_grad_batches=2).fit(module, loader())
    assert module.regularizer.steps == 4
    ramps = [weights["ramp"] for weights in module.weights]
    assert ramps[0::2] == ramps[1::2]
    assert ramps[0] == 0.0 < ramps[2] < ramps[4]
    model, regularizer = plain_loop(batches=loader(), accumulate=2)
    for ours, theirs in zip(module.model.parameters(), model.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert regularizer.steps == 4


def test_mixed_precision_in_bf16(tmp_path):
    module = Classifier()
    trainer(tmp_path, precision="bf16-mixed").fit(module, loader())
    assert same(module.model, plain_loop(batches=loader(), autocast=torch.bfloat16)[0])
    assert not same(module.model, plain_loop(batches=loader())[0])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precision_leaves_prototypes_and_weights_in_float32(precision, tmp_path):
    module = Classifier()
    trainer(tmp_path, precision=precision).fit(module, loader())
    assert next(module.model.parameters()).dtype == (
        torch.bfloat16 if precision == "bf16-true" else torch.float64
    )
    assert {buffer.dtype for buffer in module.regularizer.buffers()} <= {torch.float32, torch.int64}
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert module.regularizer.read_weights()["auto"] > 0
    assert module.regularizer.steps == 8


def test_a_step_that_the_scaler_skips_is_no_step(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    module = Classifier()
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    trainer(tmp_path, plugins=[precision], max_epochs=8).fit(module, loader())
    assert 0 < module.regularizer.steps < 64
    skipped = round(40 - torch.tensor(scaler.get_scale()).log2().item())
    assert module.regularizer.steps == 64 - skipped
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


class TwoOptimizers(Classifier):
    """Manual optimisation: something else's optimizer steps first, and more often."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(1, 1)

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.other.parameters(), lr=0.1),
            torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9),
        ]

    def training_step(self, batch, batch_idx):
        other, own = self.optimizers()
        for _ in range(3):
            other.zero_grad()
            self.manual_backward(self.other(torch.ones(1, 1)).square().sum())
            other.step()
        own.zero_grad()
        self.manual_backward(self.regularized(F.cross_entropy, *batch))
        own.step()


def test_manual_optimization_counts_the_steps_of_the_explained_model(tmp_path):
    module = TwoOptimizers()
    run = trainer(tmp_path)
    run.fit(module, loader())
    assert run.global_step == 32
    assert module.regularizer.steps == 8
    assert same(module.model, plain_loop(batches=loader())[0])


class Overriding(Classifier):
    """Hooks without super(), and the regulariser called by hand."""

    def on_train_start(self):
        pass

    def on_train_epoch_end(self):
        pass


class ByHand(Classifier):
    def training_step(self, batch, batch_idx):
        images, labels = batch
        with self.regularizer:
            scores = self(images)
        task = F.cross_entropy(scores, labels)
        return task + self.regularizer(scores, labels, task_loss=task)


@pytest.mark.parametrize("kind", [Overriding, ByHand])
def test_neither_overridden_hooks_nor_a_block_of_ones_own_lose_steps(kind, tmp_path):
    module = kind()
    trainer(tmp_path, max_epochs=2).fit(module, loader())
    assert module.regularizer.steps == 16
    assert same(module.model, plain_loop(batches=loader(), epochs=2)[0])


def test_a_second_fit_follows_its_own_optimizer(tmp_path):
    module = Classifier()
    for fits in (1, 2, 3):
        trainer(tmp_path).fit(module, loader())
        assert module.regularizer.steps == 8 * fits


def test_a_split_regularizer_is_the_same_line(tmp_path):
    class Split(Classifier):
        def __init__(self):
            super().__init__()
            loss = PrototypeLoss(PROTOTYPES)
            self.regularizer = CamRegularizer(split_model(self.model, "2"), loss, LinearWarmup(1.0, 4))

    module, hooks = Split(), Classifier(PrototypeLoss(PROTOTYPES))
    hooks.regularizer.weights["prototype"] = LinearWarmup(1.0, 4)
    for each in (module, hooks):
        trainer(tmp_path).fit(each, loader())
        assert each.regularizer.steps == 8
    for ours, theirs in zip(module.model.parameters(), hooks.model.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_validation_takes_the_terms_with_and_without_inference_mode(tmp_path):
    class Validating(Classifier):
        def validation_step(self, batch, batch_idx):
            self.inference = torch.is_inference_mode_enabled()
            self.log_dict({f"val/{name}": value for name, value in self.regularizer.evaluate(*batch).items()})

    module = Validating(PrototypeLoss(PROTOTYPES), norm=nn.BatchNorm2d)
    run = trainer(tmp_path, num_sanity_val_steps=2)
    run.fit(module, loader(), loader(batch_size=32))
    assert not module.inference
    assert module.regularizer.steps == 8
    assert same(module.model, plain_loop_of_prototype_loss())
    images, labels = data().tensors
    twin = CamRegularizer(BatchGradCam(module.model.eval(), "2"), PrototypeLoss(PROTOTYPES))
    expected = twin.evaluate(images, labels)["prototype"]
    assert_close(run.callback_metrics["val/prototype"], expected)
    trainer(tmp_path).validate(module, loader(batch_size=32), verbose=False)
    assert module.inference
    assert_close(run.callback_metrics["val/prototype"], expected)


def plain_loop_of_prototype_loss():
    model = network(norm=nn.BatchNorm2d)
    regularizer = CamRegularizer(BatchGradCam(model, "2"), PrototypeLoss(PROTOTYPES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in loader():
        with regularizer:
            scores = model(images)
        optimizer.zero_grad()
        (F.cross_entropy(scores, labels) + regularizer(scores, labels)).backward()
        optimizer.step()
    return model


# ---- checkpoints ----


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fit_resumed_from_a_checkpoint_continues_bit_for_bit(accumulate, tmp_path):
    options = {"dropout": 0.0, "norm": nn.BatchNorm2d}
    whole = Classifier(**options)
    trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate).fit(whole, loader())

    first = Classifier(**options)
    run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate)
    run.fit(first, loader())
    run.save_checkpoint(tmp_path / "first.ckpt")
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)["state_dict"]
    assert saved["regularizer._extra_state"] == {"steps": 8 // accumulate}
    assert torch.equal(saved["regularizer.terms.ramp.prototypes.values"], PROTOTYPES)

    resumed = Classifier({
        "ramp": (PrototypeLoss(torch.zeros(K, 1, 8, 8)), whole.regularizer.weights["ramp"]),
        "auto": (PrototypeLoss(torch.zeros(K, 1, 8, 8), distance="l2"), copy.deepcopy(Classifier().regularizer.weights["auto"])),
    }, **options)  # fmt: skip
    run = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate)
    run.fit(resumed, loader(), ckpt_path=tmp_path / "first.ckpt")
    assert same(resumed, whole)
    assert resumed.regularizer.steps == whole.regularizer.steps == 24 // accumulate
    assert resumed.regularizer.read_weights() == whole.regularizer.read_weights()
    assert resumed.regularizer.weights["auto"].num_calls == 24


# ---- bad input ----


def test_a_missing_regularizer_is_named(tmp_path):
    class Without(CamRegularizerMixin, LightningModule):
        def forward(self, images):
            return images

    with pytest.raises(AttributeError, match=r"^Without: expected a CamRegularizer"):
        Without().regularized(F.cross_entropy, *next(iter(loader())))
    module = Classifier()
    module.regularizer = None
    with pytest.raises(TypeError, match=r"^CamCallback: .* got Classifier"):
        trainer(tmp_path, callbacks=[CamCallback()]).fit(module, loader())


def test_it_works_without_a_trainer():
    module = Classifier(BatchCamLoss(PROTOTYPES))
    images, labels = next(iter(loader()))
    module.regularized(F.cross_entropy, images, labels).backward()
    assert module.model[7].weight.grad is not None
    assert module.regularizer.steps == 0

"""What CamCallback writes, read back from the loggers' own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from batchcam_captum import BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.functional.overlay import gray_or_color, overlay
from batchcam_captum.training import EveryKSteps, LinearWarmup
from batchcam_captum.training.lightning import CamCallback
from tests.training.lightning_models import PROTOTYPES, Classifier, data, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]

ROOT = Path(__file__).parents[2]


def two_terms():
    return {
        "ramp": (PrototypeLoss(PROTOTYPES), LinearWarmup(1.0, 4, start=0.5)),
        "seldom": (PrototypeLoss(PROTOTYPES.flip(0)), EveryKSteps(0.25, k=3)),
    }


class Noting(Callback):
    """The values of each step, on the host."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        regularizer = pl_module.regularizer
        self.steps.append((regularizer.read_values(), regularizer.read_weights()))


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.glob("**/events.out.tfevents.*")
    read = EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    return read


def scalars(read, name):
    return {event.step: pytest.approx(event.value, rel=1e-6) for event in read.Scalars(name)}


def fit(tmp_path, callback, module=None, **options):
    module = Classifier(two_terms(), norm=nn.BatchNorm2d) if module is None else module
    noting = Noting()
    options = {"logger": TensorBoardLogger(tmp_path, name="run"), "log_every_n_steps": 5, **options}
    run = trainer(tmp_path, callbacks=[noting, callback], **options)
    run.fit(module, loader())
    return module, run, noting.steps


def test_values_and_weights_are_in_the_event_file(tmp_path):
    module, run, steps = fit(tmp_path, CamCallback(every_n_steps=2))
    read = events(tmp_path)
    assert {name for name in read.Tags()["scalars"] if name.startswith("cam/")} == {
        "cam/ramp", "cam/seldom", "cam/dead_fraction", "cam/weight/ramp", "cam/weight/seldom",
    }  # fmt: skip
    # Step n is written after n optimizer steps.
    assert scalars(read, "cam/ramp") == {n: steps[n - 1][0]["ramp"] for n in (2, 4, 6, 8)}
    assert scalars(read, "cam/weight/ramp") == {2: 0.625, 4: 0.875, 6: 1.0, 8: 1.0}
    assert scalars(read, "cam/dead_fraction") == {n: steps[n - 1][0]["dead_fraction"] for n in (2, 4, 6, 8)}
    # Of batches 0, 3 and 6: what fell between two logs is in the later one, with the weight that it had.
    assert scalars(read, "cam/seldom") == {
        2: steps[0][0]["seldom"],
        4: steps[3][0]["seldom"],
        8: steps[6][0]["seldom"],
    }
    assert scalars(read, "cam/weight/seldom") == {2: 0.25, 4: 0.25, 6: 0.0, 8: 0.25}
    # Their means over the epoch, to be monitored.
    mean = sum(steps[n - 1][0]["ramp"] for n in (2, 4, 6, 8)) / 4
    assert run.callback_metrics["cam/ramp"].item() == pytest.approx(mean, rel=1e-5)
    assert module.regularizer.steps == 8
    assert not read.Tags()["images"]


def test_accumulated_batches_are_one_step(tmp_path):
    _, _, steps = fit(tmp_path, CamCallback(every_n_steps=2), accumulate_grad_batches=2)
    assert scalars(events(tmp_path), "cam/ramp") == {2: steps[3][0]["ramp"], 4: steps[7][0]["ramp"]}


class Reads(TorchDispatchMode):
    """Counts what makes the host wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_between_logs_nothing_is_read_on_the_host(tmp_path):
    class Counted(CamCallback):
        reads: ClassVar = Counter()

        def on_train_batch_end(self, trainer, *rest):
            with Reads() as reads:
                super().on_train_batch_end(trainer, *rest)
            self.reads[trainer.global_step] = reads.count

    fit(tmp_path, Counted(every_n_steps=4), log_every_n_steps=100)
    assert set(Counted.reads) == set(range(1, 9))
    assert {step for step, count in Counted.reads.items() if count} == {4, 8}


def test_checks_raise_where_it_logs(tmp_path):
    module = Classifier(PrototypeLoss(PROTOTYPES))
    callback = CamCallback(every_n_steps=3)
    failed = []

    def check():
        failed.append(module.regularizer.steps)
        raise ValueError("labels: expected 0 to 2, got 7")

    module.regularizer.check = check
    with pytest.raises(ValueError, match="got 7"):
        trainer(tmp_path, callbacks=[callback]).fit(module, loader())
    assert failed == [3]


def pixels(read, name):
    from io import BytesIO

    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    return {
        event.step: to_tensor(Image.open(BytesIO(event.encoded_image_string))) for event in read.Images(name)
    }


def test_pictures_are_images_and_overlays_of_the_same_samples(tmp_path):
    class Looking(CamCallback):
        """What the maps were when they were drawn."""

        expected: ClassVar = {}

        def _draw(self, trainer, pl_module, prefix, regularizer):
            images, labels = data().tensors
            model = pl_module.model
            modes = {module: module.training for module in model.modules()}
            before = {
                name: tensor.clone()
                for name, tensor in pl_module.state_dict().items()
                if torch.is_tensor(tensor)
            }
            random, gradients = torch.get_rng_state(), [parameter.grad for parameter in model.parameters()]
            super()._draw(trainer, pl_module, prefix, regularizer)
            assert {module: module.training for module in model.modules()} == modes
            assert any(modes.values())
            assert not modes[model[1]]
            for name, tensor in before.items():
                assert torch.equal(pl_module.state_dict()[name], tensor)
            assert torch.equal(torch.get_rng_state(), random)
            assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
            model.eval()
            cams = BatchGradCam(model, "2").attribute(images[:3], target=labels[:3])
            for module, training in modes.items():
                module.training = training
            self.expected[trainer.global_step] = overlay(images[:3], cams)

    module = Classifier(two_terms(), norm=nn.BatchNorm2d)
    module.on_train_epoch_start = lambda: module.model[1].eval()  # a frozen BatchNorm stays frozen
    callback = Looking(pictures_every_n_steps=3, num_pictures=3)
    fit(tmp_path, callback, module)
    drawn = pixels(events(tmp_path), "cam/maps")
    assert set(drawn) == set(Looking.expected) == {3, 6}
    images = gray_or_color(data().tensors[0][:3])
    for step, picture in drawn.items():
        assert picture.shape == (3, 3 * 64, 2 * 64)  # 8 pixels enlarged by 8
        rows = picture[:, ::8, ::8].reshape(3, 3, 8, 2, 8)
        assert_close(rows[..., 0, :].movedim(1, 0), images, atol=1 / 250, rtol=0)
        assert_close(rows[..., 1, :].movedim(1, 0), Looking.expected[step], atol=1 / 250, rtol=0)
    assert (drawn[3] - drawn[6]).abs().max() > 0.05


def test_drawing_does_not_change_training(tmp_path):
    with_pictures, _, _ = fit(
        tmp_path / "a", CamCallback(1, pictures_every_n_steps=1), Classifier(two_terms(), dropout=0.5)
    )
    without, _, _ = fit(tmp_path / "b", CamCallback(1), Classifier(two_terms(), dropout=0.5))
    for ours, theirs in zip(with_pictures.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_pictures_in_other_precisions_of_soft_labels_and_several_layers(precision, tmp_path):
    class Soft(Classifier):
        def __init__(self):
            super().__init__()
            self.regularizer = CamRegularizer(BatchGradCam(self.model, ["2", "4"]), PrototypeLoss(PROTOTYPES))

        def training_step(self, batch, batch_idx):
            images, labels = batch
            return super().training_step((images, nn.functional.one_hot(labels, 3).to(images)), batch_idx)

    samples = (data().tensors[0][:2], torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.1, 0.4]]))
    fit(tmp_path, CamCallback(4, pictures_every_n_steps=4, samples=samples), Soft(), precision=precision)
    read = events(tmp_path)
    assert {step: picture.shape for step, picture in pixels(read, "cam/maps").items()} == {
        4: (3, 128, 192),
        8: (3, 128, 192),
    }
    assert {"cam/prototype", "cam/prototype/2", "cam/prototype/4"} <= set(read.Tags()["scalars"])


def test_several_regularizers_go_by_their_names(tmp_path):
    class Two(Classifier):
        def __init__(self):
            super().__init__(PrototypeLoss(PROTOTYPES))
            self.second = CamRegularizer(BatchGradCam(self.model, "4"), PrototypeLoss(PROTOTYPES))

        def training_step(self, batch, batch_idx):
            images, labels = batch
            with self.regularizer, self.second:
                scores = self(images)
            return self.regularizer(scores, labels) + self.second(scores, labels)

    fit(tmp_path, CamCallback(4, pictures_every_n_steps=8), Two())
    tags = events(tmp_path).Tags()
    assert {"cam/regularizer/prototype", "cam/second/prototype", "cam/second/weight/prototype"} <= set(
        tags["scalars"]
    )
    assert set(tags["images"]) == {"cam/regularizer/maps", "cam/second/maps"}


def test_other_loggers_get_the_numbers(tmp_path):
    logger = CSVLogger(tmp_path, name="run")
    fit(tmp_path, CamCallback(4, pictures_every_n_steps=4), logger=logger)
    text = next(tmp_path.glob("**/metrics.csv")).read_text()
    assert "cam/weight/ramp" in text.splitlines()[0]
    assert len(text.splitlines()) == 3
    _, run, steps = fit(tmp_path / "none", CamCallback(8), logger=False)
    assert run.callback_metrics["cam/ramp"].item() == pytest.approx(steps[7][0]["ramp"], rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"every_n_steps": 0}, {"pictures_every_n_steps": -1}, {"num_pictures": 1.5}]
)
def test_numbers_that_cannot_be(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: "):
        CamCallback(**options)


def test_batches_without_pictures_say_so(tmp_path):
    callback = CamCallback(
        pictures_every_n_steps=1, images_and_labels=lambda batch: (batch[0][:, :, 0], batch[1])
    )
    with pytest.raises(ValueError, match=r"^images_and_labels: .* got \(4, 1, 8\)"):
        fit(tmp_path, callback)
    with pytest.raises(TypeError, match=r"^batch: .* got dict"):
        CamCallback(pictures_every_n_steps=1).images_and_labels({"image": 1})


def test_the_other_lightning_with_two_loggers(tmp_path):
    """``pytorch_lightning`` comes first in a process of its own; one of the loggers is Weights & Biases, offline."""
    pytest.importorskip("wandb")
    script = """
import warnings; warnings.simplefilter("ignore")
import json, sys
import batchcam_captum as b, batchcam_captum.training
b.CamRegularizer
assert not {"lightning", "pytorch_lightning", "batchcam_captum.training.lightning"} & set(sys.modules)
import pytorch_lightning
import torch, torch.nn.functional as F, wandb
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from batchcam_captum.training.lightning import CamCallback, CamRegularizerMixin
from tests.training.lightning_models import loader, network, losses
from batchcam_captum import BatchGradCam, CamRegularizer
assert pytorch_lightning.Callback in CamCallback.__mro__

class Net(CamRegularizerMixin, pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = network()
        self.regularizer = CamRegularizer(BatchGradCam(self.model, "2"), losses())
    def forward(self, images):
        return self.model(images)
    def training_step(self, batch, batch_idx):
        return self.regularized(F.cross_entropy, *batch)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

module, folder = Net(), sys.argv[1]
pytorch_lightning.Trainer(
    accelerator="cpu", max_epochs=1, enable_progress_bar=False, enable_checkpointing=False,
    logger=[TensorBoardLogger(folder), WandbLogger(save_dir=folder, offline=True, project="cams")],
    callbacks=[CamCallback(4, pictures_every_n_steps=4)],
).fit(module, loader())
summary = {name for name, value in dict(wandb.run.summary).items() if isinstance(value, int | float)}
print("SUMMARY", json.dumps([module.regularizer.steps, *summary]))
wandb.finish()
"""
    offline = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **offline},
    )
    assert done.returncode == 0, done.stderr
    steps, *summary = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("SUMMARY"))[8:]
    )
    assert steps == 8
    assert {"cam/ramp", "cam/auto", "cam/weight/auto", "cam/dead_fraction"} <= set(summary)
    assert len(list(tmp_path.glob("**/media/images/cam/maps_*.png"))) == 2
    tags = events(tmp_path).Tags()
    assert "cam/maps" in tags["images"]
    assert "cam/weight/auto" in tags["scalars"]

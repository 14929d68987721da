"""What does a cam loss add to a training step?

A step is forward, loss, backward and SGD with momentum, in train mode. Next to the plain step with cross-entropy alone stands the
same with each cam loss at the last stage; a middle layer, Captum's LayerGradCam inside the loop, and one hooked forward and one
gradient an image, for information.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import timm
import torch
from captum.attr import LayerGradCam
from common import Call, Report, Spread, Times, interleaved, parser, peak_in_child, peak_memory, start
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from batchcam_captum import BatchGradCam, CamRegularizer, split_model
from batchcam_captum.attribution.split import Split
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.functional import grad_cam
from batchcam_captum.losses import LOSSES, CamLoss

CLASSES = 10
REACH, REACH_TINY, REACH_ON_GPU = 1.03, 1.15, 1.05
REACH_OF_MEMORY = 1.05
PLAIN, AGAIN = "plain", "plain, again"
CAPTUM, PER_IMAGE, MIDDLE = (
    "Captum in the loop",
    "a hook and a gradient an image",
    "batch_cam l1, middle layer",
)
#: The cases: name of the loss in the registry, and its distance where it has one.
LOSS_CASES: list[tuple[str, str | None]] = [
    *((name, distance) for name in ("prototype", "batch_cam") for distance in ("l1", "l2", "ssim")),
    *((name, None) for name in sorted(LOSSES) if name not in ("prototype", "batch_cam")),
]
#: What losses need beside the prototypes.
TAKES_PROTOTYPES = ("prototype", "batch_cam", "prototype_contrastive", "foreground")
Objective = Callable[[Tensor, Tensor], Tensor]


class Setup(NamedTuple):
    """A network, its input, and its layers."""

    model: str
    batch: int
    size: int
    layer: str
    middle: str | None = None


ON_CPU = (
    Setup("simple_cnn", 256, 28, "features"),
    Setup("resnet18", 32, 64, "layer4", "layer2"),
    Setup("resnet50", 16, 64, "layer4"),
    Setup("convnextv2_tiny", 8, 64, "stages.3"),
    Setup("resnet18", 8, 224, "layer4", "layer2"),
    Setup("resnet50", 4, 224, "layer4"),
    Setup("convnextv2_tiny", 4, 224, "stages.3"),
)
ON_GPU = (
    *(setup._replace(batch=batch) for setup in ON_CPU if setup.size == 224 for batch in (128, 256)),
    ON_CPU[0],
)
QUICK = Setup("simple_cnn", 8, 28, "features")


def make_model(setup: Setup) -> nn.Module:
    """With small images the stem keeps 4 × 4 places in the last stage."""
    if setup.model == "simple_cnn":
        return SimpleCNN(CLASSES, setup.size)
    model = timm.create_model(setup.model, num_classes=CLASSES)
    if setup.size < 128 and setup.model == "convnextv2_tiny":
        patches = model.stem[0]
        model.stem[0] = nn.Conv2d(3, patches.out_channels, 2, stride=2)
    elif setup.size < 128:
        model.maxpool = nn.Identity()
    return model


def make_loss(name: str, distance: str | None, prototypes: Tensor) -> CamLoss:
    options = {} if distance is None else {"distance": distance}
    if name == "consistency":
        options["transform"] = "hflip"
    return LOSSES[name](prototypes, **options) if name in TAKES_PROTOTYPES else LOSSES[name](**options)


def label(name: str, distance: str | None) -> str:
    return name if distance is None else f"{name} {distance}"


class Bench:
    """One network with its batch, and the training steps that share it."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.setup, self.options = setup, options
        device = torch.device(options.device)
        layout = torch.channels_last if options.channels_last else torch.contiguous_format
        self.model = make_model(setup).to(device, memory_format=layout).train()
        channels = 1 if setup.model == "simple_cnn" else 3
        self.images = torch.rand(setup.batch, channels, setup.size, setup.size).to(
            device, memory_format=layout
        )
        # Both halves alike: to the loss that compares two views the second half is the transformed first.
        self.labels = (torch.arange(setup.batch // 2).repeat(2) % CLASSES).to(device)
        self.masks = (torch.rand(setup.batch, 1, setup.size, setup.size) > 0.5).float().to(device)
        self.prototypes = torch.rand(CLASSES, 1, setup.size, setup.size, device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.amp = {"float32": None, "bfloat16": torch.bfloat16}[options.dtype]

    def step(self, objective: Objective) -> Call:
        """A whole step around an objective."""

        def call() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            objective(self.images, self.labels).backward()
            self.optimizer.step()

        return call

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """That of ``--dtype``."""
        device = torch.device(self.options.device).type
        return nullcontext() if self.amp is None else torch.autocast(device, self.amp)

    def plain(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy alone."""
        with self.autocast():
            scores = self.model(images)
        return cross_entropy(scores.float(), labels)

    def regularized(self, loss: CamLoss, layer: str) -> Objective:
        """Cross-entropy and a cam loss, from one forward."""
        if self.options.compiled:
            return self._compiled(loss)
        regularizer = CamRegularizer(BatchGradCam(self.model, layer), loss)

        def objective(images: Tensor, labels: Tensor) -> Tensor:
            with self.autocast(), regularizer:
                scores = self.model(images)
            term = regularizer(scores, labels, images=images, masks=self.masks)
            return cross_entropy(scores.float(), labels) + term

        return objective

    def _compiled(self, loss: CamLoss) -> Objective:
        regularizer = CamRegularizer(self._split(), loss)

        @torch.compile(fullgraph=True)
        def objective(images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
            with self.autocast():
                scores, term = regularizer.run(images, labels, masks=masks)
            return cross_entropy(scores.float(), labels) + term

        return lambda images, labels: objective(images, labels, self.masks)

    def _split(self) -> Split:
        if self.setup.model != "simple_cnn":
            return split_model(self.model)
        model = self.model
        head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), model.hidden, nn.ReLU(), model.classifier)
        return Split(model.features, head)

    def captum(self, loss: CamLoss) -> Objective:
        """The usual way: a second forward, whose maps keep their graph."""
        explained = LayerGradCam(self.model, self.model.get_submodule(self.setup.layer))

        def objective(images: Tensor, labels: Tensor) -> Tensor:
            task = self.plain(images, labels)
            with self.autocast():
                cams = explained.attribute(images, target=labels, grad_kwargs={"create_graph": True})
            return task + loss(cams, labels)

        return objective

    def per_image(self, loss: CamLoss) -> Objective:
        """As it is done with hooks that hold one image's activations at a time."""
        layer = self.model.get_submodule(self.setup.layer)

        def objective(images: Tensor, labels: Tensor) -> Tensor:
            task = self.plain(images, labels)
            cams = [self._cam_of_one(layer, images[i : i + 1], int(labels[i])) for i in range(len(images))]
            return task + loss(torch.cat(cams), labels)

        return objective

    def _cam_of_one(self, layer: nn.Module, image: Tensor, target: int) -> Tensor:
        with hooked(layer) as kept, self.autocast():
            scores = self.model(image)
        (gradients,) = torch.autograd.grad(scores[0, target], kept[0], create_graph=True)
        return grad_cam(kept[0], gradients)

    def objectives(self) -> dict[str, Objective]:
        """Name -> objective of every case."""
        compiled = self.options.compiled
        plain = torch.compile(self.plain, fullgraph=True) if compiled else self.plain
        found: dict[str, Objective] = {PLAIN: plain, AGAIN: plain}
        for name, distance in LOSS_CASES:
            loss = make_loss(name, distance, self.prototypes)
            found[label(name, distance)] = self.regularized(loss, self.setup.layer)
        if not compiled:
            found |= self.for_comparison()
        return found

    def for_comparison(self) -> dict[str, Objective]:
        """What is not this project, and a middle layer."""
        loss = make_loss("batch_cam", "l1", self.prototypes)
        found = {CAPTUM: self.captum(loss), PER_IMAGE: self.per_image(loss)}
        if self.setup.middle is not None:
            found[MIDDLE] = self.regularized(loss, self.setup.middle)
        return found


@contextmanager
def hooked(layer: nn.Module) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    try:
        yield kept
    finally:
        handle.remove()


def main() -> None:
    made = parser(__doc__, rounds=30, seconds=60)
    made.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: by autocast"
    )
    made.add_argument("--channels-last", action="store_true", help="the images and the model in that layout")
    made.add_argument("--compiled", action="store_true", help="both steps by torch.compile(fullgraph=True)")
    made.add_argument("--models", nargs="+", help="only these")
    options = start(made)
    if options.peak:
        _child(options)
        return
    on_gpu = torch.device(options.device).type == "cuda"
    # All cases are the same code around different losses.
    torch._dynamo.config.recompile_limit = 4 * len(LOSS_CASES)
    setups = [QUICK] if options.quick else ON_GPU if on_gpu else ON_CPU
    setups = [setup for setup in setups if not options.models or setup.model in options.models]
    report = Report(_name(options), options, "Forward, loss, backward and SGD with momentum; train mode.")
    memories = {} if on_gpu else {setup: _memory_on_cpu(setup, options) for setup in setups}
    for setup in setups:
        torch.compiler.reset()
        bench = Bench(setup, options)
        cases = {name: bench.step(objective) for name, objective in bench.objectives().items()}
        per_image = cases.pop(PER_IMAGE, None)
        times = interleaved(cases, options, warm_up=3 if on_gpu or options.compiled else 1)
        slow = None
        if per_image is not None:  # a comparison of its own, of a few rounds
            few_rounds = argparse.Namespace(**vars(options) | {"rounds": 5})
            slow = interleaved({PLAIN: cases[PLAIN], PER_IMAGE: per_image}, few_rounds)
        memory = memories.get(setup) or {
            name: peak_memory(cases[name], options.device) for name in (PLAIN, *measured())
        }
        case = f"{setup.model}, batch {setup.batch}, {setup.size} px"
        report.add_case(case, times=times, **setup._asdict(), peak_bytes=memory)
        reach = REACH_TINY if setup.model == "simple_cnn" else REACH_ON_GPU if on_gpu else REACH
        _add_figures(report, case, times, slow, memory, reach)
        del bench, cases, per_image
        if on_gpu:
            torch.cuda.empty_cache()
    report.finish()


def _add_figures(
    report: Report, case: str, times: Times, slow: Times | None, memory: dict[str, int], reach: float
) -> None:
    for_information = (AGAIN, CAPTUM, MIDDLE)
    for name in times.seconds:
        if name != PLAIN and name not in for_information:
            report.add_figure(case, f"{name} ÷ {PLAIN}", times.ratio(name, PLAIN), reach=reach)
    for name in for_information:
        if name in times.seconds:
            report.add_figure(case, f"{name} ÷ {PLAIN}", times.ratio(name, PLAIN), reach=None)
    if slow is not None:
        report.add_figure(case, f"{PER_IMAGE} ÷ {PLAIN}", slow.ratio(PER_IMAGE, PLAIN), reach=None)
    for name in measured():
        ratio = Spread.exact(memory[name] / memory[PLAIN])
        report.add_figure(case, f"peak memory, {name} ÷ {PLAIN}", ratio, reach=REACH_OF_MEMORY)


def measured() -> tuple[str, ...]:
    """The cases whose memory is measured."""
    return ("batch_cam l1", "batch_cam ssim")


def _memory_on_cpu(setup: Setup, options: argparse.Namespace) -> dict[str, int]:
    facts = {
        "setup": setup,
        "dtype": options.dtype,
        "channels_last": options.channels_last,
        "compiled": options.compiled,
    }
    return {name: peak_in_child(options, facts | {"case": name}) for name in (PLAIN, *measured())}


def _child(options: argparse.Namespace) -> None:
    """Print the peak memory of one case, gradients and the optimizer's state included in what was there before."""
    facts = json.loads(options.peak)
    options.dtype, options.channels_last = facts["dtype"], facts["channels_last"]
    options.compiled = facts["compiled"]
    bench = Bench(Setup(*facts["setup"]), options)
    call = bench.step(bench.objectives()[facts["case"]])
    call()  # the optimizer's state; and libraries load code and tables on first use
    print(peak_memory(call, "cpu"))


def _name(options: argparse.Namespace) -> str:
    """The file of other precisions, layouts and routes has a name of its own."""
    extras = [options.dtype] * (options.dtype != "float32")
    extras += ["channels-last"] * options.channels_last + ["compiled"] * options.compiled
    return "-".join(["step", *extras])


if __name__ == "__main__":
    main()

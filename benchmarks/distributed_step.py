"""What do the class means of all ranks add to a training step under DistributedDataParallel?

Two processes, each with a model and a batch of its own: forward, loss, and the backward that averages the gradients. One kind of
step also makes the cams and takes a BatchCamLoss (L1) whose class means are those of both ranks. The optimizer, which costs all
of them the same, is left out. Beside it the same with class means of each rank's own, where nothing is sent for them. On the CPU
over gloo, each process with half of the threads; on GPUs over NCCL, one each.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.distributed as dist
from common import Call, Report, Within, interleaved, parser, start
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from batchcam_captum.demo.model import SimpleCNN

WORLD = 2
CLASSES = 10
GLOBAL, OWN, PLAIN = "DDP, class means of all ranks", "DDP, class means of its own", "DDP, plain"
#: Tells a process which rank it is; the first one starts the others.
RANK, STORE = "DISTRIBUTED_STEP_RANK", "DISTRIBUTED_STEP_STORE"


class Setup(NamedTuple):
    """A network and its input."""

    name: str
    model: Callable[[], nn.Module]
    layer: str
    channels: int
    batch: int  #: of one rank
    size: int  #: pixels a side
    steps: int  #: in one timed call, which begins with a barrier
    reach: float | None  #: what the ratio is to reach; None: for information


def resnet18() -> nn.Module:
    return timm.create_model("resnet18", num_classes=CLASSES)


SETUPS = (
    Setup("resnet18", resnet18, "layer4", 3, 16, 128, 1, 1.05),
    Setup("SimpleCNN", SimpleCNN, "features", 1, 128, 28, 10, None),
)
QUICK = Setup("resnet18", resnet18, "layer4", 3, 2, 128, 1, 1.05)


def calls(setup: Setup, rank: int, device: torch.device) -> dict[str, Call]:
    """The steps to compare, each with a model of its own, the same on both ranks."""
    torch.manual_seed(0)
    model = setup.model().to(device).train()
    prototypes = torch.rand(CLASSES, 1, setup.size, setup.size, device=device)
    torch.manual_seed(1 + rank)
    images = torch.randn(setup.batch, setup.channels, setup.size, setup.size, device=device)
    labels = torch.randint(CLASSES, (setup.batch,), device=device)

    def made(sync: bool | None) -> Call:
        own = copy.deepcopy(model)
        wrapped = DistributedDataParallel(own, device_ids=[device] if device.type == "cuda" else None)
        loss = BatchCamLoss(prototypes, sync=bool(sync))
        regularizer = CamRegularizer(BatchGradCam(own, own.get_submodule(setup.layer)), loss)

        def step() -> None:
            wrapped.zero_grad(set_to_none=True)
            if sync is None:
                cross_entropy(wrapped(images), labels).backward()
                return
            with regularizer:
                scores = wrapped(images)
            (cross_entropy(scores, labels) + regularizer(scores, labels)).backward()

        def call() -> None:
            dist.barrier()
            for _ in range(setup.steps):
                step()

        return call

    return {GLOBAL: made(True), OWN: made(False), PLAIN: made(None)}


def led(name: str, call: Call) -> Within:
    """A case that the other rank is told of before it is timed, so that both do the same."""

    @contextmanager
    def enter() -> Iterator[Call]:
        dist.broadcast_object_list([name])
        yield call

    return Within(enter)


def follow(cases: dict[str, Call]) -> None:
    """Do what the first rank does, until it is done."""
    while True:
        told: list[str | None] = [None]
        dist.broadcast_object_list(told)
        if told[0] is None:
            return
        gc.collect()
        gc.disable()
        cases[told[0]]()
        gc.enable()


def join(options: argparse.Namespace, rank: int) -> torch.device:
    """Enter the process group; the device of this rank."""
    device = torch.device(options.device)
    if device.type == "cuda":
        if torch.cuda.device_count() < WORLD:
            sys.exit(f"distributed_step: expected {WORLD} GPUs, got {torch.cuda.device_count()}")
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(options.threads // WORLD, 1))
    store = dist.FileStore(os.environ[STORE], WORLD)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=WORLD)
    return device


def main() -> None:
    options = start(parser(__doc__, rounds=40, seconds=90))
    rank = int(os.environ.get(RANK, "0"))
    setups = [QUICK] if options.quick else SETUPS
    if rank:
        device = join(options, rank)
        for setup in setups:
            follow(calls(setup, rank, device))
        dist.destroy_process_group()
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[STORE] = str(Path(folder) / "store")
        other = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | {RANK: "1"})
        try:
            device = join(options, rank)
            report = Report(
                "distributed_step",
                options,
                "Forward and backward of one batch on each of two ranks; no optimizer. Timed on the first.",
            )
            for setup in setups:
                cases = {name: led(name, call) for name, call in calls(setup, rank, device).items()}
                times = interleaved(cases, options, warm_up=3)
                dist.broadcast_object_list([None])
                case = f"{setup.name}, batch {setup.batch} on each of {WORLD} ranks, {setup.size} px"
                report.add_case(case, times=times, steps_a_call=setup.steps, layer=setup.layer)
                for name, reach in ((GLOBAL, setup.reach), (OWN, None)):
                    report.add_figure(case, f"{name} ÷ {PLAIN}", times.ratio(name, PLAIN), reach=reach)
            dist.destroy_process_group()
            other.wait()
        finally:
            other.kill()
    report.finish()


if __name__ == "__main__":
    main()

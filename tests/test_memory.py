"""Memory does not grow: not over attributions, not over training steps, not after calls that raise.

Three measures, because each is blind to something. The garbage collector knows the tensors that Python has seen, to the last one,
but not what PyTorch holds inside; the C allocator has everything, but what Python caches as well; tracemalloc has Python's own
objects, to the byte. (The resident memory would be blind where earlier tests have left free memory behind.)
"""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution import Split
from batchcam_captum.training import AutoWeight, LinearWarmup
from tests.models import SmallCnn, TupleNet

#: What the allocated memory may move by. Seen: 7 KB over 1,000 calls; an activation of IMAGES has 70 KB.
PLATEAU = 2**17
IMAGES = (2, 3, 40, 40)


def live_tensors(*, collect: bool = True) -> int:
    if collect:
        gc.collect()
    # By type: isinstance() would ask the deprecated objects among them for their class, and they warn.
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


class MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    NAMES = (
        "arena",
        "ordblks",
        "smblks",
        "hblks",
        "hblkhd",
        "usmblks",
        "fsmblks",
        "uordblks",
        "fordblks",
        "keepcost",
    )
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def has_malloc_info() -> bool:
    try:
        return hasattr(ctypes.CDLL(None), "mallinfo2")
    except TypeError:  # not a Unix
        return False


def allocated() -> int:
    """Bytes that the process has asked the C allocator for and not given back; always 0 where it cannot tell."""
    gc.collect()
    if not has_malloc_info():
        return 0
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = MallocInfo
    info = ask()
    return int(info.uordblks + info.hblkhd)


def growth_of(call: Callable[[], object], calls: int, *measures: Callable[[], int]) -> list[int]:
    """What a number of calls adds, in each measure, once the first twenty have filled the caches."""
    gc.collect()
    gc.freeze()  # or each collection walks through everything that was ever imported, 0.2 s
    try:
        for _ in range(20):
            call()
        before = [measure() for measure in measures]
        for _ in range(calls):
            call()
        return [measure() - start for measure, start in zip(measures, before, strict=True)]
    finally:
        gc.unfreeze()


def attribute(**options: Any) -> Callable[[], object]:
    model = TupleNet().train().requires_grad_(not options.pop("is_frozen", False))
    grad_cam, images = BatchGradCam(model, model.layer), torch.randn(IMAGES)
    return lambda: grad_cam.attribute_with_scores(images, 1, **options)


def several_layers() -> Callable[[], object]:
    grad_cam, images = BatchGradCam(SmallCnn().eval(), ["stem", "layer"]), torch.randn(IMAGES)
    return lambda: grad_cam.attribute(images, [1, 2])


def every_class() -> Callable[[], object]:
    grad_cam, images = BatchGradCam(SmallCnn().eval(), "layer"), torch.randn(IMAGES)
    return lambda: grad_cam.attribute_classes(images)


class Net(nn.Module):
    """A convolution, BatchNorm and dropout; the head may be checkpointed, or an error raised around the layer."""

    def __init__(self, *, checkpointing: bool = False, fails: str = "") -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.layer = nn.Tanh()
        self.head = nn.Sequential(nn.Dropout(0.1), nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(256, 3))
        self.checkpointing, self.fails = checkpointing, fails

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        if self.fails == "before":
            raise ArithmeticError
        if self.fails == "around":
            return self.head(x)
        x = self.layer(x)
        if self.fails == "after":
            raise ArithmeticError
        return checkpoint(self.head, x, use_reentrant=False) if self.checkpointing else self.head(x)


def losses(weight: Any = None) -> list[Any]:
    maps = torch.rand(3, 1, 8, 8)
    return [PrototypeLoss(maps), (BatchCamLoss(maps), weight or LinearWarmup(1.0, steps=50))]


def training(*, split: bool = False, weight: Any = None, **options: Any) -> Callable[[], object]:
    model = Net(**options)
    source: Any = BatchGradCam(model, ["layer"])
    if split:
        source = Split(nn.Sequential(model.trunk, model.layer), model.head)
    regularizer = CamRegularizer(source, losses(weight))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    images, labels = torch.rand(2, 3, 40, 40), torch.tensor([0, 2])

    def step() -> None:
        optimizer.zero_grad()
        if split:
            scores, cam_loss = regularizer.run(images, labels)
        else:
            with regularizer:
                scores = model(images)
            cam_loss = regularizer(scores, labels, task_loss=F.cross_entropy(scores, labels))
        (F.cross_entropy(scores, labels) + cam_loss).backward()
        optimizer.step()
        regularizer.step()

    return step


def evaluation() -> Callable[[], object]:
    regularizer = CamRegularizer(BatchGradCam(Net(), "layer"), losses())
    images, labels = torch.rand(2, 3, 40, 40), torch.tensor([0, 2])
    return lambda: regularizer.evaluate(images, labels)


def raising(error: type[Exception], target: object = 1, fails: str = "") -> Callable[[], object]:
    grad_cam, images = BatchGradCam(Net(fails=fails).eval(), "layer"), torch.randn(IMAGES)

    def call() -> None:
        with pytest.raises(error):
            grad_cam.attribute(images, target)

    return call


def raising_step(how: str) -> Callable[[], object]:
    model = Net()
    images, labels = torch.rand(2, 3, 40, 40), torch.tensor([0, 3])  # the last one is out of range
    split = CamRegularizer(Split(nn.Sequential(model.trunk, model.layer), model.head), losses())
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), losses())

    def step() -> None:
        if how == "split":
            split.run(images, labels)
        with regularizer:
            scores = model(images)
            if how == "in the block":
                raise ValueError
        if how == "labels":
            regularizer(scores, labels)
        raise ValueError

    def call() -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            step()

    return call


CALLS: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
    "attribute": (attribute, 300),
    "attribute_frozen": (lambda: attribute(is_frozen=True), 60),
    "attribute_differentiable": (lambda: attribute(differentiable=True), 60),
    "several_layers": (several_layers, 60),
    "attribute_classes": (every_class, 60),
    "target_out_of_range": (lambda: raising(ValueError, 99), 60),
    "model_before_the_layer": (lambda: raising(ArithmeticError, fails="before"), 60),
    "model_after_the_layer": (lambda: raising(ArithmeticError, fails="after"), 60),
    "layer_not_reached": (lambda: raising(RuntimeError, fails="around"), 60),
    "training": (training, 120),
    "training_split": (lambda: training(split=True), 60),
    "training_auto": (lambda: training(weight=AutoWeight(every=2)), 60),
    "training_checkpointed": (lambda: training(checkpointing=True), 60),
    "evaluate": (evaluation, 60),
    "step_labels": (lambda: raising_step("labels"), 60),
    "step_in_the_block": (lambda: raising_step("in the block"), 60),
    "step_not_called": (lambda: raising_step("not called"), 60),
    "step_split": (lambda: raising_step("split"), 60),
}


@pytest.mark.parametrize(("make", "calls"), CALLS.values(), ids=CALLS)
def test_memory_is_flat(make: Callable[[], Callable[[], object]], calls: int) -> None:
    call = make()
    # A leak shows each time; what threads of other tests allocate in the meantime is not there again.
    sizes: list[int] = []
    while len(sizes) < 3 and (not sizes or sizes[-1] >= PLATEAU):
        tensors, size = growth_of(call, calls, live_tensors, allocated)
        assert tensors == 0
        sizes.append(size)
    assert min(sizes) < PLATEAU, sizes


def test_calls_leave_no_object_of_pythons() -> None:
    call = attribute()

    def traced() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        # A leak shows in every window; what replaces objects from before the tracing began shows in the first.
        sizes = [growth_of(call, 60, traced)[0] for _ in range(2)]
    finally:
        tracemalloc.stop()
    assert min(sizes) < 600, "anything that is kept at every call has more than ten bytes"


@pytest.mark.skipif(not has_malloc_info(), reason="asks glibc")
def test_graphs_that_are_kept_would_show() -> None:
    """So that the tests above are known to be able to fail."""
    model, images, kept = TupleNet(), torch.randn(IMAGES), []
    (size,) = growth_of(lambda: kept.append(model(images).grad_fn), 50, allocated)
    assert size > 5 * PLATEAU


def test_a_detached_map_holds_no_graph_without_the_garbage_collector() -> None:
    model, images = SmallCnn(), torch.randn(2, 3, 9, 9)
    attribution = BatchGradCam(model, model.layer)
    attribution.attribute(images, 1)
    gc.collect()
    gc.disable()
    try:
        before = live_tensors(collect=False)
        kept = [attribution.attribute(images, 1) for _ in range(10)]
        after = live_tensors(collect=False)
    finally:
        gc.enable()
    assert after - before == len(kept)

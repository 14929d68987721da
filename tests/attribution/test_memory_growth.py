"""Memory does not grow: not over calls, not over training steps, not after calls that raise.

Three measures, because each is blind to something. The garbage collector knows the tensors that Python has seen, to the last one,
but not what PyTorch holds inside; the C allocator has everything, but what Python caches as well; tracemalloc has Python's own
objects, to the byte. (The resident memory would be blind where earlier tests have left free memory behind.)
"""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from tests.models import SmallCnn, TupleNet, frozen

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

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
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
        ]
    ]


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
    """What a number of calls adds, in each measure, once the first thirty have filled the caches."""
    gc.collect()
    gc.freeze()  # or each collection walks through everything that was ever imported, 0.2 s
    try:
        for _ in range(30):
            call()
        before = [measure() for measure in measures]
        for _ in range(calls):
            call()
        return [measure() - start for measure, start in zip(measures, before, strict=True)]
    finally:
        gc.unfreeze()


def assert_plateau(call: Callable[[], object], calls: int) -> None:
    """What leaks does so each time; what threads of other tests allocate in the meantime is not there again."""
    sizes: list[int] = []
    while len(sizes) < 3 and (not sizes or sizes[-1] >= PLATEAU):
        tensors, size = growth_of(call, calls, live_tensors, allocated)
        assert tensors == 0
        sizes.append(size)
    assert min(sizes) < PLATEAU, sizes


def attribute(*, differentiable: bool = False, is_frozen: bool = False) -> Callable[[], object]:
    model = TupleNet().train()
    if is_frozen:
        frozen(model)
    images = torch.randn(IMAGES)
    grad_cam = BatchGradCam(model, model.layer)
    return lambda: grad_cam.attribute_with_scores(images, 1, differentiable=differentiable)


def several_layers() -> Callable[[], object]:
    model = SmallCnn().eval()
    images = torch.randn(IMAGES)
    grad_cam = BatchGradCam(model, ["stem", "layer"])
    return lambda: grad_cam.attribute(images, [1, 2])


def every_class() -> Callable[[], object]:
    model = SmallCnn().eval()
    images = torch.randn(IMAGES)
    grad_cam = BatchGradCam(model, "layer")
    return lambda: grad_cam.attribute_classes(images)


def regularized_step() -> Callable[[], object]:
    model = SmallCnn(norm=True, dropout=0.2).train()
    images, labels = torch.randn(IMAGES), torch.tensor([3, 0])
    loss = BatchCamLoss(torch.rand(5, 1, 19, 19), distance="l1")
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), loss)
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        with regularizer:
            scores = model(images)
        (F.cross_entropy(scores, labels) + regularizer(scores, labels)).backward()
        optimizer.step()

    return step


CALLS: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
    "attribute": (attribute, 1000),
    "attribute_frozen": (lambda: attribute(is_frozen=True), 200),
    "attribute_differentiable": (lambda: attribute(differentiable=True), 200),
    "several_layers": (several_layers, 200),
    "attribute_classes": (every_class, 200),
    "regularized_step": (regularized_step, 200),
}


@pytest.mark.parametrize(("make", "calls"), CALLS.values(), ids=CALLS)
def test_calls(make: Callable[[], Callable[[], object]], calls: int) -> None:
    assert_plateau(make(), calls)


def test_calls_leave_no_object_of_pythons() -> None:
    call = attribute()

    def traced() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        # A leak shows in every window; what replaces objects from before the tracing began shows in the first.
        sizes = [growth_of(call, 250, traced)[0] for _ in range(3)]
    finally:
        tracemalloc.stop()
    assert min(sizes) < 2_500, "anything that is kept at every call has more than ten bytes"


@pytest.mark.skipif(not has_malloc_info(), reason="asks glibc")
def test_the_allocated_memory_shows_graphs_that_are_kept() -> None:
    """So that the tests above are known to be able to fail."""
    model = TupleNet()
    images = torch.randn(IMAGES)
    kept: list[object] = []
    (size,) = growth_of(lambda: kept.append(model(images).grad_fn), 100, allocated)
    assert size > 10 * PLATEAU


class Broken(SmallCnn):
    """Raises before or after the layer, or leaves the layer out."""

    def __init__(self, where: str) -> None:
        super().__init__(norm=True)
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.where == "before":
            raise ArithmeticError("on the way")
        if self.where == "around":
            return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1)[:, :32])
        x = self.tail(self.layer(x))
        if self.where == "after":
            raise ArithmeticError("on the way")
        return self.head(x)


RAISING: dict[str, tuple[Callable[[], nn.Module], object, type[Exception]]] = {
    "target_out_of_range": (lambda: SmallCnn(norm=True), 99, ValueError),
    "target_of_wrong_length": (lambda: SmallCnn(norm=True), [0], ValueError),
    "model_before_the_layer": (lambda: Broken("before"), 1, ArithmeticError),
    "model_after_the_layer": (lambda: Broken("after"), 1, ArithmeticError),
    "layer_not_reached": (lambda: Broken("around"), 1, RuntimeError),
}


def raising(make: Callable[[], nn.Module], target: object, error: type[Exception]) -> Callable[[], object]:
    model = make().eval()
    images = torch.randn(IMAGES)
    grad_cam = BatchGradCam(model, "layer")

    def call() -> None:
        with pytest.raises(error):
            grad_cam.attribute(images, target)

    return call


@pytest.mark.parametrize(("make", "target", "error"), RAISING.values(), ids=RAISING)
def test_a_hundred_calls_that_raise(
    make: Callable[[], nn.Module], target: object, error: type[Exception]
) -> None:
    assert_plateau(raising(make, target, error), 100)


def test_a_detached_map_holds_no_graph_without_the_garbage_collector() -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
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

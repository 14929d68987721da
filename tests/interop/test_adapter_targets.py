"""Targets: the classes of pytorch-grad-cam, functions, integers; one for each image."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("timm")

from pytorch_grad_cam.utils import model_targets as peer  # noqa: E402
from pytorch_grad_cam.utils.reshape_transforms import fasterrcnn_reshape_transform  # noqa: E402

from batchcam_captum.interop import GradCAM  # noqa: E402
from tests.interop.adapter_networks import Network, assert_same_maps, both, classes, network  # noqa: E402
from tests.models import SmallCnn, strong_heads  # noqa: E402


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).sigmoid())


MASK = (np.arange(15 * 15).reshape(15, 15) % 7 < 3).astype(np.float32)
#: Model, and the targets of three images.
KINDS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "classifier": (SmallCnn, classes(4, 1, -1)),
    "softmax": (SmallCnn, [peer.ClassifierOutputSoftmaxTarget(k) for k in (4, 1, 0)]),
    "rest": (SmallCnn, [peer.ClassifierOutputReST(k) for k in (4, 1, 0)]),
    "binary": (
        lambda: SmallCnn(num_classes=1),
        [peer.BinaryClassifierOutputTarget(k) for k in (0, 1, 0)],
    ),
    "raw": (lambda: SmallCnn(num_classes=1), [peer.RawScoresOutputTarget()] * 3),
    "finer": (SmallCnn, [peer.FinerWeightedTarget(4, [1, 2], 0.6)] * 3),
    "segmentation": (Segmenter, [peer.SemanticSegmentationTarget(k, MASK) for k in (3, 1, 0)]),
    "functions": (SmallCnn, [lambda row: row[0] - row[1], lambda row: row.logsumexp(0), torch.max]),
}


@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
@pytest.mark.parametrize("kind", KINDS)
def test_values(kind: str, method: str) -> None:
    make, targets = KINDS[kind]
    torch.manual_seed(1)
    model = make().eval()
    given = Network(model, ["layer"], torch.randn(3, 3, 15, 15), None)
    assert_same_maps(*both(method, given.to(torch.float64), targets))


def test_several_raw_scores_are_no_target() -> None:
    """Nor are they in pytorch-grad-cam, whose backward() then fails."""
    given = network("plain")
    for target in (peer.RawScoresOutputTarget(), peer.SoftmaxOutputTarget()):
        with pytest.raises(RuntimeError, match="only for scalar outputs"):
            pytorch_grad_cam.GradCAM(given.model, given.modules)(given.images, [target] * 3)
        with pytest.raises(
            ValueError, match=r"targets: expected a single score from \w+ at position 0, got shape \(5,\)"
        ):
            GradCAM(given.model, given.modules)(given.images, [target] * 3)


@pytest.fixture(scope="module")
def detector() -> Network:
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=192,
        max_size=192,
        box_score_thresh=0.0,
        box_detections_per_img=8,
    )
    return Network(model.eval(), ["backbone.body.16"], torch.rand(1, 3, 64, 64), None)


def boxes_of(detector: Network) -> Any:
    with torch.no_grad():
        (found,) = detector.model(detector.images)
    assert len(found["boxes"]) > 1
    boxes = found["boxes"].numpy()
    return peer.FasterRCNNBoxScoreTarget(labels=found["labels"].tolist(), bounding_boxes=boxes)


def test_boxes(detector: Network) -> None:
    maps, expected = both("GradCAM", detector, [boxes_of(detector)])
    assert_same_maps(maps, expected, torch.float32)


def test_the_backbone_of_a_detection_model(detector: Network) -> None:
    given = detector._replace(layers=["backbone"], reshape=fasterrcnn_reshape_transform)
    assert_same_maps(*both("EigenCAM", given, [boxes_of(detector)]), torch.float32)
    with pytest.raises(TypeError, match="choose a layer inside it"):
        GradCAM(given.model, given.modules, given.reshape)(given.images, [boxes_of(detector)])


def test_boxes_that_are_gone(detector: Network) -> None:
    target = peer.FasterRCNNBoxScoreTarget(labels=[1], bounding_boxes=np.array([[0.0, 0.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"scores without a graph.*a box target whose boxes are all gone"):
        GradCAM(detector.model, detector.modules)(detector.images, [target])


@pytest.fixture(scope="module")
def plain() -> Network:
    return network("plain", samples=4)


@pytest.mark.parametrize(
    "targets",
    [
        [4, 1, 0, 2],
        (4, 1, 0, 2),
        np.array([4, 1, 0, 2]),
        torch.tensor([4, 1, 0, 2]),
        torch.tensor([-1, 1, 0, 2], dtype=torch.int32),
        [torch.tensor(4), 1, np.int64(0), peer.ClassifierOutputTarget(2)],
        [(4,), (1,), (0,), (2,)],
        iter(classes(4, 1, 0, 2)),
    ],
    ids=lambda targets: type(targets).__name__,
)
@pytest.mark.parametrize("aug_smooth", [False, True])
def test_integers_and_mixtures(plain: Network, targets: Any, aug_smooth: bool) -> None:
    cam = GradCAM(plain.model, plain.modules)
    if not isinstance(targets, list | tuple | np.ndarray | Tensor):
        targets = iter(classes(4, 1, 0, 2))  # the parameter is used up after one call
    expected = cam(plain.images, classes(4, 1, 0, 2), aug_smooth=aug_smooth)
    np.testing.assert_allclose(cam(plain.images, targets, aug_smooth=aug_smooth), expected, atol=1e-6)


def test_one_integer_for_all(plain: Network) -> None:
    cam = GradCAM(plain.model, plain.modules)
    expected = cam(plain.images, classes(3, 3, 3, 3))
    for target in (3, np.int64(3), torch.tensor(3)):
        np.testing.assert_allclose(cam(plain.images, target), expected, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_a_wrong_number(plain: Network, number: int) -> None:
    """pytorch-grad-cam makes zero maps of the images without a target, and ignores targets without an image."""
    wrong = classes(*range(number))
    text = re.escape(f"targets: expected 4, one an image, got {number}; pass [target] * 4")
    for targets in (wrong, list(range(number)), torch.arange(number)):
        with pytest.raises(ValueError, match=text):
            GradCAM(plain.model, plain.modules)(plain.images, targets)
    if number == 1:
        maps = pytorch_grad_cam.GradCAM(plain.model, plain.modules)(plain.images, wrong)
        assert maps[0].max() > 0.9
        assert not maps[1:].any()


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        (
            peer.ClassifierOutputTarget(1),
            TypeError,
            "or a list with one target an image, got a single function",
        ),
        ("1234", TypeError, "got str"),
        ({0: 1, 1: 1, 2: 2, 3: 3}, TypeError, "got dict"),
        (1.5, TypeError, "got float"),
        (True, TypeError, "got bool"),
        (["a"] * 4, TypeError, "got str at position 0"),
        ([0, 1, 2, 0.5], TypeError, "got float at position 3"),
        (torch.rand(4), TypeError, "expected class indices, an integer tensor (4,), got torch.float32 (4,)"),
        (torch.eye(5, dtype=torch.long)[:4], TypeError, "for one-hot rows pass targets.argmax(1)"),
        ([0, 1, 2, 5], ValueError, "expected indices from -5 to 4, got 5"),
        (
            [lambda row: 1.0] * 4,
            TypeError,
            "expected a floating-point tensor from <lambda> at position 0, got float",
        ),
        ([torch.argmax] * 4, TypeError, "from argmax at position 0, got torch.int64"),
        ([lambda row: row.detach()[0]] * 4, ValueError, "got scores without a graph; leave out detach()"),
        ([peer.ClassifierOutputTarget] * 4, TypeError, "got ClassifierOutputTarget"),
    ],
)
def test_targets_that_are_none(
    plain: Network, targets: Any, error: type[Exception], text: str | None
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        GradCAM(plain.model, plain.modules)(plain.images, targets)


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        (
            peer.ClassifierOutputTarget(99),
            IndexError,
            "expected ClassifierOutputTarget at position 2 to take this image's output, a tensor of shape (5,), got IndexError (",
        ),
        (lambda row: row.sum() + int("x"), ValueError, "<lambda> at position 2 to take this image's output"),
    ],
)
def test_targets_that_raise(plain: Network, target: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)) as raised:
        GradCAM(plain.model, plain.modules)(plain.images, [*classes(0, 1), target, *classes(0)])
    assert type(raised.value.__cause__) is error
    assert "check its classes and indices" in str(raised.value)


def test_what_targets_raise_of_their_own_comes_out_with_a_note(plain: Network) -> None:
    class OwnError(IndexError):
        def __init__(self, code: int, reason: str) -> None:
            super().__init__(code, reason)

    own = OwnError(3, "nothing there")

    def target(row: Tensor) -> Tensor:
        raise own

    with pytest.raises(OwnError) as raised:
        GradCAM(plain.model, plain.modules)(plain.images, [*classes(0, 1, 2), target])
    assert raised.value is own
    (note,) = own.__notes__
    assert "expected target at position 3 to take this image's output, a tensor of shape (5,)" in note


class Wrapped(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = strong_heads(SmallCnn())
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


@pytest.mark.parametrize(
    ("change", "targets", "error", "text"),
    [
        (lambda s: {"logits": s}, [0] * 4, TypeError, "got dict; wrap the model"),
        (lambda s: (s, s), classes(0, 0, 0, 0), TypeError, "got tuple; wrap the model"),
        (lambda s: list(s), None, ValueError, "expected targets for a model that returns a list, got None"),
        (lambda s: s[:, 0], None, ValueError, "expected targets for an output of shape (4,), got None"),
        (lambda s: s[:2], classes(0, 0, 0, 0), ValueError, "expected an output for each of 4 images, got 2"),
        (
            lambda s: [{"scores": row} for row in s],
            [0] * 4,
            TypeError,
            "expected a function at position 0, got 0",
        ),
    ],
)
def test_outputs_that_do_not_fit(change: Any, targets: Any, error: type[Exception], text: str) -> None:
    model = Wrapped(change)
    with pytest.raises(error, match=re.escape(text)):
        GradCAM(model, [model.model.layer])(torch.rand(4, 3, 16, 16), targets)


def test_lists_of_outputs_take_indices_and_functions() -> None:
    model = Wrapped(list)
    images = torch.rand(2, 3, 16, 16)
    maps = GradCAM(model, [model.model.layer])(images, [3, lambda row: row[1]])
    np.testing.assert_allclose(maps, GradCAM(model.model, ["layer"])(images, [3, 1]), atol=1e-6)

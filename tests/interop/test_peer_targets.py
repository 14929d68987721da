"""Targets: the classes of pytorch-grad-cam, functions, integers; one per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from batchcam_captum.interop import GradCAM
from tests.interop.networks import Network, assert_same_maps, both, classes, network, pytorch_grad_cam
from tests.models import SmallCnn, strong_heads

from pytorch_grad_cam.utils import model_targets as peer  # isort: skip


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).sigmoid())


MASK = (np.arange(15 * 15).reshape(15, 15) % 7 < 3).astype(np.float32)
#: A model, and the targets of three images.
KINDS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "classifier": (SmallCnn, classes(4, 1, -1)),
    "softmax": (SmallCnn, [peer.ClassifierOutputSoftmaxTarget(k) for k in (4, 1, 0)]),
    "rest": (SmallCnn, [peer.ClassifierOutputReST(k) for k in (4, 1, 0)]),
    "binary": (lambda: SmallCnn(num_classes=1), [peer.BinaryClassifierOutputTarget(k) for k in (0, 1, 0)]),
    "raw": (lambda: SmallCnn(num_classes=1), [peer.RawScoresOutputTarget()] * 3),
    "finer": (SmallCnn, [peer.FinerWeightedTarget(4, [1, 2], 0.6)] * 3),
    "segmentation": (Segmenter, [peer.SemanticSegmentationTarget(k, MASK) for k in (3, 1, 0)]),
    "functions": (SmallCnn, [lambda row: row[0] - row[1], lambda row: row.logsumexp(0), torch.max]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values(kind: str) -> None:
    make, targets = KINDS[kind]
    torch.manual_seed(1)
    given = Network(make().eval(), ["layer"], torch.randn(3, 3, 15, 15), None)
    assert_same_maps(*both("GradCAM", given.to(torch.float64), targets))


@pytest.fixture(scope="module")
def detector() -> Network:
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=192, max_size=192,
        box_score_thresh=0.0, box_detections_per_img=8,
    )  # fmt: skip
    return Network(model.eval(), ["backbone.body.16"], torch.rand(1, 3, 64, 64), None)


def test_boxes_of_a_detection_model(detector: Network) -> None:
    with torch.no_grad():
        (found,) = detector.model(detector.images)
    assert len(found["boxes"]) > 1
    target = peer.FasterRCNNBoxScoreTarget(found["labels"].tolist(), found["boxes"].numpy())
    assert_same_maps(*both("GradCAM", detector, [target]), torch.float32)
    gone = peer.FasterRCNNBoxScoreTarget(labels=[1], bounding_boxes=np.array([[0.0, 0.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"targets.*graph"):
        GradCAM(detector.model, detector.modules)(detector.images, [gone])


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
    ],
    ids=lambda targets: type(targets).__name__,
)
def test_integers_and_mixtures(plain: Network, targets: Any) -> None:
    cam = GradCAM(plain.model, plain.modules)
    expected = cam(plain.images, classes(4, 1, 0, 2))
    np.testing.assert_allclose(cam(plain.images, targets), expected, atol=1e-6)


def test_an_iterator_serves_all_augmented_versions(plain: Network) -> None:
    cam = GradCAM(plain.model, plain.modules)
    expected = cam(plain.images, classes(4, 1, 0, 2), aug_smooth=True)
    found = cam(plain.images, iter(classes(4, 1, 0, 2)), aug_smooth=True)
    np.testing.assert_array_equal(found, expected)


def test_one_integer_for_all_and_the_highest_score(plain: Network) -> None:
    cam = GradCAM(plain.model, plain.modules)
    expected = cam(plain.images, classes(3, 3, 3, 3))
    for target in (3, np.int64(3), torch.tensor(3)):
        np.testing.assert_allclose(cam(plain.images, target), expected, atol=1e-6)
    highest = plain.model(plain.images).argmax(1).tolist()
    np.testing.assert_allclose(cam(plain.images), cam(plain.images, classes(*highest)), atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_a_wrong_number(plain: Network, number: int) -> None:
    wrong = classes(*range(number))
    for targets in (wrong, list(range(number)), torch.arange(number)):
        with pytest.raises(ValueError, match="targets"):
            GradCAM(plain.model, plain.modules)(plain.images, targets)
    if number == 1:
        maps = pytorch_grad_cam.GradCAM(plain.model, plain.modules)(plain.images, wrong)
        assert not maps[1:].any(), "the peer returns zero maps"


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        (peer.ClassifierOutputTarget(1), TypeError),
        ("1234", TypeError),
        ({0: 1, 1: 1, 2: 2, 3: 3}, TypeError),
        (1.5, TypeError),
        (True, TypeError),
        (["a"] * 4, TypeError),
        ([0, 1, 2, 0.5], TypeError),
        (torch.rand(4), TypeError),
        (torch.eye(5, dtype=torch.long)[:4], TypeError),
        ([0, 1, 2, 5], ValueError),
        ([lambda row: 1.0] * 4, TypeError),
        ([torch.argmax] * 4, TypeError),
        ([lambda row: row.detach()[0]] * 4, ValueError),
        ([peer.ClassifierOutputTarget] * 4, TypeError),
        ([peer.RawScoresOutputTarget()] * 4, ValueError),
    ],
)
def test_targets_that_do_not_fit(plain: Network, targets: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="target"):
        GradCAM(plain.model, plain.modules)(plain.images, targets)


def test_what_a_target_raises_is_its_own(plain: Network) -> None:
    with pytest.raises(IndexError):
        GradCAM(plain.model, plain.modules)(plain.images, classes(0, 1, 99, 0))


class Wrapped(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model = strong_heads(SmallCnn())
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


@pytest.mark.parametrize(
    ("change", "targets", "error", "argument"),
    [
        (lambda s: {"logits": s}, [0] * 4, TypeError, "model"),
        (lambda s: (s, s), classes(0, 0, 0, 0), TypeError, "model"),
        (lambda s: list(s), None, ValueError, "targets"),
        (lambda s: s[:, 0], None, ValueError, "targets"),
        (lambda s: s[:2], classes(0, 0, 0, 0), ValueError, "model"),
        (lambda s: [{"scores": row} for row in s], [0] * 4, TypeError, "targets"),
    ],
)
def test_outputs_that_do_not_fit(change: Any, targets: Any, error: type[Exception], argument: str) -> None:
    model = Wrapped(change)
    with pytest.raises(error, match=argument):
        GradCAM(model, [model.model.layer])(torch.rand(4, 3, 16, 16), targets)


def test_lists_of_outputs_take_indices_and_functions() -> None:
    model = Wrapped(list)
    images = torch.rand(2, 3, 16, 16)
    maps = GradCAM(model, [model.model.layer])(images, [3, lambda row: row[1]])
    np.testing.assert_allclose(maps, GradCAM(model.model, ["layer"])(images, [3, 1]), atol=1e-6)

"""Targets: functions and masks against loops, Captum on a wrapped model and a peer; Captum's forms against Captum."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum._utils.common import _select_targets
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, BinaryTarget, MaskTarget, MultiLabelTarget
from batchcam_captum.attribution import RowTarget, select_target
from batchcam_captum.attribution.targets import target_rows
from tests.attribution.captum_parity import assert_close_to
from tests.models import DenseNetOutput, SmallCnn

N, K, H, W = 4, 5, 3, 3
MASKS = torch.tensor(np.random.default_rng(0).random((N, H, W)) > 0.4)
WEIGHTS = torch.tensor(np.random.default_rng(1).normal(size=(N, H, W)))
LABELS = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]])
OF_EACH = torch.tensor([1, -1, 4, 0])


def dense() -> tuple[nn.Module, nn.Module]:
    model = DenseNetOutput()
    return model, model.layer


def classes(size: int = K) -> tuple[nn.Module, nn.Module]:
    model = SmallCnn(num_classes=size)
    return model, model.layer


def one_logit() -> tuple[nn.Module, nn.Module]:
    return classes(1)


def inside(scores: Tensor, index: int, mask: Tensor) -> Any:
    """The sum of one sample's scores of a class inside a mask, place by place."""
    return sum(scores[index, u, v] * float(mask[u, v]) for u in range(H) for v in range(W))


Score = Callable[[Tensor, int], Any]
#: A model, a target, and the score of sample i from its own output.
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], Any, Score]] = {
    "mask": (dense, MaskTarget(2, MASKS[1]), lambda s, i: inside(s, 2, MASKS[1])),
    "mask_each": (dense, MaskTarget(-1, MASKS), lambda s, i: inside(s, 4, MASKS[i])),
    "mask_weights": (dense, MaskTarget(0, WEIGHTS), lambda s, i: inside(s, 0, WEIGHTS[i])),
    "mask_and_class_each": (
        dense,
        MaskTarget(OF_EACH, MASKS),
        lambda s, i: inside(s, [1, 4, 4, 0][i], MASKS[i]),
    ),
    "mask_class_each": (
        dense,
        MaskTarget([3, 2, 1, 0], MASKS[0].int()),
        lambda s, i: inside(s, 3 - i, MASKS[0]),
    ),
    "binary": (one_logit, BinaryTarget(torch.tensor([1, 0, 0, 1])), lambda s, i: [1, -1, -1, 1][i] * s[0]),
    "binary_bool": (
        one_logit,
        BinaryTarget([True, False, False, True]),
        lambda s, i: [1, -1, -1, 1][i] * s[0],
    ),
    "binary_all_0": (one_logit, BinaryTarget(0), lambda s, i: -s[0]),
    "binary_all_1": (one_logit, BinaryTarget(torch.tensor([1.0])), lambda s, i: s[0]),
    "labels": (classes, MultiLabelTarget(LABELS), lambda s, i: sum(s[k] for k in range(K) if LABELS[i, k])),
    "labels_bool": (classes, MultiLabelTarget(LABELS == 0), lambda s, i: sum(s[LABELS[i] == 0])),
    "labels_weights": (
        classes,
        MultiLabelTarget(WEIGHTS[:, 0, 0].outer(torch.arange(5.0))),
        lambda s, i: sum(WEIGHTS[i, 0, 0] * k * s[k] for k in range(K)),
    ),
    "labels_for_all": (classes, MultiLabelTarget([1, 0, 0, 2, 0]), lambda s, i: s[0] + 2 * s[3]),
    "function": (classes, lambda output: output[:, 1] - output[:, 2], lambda s, i: s[1] - s[2]),
    "function_keeps_dims": (classes, lambda output: output[:, 1:2], lambda s, i: s[1]),
    "function_each": (
        classes,
        [lambda s, i=i: s[i].square() for i in range(N)],
        lambda s, i: s[i] ** 2,
    ),
}
every_case = pytest.mark.parametrize(("build", "target", "score"), CASES.values(), ids=CASES.keys())


@every_case
def test_the_score_and_its_gradient_are_those_of_a_loop(build: Any, target: Any, score: Score) -> None:
    model, _ = build()
    output = model.double()(torch.randn(N, 3, 9, 9).double()).detach().requires_grad_()
    selected = select_target(output, target)
    expected = torch.stack([torch.as_tensor(score(row, i)).reshape(()) for i, row in enumerate(output)])
    torch.testing.assert_close(selected.reshape(N), expected)
    (actual,) = torch.autograd.grad(selected.sum(), output)
    (gradient,) = torch.autograd.grad(expected.sum(), output)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(actual, gradient)


@every_case
def test_the_map_is_captums_of_a_model_that_returns_the_score(build: Any, target: Any, score: Score) -> None:
    model, layer = build()
    model.double()
    images = torch.randn(N, 3, 9, 9).double()

    def scores(x: Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(score(row, i)).reshape(()) for i, row in enumerate(model(x))])

    expected = LayerGradCam(scores, layer).attribute(images.clone())
    assert_close_to(BatchGradCam(model, layer).attribute(images, target), expected, torch.float64)


@every_case
def test_pieces_of_a_target_are_those_of_the_batch(build: Any, target: Any, score: Score) -> None:
    output = build()[0](torch.randn(N, 3, 9, 9))
    pieces = [slice(0, 1), slice(1, 3), slice(3, 4)]
    selected = [select_target(output[rows], target_rows(target, rows, N)) for rows in pieces]
    assert torch.cat(selected).equal(select_target(output, target))


@pytest.mark.parametrize(
    "target",
    [2, (2,), None, OF_EACH, OF_EACH.tolist(), [(k,) for k in OF_EACH.tolist()], torch.tensor([3])],
    ids=str,
)
def test_pieces_of_captums_targets_too(target: Any) -> None:
    output = torch.randn(N, 1 if target is None else K)
    pieces = [slice(0, 3), slice(3, 4)]
    selected = [select_target(output[rows], target_rows(target, rows, N)) for rows in pieces]
    assert torch.cat(selected).equal(select_target(output, target))


def test_a_mask_as_tall_as_the_batch_is_large_is_one_for_all() -> None:
    # 4 samples and a 4 × 4 mask: only the output shows that the mask's rows are no samples.
    output, mask = torch.randn(4, 2, 4, 4), torch.rand(4, 4)
    target = MaskTarget(1, mask)
    pieces = [
        select_target(output[rows], target_rows(target, rows, 4)) for rows in (slice(0, 1), slice(1, 4))
    ]
    assert torch.cat(pieces).equal(select_target(output, target))
    torch.testing.assert_close(torch.cat(pieces), torch.einsum("nuv,uv->n", output[:, 1], mask))


class Above:
    """A user's own target with a number for each sample."""

    def __init__(self, thresholds: Tensor) -> None:
        self.thresholds = thresholds

    def __call__(self, output: Tensor) -> Tensor:
        return (output - self.thresholds[:, None]).relu().sum(1)

    def for_rows(self, rows: slice, samples: int) -> Above:
        assert samples == len(self.thresholds)
        return Above(self.thresholds[rows])


def test_a_class_of_ones_own_is_cut_by_its_method() -> None:
    target, output = Above(torch.randn(N)), torch.randn(N, K)
    assert isinstance(target, RowTarget)
    pieces = [
        select_target(output[rows], target_rows(target, rows, N)) for rows in (slice(0, 3), slice(3, 4))
    ]
    assert torch.cat(pieces).equal(target(output))


@pytest.mark.parametrize("target", [[0, 1, 2], torch.tensor([0, 1, 2]), [0, 1, 2, 3, 4]], ids=str)
def test_a_target_of_another_length_is_noticed_before_it_is_cut(target: Any) -> None:
    with pytest.raises(ValueError, match=r"^target: expected (4 entries|shape \(4,\))"):
        target_rows(target, slice(0, 2), N)


@pytest.mark.parametrize(
    "target",
    [MaskTarget(1, torch.ones(5, H, W)), MaskTarget([0] * 5, MASKS[0]), BinaryTarget([0, 1, 1, 0, 1]),
     MultiLabelTarget(torch.ones(5, K))],
    ids=lambda target: type(target).__name__,
)  # fmt: skip
@pytest.mark.parametrize("cut", [False, True])
def test_numbers_for_more_samples_than_there_are(target: Any, cut: bool) -> None:
    shapes = {MaskTarget: (N, K, H, W), BinaryTarget: (N, 1), MultiLabelTarget: (N, K)}
    output = torch.randn(shapes[type(target)])
    if cut:  # the fifth row would go unnoticed
        target, output = target_rows(target, slice(0, 2), N), output[:2]
    with pytest.raises(ValueError, match=r"^target: expected .* for 4 samples, got 5"):
        select_target(output, target)


@pytest.fixture(scope="module")
def peer() -> Any:
    """pytorch-grad-cam's targets."""
    return pytest.importorskip("pytorch_grad_cam.utils.model_targets")


def test_segmentation_as_in_pytorch_grad_cam(peer: Any) -> None:
    output = torch.randn(N, K, H, W)
    theirs = [peer.SemanticSegmentationTarget(2, mask.numpy().astype(np.float32)) for mask in MASKS]
    expected = torch.stack([target(row) for target, row in zip(theirs, output, strict=True)])
    torch.testing.assert_close(select_target(output, MaskTarget(2, MASKS)), expected)
    torch.testing.assert_close(select_target(output, MaskTarget(2, MASKS.numpy())), expected)
    torch.testing.assert_close(select_target(output, theirs), expected)


def test_targets_of_pytorch_grad_cam_are_targets(peer: Any) -> None:
    output = torch.randn(3, K)
    assert select_target(output, [peer.ClassifierOutputTarget(k) for k in (2, 0, 1)]).equal(
        output[[0, 1, 2], [2, 0, 1]]
    )
    assert select_target(output, peer.ClassifierOutputTarget(4)).equal(output[:, 4])
    logits = torch.randn(3, 1)
    expected = select_target(logits, BinaryTarget([1, 0, 1]))
    assert select_target(logits, [peer.BinaryClassifierOutputTarget(k) for k in (1, 0, 1)]).equal(expected)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)], ids=str)
def test_one_logit_in_any_shape(shape: tuple[int, ...]) -> None:
    logits = torch.tensor([0.5, -2.0, 3.0]).reshape(shape)
    assert select_target(logits, BinaryTarget([1, 1, 0])).tolist() == [0.5, -2.0, -3.0]


@pytest.mark.parametrize("method", ["grad_cam", "xgrad_cam"])
def test_the_two_maps_of_one_logit_are_each_others_negative(method: str) -> None:
    model, layer = one_logit()
    images = torch.randn(N, 3, 9, 9)
    grad_cam = BatchGradCam(model, layer, method=method)
    positive, negative = (grad_cam.attribute(images, BinaryTarget(label)) for label in (1, 0))
    assert positive.abs().max() > 1e-3
    assert positive.equal(-negative)
    assert positive.equal(grad_cam.attribute(images, 0))


def test_scores_of_half_precision_are_summed_in_single() -> None:
    output = torch.full((2, 3, 20, 20), 1000.0, dtype=torch.float16)
    assert MaskTarget(0, torch.ones(20, 20))(output).tolist() == [400_000.0] * 2
    assert MultiLabelTarget([60.0, 60, 60])(output[..., 0, 0]).tolist() == [180_000.0] * 2


def test_an_empty_mask_gives_an_empty_map() -> None:
    model, layer = dense()
    mask = MASKS.clone()
    mask[1] = False
    cams = BatchGradCam(model, layer).attribute(torch.randn(N, 3, 9, 9), MaskTarget(1, mask))
    assert cams.abs().amax((1, 2, 3)).gt(0).tolist() == [True, False, True, True]


def test_a_target_takes_part_in_a_differentiable_map() -> None:
    model, layer = dense()
    target = MaskTarget(OF_EACH, MASKS)
    cams = BatchGradCam(model, layer).attribute(torch.randn(N, 3, 9, 9), target, differentiable=True)
    cams.square().sum().backward()
    assert model.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "target", [MaskTarget(OF_EACH, MASKS), BinaryTarget(1), MultiLabelTarget(LABELS)], ids=str
)
def test_targets_are_constant_and_can_be_copied(target: Any) -> None:
    with pytest.raises(AttributeError):
        setattr(target, "mask" if isinstance(target, MaskTarget) else "labels", None)
    assert type(copy.deepcopy(target)) is type(target)


def test_a_cut_target_leaves_the_original_alone() -> None:
    target = BinaryTarget([1, 0, 0, 1])
    output = torch.randn(N, 1)
    before = target(output)
    target.for_rows(slice(0, 1), N)
    assert target(output).equal(before)


CONSTRUCTOR_ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "class_kind": (lambda: MaskTarget(1.0, MASKS[0]), TypeError, "class_index"),
    "class_none": (lambda: MaskTarget(None, MASKS[0]), TypeError, "class_index"),
    "class_2d": (lambda: MaskTarget(LABELS, MASKS[0]), ValueError, "class_index"),
    "mask_kind": (lambda: MaskTarget(1, "all"), TypeError, "mask"),
    "mask_classes": (lambda: MaskTarget(1, torch.tensor([[0, 7]])), ValueError, "mask"),
    "mask_nan": (lambda: MaskTarget(1, [[float("nan")]]), ValueError, "mask"),
    "binary_value": (lambda: BinaryTarget([0, 2, 1]), ValueError, "labels"),
    "binary_minus": (lambda: BinaryTarget(-1), ValueError, "labels"),
    "binary_2d": (lambda: BinaryTarget(LABELS), ValueError, "labels"),
    "binary_kind": (lambda: BinaryTarget("yes"), TypeError, "labels"),
    "labels_nan": (lambda: MultiLabelTarget([1.0, float("inf")]), ValueError, "labels"),
    "labels_scalar": (lambda: MultiLabelTarget(1), ValueError, "labels"),
    "labels_complex": (lambda: MultiLabelTarget([1j]), TypeError, "labels"),
}


@pytest.mark.parametrize(
    ("make", "error", "name"), CONSTRUCTOR_ERRORS.values(), ids=CONSTRUCTOR_ERRORS.keys()
)
def test_targets_that_make_no_sense(make: Any, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}: expected "):
        make()


#: Target, shape of the output, and what the error names of what came.
OUTPUT_ERRORS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "mask_size": (MaskTarget(1, torch.ones(7, 7)), (N, K, H, W), "got (7, 7)"),
    "mask_each_size": (MaskTarget(1, torch.ones(N, 2, 3)), (N, K, H, W), "got (4, 2, 3)"),
    "mask_dims": (MaskTarget(1, torch.ones(3)), (N, K, H, W), "got (4, 5, 3, 3) and (3,)"),
    "mask_flat": (MaskTarget(1, MASKS[0]), (N, K), "got (4, 5) and (3, 3)"),
    "mask_class": (MaskTarget(5, MASKS[0]), (N, K, H, W), "-5 to 4, got 5"),
    "mask_class_each": (MaskTarget([0, 1, -6, 2], MASKS[0]), (N, K, H, W), "-5 to 4, got -6"),
    "binary_classes": (BinaryTarget(1), (N, K), "got (4, 5)"),
    "labels_width": (MultiLabelTarget([1, 0]), (N, K), "got (4, 5) and (2,)"),
    "labels_dense": (MultiLabelTarget(LABELS), (N, K, H, W), "got (4, 5, 3, 3) and (4, 5)"),
    "index_for_one_logit": (1, (N, 1), "BinaryTarget(labels)"),
    "indices_for_one_logit": ([0, 1, 0, 0], (N, 1), "BinaryTarget(labels)"),
    "function_scalar": (Tensor.sum, (N, K), "got shape ()"),
    "function_classes": (lambda output: output, (N, K), "got shape (4, 5)"),
    "function_rows": (lambda output: output[:2, 0], (N, K), "got shape (2,)"),
    "function_transposed": (lambda output: output[None, :, 0], (N, K), "got shape (1, 4)"),
    "functions_classes": ([lambda row: row] * N, (N, K), "got shape (5,)"),
    "functions_length": ([Tensor.sum], (N, K), "got a list of 1"),
    "function_detached": (lambda output: output.detach()[:, 0], (N, K), "without a graph"),
}


@pytest.mark.parametrize(("target", "shape", "text"), OUTPUT_ERRORS.values(), ids=OUTPUT_ERRORS.keys())
def test_targets_that_do_not_fit_the_output(target: Any, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match="^target: expected .*" + re.escape(text)):
        select_target(torch.randn(shape, requires_grad=True), target)


#: As above, of Captum's forms.
BAD_INDICES: list[tuple[Any, tuple[int, ...], type[Exception], str]] = [
    (5, (N, K), ValueError, "-5 to 4, got 5"),
    (-6, (N, K), ValueError, "-5 to 4, got -6"),
    ([0, 1, 5, 0], (N, K), ValueError, "got 5"),
    (torch.tensor([0, 1, -6, 0]), (N, K), ValueError, "got -6"),
    ([(0,), (1,), (5,), (0,)], (N, K), ValueError, "got 5"),
    ([0, 1], (N, K), ValueError, "got a list of 2"),
    ([], (N, K), ValueError, "got a list of 0"),
    (torch.tensor([0, 1]), (N, K), ValueError, "got (2,)"),
    (torch.zeros(N, K, dtype=torch.long), (N, K), ValueError, "one-hot"),
    (torch.zeros(N), (N, K), TypeError, "torch.float32"),
    (torch.zeros(N, dtype=torch.bool), (N, K), TypeError, "torch.bool"),
    (1.0, (N, K), TypeError, "got float"),
    ("1", (N, K), TypeError, "got str"),
    ([0, (1,), 2, 3], (N, K), TypeError, "int, tuple"),
    ((0, 1), (N, K), ValueError, "got (0, 1)"),
    ([(0, 1)] * N, (N, K), ValueError, "got (0, 1)"),
    ([(0,), (0, 1), (0,), (0,)], (N, K), ValueError, "one length"),
    ([(0.0,)] * N, (N, K), ValueError, "integers"),
    ([(slice(0, 1),), (slice(0, 2),), (slice(0, 1),), (slice(0, 1),)], (N, K), ValueError, "slices"),
    ((slice(0, 2),), (N, K), ValueError, "got shape (4, 2)"),
    (None, (N, K), ValueError, "got shape (4, 5)"),
    (1, (N, K, H, W), ValueError, "got shape (4, 3, 3)"),
    ([0, 1, 2, 0], (N, K, H, W), ValueError, "got integers"),
    ((1, 2), (N, K, H, W), ValueError, "got shape (4, 3)"),
    ([(1, 2)] * N, (N, K, H, W), ValueError, "got shape (4, 3)"),
    ((1, 3, 0), (N, K, H, W), ValueError, "-3 to 2, got 3"),
    ((1, 0, 0, 0), (N, K, H, W), ValueError, "at most 3"),
]


@pytest.mark.parametrize(("target", "shape", "error", "text"), BAD_INDICES)
def test_indices_that_do_not_fit_the_output(
    target: Any, shape: tuple[int, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match="^target: expected .*" + re.escape(text)):
        select_target(torch.randn(shape), target)


def test_a_call_says_the_same() -> None:
    model, layer = classes()
    with pytest.raises(ValueError, match=r"^target: expected indices from -5 to 4, got 5"):
        BatchGradCam(model, layer).attribute(torch.randn(N, 3, 9, 9), 5)


@pytest.mark.parametrize("returned", [1.0, None, torch.zeros(N, dtype=torch.long)], ids=str)
@pytest.mark.parametrize("each", [False, True])
def test_a_function_that_returns_no_scores(returned: Any, each: bool) -> None:
    target: Any = [lambda _: returned] * N if each else lambda _: returned
    with pytest.raises(TypeError, match=r"^target: expected a function"):
        select_target(torch.randn(N, K), target)


def test_an_error_inside_of_a_function_is_the_users_own() -> None:
    model, layer = classes()

    def target(output: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        BatchGradCam(model, layer).attribute(torch.randn(N, 3, 9, 9), target)


def test_an_empty_batch() -> None:
    for target in (1, [], torch.zeros(0, dtype=torch.long)):
        assert select_target(torch.rand(0, 3), target).shape == (0,)
    assert select_target(torch.rand(0, K), lambda output: output[:, 0]).shape == (0,)
    assert select_target(torch.rand(0, K, H, W), MaskTarget(1, MASKS[0])).shape == (0,)
    assert select_target(torch.rand(0, 1), BinaryTarget(torch.zeros(0))).shape == (0,)
    assert select_target(torch.rand(0, K), MultiLabelTarget(torch.zeros(0, K))).shape == (0,)


# Captum's forms, against Captum's own selection over many shapes.

SHAPES = [
    (1,),
    (4,),
    (1, 1),
    (1, 3),
    (4, 1),
    (4, 3),
    (3, 3),
    (4, 3, 2),
    (1, 3, 2),
    (2, 3, 4, 5),
    (3, 1, 1),
    (2, 2, 1, 3),
]


def targets_for(shape: tuple[int, ...]) -> Iterator[Any]:
    """Every kind of target, of every length that could fit, in range."""
    samples, sizes = shape[0], shape[1:]
    yield None
    if not sizes:
        return
    yield from range(-sizes[0], sizes[0])
    yield torch.tensor(sizes[0] - 1)
    yield torch.tensor([[0]])
    yield torch.randint(sizes[0], (samples,))
    yield torch.randint(sizes[0], (samples,)).tolist()
    for length in range(1, len(sizes) + 1):
        indices = [
            tuple(int(torch.randint(-size, size, ())) for size in sizes[:length]) for _ in range(samples)
        ]
        yield indices
        yield indices[0]
        for places in itertools.product([False, True], repeat=length):
            with_slices = [_with_slices(entry, sizes, places) for entry in indices]
            yield with_slices
            yield with_slices[0]
            yield tuple(
                slice(None) if sliced else index for index, sliced in zip(indices[0], places, strict=True)
            )


def _with_slices(
    indices: tuple[int, ...], sizes: tuple[int, ...], places: tuple[bool, ...]
) -> tuple[int | slice, ...]:
    """The same indices, some of them as slices of length one."""
    return tuple(
        slice(index % size, index % size + 1) if sliced else index
        for index, size, sliced in zip(indices, sizes, places, strict=False)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_selection_is_captums(shape: tuple[int, ...]) -> None:
    output = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    selected = 0
    for target in targets_for(shape):
        try:
            expected = _select_targets(output, target)
            assert expected[0].numel() == 1  # what Captum's gradient demands afterwards
        except (AssertionError, IndexError, RuntimeError):
            with pytest.raises(ValueError, match=r"^target: expected"):
                select_target(output, target)
            continue
        actual = select_target(output, target)
        assert actual.shape == expected.shape, target
        assert actual.equal(expected), target
        selected += 1
    assert selected > 0


def test_most_targets_that_captum_rejects_are_rejected_and_most_others_are_not() -> None:
    # The comparison above shows nothing if it only ever takes one of its branches.
    output = torch.rand(4, 3, 2)
    fits = [_fits(output, target) for target in targets_for((4, 3, 2))]
    assert 5 < sum(fits) < len(fits) - 5


def _fits(output: Tensor, target: Any) -> bool:
    try:
        select_target(output, target)
    except ValueError:
        return False
    return True


NEGATIVE = [[-1, 0, -3, 2], torch.tensor([-1, 0, -3, 2]), torch.tensor([-1, 0, -3, 2], dtype=torch.int32)]


@pytest.mark.parametrize("target", NEGATIVE, ids=["list", "tensor", "int32"])
def test_negative_indices_count_from_the_end_for_each_sample(target: Any) -> None:
    output = torch.rand(4, 3)
    expected = output[torch.arange(4), torch.tensor([2, 0, 0, 2])]
    assert select_target(output, target).equal(expected)


@pytest.mark.parametrize(
    "target", [np.int64(1), [np.int64(1)] * 4, [(np.int32(1),)] * 4, (np.int64(1),)], ids=str
)
def test_numpy_integers_are_integers(target: Any) -> None:
    output = torch.rand(4, 3)
    assert select_target(output, target).equal(output[:, 1])


@pytest.mark.parametrize(
    "target", [1, (1,), [1, 0, 2], [(1,), (0,), (2,)], torch.tensor([1, 0, 2]), torch.tensor(1)], ids=str
)
def test_the_graph_reaches_the_output(target: Any) -> None:
    output = torch.rand(3, 3, requires_grad=True)
    select_target(output, target).sum().backward()
    assert output.grad.sum() == 3
    assert output.grad.sum(1).eq(1).all()

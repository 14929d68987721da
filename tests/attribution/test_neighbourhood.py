"""What Captum builds on its attributions works with BatchGradCam, and gives what it gives with LayerGradCam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel, visualization
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from batchcam_captum import BatchGradCam, GuidedBatchGradCam, MaskTarget, MultiLabelTarget
from batchcam_captum.functional import CAM_METHODS
from tests.attribution.captum_parity import assert_close_to
from tests.models import DenseNetOutput, SmallCnn, TwoInputs

N = 3


def cnn() -> tuple[SmallCnn, Tensor]:
    """A model whose maps, and the squares of them, do not vanish; and images."""
    model = SmallCnn().double().eval()
    model.head.weight.data *= 30
    return model, torch.randn(N, 3, 9, 9).double()


def tunnelled(attribution: Any, inputs: Any, **arguments: Any) -> Any:
    """Smoothed with noise that is the same for the same seed."""
    torch.manual_seed(1)
    return NoiseTunnel(attribution).attribute(inputs, stdevs=0.3, **arguments)


def assert_tunnelled_like_captum(model: Any, inputs: Any, **arguments: Any) -> None:
    expected = tunnelled(LayerGradCam(model, model.layer), inputs, **arguments)
    assert_close_to(tunnelled(BatchGradCam(model, model.layer), inputs, **arguments), expected, torch.float64)


# All at once, one by one, and with a remainder.
@pytest.mark.parametrize("samples_batch", [None, 1, 2])
@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("target", [1, [0, 4, 2], torch.tensor([3, 0, 0])], ids=["int", "list", "tensor"])
def test_noise_tunnel(target: Any, kind: str, samples_batch: int | None) -> None:
    model, images = cnn()
    assert_tunnelled_like_captum(
        model, images, target=target, nt_type=kind, nt_samples=5, nt_samples_batch_size=samples_batch
    )


def test_noise_tunnel_with_other_arguments() -> None:
    model, images = cnn()
    assert_tunnelled_like_captum(model, images, target=1, relu_attributions=True, attr_dim_summation=False)
    assert_tunnelled_like_captum(model, images, target=1, attribute_to_layer_input=True)
    two = TwoInputs().double()
    further = torch.rand(N).double(), 2.0, "flipped"
    assert_tunnelled_like_captum(
        two, (images, images.flip(0)), target=[1, 2, 3], additional_forward_args=further
    )
    dense = DenseNetOutput().double()
    assert_tunnelled_like_captum(dense, images, target=(1, 2, 0))
    assert_tunnelled_like_captum(dense, images, target=[(1, 2, 0), (0, 0, 0), (4, 1, 1)])


@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_noise_tunnel_with_every_weighting(method: str) -> None:
    model, images = cnn()
    grad_cam = BatchGradCam(model, model.layer, method=method)
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    smoothed = tunnelled(grad_cam, images, target=[0, 1, 2], nt_samples=4)
    hook.remove()
    (noisy,) = seen  # (N · 4, 3, 9, 9), the samples of one image next to each other
    assert len(noisy) == 4 * N
    expected = torch.stack([grad_cam.attribute(noisy[4 * i : 4 * i + 4], target=i).mean(0) for i in range(N)])
    assert_close_to(smoothed, expected, torch.float64)


def test_noise_tunnel_with_functions_and_masks_as_targets() -> None:
    images = torch.randn(N, 3, 9, 9).double()
    model = DenseNetOutput().double()
    mask = torch.rand(N, 3, 3) > 0.5
    grad_cam = BatchGradCam(model, model.layer)
    each = [lambda scores, i=i: (scores[1] * mask[i]).sum() for i in range(N)]
    expected = tunnelled(
        LayerGradCam(
            lambda x: (model(x)[:, 1] * mask.repeat_interleave(len(x) // N, 0)).sum((1, 2)), model.layer
        ),
        images,
    )
    # Captum repeats lists for the noisy samples, so a list of functions is repeated as well.
    assert_close_to(tunnelled(grad_cam, images, target=each), expected, torch.float64)
    # It does not know our targets. One for all samples needs no repeating, and one noisy sample at a time needs none either.
    assert tunnelled(grad_cam, images, target=MaskTarget(1, mask[0])).shape == expected.shape
    one_by_one = tunnelled(grad_cam, images, target=MaskTarget(1, mask), nt_samples_batch_size=1)
    expected = tunnelled(
        LayerGradCam(lambda x: (model(x)[:, 1] * mask).sum((1, 2)), model.layer),
        images,
        nt_samples_batch_size=1,
    )
    assert_close_to(one_by_one, expected, torch.float64)
    with pytest.raises(ValueError, match=r"^target: expected a mask for 15 samples, got 3"):
        tunnelled(grad_cam, images, target=MaskTarget(1, mask))


def test_noise_tunnel_in_pieces() -> None:
    model, images = cnn()
    grad_cam = BatchGradCam(model, model.layer)
    expected = tunnelled(grad_cam, images, target=[0, 1, 2])
    assert_close_to(
        tunnelled(grad_cam, images, target=[0, 1, 2], internal_batch_size=4), expected, torch.float64
    )


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_noise_tunnel_around_guided_grad_cam() -> None:
    model, images = cnn()
    guided = GuidedBatchGradCam(model, "layer")
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    smoothed = tunnelled(guided, images, target=2, nt_samples=4)
    hook.remove()
    expected = guided.attribute(seen[0], 2).reshape(N, 4, 3, 9, 9).mean(1)
    assert_close_to(smoothed, expected, torch.float64)


def enlarged(attribution: Any, images: Tensor, target: Any) -> Tensor:
    """A map for every value of the input, as infidelity needs it."""
    cams = attribution.attribute(images, target)
    return LayerAttribution.interpolate(cams, (9, 9), "bilinear").detach().expand_as(images)


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity(normalize: bool) -> None:
    model, images = cnn()
    target = torch.tensor([0, 1, 2])

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    values = []
    for attribution in (LayerGradCam(model, model.layer), BatchGradCam(model, model.layer)):
        attributions = enlarged(attribution, images.clone(), target)
        torch.manual_seed(1)
        values.append(infidelity(model, perturb, images, attributions, target=target, normalize=normalize))
    assert values[0].min() > 0
    torch.testing.assert_close(values[1], values[0])


def in_a_tuple(attribution: Any) -> Callable[..., tuple[Tensor]]:
    """sensitivity_max wants a tuple of explanations, one for each input; a layer attribution, Captum's too, gives a tensor."""
    return lambda inputs, **arguments: (attribution.attribute(inputs, **arguments),)


@pytest.mark.parametrize("examples", [None, 2 * N, N])
@pytest.mark.parametrize("target", [1, [0, 4, 2], torch.tensor([3, 0, 0])], ids=["int", "list", "tensor"])
def test_sensitivity_max(target: Any, examples: int | None) -> None:
    model, images = cnn()
    values = []
    for attribution in (LayerGradCam(model, model.layer), BatchGradCam(model, model.layer)):
        torch.manual_seed(1)
        values.append(
            sensitivity_max(in_a_tuple(attribution), images, target=target, max_examples_per_batch=examples)
        )
    assert values[0].min() > 1e-3
    torch.testing.assert_close(values[1], values[0])


def test_sensitivity_max_with_our_targets_and_channels_last() -> None:
    model = DenseNetOutput()
    images, mask = torch.randn(N, 3, 9, 9), torch.rand(3, 3) > 0.5
    values = []
    for layout in (torch.contiguous_format, torch.channels_last):
        grad_cam = BatchGradCam(model.to(memory_format=layout), model.layer)
        torch.manual_seed(1)
        values.append(
            sensitivity_max(in_a_tuple(grad_cam), images.to(memory_format=layout), target=MaskTarget(1, mask))
        )
    captums = LayerGradCam(lambda x: (model(x)[:, 1] * mask).sum((1, 2)), model.layer)
    torch.manual_seed(1)
    expected = sensitivity_max(in_a_tuple(captums), images)
    assert expected.min() > 1e-3
    torch.testing.assert_close(values[0], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(values[1], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map", "masked_image"])
def test_visualization(method: str) -> None:
    model, images = cnn()
    mpl.use("Agg")
    cams = BatchGradCam(model, model.layer).attribute(images, 1)
    heat_map = BatchGradCam.interpolate(cams, (9, 9), "bilinear")[0].permute(1, 2, 0).numpy()
    picture = images[0].sigmoid().permute(1, 2, 0).numpy()
    sign = "absolute_value" if method == "masked_image" else "all"
    figure, axis = visualization.visualize_image_attr(
        heat_map, picture, method=method, sign=sign, use_pyplot=False, show_colorbar=True
    )
    (*_, drawn) = axis.images
    shown = torch.as_tensor(drawn.get_array()).double()
    assert shown.shape[:2] == (9, 9)
    assert shown.std() > 0
    assert len(figure.axes) == 2


def test_interpolate() -> None:
    model, images = cnn()
    cams = BatchGradCam(model, model.layer).attribute(images, 1)
    for mode in ("nearest", "bilinear"):
        expected = torch.nn.functional.interpolate(cams, (9, 9), mode=mode)
        assert LayerAttribution.interpolate(cams, (9, 9), mode).equal(expected)
        assert BatchGradCam.interpolate(cams, (9, 9), mode).equal(expected)


def test_it_says_of_itself_what_captum_asks() -> None:
    model, images = cnn()
    ours, captums = BatchGradCam(model, model.layer), LayerGradCam(model, model.layer)
    assert isinstance(ours, LayerGradCam)
    assert ours.get_name() == "Batch Grad Cam"
    assert ours.has_convergence_delta() is captums.has_convergence_delta() is False
    assert ours.multiplies_by_inputs is captums.multiplies_by_inputs is False
    assert hasattr(ours, "attribute_future") == hasattr(captums, "attribute_future")
    deltas = [
        attribution.compute_convergence_delta(attribution.attribute(images, 1), images * 0, images, target=1)
        for attribution in (ours, captums)
    ]
    assert deltas[0].shape == (N,)
    torch.testing.assert_close(deltas[0], deltas[1].detach())


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_deterministic_algorithms(method: str) -> None:
    model = DenseNetOutput()
    images, masks = torch.randn(N, 3, 9, 9), torch.rand(N, 3, 3)
    grad_cam = BatchGradCam(model, model.layer, method=method)
    for target in ([(1, 2, 0), (0, 0, 0), (4, 1, 1)], MaskTarget([1, 4, 0], masks)):
        gradients = []
        for _ in range(2):
            model.zero_grad()
            grad_cam.attribute(images, target, differentiable=True).square().sum().backward()
            gradients.append(model.out.weight.grad.clone())
        assert gradients[0].abs().max() > 0
        assert gradients[0].equal(gradients[1])
    plain = SmallCnn()
    grad_cam = BatchGradCam(plain, plain.layer, method=method)
    maps = grad_cam.attribute_classes(images)
    assert maps.equal(grad_cam.attribute_classes(images))
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_inference_mode(method: str) -> None:
    model = DenseNetOutput().double()
    images, target = torch.randn(N, 3, 9, 9).double(), MaskTarget([1, 4, 0], torch.rand(N, 3, 3))
    grad_cam = BatchGradCam(model, model.layer, method=method)
    expected = grad_cam.attribute(images, target)
    assert expected.abs().max() > 1e-4
    with torch.inference_mode():
        assert grad_cam.attribute(images, target).equal(expected)
        made_inside = images + 0
        assert grad_cam.attribute(made_inside, target).equal(expected)
        inside = MaskTarget(target.class_index + 0, target.mask + 0)  # a target made inside
        assert grad_cam.attribute(made_inside, inside).equal(expected)
    plain = SmallCnn().double()
    grad_cam = BatchGradCam(plain, plain.layer, method=method)
    expected = grad_cam.attribute_classes(images)
    with torch.inference_mode():
        assert grad_cam.attribute_classes(images + 0).equal(expected)


def test_a_noise_tunnel_with_a_target_of_rows_says_what_to_do() -> None:
    model = SmallCnn()
    images = torch.randn(4, 3, 12, 12)
    target = MultiLabelTarget(torch.eye(5)[:4])
    tunnel = NoiseTunnel(BatchGradCam(model, model.layer))
    with pytest.raises(ValueError, match=r"for 12 samples, got 4.*nt_samples_batch_size=1"):
        tunnel.attribute(images, nt_samples=3, target=target)
    one_by_one = tunnel.attribute(images, nt_samples=3, nt_samples_batch_size=1, target=target)
    assert one_by_one.shape == (4, 1, 5, 5)

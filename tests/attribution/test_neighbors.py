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


def tunneled(attribution: Any, inputs: Any, **arguments: Any) -> Any:
    """Smooth with noise that is the same for the same seed."""
    torch.manual_seed(1)
    return NoiseTunnel(attribution).attribute(inputs, stdevs=0.3, **arguments)


def assert_tunneled_like_captum(model: Any, inputs: Any, **arguments: Any) -> None:
    expected = tunneled(LayerGradCam(model, model.layer), inputs, **arguments)
    assert_close_to(tunneled(BatchGradCam(model, model.layer), inputs, **arguments), expected, torch.float64)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("target", [1, [0, 4, 2], torch.tensor([3, 0, 0])], ids=["int", "list", "tensor"])
def test_noise_tunnel(target: Any, kind: str) -> None:
    model, images = cnn()
    for samples_batch in (None, 1, 2):  # all at once, one by one, and with a remainder
        assert_tunneled_like_captum(
            model, images, target=target, nt_type=kind, nt_samples=5, nt_samples_batch_size=samples_batch
        )


def test_noise_tunnel_with_other_arguments() -> None:
    model, images = cnn()
    assert_tunneled_like_captum(model, images, target=1, relu_attributions=True, attr_dim_summation=False)
    assert_tunneled_like_captum(model, images, target=1, attribute_to_layer_input=True)
    further = torch.rand(N).double(), 2.0, "flipped"
    assert_tunneled_like_captum(
        TwoInputs().double(), (images, images.flip(0)), target=[1, 2, 3], additional_forward_args=further
    )
    dense = DenseNetOutput().double()
    assert_tunneled_like_captum(dense, images, target=(1, 2, 0))
    assert_tunneled_like_captum(dense, images, target=[(1, 2, 0), (0, 0, 0), (4, 1, 1)])
    grad_cam = BatchGradCam(model, model.layer)
    expected = tunneled(grad_cam, images, target=[0, 1, 2])
    pieces = tunneled(grad_cam, images, target=[0, 1, 2], internal_batch_size=4)
    assert_close_to(pieces, expected, torch.float64)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.parametrize("method", [*CAM_METHODS, "guided"])
def test_noise_tunnel_with_every_weighting_and_around_guided_grad_cam(method: str) -> None:
    model, images = cnn()
    guided = method == "guided"
    attribution = (
        GuidedBatchGradCam(model, "layer") if guided else BatchGradCam(model, "layer", method=method)
    )
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    smoothed = tunneled(attribution, images, target=2, nt_samples=4)
    hook.remove()
    noisy = seen[0]  # (N · 4, 3, 9, 9), the samples of one image next to each other
    assert len(noisy) == 4 * N
    expected = torch.stack([attribution.attribute(rows, 2).mean(0) for rows in noisy.split(4)])
    assert_close_to(smoothed, expected, torch.float64)


def test_noise_tunnel_with_functions_and_masks_as_targets() -> None:
    images, model, mask = (
        torch.randn(N, 3, 9, 9).double(),
        DenseNetOutput().double(),
        torch.rand(N, 3, 3) > 0.5,
    )
    grad_cam = BatchGradCam(model, model.layer)

    def masked(x: Tensor) -> Tensor:
        return (model(x)[:, 1] * mask.repeat_interleave(len(x) // N, 0)).sum((1, 2))

    # Captum repeats lists for the noisy samples, so a list of functions is repeated as well.
    each = [lambda scores, i=i: (scores[1] * mask[i]).sum() for i in range(N)]
    expected = tunneled(LayerGradCam(masked, model.layer), images)
    assert_close_to(tunneled(grad_cam, images, target=each), expected, torch.float64)
    # It does not know our targets. One for all samples needs no repeating, and one noisy sample at a time needs none either.
    assert tunneled(grad_cam, images, target=MaskTarget(1, mask[0])).shape == expected.shape
    expected = tunneled(LayerGradCam(masked, model.layer), images, nt_samples_batch_size=1)
    one_by_one = tunneled(grad_cam, images, target=MaskTarget(1, mask), nt_samples_batch_size=1)
    assert_close_to(one_by_one, expected, torch.float64)
    plain, _ = cnn()
    for network, target in ((model, MaskTarget(1, mask)), (plain, MultiLabelTarget(torch.eye(5)[:N]))):
        with pytest.raises(ValueError, match=f"15 samples, got {N}.*nt_samples_batch_size=1"):
            tunneled(BatchGradCam(network, network.layer), images, target=target)


def in_a_tuple(attribution: Any) -> Callable[..., tuple[Tensor]]:
    """Return a tuple of explanations, as sensitivity_max wants; a layer attribution, Captum's too, gives a tensor."""
    return lambda inputs, **arguments: (attribution.attribute(inputs, **arguments),)


@pytest.mark.parametrize("target", [1, [0, 4, 2], torch.tensor([3, 0, 0])], ids=["int", "list", "tensor"])
def test_sensitivity_and_infidelity(target: Any) -> None:
    model, images = cnn()

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    values: list[list[Tensor]] = []
    for attribution in (LayerGradCam(model, model.layer), BatchGradCam(model, model.layer)):
        found = []
        for examples in (None, 2 * N):
            torch.manual_seed(1)
            found.append(
                sensitivity_max(
                    in_a_tuple(attribution), images, target=target, max_examples_per_batch=examples
                )
            )
        cams = attribution.attribute(images.clone(), target)
        # A map for every value of the input, as infidelity needs it.
        enlarged = LayerAttribution.interpolate(cams, (9, 9), "bilinear").detach().expand_as(images)
        found.append(infidelity(model, perturb, images, enlarged, target=target))
        values.append(found)
    assert min(value.min() for value in values[0]) > 1e-3
    torch.testing.assert_close(values[1], values[0])


def test_sensitivity_with_our_targets_and_channels_last() -> None:
    model = DenseNetOutput()
    images, mask = torch.randn(N, 3, 9, 9), torch.rand(3, 3) > 0.5
    torch.manual_seed(1)
    captums = LayerGradCam(lambda x: (model(x)[:, 1] * mask).sum((1, 2)), model.layer)
    expected = sensitivity_max(in_a_tuple(captums), images)
    assert expected.min() > 1e-3
    for layout in (torch.contiguous_format, torch.channels_last):
        grad_cam = BatchGradCam(model.to(memory_format=layout), model.layer)
        torch.manual_seed(1)
        found = sensitivity_max(
            in_a_tuple(grad_cam), images.to(memory_format=layout), target=MaskTarget(1, mask)
        )
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map", "masked_image"])
def test_visualization(method: str) -> None:
    model, images = cnn()
    mpl.use("Agg")
    cams = BatchGradCam(model, model.layer).attribute(images, 1)
    enlarged = BatchGradCam.interpolate(cams, (9, 9), "bilinear")
    assert enlarged.equal(LayerAttribution.interpolate(cams, (9, 9), "bilinear"))
    heat_map = enlarged[0].permute(1, 2, 0).numpy()
    picture = images[0].sigmoid().permute(1, 2, 0).numpy()
    sign = "absolute_value" if method == "masked_image" else "all"
    figure, axis = visualization.visualize_image_attr(
        heat_map, picture, method=method, sign=sign, use_pyplot=False, show_colorbar=True
    )
    shown = torch.as_tensor(axis.images[-1].get_array()).double()
    assert shown.shape[:2] == (9, 9)
    assert shown.std() > 0
    assert len(figure.axes) == 2


def test_it_says_of_itself_what_captum_asks() -> None:
    model, images = cnn()
    ours, captums = BatchGradCam(model, model.layer), LayerGradCam(model, model.layer)
    assert ours.get_name() == "Batch Grad Cam"
    assert ours.has_convergence_delta() is captums.has_convergence_delta() is False
    assert ours.multiplies_by_inputs is captums.multiplies_by_inputs is False
    deltas = [
        each.compute_convergence_delta(each.attribute(images, 1), images * 0, images, target=1)
        for each in (ours, captums)
    ]
    torch.testing.assert_close(deltas[0], deltas[1].detach())


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_deterministic_algorithms_and_inference_mode(method: str) -> None:
    model, plain = DenseNetOutput().double(), SmallCnn().double()
    images = torch.randn(N, 3, 9, 9).double()
    grad_cam = BatchGradCam(model, model.layer, method=method)
    classes = BatchGradCam(plain, plain.layer, method=method)
    places = [(1, 2, 0), (0, 0, 0), (4, 1, 1)]
    masks = MaskTarget([1, 4, 0], torch.rand(N, 3, 3))
    for target in (places, masks):
        gradients = []
        for _ in range(2):
            cams = grad_cam.attribute(images, target, differentiable=True)
            gradients += torch.autograd.grad(cams.square().sum(), model.out.weight)
        assert gradients[0].abs().max() > 0
        assert gradients[0].equal(gradients[1])
    expected, every_class = grad_cam.attribute(images, masks), classes.attribute_classes(images)
    assert expected.abs().max() > 1e-4
    with torch.inference_mode():
        made_inside = MaskTarget(masks.class_index + 0, masks.mask + 0)
        for given, target in ((images, masks), (images + 0, masks), (images + 0, made_inside)):
            assert grad_cam.attribute(given, target).equal(expected)
        assert classes.attribute_classes(images + 0).equal(every_class)
    assert torch.are_deterministic_algorithms_enabled()

"""The adapter's maps are pytorch-grad-cam's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("timm")

from pytorch_grad_cam.utils.reshape_transforms import swinT_reshape_transform, vit_reshape_transform  # noqa: E402

from batchcam_captum import interop  # noqa: E402
from tests.interop.adapter_networks import (  # noqa: E402
    NAMES,
    NETWORKS,
    Network,
    assert_same_maps,
    both,
    classes,
    network,
    vit,
)
from tests.models import strong_heads  # noqa: E402


@pytest.fixture(scope="module", params=NETWORKS)
def given(request: pytest.FixtureRequest) -> Network:
    return network(request.param)


@pytest.fixture(scope="module")
def residual() -> Network:
    return network("residual").to(torch.float64)


def test_all_its_classes_are_offered() -> None:
    assert set(NAMES) <= set(interop.__all__)
    assert all(hasattr(pytorch_grad_cam, name) for name in NAMES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("eigen_smooth", [False, True], ids=["summed", "eigen_smooth"])
@pytest.mark.parametrize("name", NAMES)
def test_maps(given: Network, name: str, eigen_smooth: bool, dtype: torch.dtype) -> None:
    maps, expected = both(name, given.to(dtype), classes(4, 1, 0), eigen_smooth=eigen_smooth)
    assert maps.shape == (3, *given.images.shape[2:])
    assert_same_maps(maps, expected, dtype)


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenCAM"])
@pytest.mark.parametrize("kind", ["residual", "volumes"])
def test_aug_smooth(kind: str, name: str) -> None:
    given = network(kind, samples=2).to(torch.float64)
    maps, expected = both(name, given, classes(4, 1), aug_smooth=True)
    assert maps.max() < 0.9999, "a mean of several maps whose peaks differ"
    assert_same_maps(maps, expected)


def test_aug_smooth_with_eigen_smooth_and_the_highest_category(residual: Network) -> None:
    assert_same_maps(*both("GradCAM", residual, None, aug_smooth=True, eigen_smooth=True))


def test_transforms_of_ttach(residual: Network) -> None:
    tta = pytest.importorskip("ttach")
    transforms = tta.Compose([tta.VerticalFlip(), tta.Multiply([1, 1.5])])
    maps, expected = both("GradCAM", residual, classes(4, 1, 0), tta_transforms=transforms, aug_smooth=True)
    assert_same_maps(maps, expected)
    default, _ = both("GradCAM", residual, classes(4, 1, 0), aug_smooth=True)
    assert np.abs(maps - default).max() > 0.05


def test_layers_are_averaged_in_any_order_and_by_name(residual: Network) -> None:
    model, images = residual.model, residual.images
    maps, expected = both(
        "GradCAM", residual._replace(layers=["layer4", "layer2", "layer3"]), classes(4, 1, 0)
    )
    assert_same_maps(maps, expected)
    again = interop.GradCAM(model, ["layer2", model.layer3, "layer4"])(images, classes(4, 1, 0))
    np.testing.assert_allclose(again, maps, atol=1e-6)
    alone = interop.GradCAM(model, ["layer2"])(images, classes(4, 1, 0))
    assert np.abs(alone - maps).max() > 0.05


def test_no_targets_are_the_highest_categories(residual: Network) -> None:
    maps, expected = both("GradCAM", residual, None)
    assert_same_maps(maps, expected)
    highest = residual.model(residual.images).argmax(1)
    explicit, _ = both("GradCAM", residual, classes(*highest.tolist()))
    np.testing.assert_array_equal(maps, explicit)


def test_its_own_reshape_transforms() -> None:
    torch.manual_seed(2)
    model = strong_heads(vit()).eval().double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)

    def reshape(tokens: Tensor) -> Tensor:
        return vit_reshape_transform(tokens, height=4, width=6)

    assert_same_maps(*both("GradCAM", Network(model, ["blocks.1.norm1"], images, reshape), classes(4, 1)))

    class Tokens(nn.Module):
        """Without a class token, as torchvision's first Swin returned them."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 8, stride=8)
            self.block = nn.Linear(6, 6)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.stem(x).flatten(2).transpose(1, 2)).tanh().mean(1))

    model = strong_heads(Tokens()).double()

    def reshape_swin(tokens: Tensor) -> Tensor:
        return swinT_reshape_transform(tokens, height=8, width=12)

    assert_same_maps(*both("GradCAM", Network(model, ["block"], images, reshape_swin), classes(4, 1)))


@pytest.mark.parametrize("name", ["GradCAM", "EigenCAM"])
def test_grids_found_from_the_model(name: str) -> None:
    given = network("vit").to(torch.float64)
    by_function, _ = both(name, given, classes(4, 1, 0))
    by_itself = getattr(interop, name)(given.model, given.layers, reshape_transform="auto")
    np.testing.assert_array_equal(by_itself(given.images, classes(4, 1, 0)), by_function)


def test_half_precision_gives_full_maps() -> None:
    """pytorch-grad-cam cannot make NumPy arrays of bfloat16."""
    given = network("plain")
    _, expected = both("GradCAM", given, classes(4, 1, 0))
    given = given.to(torch.bfloat16)
    for name in NAMES:
        maps = getattr(interop, name)(given.model, given.modules)(given.images, classes(4, 1, 0))
        assert maps.dtype == np.float32
        assert maps.max() > 0.99
        if name == "GradCAM":
            assert 0 < np.abs(maps - expected).max() < 0.1
    with pytest.raises(TypeError, match="BFloat16"):
        both("GradCAM", given, classes(4, 1, 0))


def test_what_an_in_place_operation_after_the_layer_rewrites_is_explained_as_it_was() -> None:
    """pytorch-grad-cam remembers the tensor itself, on the CPU, and explains what the ReLU left of it."""

    def make(inplace: bool) -> Network:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(inplace),
            nn.Conv2d(8, 8, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8 * 144, 5),
        ).double()
        images = torch.randn(2, 3, 16, 16, generator=torch.manual_seed(0), dtype=torch.float64)
        return Network(model, ["0"], images, None)

    for name in ["GradCAM", "EigenCAM"]:
        of_copies, expected = both(name, make(inplace=False), classes(4, 1))
        assert_same_maps(of_copies, expected)
        maps, rewritten = both(name, make(inplace=True), classes(4, 1))
        assert_same_maps(maps, expected)
        assert np.abs(rewritten - expected).max() > 0.05


@pytest.mark.parametrize("name", ["GradCAM", "EigenCAM"])
def test_a_dictionary_of_maps(name: str) -> None:
    """A layer that returns one, as the backbone of a detection model does."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coarse, self.fine = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"fine": self.fine(x), "pool": self.coarse(x)}

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()

        def forward(self, x: Tensor) -> Any:
            return [{"scores": maps.tanh().mean((1, 2))} for maps in self.backbone(x)["fine"]]

    torch.manual_seed(1)
    from pytorch_grad_cam.utils.reshape_transforms import fasterrcnn_reshape_transform

    given = Network(
        Detector().double(), ["backbone"], torch.randn(2, 3, 15, 15).double(), fasterrcnn_reshape_transform
    )
    if name == "GradCAM":
        with pytest.raises(
            TypeError, match=r"Backbone: expected a layer that returns a floating tensor.*inside it"
        ):
            interop.GradCAM(given.model, given.modules, given.reshape)(
                given.images, [lambda found: found["scores"][0]] * 2
            )
    else:
        assert_same_maps(*both(name, given, [lambda found: found["scores"][0]] * 2))

"""``reshape=`` on what real models return: the maps of a hand-written reshape_transform, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.nest import Nest
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

from batchcam_captum import BatchGradCam
from batchcam_captum.attribution.reshape import Reshape, check_reshape, find_reshape
from batchcam_captum.functional import grad_cam
from tests.models import SmallCnn, strong_heads

FLAT = {"depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
STAGES = {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 12, "num_classes": 5}
TV_STAGES = {
    "patch_size": [4, 4],
    "window_size": [4, 4],
    "depths": [2, 2],
    "num_heads": [2, 2],
    "embed_dim": 12,
}


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **{"num_classes": 5, **options})


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=5
    )


def torchvision_swin(version: int) -> Callable[[], nn.Module]:
    blocks = {} if version == 1 else {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return lambda: SwinTransformer(**TV_STAGES, **blocks, num_classes=5)


def nest() -> nn.Module:
    return Nest(img_size=64, embed_dims=(8, 8, 8), num_heads=(1, 1, 1), depths=(1, 1, 1), num_classes=5)


def torchvision_maxvit() -> nn.Module:
    return MaxVit(
        input_size=(64, 64),
        stem_channels=8,
        partition_size=2,
        block_channels=[8, 24],
        block_layers=[1, 1],
        head_dim=4,
        stochastic_depth_prob=0.0,
        num_classes=5,
    )


def torchvision_convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5)


def tokens(height: int, width: int, prefix: int) -> Callable[[Tensor], Tensor]:
    """As users of pytorch-grad-cam write it."""
    return lambda t: t[:, prefix:].reshape(len(t), height, width, -1).permute(0, 3, 1, 2)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2)


def unchanged(tensor: Tensor) -> Tensor:
    return tensor


#: Model, layer, input size, and what reshape has to do with the layer's output.
CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, int], Callable[[Tensor], Tensor]]] = {}


def case(
    name: str, make: Callable[[], nn.Module], size: tuple[int, int], **layers: Callable[[Tensor], Tensor]
) -> None:
    for layer, expected in layers.items():
        CASES[f"{name}-{layer}"] = (make, layer.replace("__", "."), size, expected)


VIT = timm_model("vit_tiny_patch16_224", img_size=(64, 96), **FLAT)
case(
    "vit",
    VIT,
    (64, 96),
    patch_embed=tokens(4, 6, 0),
    blocks__0=tokens(4, 6, 1),
    blocks__1__norm1=tokens(4, 6, 1),
)
case(
    "vit_of_any_size",
    timm_model("vit_tiny_patch16_224", dynamic_img_size=True, **FLAT),
    (96, 64),
    patch_embed=channels_last,
    blocks__0__mlp__fc1=tokens(6, 4, 1),
)
case(
    "vit_without_class_token",
    timm_model(
        "vit_base_patch16_clip_quickgelu_224", img_size=(64, 96), class_token=False, global_pool="avg", **FLAT
    ),
    (64, 96),
    blocks=tokens(4, 6, 0),
)
case(
    "deit_distilled",
    timm_model("deit_tiny_distilled_patch16_224", img_size=64, **FLAT),
    (64, 64),
    blocks__0=tokens(4, 4, 2),
)
case(
    "vit_registers",
    timm_model("vit_small_patch14_reg4_dinov2", img_size=(56, 42), **FLAT),
    (56, 42),
    blocks__0=tokens(4, 3, 5),
)
case(
    "eva",
    timm_model("eva02_tiny_patch14_224", img_size=56, depth=2, embed_dim=24, num_heads=2),
    (56, 56),
    blocks__0=tokens(4, 4, 1),
)
case("beit", timm_model("beit_base_patch16_224", img_size=64, **FLAT), (64, 64), blocks__0=tokens(4, 4, 1))
case(
    "cait",  # the class token joins late
    timm_model("cait_xxs24_224", img_size=64, **FLAT),
    (64, 64),
    blocks__1=tokens(4, 4, 0),
    blocks_token_only__0__norm1=tokens(4, 4, 1),
)
case(
    "xcit",
    timm_model("xcit_nano_12_p16_224", depth=2, embed_dim=32, num_heads=2),
    (64, 96),
    blocks__1=tokens(4, 6, 0),
)
for name, option in {
    "swin_tiny_patch4_window7_224": {"window_size": 4},
    "swinv2_tiny_window8_256": {"window_size": 4},
}.items():
    case(
        name.split("_")[0],
        timm_model(name, img_size=(64, 96), **STAGES, **option),
        (64, 96),
        layers__0=channels_last,
        layers__0__blocks__1__mlp=tokens(16, 24, 0),
        layers__1__blocks__0__norm2=tokens(8, 12, 0),
        layers__1=channels_last,
    )
case(
    "swinv2_cr",  # its stages return (N, C, h, w), its blocks do not
    timm_model("swinv2_cr_tiny_224", img_size=(64, 96), **STAGES),
    (64, 96),
    stages__1__blocks__0=channels_last,
    stages__1=unchanged,
)
case(
    "pvt",
    timm_model("pvt_v2_b0", depths=(1, 1, 1, 1)),
    (64, 96),
    stages__1__blocks__0=tokens(8, 12, 0),
    stages__3__blocks__0=tokens(2, 3, 0),
    stages__2=unchanged,
)
case(
    "twins",
    timm_model("twins_svt_small", depths=(2, 2, 2, 2), embed_dims=(8, 16, 24, 32)),
    (64, 96),
    blocks__1__1=tokens(8, 12, 0),
    pos_block__2=tokens(4, 6, 0),
)
case(
    "convnext",
    timm_model("convnext_atto", conv_mlp=False, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    (64, 96),
    stages__2__blocks__0__norm=channels_last,
    stages__2__blocks__0__mlp=channels_last,
    stages__0__blocks__0=unchanged,
    stem__1=unchanged,
)
case(
    "maxvit",
    timm_model("maxvit_rmlp_pico_rw_256", img_size=64),
    (64, 64),
    stages__1__blocks__0__attn_block=channels_last,
    stages__1=unchanged,
)
case("poolformer", timm_model("poolformer_s12"), (64, 96), stages__1=unchanged)
case("torchvision_vit", torchvision_vit, (64, 64), encoder__layers__encoder_layer_0=tokens(4, 4, 1))
for version in (1, 2):
    case(
        f"torchvision_swin{version}",
        torchvision_swin(version),
        (64, 96),
        features__1=channels_last,
        features__3__0__mlp__0=channels_last,
        norm=channels_last,
        permute=unchanged,
    )
case("torchvision_maxvit", torchvision_maxvit, (64, 64), blocks__0=unchanged)
case(
    "torchvision_convnext",
    torchvision_convnext,
    (64, 96),
    features__1__0__block__2=channels_last,
    features__1__0__block__5=channels_last,
    features__1=unchanged,
)


@cache
def made(make: Callable[[], nn.Module]) -> nn.Module:
    """One instance for all layers of a model, with no branch switched off by a weight that starts at zero."""
    torch.manual_seed(0)
    model = strong_heads(make()).eval()
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.5)
    return model


def run(model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> tuple[Tensor, Tensor]:
    """Activations of a layer and the gradients of the classes' scores."""
    taken: list[Tensor] = []
    with model.get_submodule(layer).register_forward_hook(lambda module, args, output: taken.append(output)):
        scores = model(images)
    (by,) = torch.autograd.grad(scores[range(len(classes)), classes].sum(), taken[0])
    return taken[0].detach(), by


def found(
    reshape: Reshape, model: Any, layer: str, images: Tensor, activations: Tensor
) -> Callable[[Tensor], Tensor]:
    return find_reshape(
        reshape,
        activations,
        forward_func=model,
        layer=model.get_submodule(layer),
        input_size=tuple(images.shape[2:]),
        samples=len(images),
    )


@pytest.mark.parametrize(("make", "layer", "size", "expected"), CASES.values(), ids=CASES)
def test_maps_equal_those_of_a_hand_written_reshape(
    make: Callable[[], nn.Module],
    layer: str,
    size: tuple[int, int],
    expected: Callable[[Tensor], Tensor],
) -> None:
    model, images = made(make), torch.rand(2, 3, *size)
    activations, gradients = run(model, layer, images, [4, 1])
    reshape = found("auto", model, layer, images, activations)
    cams = grad_cam(reshape(activations), reshape(gradients))
    by_hand = grad_cam(expected(activations), expected(gradients))
    assert cams.shape == by_hand.shape
    assert by_hand.abs().max() > 1e-8
    assert (cams - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    kind: Reshape = {unchanged: None, channels_last: "channels_last"}.get(expected, "tokens")
    assert torch.equal(found(kind, model, layer, images, activations)(activations), reshape(activations))


@pytest.mark.parametrize("name", ["vit-blocks__1__norm1", "swin-layers__1", "torchvision_swin2-norm"])
def test_every_way_to_attribute_reshapes(name: str) -> None:
    make, layer, size, by_hand = CASES[name]
    model, images, classes = made(make), torch.rand(3, 3, *size), [4, 1, 0]
    activations, gradients = run(model, layer, images, classes)
    expected = grad_cam(by_hand(activations), by_hand(gradients))
    explain = BatchGradCam(model, layer, reshape="auto")

    def assert_expected(cams: Tensor) -> None:
        assert cams.shape == expected.shape
        assert (cams - expected).abs().max() <= 1e-5 * expected.abs().max()

    assert_expected(explain.attribute(images, target=classes))
    assert_expected(explain.attribute(images, target=classes, internal_batch_size=2))
    assert_expected(explain.attribute_classes(images, torch.tensor(classes)[:, None]))
    own = BatchGradCam(model, [layer], reshape=by_hand)
    assert_expected(own.attribute(images, target=classes)[0])
    assert_expected(own.attribute(images, target=classes, attr_dim_summation=False)[0].sum(1, keepdim=True))
    cams = explain.attribute(images, target=classes, differentiable=True)
    assert_expected(cams.detach())
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    (by,) = torch.autograd.grad(cams.square().sum(), head.weight)
    assert by.abs().max() > 0


def test_tokens_lie_where_their_patches_are() -> None:
    """Light one patch, and see which token the embedding changes: independent of any reshape written by hand."""
    model = made(VIT)
    dark = torch.zeros(1, 3, 64, 96)
    lit = dark.clone()
    lit[:, :, 32:48, 80:96] = 1  # third row of patches, sixth column
    activations = [run(model, "patch_embed", image, [0])[0] for image in (dark, lit)]
    difference = activations[1] - activations[0]
    places = found("auto", model, "patch_embed", dark, difference)(difference).abs().sum(1)[0]
    assert (places > 0).nonzero().tolist() == [[2, 5]]


class Named(nn.Module):
    """A model of which only what it says of itself, and where its layer is, matters."""

    def __init__(self, layer: nn.Module | None = None, **attributes: Any) -> None:
        super().__init__()
        self.layer = layer or nn.Identity()
        for name, value in attributes.items():
            setattr(self, name, value)


def shape_found(
    reshape: Reshape, shape: tuple[int, ...], input_size: tuple[int, ...] | None, model: Any = None
) -> tuple[int, ...]:
    model = model or Named(norm=nn.LayerNorm(6))
    layer = model.layer if isinstance(model, nn.Module) else nn.Identity()
    found_one = find_reshape(
        reshape, torch.rand(shape), forward_func=model, layer=layer, input_size=input_size, samples=shape[0]
    )
    return tuple(found_one(torch.rand(shape)).shape)


def hugging_face(**config: Any) -> nn.Module:
    """As in transformers: a model with a config, the layer somewhere inside a module without one."""
    inner = Named()
    model = Named(config=SimpleNamespace(**config), encoder=inner)
    model.layer = inner.layer
    return model


@pytest.mark.parametrize(
    ("config", "length", "input_size", "grid"),
    [
        ({"patch_size": 16, "image_size": 224}, 197, (224, 224), (14, 14)),
        ({"patch_size": 16, "image_size": 224}, 198, (224, 224), (14, 14)),  # DeiT: class and distillation
        ({"patch_size": 14, "image_size": 224, "num_register_tokens": 4}, 261, (224, 224), (16, 16)),
        ({"patch_size": 16, "image_size": 224}, 25, (64, 96), (4, 6)),  # interpolated positions
        (
            {"patch_size": 16, "image_size": 224},
            5,
            (32, 32),
            (2, 2),
        ),  # 1 x 1 and four prefix tokens it is not
        ({"patch_size": 4, "image_size": 224}, 3136, (224, 224), (56, 56)),  # Swin, by stage
        ({"patch_size": 4, "image_size": 224}, 196, (224, 224), (14, 14)),
        ({"patch_size": 4, "image_size": 224}, 49, (224, 224), (7, 7)),
        ({"patch_size": (16, 8), "image_size": (64, 96)}, 49, (64, 96), (4, 12)),
        ({"patch_size": 16, "image_size": 224}, 197, (32, 32), (14, 14)),  # resized inside
    ],
)
def test_hugging_face_configs(
    config: dict[str, Any], length: int, input_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert shape_found("auto", (2, length, 6), input_size, hugging_face(**config)) == (2, 6, *grid)


@pytest.mark.parametrize(
    ("shape", "input_size", "result"),
    [
        ((2, 197, 6), (224, 224), (2, 6, 14, 14)),
        ((2, 25, 6), (64, 96), (2, 6, 4, 6)),
        ((2, 6, 7, 7), (224, 224), (2, 6, 7, 7)),
        ((2, 7, 7, 6), (224, 224), (2, 6, 7, 7)),
        ((2, 6, 4, 6), (64, 96), (2, 6, 4, 6)),
        ((2, 4, 6, 6), (64, 96), (2, 6, 4, 6)),
        ((2, 16, 12, 10), (16, 14), (2, 16, 12, 10)),  # no padding
        ((2, 6, 8, 9, 10), (32, 36, 40), (2, 6, 8, 9, 10)),
        ((2, 8, 9, 10, 6), (32, 36, 40), (2, 6, 8, 9, 10)),
        ((2, 64, 25), (50,), (2, 64, 25)),
        ((2, 25, 64), (50,), (2, 64, 25)),
        ((2, 6), (224, 224), (2, 6)),
    ],
)
def test_without_a_model_that_knows(
    shape: tuple[int, ...], input_size: tuple[int, ...], result: tuple[int, ...]
) -> None:
    assert shape_found("auto", shape, input_size) == result
    assert shape_found("auto", shape, input_size, lambda x: x) == result


def test_prefix_tokens_are_not_guessed_where_nothing_says_tokens() -> None:
    """(3, 8, 20) is a signal of 8 channels beside an image; 2 x 2 places after 4 tokens would explain it, too."""
    with pytest.raises(ValueError, match=r"got \(3, 8, 20\) from Identity .* 32 x 32.* no grid"):
        shape_found("auto", (3, 8, 20), (32, 32), Named())
    assert shape_found("tokens", (3, 8, 20), (32, 32), Named()) == (3, 20, 2, 2)  # now somebody does


def test_equal_axes_are_told_by_the_layer_or_the_model() -> None:
    shape, size = (2, 8, 8, 8), (32, 32)
    kept = torch.rand(shape)

    def layout(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return find_reshape(
            "auto", kept, forward_func=model, layer=model.get_submodule("layer"), input_size=size, samples=2
        )

    norms = nn.LayerNorm(8)
    for layer in (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.MaxPool2d(2)):
        assert torch.equal(layout(Named(layer, norm=norms))(kept), kept)
    for layer in (nn.Linear(8, 8), nn.LayerNorm(8)):
        assert torch.equal(layout(Named(layer))(kept), channels_last(kept))
    assert torch.equal(layout(Named(output_fmt="NHWC", norm=norms))(kept), channels_last(kept))
    # A plain CNN has nothing that wants its channels last; its Linear follows the pooling.
    assert torch.equal(layout(SmallCnn())(kept), kept)
    with pytest.raises(
        ValueError, match=r"which axis has the channels, got \(2, 8, 8, 8\) from Identity .* 32 x 32: either"
    ):
        layout(Named(norm=norms))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: nn.Sequential(nn.Identity(), model)])
def test_wrapped_models_still_say_what_they_know(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inner = Named(num_prefix_tokens=3, patch_embed=Named(grid_size=(2, 5)))
    model = wrap(inner)
    # Nothing but the grid that the model names explains 13 tokens.
    reshape = find_reshape(
        "auto", torch.rand(2, 13, 6), forward_func=model, layer=inner.layer, input_size=(64, 64), samples=2
    )
    assert reshape(torch.rand(2, 13, 6)).shape == (2, 6, 2, 5)


@pytest.mark.parametrize(
    ("reshape", "shape", "input_size", "message"),
    [
        (
            "auto",
            (2, 49, 16, 8),
            (224, 224),
            r"two axes or more .* got \(2, 49, 16, 8\) from Identity .* 224 x 224",
        ),
        ("auto", (2, 3, 25, 64), (64, 96), r"two axes or more .* got \(2, 3, 25, 64\)"),  # heads
        ("auto", (2, 6, 7, 7), (50,), "two axes or more"),
        ("auto", (2, 20, 25), (100,), r"which axis has the channels, got \(2, 20, 25\)"),
        (
            "auto",
            (2, 7, 7, 6),
            None,
            r"which axis has the channels, got \(2, 7, 7, 6\) .* input without sides",
        ),
        ("auto", (2, 180, 6), (224, 224), r"got \(2, 180, 6\) .* no grid; .*tokens_to_grid"),
        ("auto", (2, 1, 6), (224, 224), r"got \(2, 1, 6\) .* gives 1 tokens .* no grid"),
        ("tokens", (2, 7, 7, 6), (224, 224), r"expected tokens \(N, L, C\), got \(2, 7, 7, 6\)"),
        (
            "tokens",
            (2, 28, 6),
            (100,),
            "got 25 places after 3 prefix tokens; or 20 places after 8 prefix tokens",
        ),
        ("tokens", (2, 28, 6), None, "an input with sides, or a model that says"),
        ("channels_last", (2, 6), (224, 224), r"expected \(N, \*spatial, C\), got \(2, 6\)"),
    ],
)
def test_what_cannot_be_told(
    reshape: Reshape, shape: tuple[int, ...], input_size: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shape_found(reshape, shape, input_size, lambda x: x)


def test_tokens_that_the_model_does_not_explain() -> None:
    model = hugging_face(patch_size=16, image_size=224)
    with pytest.raises(
        ValueError,
        match=r"one grid that explains 180 tokens, got none: \(2, 180, 6\) .*, and Named has strides 16, 32",
    ):
        shape_found("auto", (2, 180, 6), (224, 224), model)
    thinned = Named(num_prefix_tokens=1, patch_embed=Named(patch_size=(16, 16)))
    with pytest.raises(
        ValueError, match=r"explains 99 tokens, got none.* and 1 prefix tokens; .* has all the patches"
    ):
        shape_found("auto", (2, 99, 6), (224, 224), thinned)


@pytest.mark.parametrize(
    ("make", "layer", "size", "message"),
    [
        (
            CASES["swin-layers__1"][0],
            "layers.0.blocks.0.attn.proj",
            (64, 96),
            r"one row a sample, \(2, …\), got \(48, 16, 12\)",
        ),
        (
            CASES["maxvit-stages__1"][0],
            "stages.1.blocks.0.attn_block.attn",
            (64, 64),
            "choose the block around this layer",
        ),
        (
            torchvision_maxvit,
            "blocks.1.layers.0.layers.window_attention.attn_layer",
            (64, 64),
            "two axes or more",
        ),
        (CASES["cait-blocks__1"][0], "blocks_token_only.0.mlp", (64, 64), "explains 1 tokens, got none"),
        (
            timm_model("hiera_tiny_224", img_size=64, stages=(1, 1, 1, 1), embed_dim=8),
            "blocks.1",
            (64, 64),
            "window by window",
        ),
        (
            nest,
            "levels.0.transformer_encoder",
            (64, 64),
            "window by window",
        ),
    ],
    ids=["swin", "maxvit", "torchvision_maxvit", "class token alone", "hiera", "nest"],
)
def test_layers_whose_rows_or_places_are_no_image(
    make: Callable[[], nn.Module], layer: str, size: tuple[int, int], message: str
) -> None:
    model, images = made(make), torch.rand(2, 3, *size)
    taken: list[Tensor] = []
    with model.get_submodule(layer).register_forward_hook(lambda module, args, output: taken.append(output)):
        model(images)
    with pytest.raises(ValueError, match=message):
        found("auto", model, layer, images, taken[0])


def find_own(reshape: Any) -> Callable[[Tensor], Tensor]:
    activations = torch.rand(2, 17, 6)
    return find_reshape(
        reshape, activations, forward_func=Named(), layer=nn.Identity(), input_size=(64, 64), samples=2
    )


def test_a_function_of_the_users() -> None:
    tensor = torch.rand(2, 17, 6)
    assert torch.equal(find_own(tokens(4, 4, 1))(tensor), tokens(4, 4, 1)(tensor))
    merges = find_own(lambda t: t.reshape(2, 4, 6))  # rows of windows, merged
    assert merges(torch.rand(8, 6)).shape == (2, 4, 6)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda t: t[:, 1:].reshape(-1, 6, 4),
            ValueError,
            r"expected \(2, C, \*spatial\) .* got \(8, 6, 4\) for \(2, 17, 6\)",
        ),
        (lambda t: t[:, 0, 0], ValueError, r"got \(2,\) for \(2, 17, 6\)"),
        (lambda t: t.detach().numpy(), TypeError, "expected a tensor from the function, got ndarray"),
    ],
)
def test_a_function_that_does_not_fit(
    function: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_own(function)(torch.rand(2, 17, 6))


def test_a_function_that_gives_gradients_another_shape() -> None:
    prefixes = iter([1, 2])
    reshape = find_own(lambda t: t[:, next(prefixes) :].transpose(1, 2))
    reshape(torch.rand(2, 17, 6))
    with pytest.raises(
        ValueError, match=r"one shape for activations and gradients, got \(2, 6, 16\) and \(2, 6, 15\)"
    ):
        reshape(torch.rand(2, 17, 6))


def test_none_leaves_everything_as_it_is() -> None:
    tensor = torch.rand(5, 3, 3)  # not the batch's rows either
    assert find_own(None)(tensor) is tensor


@pytest.mark.parametrize(("reshape", "error"), [("nhwc", ValueError), (3, TypeError), ((4, 4), TypeError)])
def test_other_kinds(reshape: Any, error: type[Exception]) -> None:
    message = (
        r"reshape: expected 'auto', 'tokens', 'channels_last', a function or None, got ('nhwc'|int|tuple)"
    )
    with pytest.raises(error, match=message):
        check_reshape(reshape)
    with pytest.raises(error, match=message):
        find_own(reshape)

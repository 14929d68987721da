"""``reshape=`` on what real models return: the maps of a hand-written reshape_transform, or a clear refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
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
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet
from torchvision.models.video.swin_transformer import SwinTransformer3d

from batchcam_captum import BatchGradCam, check, suggest_layers
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


VIT = timm_model("vit_tiny_patch16_224", img_size=(64, 96), **FLAT)
#: Model, input size, and what reshape has to do with the output of each layer.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], dict[str, Callable[[Tensor], Tensor]]]] = {
    "vit": (VIT, (64, 96), {
        "patch_embed": tokens(4, 6, 0), "blocks.0": tokens(4, 6, 1), "blocks.1.norm1": tokens(4, 6, 1),
    }),
    "vit_of_any_size": (timm_model("vit_tiny_patch16_224", dynamic_img_size=True, **FLAT), (96, 64), {
        "patch_embed": channels_last, "blocks.0.mlp.fc1": tokens(6, 4, 1),
    }),
    "vit_without_class_token": (
        timm_model("vit_base_patch16_clip_quickgelu_224", img_size=(64, 96), class_token=False, global_pool="avg", **FLAT),
        (64, 96), {"blocks": tokens(4, 6, 0)},
    ),
    "deit": (timm_model("deit_tiny_distilled_patch16_224", img_size=64, **FLAT), (64, 64), {"blocks.0": tokens(4, 4, 2)}),
    "vit_registers": (
        timm_model("vit_small_patch14_reg4_dinov2", img_size=(56, 42), **FLAT), (56, 42), {"blocks.0": tokens(4, 3, 5)},
    ),
    "eva": (
        timm_model("eva02_tiny_patch14_224", img_size=56, depth=2, embed_dim=24, num_heads=2),
        (56, 56), {"blocks.0": tokens(4, 4, 1)},
    ),
    "beit": (timm_model("beit_base_patch16_224", img_size=64, **FLAT), (64, 64), {"blocks.0": tokens(4, 4, 1)}),
    "cait": (timm_model("cait_xxs24_224", img_size=64, **FLAT), (64, 64), {  # the class token joins late
        "blocks.1": tokens(4, 4, 0), "blocks_token_only.0.norm1": tokens(4, 4, 1),
    }),
    "xcit": (
        timm_model("xcit_nano_12_p16_224", depth=2, embed_dim=32, num_heads=2), (64, 96), {"blocks.1": tokens(4, 6, 0)},
    ),
    "pit": (timm_model("pit_ti_224", img_size=64), (64, 64), {  # patches overlap, without padding
        "transformers.0.norm": tokens(7, 7, 1), "transformers.1.norm": tokens(4, 4, 1),
    }),
    "swinv2_cr": (timm_model("swinv2_cr_tiny_224", img_size=(64, 96), **STAGES), (64, 96), {
        "stages.1.blocks.0": channels_last, "stages.1": unchanged,
    }),
    "pvt": (timm_model("pvt_v2_b0", depths=(1, 1, 1, 1)), (64, 96), {
        "stages.1.blocks.0": tokens(8, 12, 0), "stages.3.blocks.0": tokens(2, 3, 0), "stages.2": unchanged,
    }),
    "twins": (timm_model("twins_svt_small", depths=(2, 2, 2, 2), embed_dims=(8, 16, 24, 32)), (64, 96), {
        "blocks.1.1": tokens(8, 12, 0), "pos_block.2": tokens(4, 6, 0),
    }),
    "convnext": (
        timm_model("convnext_atto", conv_mlp=False, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), (64, 96), {
            "stages.2.blocks.0.norm": channels_last, "stages.2.blocks.0.mlp": channels_last, "stages.0.blocks.0": unchanged,
            "stem.1": unchanged,
        },
    ),
    "maxvit": (timm_model("maxvit_rmlp_pico_rw_256", img_size=64), (64, 64), {
        "stages.1.blocks.0.attn_block": channels_last, "stages.1": unchanged,
    }),
    "poolformer": (timm_model("poolformer_s12"), (64, 96), {"stages.1": unchanged}),
    "torchvision_vit": (torchvision_vit, (64, 64), {"encoder.layers.encoder_layer_0": tokens(4, 4, 1)}),
    "torchvision_maxvit": (torchvision_maxvit, (64, 64), {"blocks.0": unchanged}),
    "torchvision_convnext": (torchvision_convnext, (64, 96), {
        "features.1.0.block.2": channels_last, "features.1.0.block.5": channels_last, "features.1": unchanged,
    }),
}  # fmt: skip
for name in ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"):
    MODELS[name.split("_")[0]] = (timm_model(name, img_size=(64, 96), **STAGES, window_size=4), (64, 96), {
        "layers.0": channels_last, "layers.0.blocks.1.mlp": tokens(16, 24, 0), "layers.1.blocks.0.norm2": tokens(8, 12, 0),
        "layers.1": channels_last,
    })  # fmt: skip
for version in (1, 2):
    MODELS[f"torchvision_swin{version}"] = (torchvision_swin(version), (64, 96), {
        "features.1": channels_last, "features.3.0.mlp.0": channels_last, "norm": channels_last, "permute": unchanged,
    })  # fmt: skip
CASES = {
    f"{name}-{layer}": (make, layer, size, expected)
    for name, (make, size, layers) in MODELS.items()
    for layer, expected in layers.items()
}


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


@pytest.mark.parametrize("name", ["vit-blocks.1.norm1", "swin-layers.1", "torchvision_swin2-norm"])
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


class Around(nn.Module):
    """Modules around a layer; what the model looks like is all that matters."""

    def __init__(self, layer: nn.Module | None = None, **modules: Any) -> None:
        super().__init__()
        self.layer = layer or nn.Identity()
        for name, value in modules.items():
            setattr(self, name, value)


def shape_found(
    reshape: Reshape, shape: tuple[int, ...], input_size: tuple[int, ...] | None, model: Any = None
) -> tuple[int, ...]:
    model = model or Around(norm=nn.LayerNorm(6))
    layer = model.layer if isinstance(model, nn.Module) else nn.Identity()
    found_one = find_reshape(
        reshape, torch.rand(shape), forward_func=model, layer=layer, input_size=input_size, samples=shape[0]
    )
    return tuple(found_one(torch.rand(shape)).shape)


def vision_model(patch: int | tuple[int, ...], **tokens: int) -> nn.Module:
    """As in transformers: patches from a convolution, prefix tokens as parameters, and an encoder that holds the layer."""
    inner, dims = Around(), 2 if isinstance(patch, int) else len(patch)
    convolution = (nn.Conv2d if dims == 2 else nn.Conv3d)(3, 6, patch, patch)
    parameters = {name: nn.Parameter(torch.zeros(1, count, 6)) for name, count in tokens.items()}
    model = Around(
        norm=nn.LayerNorm(6), embeddings=Around(projection=convolution, **parameters), encoder=inner
    )
    model.layer = inner.layer
    return model


@pytest.mark.parametrize(
    ("model", "length", "input_size", "grid"),
    [
        (vision_model(16, cls_token=1), 197, (224, 224), (14, 14)),
        (vision_model(16, cls_token=1, distillation_token=1), 198, (224, 224), (14, 14)),
        (vision_model(14, cls_token=1, register_tokens=4), 261, (224, 224), (16, 16)),
        (vision_model(16, cls_token=1), 25, (64, 96), (4, 6)),
        (vision_model(16), 5, (32, 32), (2, 2)),  # not one place and four prefix tokens
        (vision_model(4), 3136, (224, 224), (56, 56)),  # stages that halve each side
        (vision_model(4), 196, (224, 224), (14, 14)),
        (vision_model(4), 49, (224, 224), (7, 7)),
        (vision_model((16, 8)), 49, (64, 96), (4, 12)),
        (vision_model((2, 16, 16)), 1569, (16, 224, 224), (8, 14, 14)),
        (nn.DataParallel(vision_model(16, cls_token=1)), 197, (224, 224), (14, 14)),
        (nn.Sequential(nn.Identity(), vision_model(16, cls_token=1)), 197, (224, 224), (14, 14)),
    ],
)
def test_grids_of_patch_embeddings(
    model: nn.Module, length: int, input_size: tuple[int, ...], grid: tuple[int, ...]
) -> None:
    tokens = torch.rand(2, length, 6)
    layer = [module for module in model.modules() if isinstance(module, nn.Identity)][-1]
    reshape = find_reshape("auto", tokens, forward_func=model, layer=layer, input_size=input_size, samples=2)
    assert reshape(tokens).shape == (2, 6, *grid)


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
def test_without_a_model_that_tells(
    shape: tuple[int, ...], input_size: tuple[int, ...], result: tuple[int, ...]
) -> None:
    assert shape_found("auto", shape, input_size) == result
    assert shape_found("auto", shape, input_size, lambda x: x) == result


def test_prefix_tokens_are_not_guessed_where_nothing_says_tokens() -> None:
    """(3, 8, 20) is a signal of 8 channels beside an image; 2 x 2 places after 4 tokens would explain it, too."""
    with pytest.raises(ValueError, match=r"reshape: got \(3, 8, 20\)"):
        shape_found("auto", (3, 8, 20), (32, 32), Around())
    assert shape_found("tokens", (3, 8, 20), (32, 32), Around()) == (3, 20, 2, 2)  # now somebody does


def test_equal_axes_are_told_by_the_layer_or_the_model() -> None:
    shape, size = (2, 8, 8, 8), (32, 32)
    kept = torch.rand(shape)

    def layout(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return find_reshape(
            "auto", kept, forward_func=model, layer=model.get_submodule("layer"), input_size=size, samples=2
        )

    norms = nn.LayerNorm(8)
    for layer in (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.MaxPool2d(2)):
        assert torch.equal(layout(Around(layer, norm=norms))(kept), kept)
    for layer in (nn.Linear(8, 8), nn.LayerNorm(8)):
        assert torch.equal(layout(Around(layer))(kept), channels_last(kept))
    # A plain CNN has nothing that wants its channels last; its Linear follows the pooling.
    assert torch.equal(layout(SmallCnn())(kept), kept)
    with pytest.raises(ValueError, match=r"reshape: .* which axis has the channels, got \(2, 8, 8, 8\)"):
        layout(Around(norm=norms))


@pytest.mark.parametrize(
    ("reshape", "shape", "input_size", "model"),
    [
        ("auto", (2, 49, 16, 8), (224, 224), None),
        ("auto", (2, 3, 25, 64), (64, 96), None),  # heads
        ("auto", (2, 6, 7, 7), (50,), None),
        ("auto", (2, 20, 25), (100,), None),
        ("auto", (2, 7, 7, 6), None, None),
        ("auto", (2, 180, 6), (224, 224), None),
        ("auto", (2, 1, 6), (224, 224), None),
        ("tokens", (2, 7, 7, 6), (224, 224), None),
        ("tokens", (2, 28, 6), (100,), None),
        ("tokens", (2, 28, 6), None, None),
        ("channels_last", (2, 6), (224, 224), None),
        ("auto", (2, 180, 6), (224, 224), vision_model(16, cls_token=1)),
        ("auto", (2, 99, 6), (224, 224), vision_model(16, cls_token=1)),  # some patches dropped
        ("auto", (2, 1569, 6), (16, 224, 224), vision_model(16)),  # no patches of a video
        ("auto", (2, 1568, 6), (16, 3, 224, 224), vision_model((2, 16, 16))),  # axes in another order
        # Unknown sizes are not guessed: a ViT's tokens are no signal.
        ("auto", (2, 197, 6), None, vision_model(16, cls_token=1)),
        ("auto", (2, 197, 6), None, Around(nn.LayerNorm(6))),
        ("auto", (2, 197, 6), None, Around(nn.Linear(6, 6))),
    ],
)
def test_what_is_uncertain_raises(
    reshape: Reshape, shape: tuple[int, ...], input_size: tuple[int, ...] | None, model: Any
) -> None:
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        find_reshape(
            reshape,
            torch.rand(shape),
            forward_func=model or (lambda x: x),
            layer=model.layer if model is not None else nn.Identity(),
            input_size=input_size,
            samples=2,
        )(torch.rand(shape))


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (CASES["swin-layers.1"][0], "layers.0.blocks.0.attn.proj"),
        (CASES["maxvit-stages.1"][0], "stages.1.blocks.0.attn_block.attn"),
        (torchvision_maxvit, "blocks.1.layers.0.layers.window_attention.attn_layer"),
        (CASES["cait-blocks.1"][0], "blocks_token_only.0.mlp"),
        (timm_model("hiera_tiny_224", img_size=64, stages=(1, 1, 1, 1), embed_dim=8), "blocks.1"),
        (nest, "levels.0.transformer_encoder"),
    ],
    ids=["swin", "maxvit", "torchvision_maxvit", "class token alone", "hiera", "nest"],
)
def test_layers_whose_rows_or_places_are_no_image(make: Callable[[], nn.Module], layer: str) -> None:
    model, images = made(make), torch.rand(2, 3, 64, 96 if layer.startswith("layers") else 64)
    taken: list[Tensor] = []
    with model.get_submodule(layer).register_forward_hook(lambda module, args, output: taken.append(output)):
        model(images)
    with pytest.raises(ValueError, match=r"^reshape: "):
        found("auto", model, layer, images, taken[0])


# Videos, volumes and text lines: axes with strides of their own.


def mvit() -> nn.Module:
    options: dict[str, Any] = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "num_heads": 1}
    blocks = [
        MSBlockConfig(
            input_channels=8, output_channels=8, stride_q=[1, 1, 1], stride_kv=[1, 2, 2], **options
        ),
        MSBlockConfig(
            input_channels=8, output_channels=16, stride_q=[1, 2, 2], stride_kv=[1, 1, 1], **options
        ),
        MSBlockConfig(
            input_channels=16, output_channels=16, stride_q=[1, 1, 1], stride_kv=[1, 1, 1], **options
        ),
    ]
    return MViT(
        (64, 64), 16, blocks, residual_pool=False, residual_with_cls_embed=False, rel_pos_embed=False,
        proj_after_attn=False, num_classes=5,
    )  # fmt: skip


def swin3d() -> nn.Module:
    return SwinTransformer3d([2, 4, 4], 12, [1, 1, 1], [1, 1, 2], [4, 4, 4], num_classes=5)


def r3d() -> nn.Module:
    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=5)


def text_lines() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(3, 16, 3, (4, 2), 1), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, 3, 3, (4, 2), 1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )


def tokens_of_video(*grid: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[:, 1:].unflatten(1, grid).movedim(-1, 1)


@pytest.mark.parametrize(
    ("make", "layer", "size", "by_hand"),
    [
        (mvit, "blocks.0", (16, 64, 64), tokens_of_video(8, 16, 16)),
        (mvit, "blocks.1.norm1", (16, 64, 64), tokens_of_video(8, 16, 16)),
        (mvit, "blocks.2.norm1", (16, 64, 64), tokens_of_video(8, 8, 8)),
        (swin3d, "features.0", (8, 64, 64), lambda t: t.movedim(-1, 1)),
        (swin3d, "features.4", (8, 64, 64), lambda t: t.movedim(-1, 1)),
        (r3d, "layer3", (8, 64, 64), unchanged),
        (text_lines, "1", (64, 128), unchanged),
    ],
)
def test_axes_with_strides_of_their_own(
    make: Callable[[], nn.Module], layer: str, size: tuple[int, ...], by_hand: Callable[[Tensor], Tensor]
) -> None:
    model, videos = made(make), torch.rand(2, 3, *size)
    cams, expected = (
        BatchGradCam(model, layer, reshape=reshape, method="layer_cam").attribute(videos, target=1)
        for reshape in ("auto", by_hand)
    )
    cams, expected = (maps[0] if isinstance(maps, tuple) else maps for maps in (cams, expected))
    assert cams.dim() == 2 + len(size)
    assert torch.equal(cams, expected)


def test_suggestions_for_videos() -> None:
    rows = suggest_layers(made(mvit), torch.rand(1, 3, 16, 64, 64))
    assert {(row.map_size, row.resolution) for row in rows} == {((8, 16, 16), 1 / 4), ((8, 8, 8), 1 / 8)}
    rows = suggest_layers(made(swin3d), torch.rand(1, 3, 8, 64, 64))
    assert {row.map_size for row in rows} == {(4, 16, 16), (4, 8, 8), (4, 4, 4)}
    best = suggest_layers(made(r3d), torch.rand(1, 3, 8, 64, 64)).recommended
    assert best is not None
    assert (best.name, best.map_size) == ("layer4", (1, 4, 4))  # time may be short
    assert not check(made(r3d), "layer4", torch.rand(1, 3, 8, 64, 64)).about("small_maps")


# Functions of the user's.


def find_own(reshape: Any) -> Callable[[Tensor], Tensor]:
    activations = torch.rand(2, 17, 6)
    return find_reshape(
        reshape, activations, forward_func=Around(), layer=nn.Identity(), input_size=(64, 64), samples=2
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
    with pytest.raises(ValueError, match=r"reshape: .* \(2, 6, 16\) and \(2, 6, 15\)"):
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

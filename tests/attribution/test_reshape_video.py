"""``reshape="auto"`` where the axes have strides of their own: video, volumes, text lines. Right, or an error; never a guess."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet
from torchvision.models.video.swin_transformer import SwinTransformer3d

from batchcam_captum import BatchGradCam, check, suggest_layers
from batchcam_captum.attribution.reshape import find_reshape
from tests.models import strong_heads


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
    torch.manual_seed(0)
    return strong_heads(
        MViT((64, 64), 16, blocks, residual_pool=False, residual_with_cls_embed=False, rel_pos_embed=False,
             proj_after_attn=False, num_classes=5)
    ).eval()  # fmt: skip


def swin3d() -> nn.Module:
    torch.manual_seed(0)
    return strong_heads(
        SwinTransformer3d([2, 4, 4], 12, [1, 1, 1], [1, 1, 2], [4, 4, 4], num_classes=5)
    ).eval()


def r3d() -> nn.Module:
    torch.manual_seed(0)
    return strong_heads(
        VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, num_classes=5)
    ).eval()


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1.norm1", "blocks.1", "blocks.2.norm1"])
def test_the_places_of_a_multiscale_vision_transformer(layer: str) -> None:
    """Where the tokens lie is what the block itself was told; the reshape is written by hand from that."""
    model, video = mvit(), torch.rand(2, 3, 16, 64, 64)
    told: dict[str, tuple[int, ...]] = {}
    for name, block in model.get_submodule("blocks").named_children():
        block.register_forward_hook(
            lambda _, received, returned, name=f"blocks.{name}": told.update(
                {name: returned[1], f"{name}.norm1": received[1]}
            )
        )
    model(video)
    grid = told[layer]

    def by_hand(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].reshape(len(tokens), *grid, -1).movedim(-1, 1)

    cams, expected = (
        BatchGradCam(model, layer, reshape=reshape, method="layer_cam").attribute(video, target=1)
        for reshape in ("auto", by_hand)
    )
    cams, expected = (maps[0] if isinstance(maps, tuple) else maps for maps in (cams, expected))
    assert cams.shape == (2, 1, *grid)
    assert torch.equal(cams, expected)


def test_suggestions_for_a_multiscale_vision_transformer() -> None:
    found = suggest_layers(mvit(), torch.rand(1, 3, 16, 64, 64))
    assert {(row.map_size, row.resolution) for row in found} == {((8, 16, 16), 1 / 4), ((8, 8, 8), 1 / 8)}


@pytest.mark.parametrize(
    ("layer", "grid"), [("features.0", (4, 16, 16)), ("features.2", (4, 8, 8)), ("features.4", (4, 4, 4))]
)
def test_channels_that_come_last_in_a_video(layer: str, grid: tuple[int, ...]) -> None:
    model, video = swin3d(), torch.rand(2, 3, 8, 64, 64)
    cams = BatchGradCam(model, layer, reshape="auto").attribute(video, target=1)
    expected = BatchGradCam(model, layer, reshape=lambda t: t.movedim(-1, 1)).attribute(video, target=1)
    assert cams.shape == (2, 1, *grid)
    assert torch.equal(cams, expected)
    report = check(model, layer, video)
    assert [finding.topic for finding in report.findings if finding.severity == "error"] == ["layout"]
    assert check(model, layer, video, reshape="auto").ok


def test_suggestions_for_a_video_swin() -> None:
    found = suggest_layers(swin3d(), torch.rand(1, 3, 8, 64, 64))
    assert {row.map_size for row in found} == {(4, 16, 16), (4, 8, 8), (4, 4, 4)}
    assert all(row.shape[-1] not in row.map_size for row in found if row.reshape)


def test_a_time_axis_may_be_short() -> None:
    model, video = r3d(), torch.rand(2, 3, 8, 64, 64)
    cams = BatchGradCam(model, "layer3", reshape="auto").attribute(video, target=1)
    assert torch.equal(cams, BatchGradCam(model, "layer3").attribute(video, target=1))
    assert cams.shape == (2, 1, 2, 8, 8)
    best = suggest_layers(model, video).recommended
    assert best is not None
    assert (best.name, best.map_size) == ("layer4", (1, 4, 4))
    assert not check(model, "layer4", video).about("small_maps")


def test_text_lines_have_a_stride_for_each_axis() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, (4, 2), 1), nn.Sequential(nn.Conv2d(8, 16, 3, (4, 2), 1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    lines = torch.rand(2, 1, 64, 128)
    cams = BatchGradCam(model, "1", reshape="auto").attribute(lines, target=0)
    assert cams.shape == (2, 1, 4, 32)
    assert torch.equal(cams, BatchGradCam(model, "1").attribute(lines, target=0))
    assert [row.name for row in suggest_layers(model, lines)] == ["1", "0"]


class Says(nn.Module):
    """What a Hugging Face model says, around a layer."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config, self.layer = SimpleNamespace(**config), nn.LayerNorm(6)


def places(model: nn.Module, length: int, *input_size: int) -> tuple[int, ...]:
    tokens, layer = torch.rand(1, length, 6), model.get_submodule("layer")
    found = find_reshape("auto", tokens, forward_func=model, layer=layer, input_size=input_size, samples=1)
    return tuple(found(tokens).shape[2:])


@pytest.mark.parametrize(("tubelet", "prefix"), [(2, 0), ([2, 16, 16], 1)])
def test_tubelets(tubelet: Any, prefix: int) -> None:
    """VideoMAE and ViViT take (N, frames, channels, height, width)."""
    model = Says(patch_size=16, image_size=224, num_frames=16, tubelet_size=tubelet)
    assert places(model, 1568 + prefix, 16, 3, 224, 224) == (8, 14, 14)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Says(), r"\(1, 1569, 6\) from LayerNorm for an input of 16 x 224 x 224"),
        (Says(patch_size=8), r"1569 tokens, got none"),  # 2 x 28 x 28 cubes and a token
    ],
)
def test_tokens_of_a_video_are_never_guessed(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        places(model, 1569, 16, 224, 224)

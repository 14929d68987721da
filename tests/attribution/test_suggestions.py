"""Which layers are suggested, against what is known of the networks, and against loops over their modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, suggest_layers
from batchcam_captum.attribution.graph import bottlenecks, node_of, walk
from tests.models import AddsInPlace, DenseNetOutput, RepeatedNet, Residual, SmallCnn, VectorNet, strong_heads


def names(model: nn.Module, *size: int) -> list[str]:
    return [row.name for row in suggest_layers(model.eval(), torch.randn(2, 3, *size))]


def recommended(model: nn.Module, *size: int) -> str:
    best = suggest_layers(model.eval(), torch.randn(2, 3, *size)).recommended
    assert best is not None
    return best.name


def test_the_last_layer_of_each_resolution_of_a_resnet() -> None:
    found = suggest_layers(torchvision.models.resnet18().eval(), torch.randn(2, 3, 128, 128))
    assert [row.name for row in found] == ["layer4", "layer3", "layer2", "layer1", "relu"]
    assert [row.map_size for row in found] == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert [row.resolution for row in found] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert [row.batch_norm_follows for row in found] == [False, True, True, True, True]
    assert [row.recommended for row in found] == [True, False, False, False, False]
    assert found[0].shape == (2, 512, 4, 4)


def test_maps_that_are_too_small_are_not_recommended() -> None:
    found = suggest_layers(torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64))
    assert found[0].name == "layer4"
    assert "under 4 x 4" in found[0].remark
    assert found.recommended is found[1]
    assert found[1].name == "layer3"


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (torchvision.models.mobilenet_v3_small, 128, "features.12"),
        (lambda: timm.create_model("convnext_atto"), 128, "stages.3"),
        (lambda: timm.create_model("efficientnet_b0"), 128, "bn2"),
    ],
    ids=["mobilenet", "convnext", "efficientnet"],
)
def test_the_recommended_layer_of_known_networks(make, size: int, expected: str) -> None:
    assert recommended(make(), size, size) == expected


def test_a_stage_stands_for_its_resolution_not_the_beginning_of_the_next() -> None:
    """features.9 goes from 4 x 4 to 2 x 2; its first layers still have the resolution of features.8."""
    assert names(torchvision.models.mobilenet_v3_small(), 64, 64) == [
        "features.12", "features.8", "features.3", "features.1", "features.0",
    ]  # fmt: skip


def test_class_tokens_leave_the_last_block_out() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=3).eval()
    found = suggest_layers(model, torch.randn(2, 3, 64, 64))
    assert [row.name for row in found] == ["blocks.2.norm1", "blocks.1"]
    assert {row.reshape for row in found} == {"auto"}
    assert {row.map_size for row in found} == {(4, 4)}
    assert set(found.left_out) == {"blocks.2", "norm"}
    # The slow twin: the map of what is left out is zero, that of what is suggested is not.
    for name, is_zero in [("blocks.2", True), ("blocks.2.norm1", False), ("blocks.1", False)]:
        cams = BatchGradCam(model, name, reshape="auto").attribute(torch.randn(2, 3, 64, 64), target=0)
        assert (cams == 0).all() == is_zero


def test_pooled_tokens_do_not() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, global_pool="avg")
    assert recommended(model, 64, 64) == "blocks.2"


def test_channels_last() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(1, 1, 1, 1))
    found = suggest_layers(model.eval(), torch.randn(2, 3, 112, 112))
    assert [row.map_size for row in found] == [(4, 4), (7, 7), (14, 14), (28, 28)]
    assert [row.name for row in found[1:]] == ["layers.2", "layers.1", "layers.0"]
    assert all(row.reshape == "auto" for row in found)


def test_every_suggestion_can_be_explained() -> None:
    images = torch.randn(2, 3, 64, 96)
    for model in (
        torchvision.models.resnet18(),
        timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=2),
    ):
        for row in suggest_layers(model.eval(), images):
            cams = BatchGradCam(model, row.name, reshape=row.reshape).attribute(images, target=1)
            assert cams.shape == (2, 1, *row.map_size)
            assert cams.any()


def test_a_layer_that_runs_twice_is_left_out() -> None:
    found = suggest_layers(RepeatedNet(), torch.randn(2, 3, 16, 16))
    assert [row.name for row in found] == ["stem"]
    assert found.left_out == {"layer": "it runs 2 times in one forward"}


def test_activations_that_a_network_uses_again_are_not_worth_a_word() -> None:
    assert not suggest_layers(torchvision.models.resnet18().eval(), torch.randn(1, 3, 64, 64)).left_out


class WithSideExit(nn.Module):
    """One branch leads nowhere, two others meet in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.aside = nn.Conv2d(4, 4, 3)
        self.left, self.right = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 5)
        self.head = strong_heads(nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).relu()
        self.exit = self.aside(maps)
        pooled = [branch(maps).tanh().mean((2, 3)) for branch in (self.left, self.right)]
        return self.head(torch.cat(pooled, 1))


def test_where_everything_is_in_branches_they_are_marked() -> None:
    class Branches(WithSideExit):
        def forward(self, images: Tensor) -> Tensor:
            pooled = [
                branch(self.stem(half)).mean((2, 3))
                for branch, half in ((self.left, images), (self.right, images))
            ]
            return self.head(torch.cat(pooled, 1))

    found = suggest_layers(Branches(), torch.randn(2, 3, 16, 16))
    assert {row.name for row in found} == {"left", "right"}
    assert all(row.remark for row in found)


class OfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(10, 8), nn.Conv1d(8, 6, 3)
        self.head = strong_heads(nn.Linear(6, 3))

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(words).transpose(1, 2)).relu().mean(2))


class UnrecordedStem(SmallCnn):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.stem(images)
        return self.head(self.tail(self.layer(maps)))


@pytest.mark.parametrize(
    ("make", "example", "expected"),
    [
        (WithSideExit, torch.randn(2, 3, 16, 16), {"stem": (14, 14)}),
        (AddsInPlace, torch.randn(2, 3, 16, 16), {"stem": (16, 16)}),  # a path bypasses the inner layer
        (DenseNetOutput, torch.randn(2, 3, 16, 16), {"layer": (14, 14)}),  # dense scores are no layer
        (VectorNet, torch.randn(2, 3, 4, 4), {}),
        (OfWords, torch.arange(20).reshape(2, 10) % 10, {"layer": (8,)}),
        (UnrecordedStem, torch.randn(2, 3, 16, 16), {"tail.2": (5, 5), "tail.0": (7, 7)}),
        (lambda: SmallCnn(dims=1), torch.randn(2, 3, 12), {"tail.2": (3,), "tail.0": (5,), "stem": (12,)}),
        (
            lambda: SmallCnn(dims=3),
            torch.randn(2, 3, 12, 12, 12),
            {"tail.2": (3, 3, 3), "tail.0": (5, 5, 5), "stem": (12, 12, 12)},
        ),
    ],
)
def test_the_layers_of_small_networks(
    make: Callable[[], nn.Module], example: Tensor, expected: dict[str, tuple[int, ...]]
) -> None:
    found = suggest_layers(make().eval(), example)
    assert {row.name: row.map_size for row in found} == expected
    assert (found.recommended is None) == (not expected)
    assert ("no layer with places" in str(found)) == (not expected)


def test_a_head_of_zeros_is_remarked() -> None:
    model = SmallCnn().eval()
    nn.init.zeros_(model.head.weight)
    found = suggest_layers(model, torch.randn(2, 3, 16, 16))
    assert "are the head's weights zero?" in found[0].remark
    assert not found.left_out


def test_the_table() -> None:
    text = str(suggest_layers(torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "returns", "map", "resolution", "BatchNorm", "follows"]
    assert lines[2].split()[:2] == ["*", "layer3"]
    assert lines[-1] == '* begin with BatchGradCam(model, "layer3")'
    assert all(len(line) < 120 for line in lines)


def test_a_function_has_no_names() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module"):
        suggest_layers(lambda images: images, torch.randn(2, 3, 8, 8))


def test_bottlenecks_equal_cutting_each_operator_in_turn() -> None:
    """The slow twin: an operator is passed by every path if, without it, no leaf is reached."""
    model = strong_heads(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), Residual(nn.Conv2d(4, 4, 1)), nn.ReLU(), Residual(Residual(nn.Conv2d(4, 4, 1))),
            nn.Flatten(), nn.Linear(4 * 36, 3),
        )
    )  # fmt: skip
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    root, leaf = node_of(model(images)), node_of(images)
    assert root is not None
    assert leaf is not None
    cut = {node for node in walk([root]) if leaf not in walk([root], stop={node})}
    assert bottlenecks(root, [leaf]) == cut
    assert 0 < len(cut) < len(list(walk([root])))


def test_what_only_a_class_token_reads_is_suggested_once() -> None:
    """In a branch, the layer before the attention is also the last at its resolution."""

    class TwoScales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.other = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 8, 8)
            self.values, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
            self.head = strong_heads(nn.Linear(8, 3))

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            first = torch.cat([images.new_ones(len(images), 1, 8), tokens], 1)
            read = self.values(first).mean(1, keepdim=True)
            tokens = self.norm(torch.cat([read, first[:, 1:]], 1))
            return self.head(tokens[:, 0] + self.other(images).mean((2, 3)))

    found = [row.name for row in suggest_layers(TwoScales().eval(), torch.rand(2, 3, 32, 32))]
    assert "values" in found
    assert len(found) == len(set(found))

"""What is suggested, and reported, where a model takes several inputs, or a layer returns a tuple."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, check, suggest_layers
from batchcam_captum.attribution.graph import bottlenecks, node_of, walk
from tests.models import strong_heads


class BesideImage(nn.Module):
    """An image, and something without places: figures, or words."""

    def __init__(self, beside: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.beside = torchvision.models.resnet18(num_classes=5), beside
        self.head = strong_heads(nn.Linear(10, 4))

    def forward(self, beside: Tensor, image: Tensor) -> Tensor:
        other = self.beside(beside)
        return self.head(torch.cat([self.image(image), other.mean(1) if other.dim() > 2 else other], 1))


@pytest.mark.parametrize(
    ("beside", "values"),
    [
        (nn.Linear(3, 5), torch.rand(2, 3)),
        (nn.Embedding(20, 5), torch.arange(14).reshape(2, 7)),
    ],
    ids=["figures", "words"],
)
def test_an_image_that_comes_second(beside: nn.Module, values: Tensor) -> None:
    model, images = BesideImage(beside).eval(), torch.rand(2, 3, 128, 128)
    found = suggest_layers(model, (values, images))
    alone = suggest_layers(model.image, images)
    assert [row.name for row in found] == [f"image.{row.name}" for row in alone]
    assert [row.map_size for row in found] == [row.map_size for row in alone]
    assert [row.resolution for row in found] == [row.resolution for row in alone]
    assert check(model, "image.layer4", (values, images)).about("small_maps") == []


class ImageAndSignal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.signal = nn.Sequential(nn.Conv1d(4, 8, 5, 2, 2), nn.ReLU())
        self.head = strong_heads(nn.Linear(16, 5))

    def forward(self, image: Tensor, signal: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image).mean((2, 3)), self.signal(signal).mean(2)], 1))


def test_an_image_and_a_signal() -> None:
    model, inputs = ImageAndSignal().eval(), (torch.rand(3, 3, 32, 32), torch.rand(3, 4, 40))
    found = {row.name: row for row in suggest_layers(model, inputs)}
    assert {"image", "signal"} <= set(found)
    assert (found["image"].map_size, found["image"].resolution) == ((8, 8), 1 / 4)
    assert (found["signal"].map_size, found["signal"].resolution) == ((20,), 1 / 2)
    assert not any(row.remark or row.reshape for row in found.values())
    report = check(model, "signal", inputs)
    assert report.ok
    assert report.map_size == (20,)
    assert not report.about("layout")
    with pytest.raises(ValueError, match=r"got \(3, 8, 20\) from Sequential for an input of 32 x 32"):
        BatchGradCam(model, "signal", reshape="auto").attribute(inputs, target=0)


def test_paths_from_several_inputs_equal_cutting_each_operator_in_turn() -> None:
    model = ImageAndSignal()
    inputs = (torch.rand(3, 3, 8, 8, requires_grad=True), torch.rand(3, 4, 10, requires_grad=True))
    root = node_of(model(*inputs))
    leaves = {leaf for tensor in inputs if (leaf := node_of(tensor)) is not None}
    assert root is not None
    assert len(leaves) == 2
    cut = {node for node in walk([root]) if not leaves.intersection(walk([root], stop={node}))}
    assert bottlenecks(root, leaves) == cut


def test_the_nearest_later_layer_is_not_on_another_inputs_branch() -> None:
    class Later(ImageAndSignal):
        def forward(self, image: Tensor, signal: Tensor) -> Tensor:
            maps = nn.functional.hardsigmoid(self.image(image))
            return self.head(torch.cat([maps.mean((2, 3)), self.signal(signal).mean(2)], 1))

    inputs = (torch.rand(3, 3, 32, 32), torch.rand(3, 4, 40))
    (finding,) = check(Later().eval(), "image", inputs).about("second_order")
    assert "signal" not in finding.message


@pytest.mark.parametrize(
    ("last", "length"), [(nn.ReLU(), 20), (nn.MaxPool1d(2), 10), (nn.GroupNorm(2, 12), 20)]
)
def test_words_end_in_a_block(last: nn.Module, length: int) -> None:
    """The block rather than the convolution in it, though the words have no sides to compare with."""

    class OfWords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 16)
            self.layer = nn.Sequential(nn.Conv1d(16, 12, 3, padding=1), last)
            self.head = strong_heads(nn.Linear(12, 4))

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.layer(self.embedding(words).transpose(1, 2)).amax(2))

    found = suggest_layers(OfWords().eval(), torch.arange(60).reshape(3, 20) % 50)
    assert [(row.name, row.map_size) for row in found] == [("layer", (length,))]


# Layers that return a tuple.


class Block(nn.Module):
    """As in transformers: the hidden states in a tuple, with or without the weights of the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (hidden + self.mix(self.norm(hidden)),)


class Tuples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(patch_size=16, image_size=(64, 96))
        self.embed, self.token = nn.Conv2d(3, 16, 16, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.layer, self.head = nn.ModuleList([Block(), Block()]), strong_heads(nn.Linear(16, 5))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.token.expand(len(images), -1, -1), patches], 1)
        for block in self.layer:
            (hidden,) = block(hidden)
        return self.head(hidden[:, 1:].square().mean(1))


def test_blocks_that_return_a_tuple() -> None:
    model, images = Tuples().eval(), torch.rand(2, 3, 64, 96)
    report = check(model, "layer.0", images)
    (finding,) = report.about("layout")
    assert finding.severity == "error"
    assert "(2, 25, 16)" in finding.message
    assert "reshape='auto'" in finding.message
    assert check(model, "layer.0", images, reshape="auto").map_size == (4, 6)
    (row, *_) = suggest_layers(model, images)
    assert (row.name, row.shape, row.map_size, row.reshape) == ("layer.1", (2, 25, 16), (4, 6), "auto")


class OfSignals(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.LSTM(8, 8, bidirectional=True, **options)
        self.stem, self.head = nn.Conv1d(2, 8, 7, 4), strong_heads(nn.Linear(16, 3))

    def forward(self, signals: Tensor) -> Tensor:
        steps = self.stem(signals).transpose(1, 2)
        if not self.layer.batch_first:
            return self.head(self.layer(steps.transpose(0, 1))[0][-1])
        return self.head(self.layer(steps)[0][:, -1])


def test_a_recurrent_layer() -> None:
    signals = torch.rand(4, 2, 256)
    report = check(OfSignals(batch_first=True), "layer", signals)
    (finding,) = report.about("layout")
    assert "maps of 63" in finding.message
    (row,) = [row for row in suggest_layers(OfSignals(batch_first=True), signals) if row.name == "layer"]
    assert (row.shape, row.map_size, row.reshape) == ((4, 63, 16), (63,), "auto")


def test_a_recurrent_layer_whose_rows_are_steps() -> None:
    model, signals = (
        OfSignals(),
        torch.rand(63, 2, 256),
    )  # as many signals as steps, so that the shape does not tell
    with pytest.raises(ValueError, match=r"reshape: .* got \(63, 63, 16\) from LSTM"):
        BatchGradCam(model, "layer", reshape="auto").attribute(signals, target=0)
    assert check(model, "layer", signals).about("layout")


def test_tokens_of_an_image_that_comes_second() -> None:
    class BesideTokens(Tuples):
        def forward(self, figures: Tensor, images: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(images) + figures

    model, inputs = BesideTokens().eval(), (torch.rand(2, 5), torch.rand(2, 3, 64, 96))
    found = suggest_layers(model, inputs)
    assert found[0].name == "layer.1"
    for row in found:
        cams = BatchGradCam(model, row.name, reshape=row.reshape).attribute(inputs, target=0)
        assert cams.shape == (2, 1, *row.map_size) == (2, 1, 4, 6)

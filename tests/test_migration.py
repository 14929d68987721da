"""The migration guide keeps its word: its code runs, and gives the peers' maps."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
#: By its heading: the code of each of the libraries' sections.
CODE = {
    text.split("\n", 1)[0]: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for text in PAGE.split("\n## ")
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2))
        self.layer4 = nn.Sequential(nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Softplus())
        self.head = nn.Linear(8 * 49, 10)
        nn.init.normal_(self.head.weight, std=0.1)

    def forward(self, images):
        return self.head(self.layer4(self.layer3(images)).flatten(1))


@pytest.fixture
def names():
    torch.manual_seed(0)
    return {
        "model": Model().eval(),
        "images": torch.randn(4, 3, 21, 21),
        "labels": torch.tensor([4, 1, 9, 0]),
        "rgb_image": np.full((21, 21, 3), 0.5, np.float32),
    }


def run(section, names, blocks):
    assert len(CODE[section]) == blocks
    with contextlib.redirect_stderr(io.StringIO()):  # their progress bars
        for block in CODE[section]:
            exec(compile(block, f"docs/migration.md, {section}", "exec"), names)


def assert_same(maps, expected):
    maps, expected = np.asarray(maps), np.asarray(expected)
    assert maps.shape == expected.shape
    assert np.ptp(expected) > 0.5
    assert np.abs(maps - expected).max() <= 1e-4


def test_every_code_block_is_in_a_section_that_is_run():
    assert len(re.findall("^```python", PAGE, re.MULTILINE)) == sum(
        len(CODE[section]) for section in ("pytorch-grad-cam", "Captum", "TorchCAM")
    )


def test_pytorch_grad_cam(names):
    peer = pytest.importorskip("pytorch_grad_cam")
    model, images = names["model"].train(), names["images"]
    run("pytorch-grad-cam", names, 5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert names["visualization"].shape == (21, 21, 3)
    assert names["score_maps"].shape == (4, 21, 21)
    assert torch.equal(names["scores"], model(images).detach())

    targets, layers = names["targets"], [model.layer3, model.layer4]
    assert_same(names["maps"], peer.GradCAM(model, layers[1:])(images, targets))
    assert_same(names["averaged_maps"], peer.GradCAMPlusPlus(model, layers)(images, targets))


def test_a_weighting_of_ones_own(names):
    """The class in the block's comment, and the function that stands for it."""
    peer = pytest.importorskip("pytorch_grad_cam")
    (block,) = [block for block in CODE["pytorch-grad-cam"] if "get_cam_weights" in block]
    theirs = "\n".join(re.findall("^# (.*)$", block, re.MULTILINE))
    names |= {"pytorch_grad_cam": peer}
    exec(theirs, names)
    exec(block, names)
    model, images = names["model"], names["images"]
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(label) for label in names["labels"]]
    assert_same(names["own_maps"], names["MaxCAM"](model, [model.layer4])(images, targets))
    from batchcam_captum import interop

    with pytest.raises(TypeError, match=r"MaxCAM: .*get_cam_weights.*method=function"):
        exec(theirs.replace("pytorch_grad_cam.", ""), {"GradCAM": interop.GradCAM})


def test_finer_cam_needs_their_own_class(names):
    peer = pytest.importorskip("pytorch_grad_cam")
    from batchcam_captum.interop import GradCAM

    layers = [names["model"].layer4]
    assert peer.FinerCAM(names["model"], layers, base_method=peer.GradCAM)(names["images"]).max() > 0.5
    with pytest.raises(AttributeError):
        peer.FinerCAM(names["model"], layers, base_method=GradCAM)


def test_finer_cam(names):
    peer = pytest.importorskip("pytorch_grad_cam")
    model, images = names["model"], names["images"]
    from batchcam_captum.interop import GradCAM

    names |= {"GradCAM": GradCAM, "scores": model(images).detach()}
    (block,) = [block for block in CODE["pytorch-grad-cam"] if "FinerWeightedTarget" in block]
    exec(block, names)
    assert_same(names["finer_maps"], peer.FinerCAM(model, [model.layer4])(images))


def test_its_metrics_take_these_maps(names):
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    from batchcam_captum.interop import GradCAM

    targets = [ClassifierOutputSoftmaxTarget(label) for label in names["labels"]]
    maps = GradCAM(names["model"], ["layer4"])(names["images"], targets)
    changes = CamMultImageConfidenceChange()(names["images"], maps, targets, names["model"])
    assert changes.shape == (4,)


def test_targets_without_it(names):
    """The right column of the table of targets, beside the left one."""
    peer = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    from batchcam_captum.interop import GradCAM

    rows = dict(re.findall(r"^\| `(Classifier\w+)\(k\)` \| `(.*)` \|$", PAGE, re.MULTILINE))
    assert len(rows) == 3
    cam = GradCAM(names["model"], ["layer4"])
    for name, code in rows.items():
        targets = [eval(code, {"k": k}) for k in (4, 1, 9, 0)]
        expected = cam(names["images"], [getattr(peer, name)(k) for k in (4, 1, 9, 0)])
        assert_same(cam(names["images"], targets), expected)


def test_captum(names):
    from captum.attr import LayerAttribution, LayerGradCam

    run("Captum", names, 1)
    model, images = names["model"], names["images"]
    assert isinstance(names["grad_cam"], LayerGradCam)
    expected = LayerGradCam(model, model.layer4).attribute(images, target=names["labels"]).detach()
    torch.testing.assert_close(names["cams"], expected)
    larger = LayerAttribution.interpolate(expected, (21, 21), interpolate_mode="bilinear")
    torch.testing.assert_close(names["heatmaps"], larger)


def test_torchcam(names):
    methods = pytest.importorskip("torchcam.methods")
    run("TorchCAM", names, 1)
    model, images = names["model"], names["images"]
    with methods.GradCAM(model, ["layer3", "layer4"]) as extractor:
        scores = model(images)
        expected = extractor(names["labels"].tolist(), scores)
        fused = extractor.fuse_cams(expected)
    for maps, theirs in zip(names["maps"], expected, strict=True):
        assert_same(maps, theirs)
    assert_same(names["fused"], fused)
    assert torch.equal(names["scores"], scores.detach())


def test_classes_that_are_named_are_there():
    from batchcam_captum import interop

    named = set(
        re.findall(r"`(\w*CAM\w*)`", "\n".join(re.findall(r"^.*the same names.*$", PAGE, re.MULTILINE)))
    )
    assert len(named) == 8
    assert named <= set(interop.__all__)

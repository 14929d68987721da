"""Images from files."""

import os
import pickle
import re
import sys
from dataclasses import replace

import pytest
import torch

from batchcam_captum.loading import Preprocessing, load_images, load_packaged_images, read_image

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

PLAIN = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3)


def gradient(height=8, width=8):
    """Red grows to the right, green downward."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[..., 0] = np.linspace(0, 255, width)
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def pixel(path):
    return torch.tensor(read_image(path).getpixel((0, 0))) / 255


def test_values_are_normalized_and_pictures_are_not(tmp_path):
    image, mean, std = gradient(), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    loaded = load_images(save(image, tmp_path / "a.png"), Preprocessing((8, 8), mean, std))
    wanted = torch.from_numpy(np.asarray(image) / 255).float()
    torch.testing.assert_close(loaded.pictures, wanted[None])
    normalized = (wanted - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(loaded.tensor, normalized.permute(2, 0, 1)[None])
    assert loaded.tensor.dtype == torch.float32
    assert (loaded.paths, loaded.failed) == ((str(tmp_path / "a.png"),), {})


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (9, 200)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_resized_and_cropped_as_torchvision_does(shape, crop, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
    mode = transforms.InterpolationMode(interpolation)
    steps = transforms.Resize(int(16 / crop), mode), transforms.CenterCrop(16), transforms.PILToTensor()
    prepare = pickle.loads(pickle.dumps(Preprocessing((16, 16), PLAIN.mean, PLAIN.std, interpolation, crop)))
    found = prepare(image)
    assert found.shape == (3, 16, 16)
    wanted = transforms.Compose(steps)(image).float() / 255
    assert (found - wanted).abs().max() < 1.01 / 255  # the last place of Pillow's integers


def test_oblong_sizes_and_grayscale_models(tmp_path):
    path = save(Image.new("RGB", (30, 30), (51, 51, 51)), tmp_path / "a.png")
    loaded = load_images(path, Preprocessing((6, 12), (0.2,), (1.0,)))
    torch.testing.assert_close(loaded.tensor, torch.zeros(1, 1, 6, 12))
    assert loaded.pictures.shape == (1, 6, 12, 3)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("L", [0.2, 0.2, 0.2]), ("1", [1, 1, 1]), ("CMYK", [0.8, 0.6, 0.4]), ("LA", [0.2, 0.2, 0.2])],
)
def test_other_modes_become_rgb(tmp_path, mode, wanted):
    color = {"L": 51, "1": 1, "CMYK": (51, 102, 153, 0), "LA": (51, 255)}[mode]
    path = save(Image.new(mode, (4, 4), color), tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    torch.testing.assert_close(pixel(path), torch.tensor(wanted, dtype=torch.float32))


def test_transparent_pixels_become_white(tmp_path):
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 2, 4))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 9, 9, 9])
    palette.paste(0, (0, 0, 2, 4))
    for path in (save(half, tmp_path / "a.png"), save(palette, tmp_path / "b.png", transparency=1)):
        image = read_image(path)
        assert (image.getpixel((0, 0)), image.getpixel((3, 3))) == ((255, 0, 0), (255, 255, 255))


def test_more_than_8_bits_are_scaled(tmp_path):
    fifth = np.full((4, 4), 13107, dtype=np.uint16)
    for suffix in ("png", "tif"):
        path = save(Image.fromarray(fifth), tmp_path / f"a.{suffix}")
        torch.testing.assert_close(pixel(path), torch.full((3,), 0.2))
    unit = save(Image.fromarray(np.full((4, 4), 0.4, dtype=np.float32)), tmp_path / "unit.tif")
    torch.testing.assert_close(pixel(unit), torch.full((3,), 0.4))
    ramp = save(Image.fromarray(np.array([[-10, 10]], dtype=np.float32)), tmp_path / "ramp.tif")
    assert [read_image(ramp).getpixel((column, 0))[0] for column in (0, 1)] == [0, 255]
    nan = save(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), tmp_path / "nan.tif")
    with pytest.raises(OSError, match="NaN"):
        read_image(nan)


def test_camera_orientation_is_applied(tmp_path):
    image = gradient()
    exif = image.getexif()
    exif[0x0112] = 6  # turn clockwise
    upright = read_image(save(image, tmp_path / "a.png", exif=exif))
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "tiff", "gif", "mpo"])
def test_formats_that_are_read_whatever_their_name(tmp_path, kind):
    path = save(gradient(), tmp_path / "image.of_no_known_kind", format=kind)
    assert read_image(path).size == (8, 8)


def test_only_image_formats_and_regular_files_are_opened(tmp_path, monkeypatch):
    """PostScript under the name of a photograph would start Ghostscript, and a pipe would wait for a writer."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ran Ghostscript"))
    gradient().save(tmp_path / "cat.jpg", format="EPS")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    save(gradient(), tmp_path / "whole.jpg")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {
        "cat.jpg": "not an image",
        "text.png": "not an image",
        "empty.png": "not an image",
        "short.jpg": "(?i)truncated",
        "pipe.png": "not a regular file",
        "gone.png": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(OSError, match=reason) as caught:
            read_image(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    names = [*reasons, "whole.jpg"]
    loaded = load_images([tmp_path / name for name in names], PLAIN)
    assert loaded.paths == (str(tmp_path / "whole.jpg"),)
    assert loaded.positions == (6,)
    for name, reason in reasons.items():
        assert re.search(reason, loaded.failed[str(tmp_path / name)])


def test_folders_are_searched_and_patterns_expanded(tmp_path, monkeypatch):
    for name in ("cats/b.PNG", "cats/a.jpg", "cats/more/c.png", "cats/.d.png", "cats/.hidden/e.png", "f.png"):
        save(gradient(), tmp_path / name)
    (tmp_path / "none").mkdir()
    (tmp_path / "cats" / "readme.txt").write_text("no image, and not looked at")
    found = load_images([tmp_path / "cats"], PLAIN)
    names = ["cats/a.jpg", "cats/b.PNG", "cats/more/c.png"]
    assert [path.removeprefix(f"{tmp_path}/") for path in found.paths] == names
    assert found.failed == {}
    monkeypatch.chdir(tmp_path)
    found = load_images(["f.png", tmp_path / "f.png", "*.png", "**/c.*", "*.gif", "none"], PLAIN)
    assert found.paths == ("f.png", "cats/more/c.png")
    assert list(found.failed) == ["*.gif", "none"]
    path = save(gradient(), tmp_path / "a[1].png")  # no pattern
    assert load_images(path, PLAIN).paths == (str(path),)


def test_no_image_at_all_is_an_error(tmp_path):
    names = [tmp_path / f"{number}.png" for number in range(12)]
    with pytest.raises(ValueError, match=r"^images: .*0\.png \(No such file.*… and 2 more"):
        load_images(names)
    with pytest.raises(ValueError, match=r"^images: .*no paths"):
        load_images([])


@pytest.mark.parametrize(
    "options",
    [
        {"size": (0, 4)},
        {"mean": (0.5, 0.5)},
        {"std": (1.0, 0.0, 1.0)},
        {"crop": 0},
        {"interpolation": "magic"},
    ],
)
def test_arguments_that_do_not_fit(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        replace(PLAIN, **options)


def test_packaged_pictures(monkeypatch):
    pytest.importorskip("skimage")
    loaded = load_packaged_images(PLAIN)
    assert loaded.tensor.shape == (4, 3, 4, 4)
    assert len(set(loaded.paths)) == len({tuple(each.flatten().tolist()) for each in loaded.pictures}) == 4
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(ModuleNotFoundError, match="scikit-image"):
        load_packaged_images(PLAIN)
    monkeypatch.delitem(sys.modules, "PIL.Image", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match="pillow"):
        Preprocessing()

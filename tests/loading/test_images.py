"""Images from files."""

import sys
from io import BytesIO

import pytest
import torch

from batchcam_captum.loading import load_images, load_packaged_images

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

AS_THEY_ARE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def gradient(height=8, width=8):
    """Red grows to the right, green downwards."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[..., 0] = np.linspace(0, 255, width)
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_values_are_those_of_pillow_and_standardised(tmp_path):
    image = gradient()
    loaded = load_images(save(image, tmp_path / "a.png"), size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    wanted = torch.from_numpy(np.asarray(image) / 255).float()
    torch.testing.assert_close(loaded.pictures, wanted[None])
    standardised = (wanted - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 2.0])
    torch.testing.assert_close(loaded.tensor, standardised.permute(2, 0, 1)[None])
    assert loaded.tensor.dtype == torch.float32
    assert loaded.paths == (str(tmp_path / "a.png"),)
    assert loaded.failed == {}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (9, 200)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_resized_and_cropped_as_torchvision_does(tmp_path, shape, crop, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)).resize(shape[::-1])
    size = 16
    by_torchvision = transforms.Compose(
        [
            transforms.Resize(int(size / crop), transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    loaded = load_images(
        save(image, tmp_path / "a.png"), size=size, crop=crop, interpolation=interpolation, **AS_THEY_ARE
    )
    difference = (loaded.tensor[0] - by_torchvision(image).float() / 255).abs()
    assert difference.max() < 1.01 / 255  # the last place of Pillow's integers
    assert loaded.tensor.shape == (1, 3, size, size)


def test_size_may_be_oblong(tmp_path):
    loaded = load_images(save(gradient(30, 30), tmp_path / "a.png"), size=(6, 12))
    assert loaded.tensor.shape == (1, 3, 6, 12)
    assert loaded.pictures.shape == (1, 6, 12, 3)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("L", [0.2, 0.2, 0.2]), ("1", [1, 1, 1]), ("CMYK", [0.8, 0.6, 0.4]), ("LA", [0.2, 0.2, 0.2])],
)
def test_other_modes_become_rgb(tmp_path, mode, wanted):
    colour = {"L": 51, "1": 1, "CMYK": (51, 102, 153, 0), "LA": (51, 255)}[mode]
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    loaded = load_images(save(Image.new(mode, (4, 4), colour), path), size=4, **AS_THEY_ARE)
    torch.testing.assert_close(loaded.pictures[0, 0, 0], torch.tensor(wanted, dtype=torch.float32))


def test_transparent_becomes_white(tmp_path):
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 2, 4))
    palette = half.convert("RGB").quantize(2)
    index = palette.getpixel((3, 3))
    paths = [save(half, tmp_path / "rgba.png")]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 9, 9, 9])
    palette.paste(0, (0, 0, 2, 4))
    paths.append(save(palette, tmp_path / "palette.png", transparency=1))
    assert index is not None
    loaded = load_images(paths, size=4, **AS_THEY_ARE)
    for picture in loaded.pictures:
        assert picture[0, 0].tolist() == [1, 0, 0]
        assert picture[3, 3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(tmp_path, suffix):
    values = np.full((4, 4), 13107, dtype=np.uint16)  # a fifth of 65,535
    loaded = load_images(save(Image.fromarray(values), tmp_path / f"a.{suffix}"), size=4, **AS_THEY_ARE)
    torch.testing.assert_close(loaded.pictures[0, 0, 0], torch.full((3,), 0.2))


def test_floats(tmp_path):
    unit = save(Image.fromarray(np.full((4, 4), 0.4, dtype=np.float32)), tmp_path / "unit.tif")
    ramp = save(Image.fromarray(np.array([[-10, 10]] * 2, dtype=np.float32)), tmp_path / "ramp.tif")
    nan = save(Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), tmp_path / "nan.tif")
    loaded = load_images([unit, ramp, nan], size=2, **AS_THEY_ARE)
    torch.testing.assert_close(loaded.pictures[0, 0, 0], torch.full((3,), 0.4))
    assert loaded.pictures[1, 0, :, 0].tolist() == [0, 1]
    assert loaded.failed == {str(nan): "NaN or infinity among its values"}


def test_camera_orientation_is_applied(tmp_path):
    image = gradient()
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    save(image, tmp_path / "a.png", exif=exif)
    loaded = load_images(tmp_path / "a.png", size=8, **AS_THEY_ARE)
    upright = np.rot90(np.asarray(image), -1) / 255
    torch.testing.assert_close(loaded.pictures[0], torch.from_numpy(upright.copy()).float())


def test_greyscale_models_get_one_channel(tmp_path):
    path = save(Image.new("RGB", (4, 4), (51, 51, 51)), tmp_path / "a.png")
    loaded = load_images(path, size=4, mean=[0.2], std=[1.0])
    assert loaded.tensor.shape == (1, 1, 4, 4)
    torch.testing.assert_close(loaded.tensor, torch.zeros(1, 1, 4, 4))
    assert loaded.pictures.shape == (1, 4, 4, 3)


def jpeg():
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


def test_what_cannot_be_read_is_named_and_the_others_go_on(tmp_path):
    good = [save(gradient(), tmp_path / name) for name in ("a.png", "z.png")]
    (tmp_path / "truncated.jpg").write_bytes(jpeg()[:1500])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    bad = [tmp_path / name for name in ("truncated.jpg", "missing.png", "text.png", "empty.png")]
    loaded = load_images([good[0], *bad, good[1]], size=8)
    assert loaded.paths == tuple(map(str, good))
    assert list(loaded.failed) == [str(path) for path in bad]
    assert "truncated" in loaded.failed[str(bad[0])]
    assert loaded.failed[str(bad[1])] == "No such file or directory"
    assert "not an image" in loaded.failed[str(bad[2])]
    assert "not an image" in loaded.failed[str(bad[3])]
    assert loaded.positions == (0, 5)
    assert len(loaded) == 2


def test_folders_are_searched_and_patterns_followed(tmp_path):
    (tmp_path / "cats" / "more").mkdir(parents=True)
    (tmp_path / "cats" / ".hidden").mkdir()
    (tmp_path / "none").mkdir()
    for name in ("cats/b.PNG", "cats/a.jpg", "cats/more/c.png", "cats/.d.png", "cats/.hidden/e.png", "f.png"):
        save(gradient(), tmp_path / name)
    (tmp_path / "cats" / "readme.txt").write_text("no image, and not looked at")
    found = load_images([tmp_path / "cats"], size=8)
    assert [path.removeprefix(f"{tmp_path}/") for path in found.paths] == [
        "cats/a.jpg",
        "cats/b.PNG",
        "cats/more/c.png",
    ]
    assert found.failed == {}
    pattern = load_images(
        [f"{tmp_path}/*.png", f"{tmp_path}/**/c.*", f"{tmp_path}/*.gif", tmp_path / "none"], size=8
    )
    assert [path.removeprefix(f"{tmp_path}/") for path in pattern.paths] == ["f.png", "cats/more/c.png"]
    assert pattern.failed[f"{tmp_path}/*.gif"] == "no file matches the pattern"
    assert "no image in this folder" in pattern.failed[str(tmp_path / "none")]


def test_file_named_twice_is_read_once(tmp_path, monkeypatch):
    save(gradient(), tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert load_images(["a.png", tmp_path, "*.png"], size=8).paths == ("a.png",)


def test_name_with_the_signs_of_a_pattern(tmp_path):
    path = save(gradient(), tmp_path / "a[1].png")
    assert load_images(path, size=8).paths == (str(path),)


def test_no_image_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"at least one that can be read, got .*missing\.png \(No such file"):
        load_images([tmp_path / "missing.png"])
    with pytest.raises(ValueError, match="at least one that can be read, got no paths"):
        load_images([])
    names = [tmp_path / f"{number}.png" for number in range(12)]
    with pytest.raises(ValueError, match="… and 2 more"):
        load_images(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected at least 1 x 1"),
        ({"mean": (0.5, 0.5)}, "mean, std: expected 3 numbers each, or 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std: expected numbers above 0"),
        ({"crop": 0}, "crop: expected a share"),
        ({"interpolation": "magic"}, "interpolation: expected one of .*bilinear.*got 'magic'"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, **options)


def test_pillow_missing(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "PIL.Image", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs PIL.*, which is not installed; install pillow"):
        load_images(tmp_path)


def test_packaged_pictures():
    pytest.importorskip("skimage")
    loaded = load_packaged_images(size=16)
    assert loaded.paths[0] == "scikit-image: chelsea"
    assert loaded.tensor.shape == (4, 3, 16, 16)
    assert len({tuple(picture.flatten().tolist()) for picture in loaded.pictures}) == 4


def test_packaged_pictures_of_scikit_learn(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, "skimage", None)
    loaded = load_packaged_images(size=16)
    assert loaded.paths == ("scikit-learn: china.jpg", "scikit-learn: flower.jpg")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="neither scikit-image nor scikit-learn is installed"):
        load_packaged_images()

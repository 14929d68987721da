"""Figures: what is drawn on which scale, and that they say so."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from batchcam_captum.explain import class_grid_figure, overlay_figure, side_by_side_figure
from batchcam_captum.functional import overlay as overlay_tensor

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def images_and_cams(n=3, maps=1, seed=0):
    torch.manual_seed(seed)
    return torch.rand(n, 3, 16, 16), torch.randn(n, maps, 4, 4)


def panels(figure):
    """Return all axes but the last, the color bar's."""
    return figure.axes[:-1]


def bar(figure):
    return figure.axes[-1]


def said(figure):
    return figure.get_supxlabel().replace("\n", " ")


def notes(axis):
    return " ".join(text.get_text() for text in axis.texts).replace("\n", " ")


def composed(axis):
    """Return all images of an axis drawn over each other on white, in their order."""
    seen = np.ones((*axis.images[0].get_array().shape[:2], 3))
    for image in axis.images:
        colors = image.to_rgba(image.get_array(), norm=True)
        alpha = image.get_alpha()
        if alpha is not None:
            colors[..., 3] = alpha
        seen = seen + colors[..., 3:] * (colors[..., :3] - seen)
    return seen


def test_overlay_equals_functional_overlay():
    images, cams = images_and_cams()
    images = torch.cat([images, torch.zeros(1, 3, 16, 16)])
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 1  # so that nothing is stretched
    cams = torch.cat([cams, -cams[:1].abs()])
    expected = overlay_tensor(images, cams, opacity=0.6).movedim(1, -1)
    figure = overlay_figure(images, cams, opacity=0.6)
    for axis, picture in zip(panels(figure), expected, strict=True):
        # The tensors' colors are Matplotlib's at 17 places, straight in between.
        assert np.abs(composed(axis) - picture.numpy()).max() < 0.03
    assert notes(panels(figure)[3]) == "dead map"


@pytest.mark.parametrize(
    ("scale", "signed", "ends", "limits"),
    [
        ("map", False, [4.0, 2.0, 1.0, 8.0], (0, 1)),
        ("sample", False, [4.0, 4.0, 8.0, 8.0], (0, 1)),
        ("figure", False, [8.0] * 4, (0, 8)),
        ("map", True, [4.0, 6.0, 1.0, 8.0], (-1, 1)),
        ("sample", True, [6.0, 6.0, 8.0, 8.0], (-1, 1)),
        ("figure", True, [8.0] * 4, (-8, 8)),
    ],
)
def test_scales(scale, signed, ends, limits):
    cams = torch.tensor([[[4.0, -1], [2, 0]], [[2, -6], [1, 1]], [[1, 0], [0.5, 0]], [[8, 0], [0, 4]]])
    figure = class_grid_figure(
        torch.rand(2, 3, 2, 2), cams.reshape(2, 2, 2, 2), scale=scale, signed=signed, opacity=0.5
    )
    drawn = [panels(figure)[place].images[1] for place in (1, 2, 4, 5)]
    for image, cam, end in zip(drawn, cams, ends, strict=True):
        expected = (cam if signed else cam.relu()) / end
        np.testing.assert_allclose(image.get_array(), expected, rtol=1e-6)
        np.testing.assert_allclose(image.get_alpha(), 0.5 * expected.abs(), rtol=1e-6)
        assert image.get_clim() == ((-1, 1) if signed else (0, 1))
        assert image.get_cmap().name == ("RdBu_r" if signed else "viridis")
    assert bar(figure).get_ylim() == limits
    assert ("signed" in said(figure)) == signed
    assert ("relu" in said(figure)) == ("relu" in bar(figure).get_ylabel()) == (not signed)


SPECIAL = {
    "dead map": torch.zeros(1, 4, 4),
    "dead map ": -torch.rand(1, 4, 4) - 0.1,
    "no map: not finite": torch.full((1, 4, 4), torch.nan),
    "": torch.rand(1, 4, 4),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("draw", [overlay_figure, side_by_side_figure])
def test_maps_without_content_are_named(draw, signed, tmp_path):
    cams, images = torch.stack([*SPECIAL.values()]), torch.rand(4, 3, 16, 16)
    figure = draw(images, cams, signed=signed, titles=["$", "a$b$", "<", "_"])
    each = len(panels(figure)) // 4
    for sample, note in enumerate(SPECIAL):
        axis = panels(figure)[each * (sample + 1) - 1]
        drawn = note == "" or (signed and note == "dead map ")
        assert notes(axis) == ("" if drawn else note.strip())
        assert len(axis.images) == 1 + drawn
    figure.savefig(tmp_path / "figure.png", dpi=20)  # nothing warns, whatever the texts


def test_images_are_shown_as_they_were():
    shown = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    cams = torch.rand(2, 1, 2, 2)

    def pixels(images, **options):
        figure = side_by_side_figure(images, cams[: len(images)], **options)
        return np.stack([axis.images[0].get_array() for axis in panels(figure)[::3]]), said(figure)

    expected = shown.movedim(1, -1).numpy()
    found, text = pixels(shown)
    np.testing.assert_allclose(found, expected)
    assert "Images" not in text
    np.testing.assert_allclose(pixels((shown - mean) / std, mean=MEAN, std=STD)[0], expected, atol=1e-6)
    np.testing.assert_allclose(pixels((shown * 255).round().byte())[0], expected, atol=0.5 / 255 + 1e-6)
    found, text = pixels(shown * 7 - 3)
    assert [found.min(), found.max()] == pytest.approx([0, 1], abs=1e-6)
    assert "Images: " in text
    gray, _ = pixels([shown[0, 0], shown[1, :2, :4]][:1])
    np.testing.assert_allclose(gray[0], shown[0, 0, :, :, None].expand(-1, -1, 3).numpy())


def test_images_of_several_shapes_keep_them():
    images = [torch.rand(3, 10, 40), torch.rand(1, 40, 10), torch.rand(3, 20, 20)]
    cams = [torch.rand(1, 2, 8), torch.rand(1, 8, 2), torch.rand(1, 4, 4)]
    figure = side_by_side_figure(images, cams)
    figure.draw_without_rendering()
    for row, image in enumerate(images):
        height, width = image.shape[1:]
        for axis in panels(figure)[3 * row : 3 * row + 3]:
            box = axis.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=0.02)
    labels = [bar(figure).yaxis.label, figure._supxlabel]
    assert all(
        figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        for box in (label.get_window_extent() for label in labels)
    )


def test_long_titles_stay_inside_the_figure():
    images, cams = images_and_cams(2)
    figure = overlay_figure(images, cams, titles=["predicted: a class with a rather long name (0.99)"] * 2)
    figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in panels(figure)]
    assert figure.bbox.x0 <= boxes[0].x0 < boxes[0].x1 < boxes[1].x0 < boxes[1].x1 <= figure.bbox.x1


def test_class_grid_names_classes_above_the_columns_or_each_panel():
    images, cams = images_and_cams(2, maps=2)
    same = class_grid_figure(images, cams, class_names=("cat", "dog"), titles=("one", "two"))
    assert [axis.get_title() for axis in panels(same)] == ["image", "cat", "dog", "", "", ""]
    assert [axis.get_ylabel() for axis in panels(same)[::3]] == ["one", "two"]
    top = class_grid_figure(images, cams, [[2, 0], [1, -1]], class_names=("cat", "dog", "ship"))
    assert [axis.get_title() for axis in panels(top)] == ["image", "ship", "cat", "image", "dog", "none"]
    numbers = class_grid_figure(images, cams, torch.tensor([7, 3]))
    assert [axis.get_title() for axis in panels(numbers)][:3] == ["image", "7", "3"]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("cams", lambda i, c: overlay_figure(i, c[:1])),
        ("cams", lambda i, c: overlay_figure(i, c.expand(2, 3, 4, 4))),
        ("cams", lambda i, c: overlay_figure(i, c[:, 0])),
        ("cams", lambda i, c: overlay_figure(i[0], c)),
        ("images", lambda i, c: overlay_figure(i[0, 0], c)),
        ("images", lambda i, c: overlay_figure([i[0], "x.png"], c)),
        ("images", lambda i, c: overlay_figure([], [])),
        ("scale", lambda i, c: overlay_figure(i, c, scale="row")),
        ("opacity", lambda i, c: overlay_figure(i, c, opacity=2)),
        ("titles", lambda i, c: overlay_figure(i, c, titles=["a"])),
        ("targets", lambda i, c: class_grid_figure(i, c, [[0, 1]])),
        ("class_names", lambda i, c: class_grid_figure(i, c, [3], class_names="abc")),
        ("figure", lambda i, c: class_grid_figure(i, c.expand(2, 300, 4, 4))),
    ],
)
def test_bad_input(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call(*images_and_cams(2))


def test_no_window_is_left_and_no_text_is_read_as_mathematics():
    from matplotlib import pyplot

    images, cams = images_and_cams(2)
    open_before = pyplot.get_fignums()
    overlay_figure(images, cams)
    figure = class_grid_figure(images, cams, titles=["$x", "$"], class_names=["$^$"], title="a$b_{$")
    assert pyplot.get_fignums() == open_before
    texts = [text for axis in panels(figure) for text in (axis.title, axis.yaxis.label) if text.get_text()]
    assert {text.get_text() for text in texts} == {"image", "$^$", "$x", "$"}
    assert not any(text.get_parse_math() for text in texts)
    assert not figure._suptitle.get_parse_math()


def test_matplotlib_and_captum_are_loaded_when_a_figure_is_drawn():
    code = (
        "import sys, batchcam_captum.explain as explain; explain.overlay_figure; "
        "assert not {'matplotlib', 'captum', 'pandas', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

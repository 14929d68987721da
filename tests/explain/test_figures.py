"""Figures: what is drawn on which scale, and that they say so."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from batchcam_captum.explain import (
    Status,
    class_grid_figure,
    contour_figure,
    overlay_figure,
    side_by_side_figure,
    store_figure,
)
from batchcam_captum.functional import dead_cams
from batchcam_captum.functional import overlay as overlay_tensor

from .stores import columns_of, write_store

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
    assert notes(panels(figure)[3]) == "dead map: no positive value"


@pytest.mark.parametrize(
    ("scale", "signed", "ends", "limits"),
    [
        ("map", False, [4.0, 2.0, 1.0, 8.0], (0, 1)),
        ("sample", False, [4.0, 4.0, 8.0, 8.0], (0, 1)),
        ("figure", False, [8.0] * 4, (0, 8)),
        (16, False, [16.0] * 4, (0, 16)),
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


def test_the_figure_states_what_was_done():
    images, cams = images_and_cams()
    texts = {}
    for scale in ("map", "sample", "figure", 0.125):
        figure = overlay_figure(images, cams, scale=scale, mean=MEAN, std=STD)
        texts[scale] = said(figure)
    assert len(set(texts.values())) == 4
    assert f"{cams.max().item():.3g}" in texts["figure"]
    assert "0.125" in texts[0.125]
    assert panels(figure)[0].images[1].get_array().max() == 1, (
        "larger values are drawn as the end of the scale"
    )
    assert all("4 x 4" in text and "standardization undone" in text for text in texts.values())


SPECIAL = {
    "dead map: all zero": torch.zeros(1, 4, 4),
    "dead map: no positive value": -torch.rand(1, 4, 4) - 0.1,
    "no map: not finite": torch.full((1, 4, 4), torch.nan),
    "constant map": torch.full((1, 4, 4), 2.0),
    "damaged: <b>$x^$</b>": torch.rand(1, 4, 4),
}


@pytest.mark.parametrize(
    ("draw", "signed"),
    [
        (overlay_figure, False),
        (overlay_figure, True),
        (contour_figure, False),
        (side_by_side_figure, False),
    ],
)
def test_maps_without_content_are_named(draw, signed, tmp_path):
    good = torch.rand(1, 4, 4)
    cams, images = torch.stack([*SPECIAL.values(), good]), torch.rand(6, 3, 16, 16)
    problems = ["", "", "", "", "damaged: <b>$x^$</b>", ""]
    figure = draw(images, cams, problems=problems, signed=signed, titles=["$", "a$b$", "", "ä", "<", "_"])
    each = len(panels(figure)) // 6
    groups = [panels(figure)[start : start + each] for start in range(0, 6 * each, each)]
    if draw in (overlay_figure, contour_figure):
        groups = [[axis] for axis in panels(figure)]
    for note, group in zip([*SPECIAL, ""], groups, strict=True):
        assert notes(group[-1]) == note
        drawn = len(group[-1].images) + len(group[-1].collections) > 1
        of_constant = note == "constant map" and draw is not contour_figure
        of_negative = signed and note == "dead map: no positive value"
        assert drawn == (note == "" or of_constant or of_negative)
    if draw is overlay_figure and not signed:
        figure.savefig(tmp_path / "figure.png", dpi=20)  # nothing warns, whatever the texts


def test_contours_run_along_their_levels():
    across = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    images = torch.rand(1, 3, 8, 8)
    figure = contour_figure(images, across, levels=(0.5, 2 / 7))
    (lines,) = panels(figure)[0].collections
    assert lines.levels.tolist() == pytest.approx([2 / 7, 0.5])
    for path, place in zip(lines.get_paths(), (2, 3.5), strict=True):
        np.testing.assert_allclose(path.vertices[:, 0], place, atol=1e-5)
    assert "Lines at 28.5714 %, 50 % of the scale" in said(figure)
    both = contour_figure(images, across - 0.5, levels=(0.5,), signed=True)
    (lines,) = panels(both)[0].collections
    np.testing.assert_allclose([path.vertices[0, 0] for path in lines.get_paths()], (1.75, 5.25), atol=1e-5)
    weak = contour_figure(torch.rand(2, 3, 8, 8), torch.cat([across, across / 10]), scale="figure")
    assert [notes(axis) for axis in panels(weak)] == ["", "no line: below all levels"]


@pytest.mark.parametrize("style", ["blended_heat_map", "alpha_scaling", "masked_image"])
def test_styles_are_captums(style):
    """The figure equals a call of Captum with the resized map, outliers not clipped."""
    from captum.attr import visualization
    from matplotlib.figure import Figure

    images, cams = images_and_cams(1)
    figure = overlay_figure(images, cams, style=style, opacity=0.4)
    expected = Figure()
    map_ = torch.nn.functional.interpolate(cams.relu(), (16, 16), mode="bilinear")[0, 0]
    visualization.visualize_image_attr(
        map_.numpy(), images[0].movedim(0, -1).numpy(), style, "positive", outlier_perc=0, cmap="viridis",
        alpha_overlay=0.4, use_pyplot=False, plt_fig_axis=(expected, expected.subplots()),
    )  # fmt: skip
    ours, theirs = panels(figure)[0].images, expected.axes[0].images
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        # Captum cuts to whole gray values where it prepares what is drawn.
        np.testing.assert_allclose(one.get_array(), other.get_array(), rtol=1e-4, atol=1)
        assert one.get_alpha() == other.get_alpha()
    assert style in said(figure)
    assert "outliers not clipped" in said(figure)


def test_images_are_shown_as_they_were():
    shown = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    cams = torch.rand(2, 1, 2, 2)

    def pixels(images, **options):
        figure = side_by_side_figure(images, cams[: len(images)], columns=1, **options)
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
    not_finite = shown.clone()
    not_finite[0, 0, 0, 0] = torch.inf
    assert notes(panels(overlay_figure(not_finite, cams))[0]) == "image not finite"


def test_images_of_several_shapes_keep_them_and_lie_in_their_columns():
    images = [torch.rand(3, 10, 40), torch.rand(1, 40, 10), torch.rand(3, 20, 20)]
    cams = [torch.rand(1, 2, 8), torch.rand(1, 8, 2), torch.rand(1, 4, 4)]
    figure = side_by_side_figure(images, cams, columns=1)
    figure.draw_without_rendering()
    for row, image in enumerate(images):
        height, width = image.shape[1:]
        for axis in panels(figure)[3 * row : 3 * row + 3]:
            box = axis.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=0.02)
    middles = [
        [axis.get_window_extent().x0 + axis.get_window_extent().x1 for axis in panels(figure)[c::3]]
        for c in range(3)
    ]
    for column in middles:
        assert max(column) - min(column) < 1
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
        ("scale", lambda i, c: overlay_figure(i, c, scale=0)),
        ("opacity", lambda i, c: overlay_figure(i, c, opacity=2)),
        ("titles", lambda i, c: overlay_figure(i, c, titles=["a"])),
        ("columns", lambda i, c: overlay_figure(i, c, columns=0)),
        ("style", lambda i, c: overlay_figure(i, c, style="jet")),
        ("style", lambda i, c: overlay_figure(i, c, style="masked_image", signed=True)),
        ("style", lambda i, c: overlay_figure(i, c, style="masked_image", scale="figure")),
        ("levels", lambda i, c: contour_figure(i, c, levels=(0.5, 1))),
        ("targets", lambda i, c: class_grid_figure(i, c, [[0, 1]])),
        ("class_names", lambda i, c: class_grid_figure(i, c, [3], class_names="abc")),
        ("figure", lambda i, c: class_grid_figure(i, c.expand(2, 300, 4, 4))),
    ],
)
def test_bad_input(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call(*images_and_cams(2))


class Samples(Dataset):
    """Standardized images; the third cannot be read."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 2:
            raise OSError("truncated")
        return self.images[index], 0


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    columns = columns_of(12, maps=(2, 4, 4), dtype="float16")
    columns["status"][2], columns["status"][5] = Status.DAMAGED, Status.MISSING
    for row in (2, 5, 7):  # the last one was read, and its scores are not finite
        columns["maps"][row] = np.nan
        columns["targets"][row] = columns["predictions"][row] = -1
        columns["confidences"][row] = np.nan
    columns["problems"] = np.array(
        ["" if row != 2 else "OSError: truncated" for row in range(12)], dtype=object
    )
    settings = {
        "method": "grad_cam",
        "layer": "layer4",
        "model": {"class": "ResNet"},
        "mean": MEAN,
        "std": STD,
    }
    return write_store(tmp_path_factory.mktemp("stores") / "store", columns, chunk=4, settings=settings)


@pytest.mark.parametrize("kind", ["overlay", "contour", "side_by_side", "class_grid"])
def test_a_sample_whose_scores_are_not_finite(store, kind):
    figure = store_figure(store, [7, 0], kind)
    first = panels(figure)[0]
    title = figure.axes[0].get_ylabel() if kind == "class_grid" else first.get_title()
    assert title.split("\n") == [
        "00007.png",
        f"label {store.class_names[store.labels[7]]}",
        "scores not finite",
    ]
    np.testing.assert_allclose(first.images[0].get_array(), store.thumbnails[7] / np.float32(255))
    assert any(notes(axis) == "no map: not finite" for axis in panels(figure)[:3])
    assert bar(figure).get_ylim() == (0, 1), "it has no part in the scale"


def test_figures_of_a_store(store):
    rows = [9, 2, 5, 0, 9]
    figure = store_figure(store, rows)
    assert figure.get_suptitle() == "grad_cam at layer4 of ResNet"
    for axis, row in zip(panels(figure), rows, strict=True):
        if row in (2, 5):
            assert len(axis.images) == 1
            assert (axis.images[0].get_array() == 1).all()  # blank
            continue
        np.testing.assert_allclose(axis.images[0].get_array(), store.thumbnails[row] / np.float32(255))
        prediction = store.class_names[store.predictions[row]]
        assert axis.get_title().split("\n") == [
            f"{row:05d}.png",
            f"label {store.class_names[store.labels[row]]}",
            f"predicted {prediction} ({store.confidences[row]:.2f})",
        ]
        map_ = torch.from_numpy(store.maps[row, :1].astype("f4"))[None]
        assert not dead_cams(map_)
        expected = torch.nn.functional.interpolate(map_.relu() / map_.max(), (16, 16), mode="bilinear")
        np.testing.assert_allclose(axis.images[1].get_array(), expected[0, 0], atol=1e-6)
    assert [notes(axis) for axis in panels(figure)] == [
        "", "damaged: OSError: truncated", "not written yet", "", "",
    ]  # fmt: skip


def test_figures_of_a_store_with_the_images_that_were_explained(store):
    shown = torch.rand(12, 3, 8, 8)
    standardized = (shown - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    figure = store_figure(
        store.path, [1, 2], "side_by_side", images=Samples(standardized), which=1, columns=1
    )
    np.testing.assert_allclose(panels(figure)[0].images[0].get_array(), shown[1].movedim(0, -1), atol=1e-6)
    assert "map of " in panels(figure)[0].get_title()  # the second highest, so not the prediction
    assert [notes(axis) for axis in panels(figure)[3:]] == ["damaged: OSError: truncated"] * 3


def test_class_grid_of_a_store(store):
    figure = store_figure(store, [0, 2], "class_grid")
    names = [store.class_names[k] for k in store.targets[0]]
    assert [axis.get_title() for axis in panels(figure)] == ["image", *names, "image", "none", "none"]


@pytest.mark.parametrize(
    ("name", "positions", "options"),
    [
        ("positions", [], {}),
        ("positions", [12], {}),
        ("positions", [-1], {}),
        ("kind", [0], {"kind": "pie"}),
        ("which", [0], {"which": 2}),
        ("images", [0], {"images": Samples(torch.rand(3, 3, 8, 8))}),
    ],
)
def test_bad_input_for_a_store(store, name, positions, options):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        store_figure(store, positions, **options)


def test_a_store_without_thumbnails_needs_images(tmp_path):
    with pytest.raises(ValueError, match="images: expected"):
        store_figure(write_store(tmp_path / "bare", columns_of(2, thumbnail=None)), [0])


def test_no_window_is_left_and_no_text_is_read_as_mathematics():
    from matplotlib import pyplot

    images, cams = images_and_cams(2)
    open_before = pyplot.get_fignums()
    overlay_figure(images, cams, style="blended_heat_map")
    figure = class_grid_figure(images, cams, titles=["$x", "$"], class_names=["$^$"], title="a$b_{$")
    assert pyplot.get_fignums() == open_before
    texts = [text for axis in panels(figure) for text in (axis.title, axis.yaxis.label) if text.get_text()]
    assert {text.get_text() for text in texts} == {"image", "$^$", "$x", "$"}
    assert not any(text.get_parse_math() for text in texts)
    assert not figure._suptitle.get_parse_math()


def test_matplotlib_and_captum_are_loaded_when_a_figure_is_drawn():
    code = (
        "import sys, batchcam_captum.explain as explain; explain.overlay_figure, explain.store_figure; "
        "assert not {'matplotlib', 'captum', 'pandas', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

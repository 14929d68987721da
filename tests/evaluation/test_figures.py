"""Figures: what is drawn, and on which scale."""

import numpy as np
import pytest
import torch

from batchcam_captum.evaluation import map_grid


def test_maps_share_one_scale_and_images_keep_their_own(tmp_path):
    maps, images = torch.rand(3, 8, 8) * 0.5, torch.randn(3, 8, 8) * 100
    figure = map_grid({"image": (images, False), "map": (maps, True)}, ["a", "b", "c"], title="title")
    *axes, bar = figure.axes
    assert len(axes) == 6
    assert "maximum" in bar.get_ylabel()
    for row in range(3):
        image, map_ = (axes[2 * row + column].images[0] for column in (0, 1))
        np.testing.assert_allclose(map_.get_array(), maps[row])
        assert map_.get_clim() == (0, 1)
        assert image.get_clim() == pytest.approx((images[row].min().item(), images[row].max().item()))
    assert [axes[2 * row].get_ylabel() for row in range(3)] == ["a", "b", "c"]
    figure.savefig(tmp_path / "grid.png")


def test_across_is_the_same_grid_turned():
    images, maps = torch.rand(3, 8, 8), torch.rand(3, 8, 8)
    columns = {"image": (images, False), "map": (maps, True)}
    upright, turned = (
        map_grid(columns, ["a", "b", "c"], title="t", across=across) for across in (False, True)
    )
    drawn = [np.asarray(axis.images[0].get_array()) for axis in turned.axes[:6]]
    np.testing.assert_array_equal(drawn, np.concatenate([images, maps]))
    assert [axis.get_title() for axis in turned.axes[:3]] == ["a", "b", "c"]
    assert [turned.axes[row].get_ylabel() for row in (0, 3)] == ["image", "map"]
    assert [axis.get_title() for axis in upright.axes[:2]] == ["image", "map"]
    assert turned.get_figwidth() > turned.get_figheight()


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="expected rows and columns"):
        map_grid({}, [], title="")


def test_labels_keep_a_distance_from_the_edges():
    pictures = torch.rand(2, 8, 8)
    figure = map_grid(
        {str(column): (pictures, True) for column in range(5)}, ["8\ninstead of\n4"] * 2, title="title"
    )
    figure.draw_without_rendering()
    labels = [label for axis in figure.axes for label in (axis.yaxis.label, axis.title) if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    margin = 0.1 * figure.dpi
    assert min(box.x0 for box in boxes) >= margin
    assert max(box.x1 for box in boxes) <= figure.bbox.x1 - margin

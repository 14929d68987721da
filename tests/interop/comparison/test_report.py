"""A comparison as JSON, Markdown and pictures."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from batchcam_captum.interop import OURS, PEERS
from batchcam_captum.interop.comparison import Comparison, Cost, Pair, Skipped, agreement
from batchcam_captum.interop.comparison.figures import figures, shortened
from batchcam_captum.interop.comparison.measure import Spread
from batchcam_captum.interop.comparison.report import escaped

PNG = b"\x89PNG"
#: What Markdown and matplotlib would take for their own.
AWKWARD = "a|b*c_d`e`[f](g)<h>$i^2$#.jpg"


def comparison(samples=3, size=(12, 16), map_size=(4, 5), libraries=("pytorch-grad-cam", "Captum"), **given):
    torch.manual_seed(0)
    pairs = []
    for library in libraries:
        scale = PEERS[library].scale
        shape = size if scale == "unit" else map_size
        ours = torch.rand(samples, 1, *shape) - (0 if scale == "unit" else 0.5)
        theirs = ours + 1e-6 * torch.rand_like(ours)
        theirs[0] = ours[0]
        pairs.append(Pair("grad_cam", library, ours, theirs, agreement(ours, theirs, scale=scale)))
    costs = [
        Cost(
            "grad_cam",
            library,
            batch,
            Spread(factor, 0.9 * factor, 1.1 * factor),
            Spread.exact(factor / 0.01),
            5,
            memory,
        )
        for library, factor, memory in ((OURS.name, 0.01, 2**20), ("Captum", 0.02, 3 * 2**20))
        for batch in (1, 8)
    ]
    costs.append(Cost("grad_cam", "pytorch-grad-cam", 8, None, None, 0, None))
    return Comparison(**({
        "settings": {
            "model": AWKWARD, "layer": "blocks.0", "methods": ["grad_cam"], "targets": "predicted",
            "image_shape": [3, *size], "dtype": "float32", "mode": "eval",
        },
        "environment": {
            "device": "cpu", "device_name": "A | B", "threads": 1, "torch": "2", "python": "3", "batchcam_captum": "0",
        },
        "versions": {library: "1.0" for library in libraries} | {"TorchCAM": None},
        "left_out": ["TorchCAM"],
        "images": torch.randn(samples, 3, *size),
        "pictures": None,
        "paths": [f"folder/{index}-{AWKWARD}" for index in range(samples)],
        "targets": list(range(samples)),
        "failed": {"bad\nname.jpg": "cut | short"},
        "raw": {"grad_cam": torch.randn(samples, 1, *map_size)},
        "pairs": pairs,
        "skipped": [Skipped("grad_cam", "pytorch-grad-cam", "out of memory", 8)],
        "costs": costs,
    } | given))  # fmt: skip


def strictly(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_three_files_are_written_and_replaced(tmp_path):
    folder = tmp_path / "new" / "folder"
    found = comparison()
    names = found.write(folder)
    assert names == ["comparison.json", "comparison.md", "comparison.png"]
    assert {path.name for path in folder.iterdir()} == set(names)
    assert (folder / "comparison.png").read_bytes().startswith(PNG)
    (folder / "comparison.json").write_text("old")
    assert found.write(folder) == names
    record = strictly((folder / "comparison.json").read_text(encoding="utf-8"))
    assert record["not_installed"] == ["TorchCAM"]
    assert record["images"][2] == {"path": found.paths[2], "target": 2}
    assert record["images_not_read"] == [{"path": "bad\nname.jpg", "reason": "cut | short"}]
    first = record["agreement"][0]
    assert first["summary"] == found.pairs[0].agreement.summary()
    assert len(first["maps"]) == 3
    assert record["costs"][0]["seconds"] == pytest.approx({"median": 0.01, "q1": 0.009, "q3": 0.011})
    assert record["skipped"][0]["reason"] == "out of memory"


def test_json_has_no_nan_nor_infinity_and_takes_names_that_no_encoding_has(tmp_path):
    theirs = torch.full((1, 1, 4, 4), math.nan)
    pair = Pair(
        "grad_cam",
        "Captum",
        torch.rand(1, 1, 4, 4),
        theirs,
        agreement(torch.rand(1, 1, 4, 4), theirs, scale="raw"),
    )
    found = comparison(samples=1, pairs=[pair], paths=["\udcff\u732b.jpg"], failed={})
    found.settings["number"] = math.inf
    found.write(tmp_path)
    record = strictly((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert record["settings"]["number"] is None
    assert record["agreement"][0]["summary"]["not_finite"] == 1
    assert record["images"][0]["path"] == "\\udcff\u732b.jpg"
    assert "1 not finite" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_numbers(tmp_path):
    found = comparison()
    text = found.markdown()
    summary = found.pairs[0].agreement.summary()
    row = next(line for line in text.splitlines() if line.startswith("| grad\\_cam | pytorch-grad-cam"))
    assert f"| {summary['max_difference']:.1e} | {summary['mean_difference']:.1e} |" in row
    assert "| 1 of 3 |" in row
    assert "| Captum | 20 ms (18 to 22), 2× (2 to 2) | 20 ms (18 to 22), 2× (2 to 2) |" in text  # noqa: RUF001
    assert "| Captum | 3.0 MiB, 3.00× | 3.0 MiB, 3.00× |" in text  # noqa: RUF001
    assert "| pytorch-grad-cam | - | - |" in text
    assert "- TorchCAM is not installed." in text
    assert "- pytorch-grad-cam, grad\\_cam, batch 8: out of memory" in text
    assert "- bad name.jpg could not be read: cut \\| short" in text
    found.write(tmp_path)
    assert "](comparison.png)" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_every_row_of_a_table_has_as_many_cells():
    text = comparison(samples=1).markdown()
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) <= 1
    assert "A \\| B" in text


def test_likeness_is_not_rounded_up_to_one():
    ours = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    theirs = ours.clone()
    theirs[..., 0, 0] += 1e-4
    pair = Pair("grad_cam", "Captum", ours, theirs, agreement(ours, theirs, scale="raw"))
    row = next(
        line
        for line in comparison(samples=1, pairs=[pair]).markdown().splitlines()
        if "| Captum | raw |" in line
    )
    assert 0.999999 < pair.agreement.summary()["pearson_min"] < 1
    assert "0.999999" in row
    assert "1.000000" not in row


def test_what_was_left_out_is_told_in_a_line_a_library():
    memory = "not measured: the model cannot be sent"
    skipped = [
        Skipped("layer_cam", "pytorch-grad-cam", "out of memory", 8),
        Skipped("grad_cam", "batchcam_captum", memory, 1),
        Skipped("xgrad_cam", "Captum", "Captum does not offer it"),
        Skipped("grad_cam", "Captum", memory, 1),
        Skipped("layer_cam", "Captum", "Captum does not offer it"),
        Skipped("grad_cam", "Captum", memory, 8),
        Skipped("grad_cam", "Captum", "out of memory", 8),
    ]
    text = comparison(samples=1, skipped=skipped, failed={}).markdown()
    assert text.partition("## Left out\n\n")[2].splitlines() == [
        "- Captum, xgrad\\_cam, layer\\_cam: Captum does not offer it; grad\\_cam, batch 8: out of memory",
        "- pytorch-grad-cam, layer\\_cam, batch 8: out of memory",
        "- TorchCAM is not installed.",
        "- Peak memory of batchcam\\_captum, Captum: not measured: the model cannot be sent",
    ]


def test_source_weights_preprocessing_and_remarks_are_told():
    found = comparison(samples=1, remarks=["scores of 1 of 1 images are not finite"])
    settings = {
        "model": "resnet18",
        "source": "timm",
        "source_version": "1.0",
        "weights": "random",
        "preprocessing": {
            "size": (12, 16),
            "mean": (0.5,),
            "std": (0.25,),
            "crop": 0.875,
            "interpolation": "bicubic",
        },
    }
    found.settings.update(settings)
    text = found.markdown()
    assert text.startswith("# resnet18 \\(timm 1.0\\), layer blocks.0\n")
    assert "Weights: random. Images: resized (bicubic), the centre cut out (0.875 of the side) to 12" in text
    assert "16; mean 0.5; std 0.25." in text
    assert "\nRemark: scores of 1 of 1 images are not finite.\n" in text
    assert found.as_dict()["remarks"] == found.remarks
    [(_, figure)] = figures(found)
    assert figure._suptitle.get_text().startswith("resnet18 (timm 1.0), blocks.0, grad_cam")


def test_memory_too_small_to_be_told_apart_has_no_ratio():
    costs = [
        Cost("grad_cam", library, 1, Spread.exact(1.0), Spread.exact(1.0), 5, peak)
        for library, peak in ((OURS.name, 1000), ("Captum", -200), ("TorchCAM", 2**21))
    ]
    text = comparison(costs=costs).markdown()
    assert "| Captum | below 0.5 MiB |" in text
    assert "| TorchCAM | 2.0 MiB |" in text


def test_how_the_allocator_was_set_is_told():
    found = comparison(samples=1)
    assert "The C allocator was as it comes" in found.markdown()
    found.environment["allocator"] = {"MALLOC_TOP_PAD_": "0"}
    assert "The C allocator was set: MALLOC\\_TOP\\_PAD\\_=0." in found.markdown()
    assert "The C allocator was set: MALLOC_TOP_PAD_=0." in found.text()


def test_names_are_shown_as_they_are():
    assert escaped("a|b_c\n d") == "a\\|b\\_c d"
    assert escaped("<b>`x`") == "\\<b\\>\\`x\\`"


def test_on_a_terminal_names_stand_as_they_are():
    found = comparison(samples=1)
    found.settings["layer"] = "a\\_[b]$"
    assert "layer a\\_[b]$" in found.text()
    assert "layer a\\\\\\_\\[b\\]\\$" in found.markdown()


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("folder/cat.jpg", "cat.jpg"),
        ("a/ILSVRC2012_val_00000001_cropped.JPEG", "ILSVRC2012…ropped.JPEG"),
        ("x" * 22, "x" * 22),
    ],
)
def test_long_names_keep_their_beginning_and_their_end(path, short):
    assert shortened(path) == short
    assert len(shortened(path)) <= 22


def boxes_of(figure):
    figure.draw_without_rendering()
    labels = (
        [axis.title for axis in figure.axes] + [axis.yaxis.label for axis in figure.axes] + [figure._suptitle]
    )
    return (
        [label.get_window_extent() for label in labels if label.get_text()],
        [axis.get_window_extent() for axis in figure.axes],
    )


@pytest.mark.parametrize("libraries", [("pytorch-grad-cam", "Captum"), ()], ids=["two", "none"])
def test_nothing_overlaps_and_nothing_is_cut_off(libraries):
    [(_, figure)] = figures(comparison(samples=3, libraries=libraries, size=(12, 30)))
    labels, cells = boxes_of(figure)
    assert len(cells) == 3 * (1 + 3 * len(libraries) if libraries else 2)
    everything = [*labels, *cells]
    for index, box in enumerate(everything):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert box.count_overlaps(everything[index + 1 :]) == 0


def test_what_is_drawn_is_what_was_compared():
    found = comparison()
    [(description, figure)] = figures(found)
    axes = [figure.axes[7 * row : 7 * row + 7] for row in range(3)]
    unit, raw = found.pairs
    peak = max(float(raw.theirs[1].abs().max()), float(raw.ours[1].abs().max()))
    for pair, column, limits in ((unit, 1, (0, 1)), (raw, 4, (-peak, peak))):
        # Ours through that library's preset, then the library's, on one scale.
        for cell, maps in zip(axes[1][column : column + 2], (pair.ours, pair.theirs), strict=True):
            torch.testing.assert_close(torch.tensor(cell.images[0].get_array().data), maps[1, 0].double())
            assert cell.images[0].get_clim() == pytest.approx(limits)
    assert axes[1][5].get_title() == axes[1][4].get_title() == f"± {peak:.1e}"
    assert axes[0][1].get_title().startswith("batchcam_captum\n0 to 1")
    assert axes[0][2].get_title().startswith("pytorch-grad-cam\n0 to 1")
    for pair, column, of in ((unit, 3, ""), (raw, 6, " of peak")):
        drawn = axes[1][column].images[0]
        difference = (pair.ours[1, 0].double() - pair.theirs[1, 0].double()).abs()
        torch.testing.assert_close(torch.tensor(drawn.get_array().data), difference)
        assert drawn.get_clim() == pytest.approx((0, float(difference.max())))
        assert axes[1][column].get_title() == f"max {pair.agreement.maps[1].max_difference:.1e}{of}"
        assert axes[0][column].get_title().endswith("identical")
    assert "class 1" in axes[1][0].get_ylabel()
    assert f"{unit.agreement.max_difference:.1e}" in description


def test_pictures_that_are_given_are_shown_as_they_are():
    pictures = torch.rand(3, 12, 16, 3)
    [(_, figure)] = figures(comparison(pictures=pictures))
    torch.testing.assert_close(torch.tensor(figure.axes[0].images[0].get_array().data), pictures[0])


def test_a_page_a_method_and_eight_rows(tmp_path):
    found = comparison(samples=9, size=(6, 6), libraries=("Captum",))
    found.settings["methods"] = ["grad_cam", "hires_cam"]
    found.raw["hires_cam"] = found.raw["grad_cam"]
    drawn = figures(found)
    assert [len(figure.axes) for _, figure in drawn] == [8 * 4, 8 * 2]
    found.write(tmp_path)
    kept = {"comparison-1.png", "comparison-2x.png", "my-comparison-2.png", "comparison-3.md"}
    for name in (*kept, "comparison-3.png", "comparison-12.png"):
        (tmp_path / name).write_text("of an earlier run, or the user's own")
    found.settings["methods"] = ["grad_cam"]
    names = found.write(tmp_path)
    assert names == ["comparison.json", "comparison.md", "comparison.png"]
    assert {path.name for path in tmp_path.iterdir()} == {*names, *kept}
    found.settings["methods"] = ["grad_cam", "hires_cam"]
    assert "8 of 9 images" in drawn[0][0]
    assert "the first 8 of 9 images" in drawn[0][1]._suptitle.get_text()


def test_maps_of_volumes_have_no_picture(tmp_path):
    shape = {"size": (4, 4, 4), "map_size": (4, 4, 4)}
    found = comparison(samples=1, libraries=("Captum",), **shape)
    assert found.write(tmp_path) == ["comparison.json", "comparison.md"]


def test_dead_and_broken_maps_are_drawn(tmp_path):
    ours, theirs = torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4, 5)
    theirs[1] = math.nan
    pair = Pair("grad_cam", "Captum", ours, theirs, agreement(ours, theirs, scale="raw"))
    [(_, figure)] = figures(comparison(samples=2, pairs=[pair], raw={"grad_cam": ours}))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[3].endswith("identical")
    assert titles[7] == "not finite"
    figure.draw_without_rendering()


def open_figures():
    """Those of pyplot, which other tests may have loaded; None where none has."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return None if pyplot is None else pyplot.get_fignums()


def test_pyplot_is_left_alone():
    before = open_figures()
    figures(comparison(samples=1))
    assert open_figures() == before


def test_a_folder_that_cannot_be_written_to_leaves_nothing(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("kept")
    with pytest.raises(OSError, match="file"):
        comparison(samples=1).write(blocker / "folder")
    assert list(tmp_path.iterdir()) == [blocker]
    (tmp_path / "out" / "comparison.md").mkdir(parents=True)
    with pytest.raises(OSError, match=r"comparison\.md: expected a file to replace"):
        comparison(samples=1).write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.md"]


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"batchcam-captum\[compare\]"):
        figures(comparison(samples=1))

"""The report's file: what is in it, and that nothing from a store can become markup or script."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batchcam_captum.explain.layout import Status
from batchcam_captum.explain.report import blocks, embed, page, pictures, samples, write_report
from batchcam_captum.functional import nearest_prototype, prepare

from .stores import columns_of, write_store

HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<!-- <script>",
    "\"quotes' & <b>bold</b>.png",
    "line\u2028and\u2029and\nbreak",
    "\u202egnp.exe",
    "Ünï 日本 🙂.png",
]


def read(path):
    """The page's data, its blocks, and its text."""
    text = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    found = re.findall(r'<script type="text/plain" id="block-(\d+)">(.*?)\n(.*?)</script>', text)
    assert [int(number) for number, _, _ in found] == list(range(len(found)))
    return json.loads(data), [(sheet, maps) for _, sheet, maps in found], text


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.fixture(scope="module")
def columns():
    made = columns_of(40, maps=(3, 4, 5), metrics=("energy_in_mask",))
    made["maps"][3] = -1.0  # dead
    made["maps"][4, :, 0, 0] = np.nan
    made["energy_in_mask"][5] = np.nan
    made["status"][7] = Status.DAMAGED
    made["problems"] = np.full(40, "", dtype=object)
    made["problems"][7] = "truncated <image>"
    made["labels"][9] = -1
    return made


@pytest.fixture(scope="module")
def written(columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    store = write_store(folder / "my store.zarr", columns, metrics=("energy_in_mask",))
    return read(write_report(store, folder / "report.html"))


@pytest.fixture(scope="module")
def rows():
    return np.delete(np.arange(40), 7)


def test_maps_are_those_of_the_store_in_the_page_s_order(written, columns, rows):
    data, found, _ = written
    targets = numbers(data["columns"]["targets"], "<i4").reshape(-1, 3)
    # The store has the highest scores first, and the highest is the prediction.
    assert (targets == columns["targets"][rows]).all()
    maps = np.concatenate([numbers(text, np.uint8).reshape(-1, 3, 4, 5) for _, text in found])
    peaks = numbers(data["columns"]["peaks"], "<f4").reshape(-1, 3)
    for place, row in enumerate(rows):
        for map_ in range(3):
            cam = columns["maps"][row, map_]
            if row in (3, 4):
                assert not maps[place, map_].any()
                assert peaks[place, map_] == 0 if row == 3 else np.isnan(peaks[place, map_])
            else:
                assert peaks[place, map_] == cam.max()
                assert (
                    np.abs(maps[place, map_] / 255 - np.maximum(cam, 0) / cam.max()).max() <= 0.5 / 255 + 1e-6
                )


def test_pictures_can_be_told_apart_on_their_sheets(written, columns, rows):
    _, found, _ = written
    place = 21
    sheet = Image.open(io.BytesIO(base64.b64decode(found[place // blocks.SAMPLES][0]))).convert("RGB")
    assert sheet.size == (64, 64)
    down, across = divmod(place % blocks.SAMPLES, 4)
    cut = np.asarray(sheet)[16 * down : 16 * down + 16, 16 * across : 16 * across + 16].astype(float)
    apart = [np.abs(cut - columns["thumbnails"][row]).mean() for row in rows]
    assert int(np.argmin(apart)) == place


def test_summary_counts(written, columns, rows):
    data, _, text = written
    assert data["counts"] == {
        **{"samples": 40, "written": 39, "damaged": 1, "missing": 0, "labelled": 38},
        **{"dead": 1, "notFinite": 1, "unscored": 0, "classes": 3},
    }
    known = np.setdiff1d(rows, [9])
    assert data["accuracy"] == pytest.approx((columns["labels"] == columns["predictions"])[known].mean())
    assert data["complete"] is True
    assert "<title>Maps of my store</title>" in text
    assert ["data.size", "224"] in data["settings"]
    assert data["damaged"]["rows"] == [
        {"position": 7, "ids": "7", "paths": "folder/00007.png", "problems": "truncated <image>"}
    ]
    total = sum(count for *_, count in data["confusion"])
    assert total == len(known)
    assert sum(count for row, column, count in data["confusion"] if row == column) == round(
        data["accuracy"] * total
    )


def test_class_maps_and_their_confusion(written, columns, rows):
    data, _, _ = written
    cams = torch.from_numpy(columns["maps"][:, :1])
    alive = [row for row in rows if row not in (3, 4)]
    means = []
    for label in range(3):
        own = [row for row in alive if columns["labels"][row] == label]
        means.append(prepare(cams[own]).maps.mean(0))
        place = data["classMaps"]["classes"].index(label)
        assert data["classMaps"]["alive"][place] == len(own)
    shown = numbers(data["classMaps"]["maps"], np.uint8).reshape(3, 1, 4, 5) / 255
    means = torch.stack(means)
    assert np.abs(shown - means.numpy()).max() < 0.5 / 255 + 1e-3  # maps are kept in float16 meanwhile
    nearest = numbers(data["columns"]["nearest"], "<i4")
    expected = nearest_prototype(cams[alive], means).numpy()
    assert (nearest[np.isin(rows, alive)] == expected).all()
    assert (nearest[~np.isin(rows, alive)] == -1).all()
    assert len(np.unique(expected)) > 1


def test_samples_whose_scores_are_not_finite_count_nowhere(columns, rows, tmp_path):
    """They are written with prediction and target -1, and NaN for confidence and maps."""
    made = {name: column.copy() for name, column in columns.items()}
    lost = [10, 11]
    made["scores"][10], made["scores"][11, 1] = np.nan, np.nan
    made["predictions"][lost], made["targets"][lost], made["labels"][11] = -1, -1, -1
    for name in ("confidences", "maps", "energy_in_mask"):
        made[name][lost] = np.nan
    store = write_store(tmp_path / "store", made, metrics=("energy_in_mask",))
    data, found, _ = read(write_report(store, tmp_path / "r.html"))
    assert (data["counts"]["unscored"], data["counts"]["notFinite"], data["counts"]["dead"]) == (2, 3, 1)
    known = np.setdiff1d(rows, [9, *lost])
    assert data["accuracy"] == pytest.approx((made["labels"] == made["predictions"])[known].mean())
    assert sum(count for *_, count in data["confusion"]) == len(known)
    assert all(column >= 0 for _, column, _ in data["confusion"])
    (cats,) = (
        place for place, label in enumerate(data["classMaps"]["classes"]) if label == made["labels"][10]
    )
    own = (made["labels"][rows] == made["labels"][10]) & ~np.isin(rows, [3, 4, 7, *lost])
    assert data["classMaps"]["alive"][cats] == own.sum()
    assert numbers(data["classMaps"]["maps"], np.uint8).any()
    assert data["metrics"]["energy_in_mask"]["count"] == len(np.setdiff1d(rows, [5, *lost]))
    place = int(np.flatnonzero(rows == 10)[0])
    assert numbers(data["columns"]["nearest"], "<i4")[place] == -1
    assert np.isnan(numbers(data["columns"]["peaks"], "<f4").reshape(-1, 3)[place]).all()
    assert not np.concatenate([numbers(text, np.uint8).reshape(-1, 60) for _, text in found])[place].any()
    made["labels"][:] = -1
    data, _, _ = read(
        write_report(
            write_store(tmp_path / "no labels", made, metrics=("energy_in_mask",)), tmp_path / "r.html"
        )
    )
    assert (data["classMaps"]["by"], min(data["classMaps"]["classes"])) == ("prediction", 0)


def test_metrics_by_class(written, columns, rows):
    data, _, _ = written
    has = np.setdiff1d(rows, [5])
    table = data["metrics"]["energy_in_mask"]
    assert table["count"] == len(has)
    assert table["median"] == pytest.approx(np.median(columns["energy_in_mask"][has, 0]))
    (one,) = (each for each in table["by_class"] if each["class"] == 1)
    own = has[columns["labels"][has] == 1]
    assert one["mean"] == pytest.approx(columns["energy_in_mask"][own, 0].mean())


def test_only_its_own_style_and_script_are_allowed(written):
    _, _, text = written
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for kind, inside in (("script", script), ("style", style)):
        made = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{made}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert set(re.findall(r'(?:src|href)="(.*?)"', text)) == {"data:,", "#gallery-heading"}
    assert not re.findall(r"https?://|innerHTML|\beval\(", text)


def test_names_cannot_leave_the_data(tmp_path):
    columns = columns_of(6)
    columns["paths"] = np.array(HOSTILE, dtype=object)
    columns["ids"] = np.array(HOSTILE[::-1], dtype=object)
    store = write_store(tmp_path / "store", columns, class_names=tuple(HOSTILE[:3]))
    data, _, text = read(write_report(store, tmp_path / "a 'b' <c>.html", title=HOSTILE[0]))
    assert data["paths"] == HOSTILE
    assert data["classNames"] == HOSTILE[:3]
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert inside.isascii()
    assert not set("<>&") & set(inside)
    assert text.count("<script>") == 1
    assert "document.title='run'</script>" not in text


def test_json_text_and_numbers():
    assert json.loads(embed.json_text(["\ud800</", 1.5])) == ["\ud800</", 1.5]
    assert embed.number(float("nan")) is None
    with pytest.raises(ValueError, match="JSON"):
        embed.json_text(float("inf"))


def test_an_incomplete_store_without_pictures_labels_or_paths(tmp_path):
    columns = columns_of(20, thumbnail=None, maps=(1, 40, 48))
    columns["labels"][:] = -1
    columns["paths"][:] = ""
    columns["status"][10:] = Status.MISSING
    data, found, _ = read(write_report(write_store(tmp_path / "store", columns), tmp_path / "r.html"))
    assert (data["complete"], data["counts"]["missing"], data["counts"]["written"]) == (False, 10, 10)
    assert (data["accuracy"], data["thumbnail"], data["ids"], data["paths"]) == (None, None, None, None)
    assert data["classMaps"]["by"] == "prediction"
    assert data["confusion"] == []
    assert (data["maps"]["size"], data["maps"]["stored"]) == ([32, 32], [40, 48])
    ((sheet, maps),) = found
    assert sheet == ""
    assert len(base64.b64decode(maps)) == 10 * 32 * 32


def test_a_store_with_nothing_in_it_yet(tmp_path):
    columns = columns_of(5)
    columns["status"][:] = Status.MISSING
    data, found, _ = read(write_report(write_store(tmp_path / "store", columns), tmp_path / "r.html"))
    assert (data["counts"]["written"], found, data["scale"]["value"]) == (0, [], None)


def test_of_many_maps_those_of_the_highest_scores_are_taken():
    targets = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    scores = np.array([[0.1, 5, 2, 9], [4, 1, 2, 3]], dtype=np.float32)
    order = samples._order(targets, np.array([1, 0]), scores)
    # The predicted class first, although the scores here would say another.
    assert np.take_along_axis(targets, order, 1).tolist() == [[1, 3, 2, 0], [0, 3, 2, 1]]
    neither = samples._order(np.array([[2, 3, -1]]), np.array([0]), scores[1:])
    assert neither.tolist() == [[0, 1, 2]], "the first, where none explains the prediction"


@pytest.mark.parametrize(
    ("count", "maps", "size", "shown"),
    [
        (100, (1000, 7, 7), (7, 7), 10),
        (10_000, (1, 224, 224), (32, 32), 1),
        (10_000, (10, 224, 224), (32, 32), 2),
        (65_536, (3, 224, 20), (16, 16), 2),
        (10_000_000, (2, 7, 7), (7, 7), 1),
    ],
)
def test_the_page_stays_small(count, maps, size, shown):
    class Fake:
        pass

    Fake.maps = np.lib.stride_tricks.as_strided(np.zeros(1, np.float16), (count, *maps), (0, 0, 0, 0))
    planned = samples.plan(Fake, count)
    assert (planned.size, planned.maps) == (size, shown)
    assert count * size[0] * size[1] * shown <= max(2 * 16 * 2**20, count * 64)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Pictures of noise, which JPEG hardly makes smaller."""
    columns = columns_of(200, thumbnail=(80, 160))
    return write_store(tmp_path_factory.mktemp("noisy") / "store", columns)


def test_a_page_stays_below_its_bound_whatever_the_thumbnails_are(noisy, tmp_path, monkeypatch):
    bound = 1.2e6  # that of 10,000 samples, for 200
    monkeypatch.setattr("batchcam_captum.explain.report.pictures.PAGE", bound)
    with pytest.warns(
        UserWarning, match=r"of the store's 160 pixels, .* \(--pictures 160\) it would have about \d+ MB"
    ):
        path = write_report(noisy, tmp_path / "r.html")
    data, found, _ = read(path)
    height, width = data["thumbnail"]["size"]
    assert 32 <= width == 2 * height < 160
    assert 0.5 * bound < path.stat().st_size < bound
    sheet = Image.open(io.BytesIO(base64.b64decode(found[0][0])))
    assert sheet.size == tuple(4 * each for each in data["thumbnail"]["tile"][::-1])


def test_pictures_of_a_size_asked_for(noisy, tmp_path, recwarn):
    sizes = {}
    for asked, size in ((500, [80, 160]), (100, [50, 100]), (0, None)):
        path = write_report(noisy, tmp_path / "r.html", pictures=asked)
        data, found, _ = read(path)
        assert data["thumbnail"] is None if size is None else data["thumbnail"]["size"] == size
        assert bool(found[0][0]) == (size is not None)
        sizes[asked] = path.stat().st_size
    assert sizes[500] > sizes[100] > sizes[0]
    assert not recwarn, "below 60 MB there is nothing to say"
    with pytest.raises(ValueError, match="pictures: expected at least 0 pixels, got -1"):
        write_report(noisy, tmp_path / "r.html", pictures=-1)


def test_a_large_page_that_is_asked_for_is_warned_of(noisy, tmp_path, monkeypatch):
    monkeypatch.setattr("batchcam_captum.explain.report.page.PAGE", 1e6)
    with pytest.warns(UserWarning, match=r"the page will have about \d+ MB and open slowly"):
        path = write_report(noisy, tmp_path / "r.html", pictures=160)
    found = pictures.fit(noisy, noisy.written(), 160, 100)
    assert found.page == found.whole == pytest.approx(path.stat().st_size, rel=0.05)


def test_pictures_are_brought_down_as_a_mean():
    made = np.zeros((1, 64, 64, 3), np.uint8)
    made[:, :, ::2] = 200
    small = pictures.resized(made, (16, 16))
    assert small.shape == (1, 16, 16, 3)
    assert np.abs(small[:, :, 2:-2].astype(int) - 100).max() <= 4, "every other column is not left out"


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", columns_of(4))
    (tmp_path / "r.html").write_text("before")

    def refused(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(*_, **__):
        return Path("/dev/full").open("w+")

    cases = [("TemporaryFile", refused)] + [("TemporaryFile", full)] * Path("/dev/full").exists()
    for name, instead in cases:
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, name, instead)
            with pytest.raises(
                OSError, match=r"r\.html: expected room for the report, .* space left .*; free some, or"
            ):
                write_report(store, tmp_path / "r.html")
    with monkeypatch.context() as patch:
        patch.setattr(page, "json_text", refused)
        with pytest.raises(OSError, match=r"r\.html: expected room for the report"):
            write_report(store, tmp_path / "r.html")
        patch.setattr(page, "json_text", lambda _: 1 / 0)
        patch.setattr(
            tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        with pytest.raises(
            OSError, match=r"r\.html: expected a folder that exists and can be written to, .*; create it"
        ):
            write_report(store, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.html", "store"]


def test_samples_that_fill_no_whole_block_go_on_in_the_next_chunk(tmp_path):
    columns = columns_of(37)
    columns["status"][[0, 5, 20]] = Status.DAMAGED
    store = write_store(tmp_path / "store", columns, chunk=12)
    _, found, _ = read(write_report(store, tmp_path / "r.html"))
    counts = [len(base64.b64decode(maps)) // 16 for _, maps in found]
    assert counts == [16, 16, 2]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    store = write_store(tmp_path / "store", columns_of(4))
    with pytest.raises(OSError, match="expected a folder that exists"):
        write_report(store, tmp_path / "none" / "r.html")
    with pytest.raises(FileNotFoundError, match="expected a store"):
        write_report(tmp_path / "no store", tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]

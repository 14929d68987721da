"""The report's file: its content, and that nothing from a store can become markup or script."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from batchcam_captum.explain import Status, write_report
from batchcam_captum.explain.report import content
from batchcam_captum.functional import nearest_prototype, prepare

from .stores import columns_of, write_store

HOSTILE = [
    "</script><script>document.title='run'</script>",
    "<!-- <script>",
    "\"quotes' & <b>bold</b>.png",
    "line\u2028and\u2029and\nbreak {{ 7 * 7 }}",
    "\u202egnp.exe",
    "Ünï 日本 🙂.png",
]


def read(path):
    """Return the page's JSON, and its text without it."""
    text = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data.isascii()
    assert not set("<>&") & set(data)
    found = json.loads(data)
    text = text.replace(data, "")
    pattern = r'<script type="application/json" id="block-(\d+)">(.*?)</script>'
    media = []
    for number, block in re.findall(pattern, text, re.DOTALL):
        assert int(number) * found["blockSize"] == len(media)
        media += json.loads(block)
        text = text.replace(block, "")
    for sample, files in zip(found["samples"], media, strict=True):
        sample |= files
    return found, text


def cells(text, section):
    """Return the rows of a section's table, as text."""
    inside = re.search(rf'<section id="{section}".*?</section>', text, re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", inside, re.DOTALL)
    return [
        [
            re.sub(r"<.*?>", "", cell).strip()
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def facts(text):
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(?:<bdi>|<a.*?>)?(.*?)<", text))


def maps_of(sample):
    return np.frombuffer(base64.b64decode(sample["maps"]), np.uint8).reshape(len(sample["targets"]), 4, 5)


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
    # The scores of two samples are not finite: no prediction, no map.
    made["scores"][10], made["scores"][11, 1] = np.nan, np.nan
    made["predictions"][10:12] = made["targets"][10:12] = -1
    for name in ("confidences", "maps", "energy_in_mask"):
        made[name][10:12] = np.nan
    made["thumbnails"][:] = made["thumbnails"][:, :1, :1]  # one color each, which survives the compression
    return made


@pytest.fixture(scope="module")
def written(columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    store = write_store(folder / "my store.zarr", columns, metrics=("energy_in_mask",))
    return read(write_report(store, folder / "report.html"))


@pytest.fixture(scope="module")
def rows():
    return np.delete(np.arange(40), 7)


def test_samples_have_their_maps_and_pictures(written, columns, rows):
    data, _ = written
    assert [sample["position"] for sample in data["samples"]] == rows.tolist()
    for sample in data["samples"]:
        row = sample["position"]
        cams = columns["maps"][row]
        # The store has the highest scores first, and the highest is the prediction.
        assert sample["targets"] == columns["targets"][row].tolist()
        if row in (3, 4, 10, 11):
            assert not maps_of(sample).any()
            assert sample["peaks"] == ([0, 0, 0] if row == 3 else [None] * 3)
        else:
            highest = cams.max((1, 2))
            np.testing.assert_allclose(sample["peaks"], highest, rtol=1e-5)
            expected = np.maximum(cams, 0) / highest[:, None, None]
            assert np.abs(maps_of(sample) / 255 - expected).max() <= 0.5 / 255 + 1e-6
        with Image.open(io.BytesIO(base64.b64decode(sample["image"]))) as picture:
            assert picture.size == (16, 16)
            color = np.asarray(picture.convert("RGB")).mean((0, 1))
        assert np.abs(color - columns["thumbnails"][row, 0, 0]).max() < 8
    first = data["samples"][0]
    shares = torch.tensor(columns["scores"][0]).softmax(0).sort(descending=True)
    assert [index for index, *_ in first["scores"]] == shares.indices.tolist()
    np.testing.assert_allclose([share for *_, share in first["scores"]], shares.values, rtol=1e-4)


def test_summary(written, columns, rows):
    _, text = written
    known = np.setdiff1d(rows, [9, 10, 11])
    accuracy = (columns["labels"] == columns["predictions"])[known].mean()
    found = facts(text)
    assert found["Accuracy"] == f"{100 * accuracy:.1f} %"
    assert found["Dead maps"].startswith("1 (")
    has = columns["energy_in_mask"][np.setdiff1d(rows, [5, 10, 11]), 0]
    assert found["Energy in mask"] == f"{has.mean():.3g}, median {np.median(has):.3g} (36 samples)"
    assert "39 samples, 1 damaged" in text
    assert "3 maps have" in text
    assert "2 samples have" in text
    assert "incomplete" not in text
    assert "<title>my store</title>" in text
    assert cells(text, "problems")[1] == ["folder/00007.png", "truncated &lt;image&gt;"]
    assert found["data.size"] == "224"
    assert found["torch"] == "2.15.0"


def test_mistakes_are_counted(written, columns, rows):
    _, text = written
    known = np.setdiff1d(rows, [9, 10, 11])
    label, predicted = columns["labels"][known], columns["predictions"][known]
    head, *matrix = cells(text, "mistakes")
    assert head == ["", "cat", "dog", "ship"]
    for index, (_, *counts) in enumerate(matrix):
        assert [int(n) for n in counts] == [((label == index) & (predicted == k)).sum() for k in range(3)]


def test_classes_have_a_mean_map_and_the_share_of_maps_nearest_to_it(written, columns, rows):
    data, text = written
    cams = torch.from_numpy(columns["maps"][:, :1])
    alive = [row for row in rows if row not in (3, 4, 10, 11)]
    labels = columns["labels"][alive]
    means = torch.stack(
        [prepare(cams[alive][labels == k]).maps.mean(0) for k in range(3)] + [torch.zeros(1, 4, 5)]
    )
    nearest = nearest_prototype(cams[alive], means[:3]).numpy()
    assert [s["nearest"] for s in data["samples"] if s["position"] in alive] == nearest.tolist()
    assert {s["nearest"] for s in data["samples"] if s["position"] not in alive} == {-1}
    shown = re.findall(r'data-map="(.*?)"', text)
    for index, (mean, map_, row) in enumerate(zip(means, shown, cells(text, "classes")[1:], strict=False)):
        drawn = np.frombuffer(base64.b64decode(map_), np.uint8).reshape(4, 5)
        assert np.abs(drawn / 255 - mean[0].numpy()).max() < 0.5 / 255 + 1e-6
        own = labels == index
        name, _, samples, *_, own_map, _, _, energy = row
        assert name == ("cat", "dog", "ship")[index]
        assert int(samples) == (columns["labels"][rows] == index).sum()
        # Label 9 is unknown; its map has a nearest class and is nobody's own.
        assert own_map == f"{100 * (nearest[own] == index).mean():.1f} %"
        values = columns["energy_in_mask"][rows][columns["labels"][rows] == index, 0]
        assert energy == f"{np.nanmean(values):.3g}"


def test_without_labels_classes_are_those_predicted_and_nothing_is_called_right(tmp_path):
    columns = columns_of(20, thumbnail=None, maps=(1, 40, 48))
    columns["labels"][:] = -1
    columns["paths"][:] = ""
    columns["status"][10:] = Status.MISSING
    data, text = read(
        write_report(write_store(tmp_path / "store", columns, class_names=None), tmp_path / "r.html")
    )
    assert facts(text)["Accuracy"] == "no labels"
    assert "10 of 20 samples" in text
    assert "Accuracy</th>" not in text
    assert "Own map" not in text
    assert 'id="mistakes"' not in text
    assert [int(row[0]) for row in cells(text, "classes")[1:]] == sorted(set(columns["predictions"][:10]))
    assert data["mapSize"] == [32, 32]
    assert len(base64.b64decode(data["samples"][0]["maps"])) == 32 * 32
    assert "image" not in data["samples"][0]
    assert {sample["nearest"] for sample in data["samples"]} == {-1}


def test_a_store_without_a_written_sample(tmp_path):
    columns = columns_of(5)
    columns["status"][:] = Status.MISSING
    data, text = read(write_report(write_store(tmp_path / "store", columns), tmp_path / "r.html"))
    assert (data["samples"], data["top"]) == ([], None)
    assert "5 of 5 samples" in text


def test_many_classes_list_the_most_frequent_mistakes_and_any_label_is_one(tmp_path):
    columns = columns_of(90, classes=30)
    columns["labels"][:3] = 10**9  # no array may be as long
    columns["labels"][3:6], columns["predictions"][3:6] = 4, 7
    _, text = read(
        write_report(write_store(tmp_path / "store", columns, class_names=None), tmp_path / "r.html")
    )
    head, *listed = cells(text, "mistakes")
    assert head == ["True class", "Predicted class", "Samples"]
    assert ["4", "7", "3"] in listed
    counts = [int(count) for *_, count in listed]
    assert counts == sorted(counts, reverse=True)
    assert cells(text, "classes")[-1][0] == "1000000000"


def test_only_its_own_style_and_script_are_allowed_and_nothing_is_requested(written):
    _, text = written
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])
    for kind, tag in (("script", "<script>"), ("style", "<style>")):
        (inside,) = re.findall(rf"{tag}(.*?)</{kind}>", text, re.DOTALL)
        made = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{made}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert all(link == "data:," or link.startswith("#") for link in re.findall(r'(?:src|href)="(.*?)"', text))
    assert not re.findall(r"https?://|innerHTML|\beval\(|fetch\(| style=", text)


def test_names_stay_text(tmp_path):
    columns = columns_of(6)
    columns["paths"], columns["ids"] = (np.array(names, dtype=object) for names in (HOSTILE, HOSTILE[::-1]))
    columns["status"][0] = Status.DAMAGED
    columns["problems"] = np.array(HOSTILE, dtype=object)
    settings = {"model": HOSTILE[0], HOSTILE[1]: [HOSTILE[2]]}
    store = write_store(tmp_path / "store", columns, class_names=tuple(HOSTILE[:3]), settings=settings)
    data, text = read(write_report(store, tmp_path / "a 'b' <c>.html", title=HOSTILE[0]))
    assert [sample["path"] for sample in data["samples"]] == [
        *HOSTILE[1:3],
        "line\\u2028and\\u2029and\\u000abreak {{ 7 * 7 }}",
        "\\u202egnp.exe",
        HOSTILE[5],
    ]
    assert data["classNames"] == HOSTILE[:3]
    assert text.count("<script>") == 1
    assert text.count("</script>") == 3
    assert "<b>" not in text


def test_absolute_paths_are_shown_from_their_common_folder_on(tmp_path):
    columns = columns_of(3)
    columns["paths"][:] = ["/home/me/photos/cat/a.png", "", "/home/me/photos/dog/b.png"]
    data, text = read(write_report(write_store(tmp_path / "store", columns), tmp_path / "r.html"))
    assert [sample["path"] for sample in data["samples"]] == ["cat/a.png", "", "dog/b.png"]
    assert "/home/me" not in text


def test_of_many_maps_those_of_the_highest_scores_are_taken():
    targets = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, -1, -1]])
    scores = np.array([[0.1, 5, 2, 9], [4, 1, 2, 3], [4, 1, 2, 3]], dtype=np.float32)
    order = content._map_order(targets, np.array([1, 0, 0]), scores)
    # The predicted class first, although the scores here would say another; the first map if none explains it.
    assert np.take_along_axis(targets, order, 1).tolist() == [[1, 3, 2, 0], [0, 3, 2, 1], [2, 3, -1, -1]]


@pytest.mark.parametrize(
    ("samples", "maps", "thumbnail", "expected"),
    [
        (28, (1000, 7, 7), (224, 224), ((7, 7), 10, (224, 224))),
        (10_000, (1, 224, 224), (224, 224), ((32, 32), 1, (70, 70))),
        (10_000, (10, 14, 14), (64, 128), ((14, 14), 6, (35, 70))),
        (1_000_000, (2, 7, 7), (64, 64), ((7, 7), 1, (32, 32))),
    ],
)
def test_many_samples_get_smaller_pictures_and_maps(samples, maps, thumbnail, expected):
    class Arrays:
        maps = np.empty(0)
        thumbnails = np.empty(0)

    def of_shape(*shape):
        return np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), shape, [0] * len(shape))

    Arrays.maps, Arrays.thumbnails = of_shape(samples, *maps), of_shape(samples, *thumbnail, 3)
    assert (*content._map_plan(Arrays, samples), content._picture_size(Arrays, samples, None)) == expected


def test_pictures_of_the_size_asked_for_and_a_warning_above_60_mb(tmp_path, monkeypatch, recwarn):
    store = write_store(tmp_path / "store", columns_of(20, thumbnail=(80, 160)))
    sizes = {}
    for asked, expected in ((500, (160, 80)), (100, (100, 50)), (0, None)):
        path = write_report(store, tmp_path / "r.html", pictures=asked)
        sample = read(path)[0]["samples"][0]
        if expected is None:
            assert "image" not in sample
        else:
            with Image.open(io.BytesIO(base64.b64decode(sample["image"]))) as picture:
                assert picture.size == expected
        sizes[asked] = path.stat().st_size
    assert sizes[500] > sizes[100] > sizes[0]
    assert not recwarn
    monkeypatch.setattr("batchcam_captum.explain.report.page.LARGE", sizes[100])
    with pytest.warns(UserWarning, match="--pictures"):
        write_report(store, tmp_path / "r.html", pictures=160)


def test_bad_input_leaves_what_was_there(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", columns_of(4))
    (tmp_path / "r.html").write_text("before")
    for error, name, call in (
        (ValueError, "pictures", lambda: write_report(store, tmp_path / "r.html", pictures=-1)),
        (OSError, "folder that exists", lambda: write_report(store, tmp_path / "none" / "r.html")),
        (FileNotFoundError, "no store", lambda: write_report(tmp_path / "no store", tmp_path / "r.html")),
    ):
        with pytest.raises(error, match=name):
            call()
    monkeypatch.setattr(content, "_records", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(store, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.html", "store"]

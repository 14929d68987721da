"""``batchcam report``. What is on the page is tested with the report itself."""

from __future__ import annotations

import pytest

from batchcam_captum.cli import main
from batchcam_captum.explain.layout import Status
from tests.explain.stores import columns_of, write_store


def run(*arguments):
    return main(["report", *map(str, arguments)])


def test_a_page_beside_the_store_or_elsewhere(tmp_path, capsys):
    store = tmp_path / "my maps.zarr"
    write_store(store, columns_of(6))
    assert run(store) == 0
    page = tmp_path / "my maps.html"
    assert "my maps" in page.read_text(encoding="utf-8")
    printed = capsys.readouterr()
    assert (str(page) in printed.out, printed.err) == (True, "")
    options = ["--output", tmp_path / "other.html", "--title", "<Cats> & dogs", "--pictures", 4]
    assert run(store, *options) == 0
    text = (tmp_path / "other.html").read_text(encoding="utf-8")
    assert "&lt;Cats&gt; &amp; dogs" in text
    assert '"pictureSize":[4,4]' in text


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.filterwarnings("default::UserWarning")
def test_remarks(tmp_path, capsys, monkeypatch, quiet):
    """An unfinished store, and a page that is large."""
    columns = columns_of(6)
    columns["status"][4:] = Status.MISSING
    write_store(tmp_path / "part", columns, chunk=2)
    monkeypatch.setattr("batchcam_captum.explain.report.page.LARGE", 1)
    assert run(tmp_path / "part", *(["--quiet"] if quiet else [])) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if quiet else 2)
    assert quiet or ("--pictures" in lines[0] and "2 of 6 images" in lines[1])


def test_bad_input(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    store = tmp_path / "maps"
    write_store(store, columns_of(3))
    cases = {
        "gone": [tmp_path / "gone"],
        "folder": [tmp_path / "folder"],
        "--output": [store, "--output", tmp_path / "no" / "page.html"],
        str(tmp_path / "folder"): [store, "--output", tmp_path / "folder"],
    }
    for named, arguments in cases.items():
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert named in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "maps"]

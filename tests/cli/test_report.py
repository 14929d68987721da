"""``batchcam report``, called as a user calls it. What is on the page is tested with the report itself."""

from __future__ import annotations

import pytest

from batchcam_captum.cli import main
from batchcam_captum.explain.layout import Status
from tests.explain.stores import columns_of, write_store


def run(*arguments):
    return main(["report", *map(str, arguments)])


def test_a_page_beside_the_store_or_where_it_is_asked_for(tmp_path, capsys):
    store = tmp_path / "my maps.zarr"
    write_store(store, columns_of(6))
    assert run(store) == 0
    page = tmp_path / "my maps.html"
    assert "my maps" in page.read_text(encoding="utf-8")
    printed = capsys.readouterr()
    assert printed.out == f"Written to {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser\n"
    assert printed.err == ""
    assert run(store, "--output", tmp_path / "other.html", "--title", "<Cats> & dogs") == 0
    assert "&lt;Cats&gt; &amp; dogs" in (tmp_path / "other.html").read_text(encoding="utf-8")


def test_a_store_that_is_not_complete_is_reported_as_far_as_it_is(tmp_path, capsys):
    columns = columns_of(6)
    columns["status"][4:] = Status.MISSING
    write_store(tmp_path / "part", columns, chunk=2)
    assert run(tmp_path / "part") == 0
    assert capsys.readouterr().err == (
        "batchcam: 2 of 6 images are not explained yet; give batchcam explain again, then this\n"
    )
    assert (tmp_path / "part.html").exists()


@pytest.mark.filterwarnings("default::UserWarning")
def test_pictures_of_another_size_and_a_large_page(tmp_path, capsys, monkeypatch):
    write_store(tmp_path / "maps", columns_of(40, thumbnail=(64, 64)))
    page = tmp_path / "maps.html"
    assert run(tmp_path / "maps", "--pictures", 32) == 0
    assert '"pictureSize":[32,32]' in page.read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("batchcam_captum.explain.report.page.LARGE", 1e5)
    assert run(tmp_path / "maps") == 0
    error = capsys.readouterr().err
    assert "--pictures" in error
    assert error.count("\n") == 1
    assert run(tmp_path / "maps", "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert run(tmp_path / "maps", "--pictures", -1) == 1
    assert "pictures" in capsys.readouterr().err


def test_bad_input(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    store = tmp_path / "maps"
    write_store(store, columns_of(3))
    cases = [
        ([tmp_path / "gone"], "expected a store of explain_dataset or batchcam explain, got nothing"),
        (
            [tmp_path / "folder"],
            "expected a store of explain_dataset or batchcam explain, got something else",
        ),
        (
            [store, "--output", tmp_path / "no" / "page.html"],
            "--output: expected a file in a folder that exists",
        ),
        ([store, "--output", tmp_path / "folder"], "folder"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "maps"]

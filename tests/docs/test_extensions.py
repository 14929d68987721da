"""The parts of ``docs/_ext`` that can go wrong without a warning of Sphinx; skipped where Sphinx is not installed."""

import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    yield
    for name in ("inventories", "links_inside", "pages"):
        sys.modules.pop(name, None)


def test_links_that_lead_nowhere_are_found(tmp_path):
    from links_inside import dead_links

    (tmp_path / "how_to").mkdir()
    (tmp_path / "index.html").write_text(
        '<p id="here"></p><a href="#here"></a><a href="how_to/a.html#there"></a><a href="https://example.org/x"></a>'
        '<a href="how_to/b.html"></a><img src="a%20b.png">'
    )
    (tmp_path / "how_to" / "a.html").write_text(
        '<a href="../index.html#gone"></a><a href="../index.html"></a>'
    )
    (tmp_path / "a b.png").touch()
    assert list(dead_links(tmp_path, ["index", "how_to/a"])) == [
        ("how_to/a.html", "../index.html#gone"),
        ("index.html", "how_to/a.html#there"),
        ("index.html", "how_to/b.html"),
    ]


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("[a](../docs/comparison.md)", "[a](../comparison.md)"),
        ("[a](README.md#part)", "[a](benchmarks.md#part)"),
        ("[a](study/README.md)", "[a](protocol.md)"),
        ("[a](https://example.org/x.md) [b](#part)", "[a](https://example.org/x.md) [b](#part)"),
    ],
)
def test_links_of_a_file_that_is_shown_as_a_page(text, moved):
    from pages import _moved

    assert _moved(text, "benchmarks/README.md", "docs/evidence/benchmarks.md") == moved


@pytest.mark.parametrize(
    ("page", "suffix", "file"),
    [
        ("how_to/lightning", ".md", "docs/how_to/lightning.md"),
        ("evidence/protocol", ".md", "benchmarks/study/README.md"),
        ("auto_examples/plot_1_drop_in", ".rst", "docs/gallery/plot_1_drop_in.py"),
        ("auto_examples/index", ".rst", "docs/gallery/README.rst"),
        ("reference/api/batchcam_captum.losses", ".rst", "batchcam_captum/losses/__init__.py"),
        ("reference/api/batchcam_captum.attribution.BatchGradCam", ".rst", "batchcam_captum/attribution/batch_grad_cam.py"),
        ("genindex", "", None),
    ],
)  # fmt: skip
def test_the_link_that_edits_a_page_leads_to_its_source(page, suffix, file):
    from pages import source_of

    assert source_of(page, suffix) == file


def test_every_line_of_the_lists_of_other_projects_names_is_in_the_inventory():
    from inventories import HOMES, inventory

    for project in HOMES:
        lines = (ROOT / "docs" / "inventories" / f"{project}.txt").read_text().splitlines()
        lines = [line for line in lines if line and not line.startswith("#")]
        made = inventory(project, lines).split(b"zlib.\n", 1)[1]
        found = [line.split()[0] for line in zlib.decompress(made).decode().splitlines()]
        assert found == [line.split()[1] for line in lines]
        assert found

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
    for name in ("inventories", "built_pages", "pages", "public_names", "sources"):
        sys.modules.pop(name, None)


def test_links_that_lead_nowhere_and_lists_of_letters_are_found(tmp_path):
    from built_pages import wrong

    (tmp_path / "how_to").mkdir()
    (tmp_path / "index.html").write_text(
        '<p id="here"></p><a href="#here"></a><a href="how_to/a.html#there"></a><a href="https://example.org/x"></a>'
        '<a href="how_to/b.html"></a><img src="a%20b.png">'
    )
    (tmp_path / "how_to" / "a.html").write_text(
        '<a href="../index.html#gone"></a><a href="../index.html"></a><ol class="upperalpha simple" start="11"></ol>'
        '<ol class="arabic simple"></ol>'
    )
    (tmp_path / "a b.png").touch()
    assert list(wrong(tmp_path, ["index", "how_to/a"])) == [
        ("how_to/a.html", "1 lists count by letters; begin the sentences with another word"),
        ("how_to/a.html", "nothing is at the link ../index.html#gone"),
        ("index.html", "nothing is at the link how_to/a.html#there"),
        ("index.html", "nothing is at the link how_to/b.html"),
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
        ("reference/api/batchcam_captum.functional.class_coherence", ".rst", "batchcam_captum/functional/metrics/coherence.py"),
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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(Ross et al. 2017, eq. 1, on gradients)", [("Ross et al. 2017", "ross2017")]),
        ("for Ross, Hughes and\nDoshi-Velez 2017,", [("Ross, Hughes and\nDoshi-Velez 2017", "ross2017")]),
        ("Draelos and Carin (2020)", [("Draelos and Carin (2020", "draelos2020")]),
        ("Lloyd 1982, and Ross 2017", [("Lloyd 1982", "lloyd1982")]),  # that one has more authors
        ("Wang et al. 2020; Wang et al. 1999", []),  # of two entries, and of none
    ],
)
def test_sources_are_found_where_they_are_one_entry_of_the_bibliography(text, found):
    from sources import keys_of, parts

    keys = keys_of(
        [
            ("ross2017", ["Ross", "Hughes", "Doshi-Velez"], "2017"),
            ("draelos2020", ["Draelos", "Carin"], "2020"),
            ("lloyd1982", ["Lloyd"], "1982"),
            ("wang2020", ["Wang", "Wang", "Du"], "2020"),
            ("wang2020b", ["Wang", "Yang", "Li", "Wu"], "2020"),
        ]
    )
    pieces = list(parts(text, keys))
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece in pieces if piece[1]] == found


def test_signs_are_kept_in_texts_and_left_alone_in_formulas():
    from public_names import keep_signs

    lines = ["of |x|, (N, *size)", "", ".. math:: |M - m|", "", "   |a|", "", "and ``|b|``, |c|"]
    keep_signs(None, "function", "f", None, None, lines)
    assert lines == [
        r"of \|x\|, (N, \*size)",
        "",
        ".. math:: |M - m|",
        "",
        "   |a|",
        "",
        r"and ``|b|``, \|c\|",
    ]


def test_bases_that_are_not_public_give_way_to_those_that_are():
    from public_names import public_bases

    from batchcam_captum.datasets import ShortcutDataset
    from batchcam_captum.datasets.named import DecoyMNIST
    from batchcam_captum.evaluation.metrics import CamMetric, RankAccuracy

    for cls, expected in ((DecoyMNIST, ShortcutDataset), (RankAccuracy, CamMetric)):
        bases = list(cls.__bases__)
        public_bases(None, "", cls, None, bases)
        assert bases == [expected]

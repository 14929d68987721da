"""What a release needs: its archives, what PyPI shows of them, and one version and one address everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from datetime import date
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from trove_classifiers import classifiers, deprecated_classifiers

import batchcam_captum

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """As the release checklist builds them, but with the tools of this environment."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def metadata(archives):
    (name,) = (
        name for name in zipfile.ZipFile(archives[0]).namelist() if name.endswith(".dist-info/METADATA")
    )
    return message_from_string(zipfile.ZipFile(archives[0]).read(name).decode("utf-8"))


def test_twine_accepts_both_archives(archives):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_archives_are_of_this_version_and_small_enough(archives):
    version = batchcam_captum.__version__
    assert [path.name for path in archives] == [
        f"batchcam_captum-{version}-py3-none-any.whl",
        f"batchcam_captum-{version}.tar.gz",
    ]
    assert sum(path.stat().st_size for path in archives) < 20e6
    with tarfile.open(archives[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "SECURITY.md", "CONTRIBUTING.md", "LICENSE"} <= names
    assert not {
        name for name in names if re.search(r"_build|auto_examples|__pycache__|\.venv|\.partial\.", name)
    }


def test_pypi_shows_the_readme_with_whole_addresses(metadata):
    shown = metadata.get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"", shown)
    targets = [first or second for first, second in targets]
    assert len(targets) > 3
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    tag = f"v{batchcam_captum.__version__}"
    for kind, path in re.findall(rf"{re.escape(SOURCE)}/(blob|raw)/{re.escape(tag)}/([\w./-]+)", shown):
        assert (ROOT / path).is_file()
        assert (kind == "raw") == path.endswith((".png", ".svg", ".jpg", ".gif")), path
    # Nothing else differs.
    assert re.sub(rf"{re.escape(SOURCE)}/(?:blob|raw)/{re.escape(tag)}/", "", shown).strip() == README.strip()


def test_classifiers_are_known_and_agree_with_the_rest():
    found = PROJECT["classifiers"]
    assert sorted(set(found)) == found
    assert not set(found) - classifiers
    assert not set(found) & set(deprecated_classifiers)
    assert not [name for name in found if name.startswith("License ::")]  # PEP 639: the expression says it
    versions = {name.split(" :: ")[-1] for name in found if re.fullmatch(r".*:: Python :: 3\.\d+", name)}
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest in versions
    said = re.search(r"on Python ([^.\n]*\d\.\d+(?:[^.\n]*\d\.\d+)*)", README)
    assert said is not None
    assert set(re.findall(r"3\.\d+", said[1])) == versions


def test_keywords_are_in_order_and_there_once():
    assert PROJECT["keywords"] == sorted(set(PROJECT["keywords"]))
    assert set(CITATION["keywords"]) <= set(PROJECT["keywords"])


def test_the_address_of_the_project_is_one():
    """That of pyproject.toml; whoever moves the project changes it there, and this finds the rest."""
    owner, name = SOURCE.removeprefix("https://github.com/").split("/")
    assert all(address.startswith(SOURCE) for address in PROJECT["urls"].values())
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(PROJECT["urls"])
    assert CITATION["repository-code"] == SOURCE
    pages = [path for kind in ("*.md", "*.toml", "*.cff") for path in ROOT.glob(kind)]
    pages += [path for kind in ("md", "py", "rst", "ipynb") for path in (ROOT / "docs").rglob(f"*.{kind}")]
    elsewhere = re.compile(
        rf"https://(?:raw\.)?github(?:usercontent)?\.com/(?!{owner}/{name}\b)[\w-]*/?batchcam[\w-]*"
    )
    assert not {path.name: found for path in pages if (found := elsewhere.findall(path.read_text("utf-8")))}


def test_version_and_date_are_those_of_the_changelog_and_of_the_citation():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if headings[0] == "[Unreleased]":
        del headings[0]
    sections = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings]
    assert all(sections), headings
    assert sections[0].groups() == (batchcam_captum.__version__, str(CITATION["date-released"]))
    assert CITATION["version"] == batchcam_captum.__version__
    versions = [tuple(map(int, section[1].split("."))) for section in sections]
    dates = [date.fromisoformat(section[2]) for section in sections]
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= known


def test_citation_names_the_papers_as_the_bibliography_does():
    entries = (ROOT / "docs" / "reference" / "references.bib").read_text(encoding="utf-8").split("\n}\n")
    assert CITATION["cff-version"] == "1.2.0"
    assert (CITATION["title"], CITATION["license"]) == (batchcam_captum.__name__, PROJECT["license"])
    assert [author["name"] for author in CITATION["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    assert len(CITATION["references"]) == 3
    for reference in CITATION["references"]:
        (entry,) = (entry for entry in entries if f"title = {{{{{reference['title']}}}}}" in entry)
        authors = [f"{each['family-names']}, {each['given-names']}" for each in reference["authors"]]
        assert f"author = {{{' and '.join(authors)}}}" in entry
        assert f"year = {{{reference['year']}}}" in entry
        number = reference.get("doi") or reference["url"].removeprefix("https://arxiv.org/abs/")
        assert f"= {{{number}}}" in entry

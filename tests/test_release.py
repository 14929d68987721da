"""What a release needs: one version, one address and one citation everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from trove_classifiers import classifiers, deprecated_classifiers

import batchcam_captum

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


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
    sections = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|unreleased)", heading) for heading in headings
    ]
    assert all(sections), headings
    versions, dates = zip(*(section.groups() for section in sections), strict=True)
    assert versions[0] == CITATION["version"] == batchcam_captum.__version__
    assert str(CITATION.get("date-released", "unreleased")) == dates[0]
    assert "unreleased" not in dates[1:]
    assert list(dates[1:]) == sorted(dates[1:], reverse=True)
    assert list(versions) == sorted(
        set(versions), key=lambda version: [*map(int, version.split("."))], reverse=True
    )


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

"""The documentation is true: its code runs and prints what its page shows; its commands, links and tables are current."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchcam_captum
from batchcam_captum.cli import main
from batchcam_captum.functional import CAM_METHODS, DISTANCES
from batchcam_captum.losses import LOSSES
from benchmarks import update_readme

ROOT = Path(__file__).parents[1]
GENERATED = ("docs/_build", "docs/auto_examples", "docs/reference/api", "docs/reference/examples")
PAGES = {
    name: path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if not (name := path.relative_to(ROOT).as_posix()).startswith(GENERATED)
}
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
#: Pages whose code other tests run: below, test_contributing.py, test_migration.py.
ELSEWHERE = ("README.md", "CONTRIBUTING.md", "docs/migration.md")
INLINE = re.compile(r"(?<![`}])`([^`]+)`(?!`)")


def blocks(page: str) -> Iterator[tuple[str, str, int]]:
    """Yield language, text and line of each fenced block."""
    for found in BLOCK.finditer(PAGES[page]):
        yield found["language"], textwrap.dedent(found["text"]), PAGES[page].count("\n", 0, found.start()) + 1


def run(page: str, names: dict[str, Any]) -> None:
    """Run the Python blocks of a page in one namespace and compare ``text`` blocks with what the code before them printed."""
    checker, flags, printed = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, None
    for language, text, line in blocks(page):
        if language == "python":
            code = compile(
                "\n" * line + text, str(ROOT / page), "exec"
            )  # tracebacks show the lines of the page
            with (
                contextlib.redirect_stdout(io.StringIO()) as output,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                exec(code, names)
            printed = output.getvalue()
        elif language == "text":
            assert printed is not None, f"{page}:{line}: output without code before it"
            if not checker.check_output(text, printed, flags):
                pytest.fail(
                    f"{page}:{line}: {checker.output_difference(doctest.Example('', text), printed, flags)}"
                )


class Model(nn.Module):
    """The reader's model, in pages that take one for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer4(images).flatten(1))


def given() -> dict[str, Any]:
    """Return what README.md and the front page take for granted."""
    model, images, labels = Model(), torch.zeros(20, 3, 8, 8), torch.arange(20) % 10
    images[..., 3:5, 3:5] = 0.4 + 0.6 * torch.rand(20, 3, 2, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=20)
    return {
        "F": F, "model": model, "images": images, "labels": labels, "masks": (images > 0).float()[:, :1],
        "train_loader": loader, "test_loader": loader, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Write to a temporary folder, and leave no registered name, figure or process group to other tests."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    for registry in (CAM_METHODS, DISTANCES, LOSSES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setitem(sys.modules, "page", ModuleType("page"))  # classes of a page belong to a module
    yield
    pyplot.close("all")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in PAGES[page] and page not in ELSEWHERE]
)
def test_code_runs_and_prints_what_the_page_shows(page):
    run(page, {"__name__": "page"} | (given() if page == "docs/index.md" else {}))


def test_readme_trains_the_head(tmp_path):
    names = given()
    before = names["model"].head.weight.detach().clone()
    run("README.md", names)
    assert names["cams"].shape == (20, 1, 8, 8)
    names["loss"].backward()
    names["optimizer"].step()
    assert not torch.equal(names["model"].head.weight, before)


@cache
def help_of(command: str) -> str:
    """Return what ``batchcam COMMAND --help`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
    return output.getvalue()


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_commands_of_a_page_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    lines = [
        line
        for language, text, _ in blocks(page)
        if language == "sh"
        for line in text.replace("\\\n", " ").splitlines()
    ]
    for line in [*lines, *(" ".join(text.split()) for text in INLINE.findall(BLOCK.sub("", PAGES[page])))]:
        line = line.partition(" #")[0].removeprefix(".venv/bin/")
        found = re.match(r"(?:batchcam|torchrun .*-m batchcam_captum) ([a-z]+)", line)
        if found:
            missing = [
                option
                for option in re.findall(r" (--?[a-z][\w-]*)", line[found.end() :])
                if option not in help_of(found[1])
            ]
            assert help_of(found[1]), f"{page}: there is no command: {line}"
            assert not missing, f"{page}: {line}"
        elif line.startswith("make "):
            assert all(
                re.search(rf"^{word.partition('=')[0]} *(\?=|:)", makefile, re.MULTILINE)
                for word in line.split()[1:]
            ), line
        elif line.startswith("pip install"):
            assert {
                extra for group in re.findall(r"\[([\w,]+)\]", line) for extra in group.split(",")
            } <= set(extras), line


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = BLOCK.sub("", PAGES[page])
    targets = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text) + re.findall(r'\bsrc="([^":]+)"', text)
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not [target for target in missing if "auto_examples" not in target]


@pytest.mark.parametrize("file", update_readme.FILES)
def test_tables_are_those_of_the_committed_results(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert update_readme.filled(text, file) == text


def test_reference_lists_every_name_of_the_top_package():
    listed = re.findall(r"^   batchcam_captum\.[\w.]+\.(\w+)$", PAGES["docs/reference/top.md"], re.MULTILINE)
    assert sorted(listed) == sorted(set(batchcam_captum.__all__) - {"__version__", "functional"})

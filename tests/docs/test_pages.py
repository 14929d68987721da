"""Every block of the documentation is run or accounted for, and prints what its page shows."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from batchcam_captum.functional import CAM_METHODS, DISTANCES
from batchcam_captum.losses import LOSSES
from tests.docs.pages import DOCS, PAGES, ROOT
from tests.docs.running import Held, run_page
from tests.test_migration import Model

#: What may stand behind three backticks: run here, compared here, parsed by test_commands.py. Or a directive of Sphinx, unless it
#: shows code, as ``{code-block}`` does.
LANGUAGES = {"python", "text", "sh"}
#: tests/test_readme.py and tests/test_contributing.py run them.
ELSEWHERE = {"README.md", "CONTRIBUTING.md"}
RUN = {name: page for name, page in PAGES.items() if page.of("python") and name not in ELSEWHERE}
#: What of a page is compared, at least: a comparison that finds nothing to compare proves nothing.
HELD = {
    "docs/getting_started.md": Held(shapes=2, outputs=3),
    "docs/how_to/choose_a_layer.md": Held(shapes=1, outputs=5),
    "docs/how_to/data_sets.md": Held(shapes=1, outputs=3, commands=1),
    "docs/index.md": Held(shapes=1),
    "docs/migration.md": Held(shapes=3),
}
#: Page -> what its code draws -> the committed picture that the page shows of it.
DRAWN = {"docs/getting_started.md": ("maps.png", "images/getting-started-maps.png")}


def given(name: str) -> dict[str, Any]:
    """What a page takes for granted; the others make their own."""
    if name not in ("docs/index.md", "docs/migration.md"):
        return {}
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 21, 21), torch.tensor([4, 1, 9, 0])
    found = {"model": Model().eval(), "images": images, "labels": labels}
    if name == "docs/migration.md":
        return found | {"rgb_image": images[0].permute(1, 2, 0).numpy()}
    lit = torch.zeros(20, 3, 21, 21)
    lit[..., 8:13, 8:13] = 0.5 + 0.5 * torch.rand(20, 3, 5, 5)
    return found | {"F": F, "train_loader": [(lit, torch.arange(20) % 10)]}


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """A folder to write to, no network, and nothing that a page registers or draws is left to other tests."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(f"the documentation's code needs no network; it asked for {arguments[-1]!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for registry in (CAM_METHODS, DISTANCES, LOSSES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield
    pyplot.close("all")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", RUN)
def test_code_runs_and_prints_what_the_page_shows(name):
    held = run_page(RUN[name], {"__name__": "page"} | given(name))
    expected = HELD.get(name, Held())
    for kind in ("shapes", "outputs", "commands"):
        assert getattr(held, kind) >= getattr(expected, kind), kind
    if name in DRAWN:
        drawn, shown = (Path(DRAWN[name][0]).resolve(), DOCS / DRAWN[name][1])
        apart = float((_coarse(drawn) - _coarse(shown)).abs().mean())
        assert apart < 0.02, f"{shown}: expected what the page draws, got {apart:.3f} off; copy {drawn} there"


def _coarse(picture: Path) -> torch.Tensor:
    """So few pixels that fonts and the last digits of a training do not matter."""
    from matplotlib.pyplot import imread

    return F.interpolate(torch.tensor(imread(picture))[None, ..., :3].movedim(3, 1), (48, 96), mode="area")


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_kind_that_is_accounted_for(name):
    for block in PAGES[name].blocks:
        directive = re.fullmatch(r"\{(?!\w*code)[\w-]+\}", block.language)
        assert block.language in LANGUAGES or directive, f"{block.where}: {block.language!r}"


@pytest.mark.parametrize("name", PAGES)
def test_links_within_the_repository_lead_to_files(name):
    page = PAGES[name]
    for number, line in enumerate(page.prose, 1):
        for target in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", line):
            assert (page.path.parent / target).exists(), f"{name}:{number}: {target}"
        named = re.findall(r"https://github\.com/[\w-]*batchcam[\w/-]*/(?:blob|tree)/", line)
        assert not named, f"{name}:{number}: a file of the repository is linked to by its place in it"


def test_every_page_is_found():
    assert {"docs/index.md", "docs/getting_started.md", "docs/recipes/README.md"} < set(PAGES)
    assert {path.relative_to(ROOT).as_posix() for path in (DOCS / "how_to").glob("*.md")} < set(PAGES)
    assert len(RUN) >= 16

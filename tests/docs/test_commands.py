"""What a page tells the reader to type is understood: commands, options, extras, targets of the Makefile, scripts."""

from __future__ import annotations

import shlex

import pytest

from tests.docs import commands, names
from tests.docs.pages import PAGES


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.of("sh")])
def test_commands_of_blocks_are_understood(name):
    for block in PAGES[name].of("sh"):
        for words in commands.lines(block):
            try:
                commands.check(words)
            except commands.CommandError as error:
                pytest.fail(f"{block.where}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("name", [name for name in PAGES if not name.startswith("benchmarks/")])
def test_commands_within_sentences_are_understood(name):
    for line, role, text in names.inline(PAGES[name]):
        words = text.split()
        if role or name in ("docs/study.md", "docs/comparison.md"):  # their options are the scripts'
            continue
        if len(words) > 1 and words[0] in ("batchcam", "torchrun", "make", "pip"):
            try:
                commands.check(words)
            except commands.CommandError as error:
                pytest.fail(f"{name}:{line}: {text}: {error}")
        elif text.startswith("--"):
            assert words[0] in names.options(), f"{name}:{line}: {text}"


@pytest.mark.parametrize(
    "command",
    [
        "batchcam explode resnet50",
        "batchcam explain resnet50 --data photos/ --output maps.zarr --pretrain-ed",
        "batchcam explain …  --pretrain-ed",
        "batchcam report maps.zarr other.zarr",
        "torchrun -m something_else explain",
        "make everything",
        "make demo DEVISE=cuda",
        "pip install '.[demos]'",
        "python benchmarks/layer.py",
        "python benchmarks/layers.py --slow",
        "python -m benchmarks.studies grid",
        "sudo make demo",
    ],
)
def test_what_is_not_understood_is_found(command):
    with pytest.raises(commands.CommandError):
        commands.check(shlex.split(command))

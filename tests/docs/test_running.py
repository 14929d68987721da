"""The runner of pages finds what a page says wrongly, and says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, read
from tests.docs.running import Held, PageError, run_page

CODE = "```python\nimport torch\n\n{}\n```\n"


def run(text: str) -> Held:
    return run_page(read(ROOT / "docs" / "page.md", f"# A page\n\n{text}"), {})


@pytest.mark.parametrize(
    "line",
    [
        "cams = torch.rand(4, 1, 7, 7)  # (N, 1, h, w), signed",
        "cams, scores = [torch.rand(4, 1, 7, 7), torch.rand(4, 1, 3, 3)], torch.rand(4, 5)  # (N, 1, h, w), and (N, K)",
        "print(torch.rand(4, 1).shape)  # (4, 1): a number each",
        "cams = torch.rand(4, 1)  # (N, 1) in [0, 1]",
    ],
)
def test_shapes_that_are_so(line):
    assert run(CODE.format(line)) == Held(shapes=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cams = torch.rand(4, 2, 7, 7)  # (N, 1, h, w)", r"got \(4, 2, 7, 7\)"),
        ("cams = torch.rand(4, 1, 7)  # (N, 1, h, w)", r"got \(4, 1, 7\)"),
        ("cams, scores = torch.rand(4, 1), torch.rand(3, 5)  # (N, 1), and (N, K)", r"got \(3, 5\)"),
        ("print(torch.rand(4, 2).shape)  # (4, 1)", r"got \(4, 2\)"),
        ("cams = 2 + torch.rand(4, 1)  # (N, 1) in [0, 1]", r"got 2\."),
        ("cams, scores = torch.rand(4, 1), torch.rand(4, 5)  # (N, 1)", "a shape for each of 2 names"),
        ("cams = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_is_not_so_is_found_with_its_line(line, message):
    with pytest.raises(PageError, match=rf"^docs/page\.md:6: .*{message}"):
        run(CODE.format(line))


@pytest.mark.parametrize(
    ("shown", "same"),
    [
        ("```text\nloss 0.5 of 3\n```\n", True),
        ("```text\nloss 0.52 of 3\n```\n", False),
        ("<!-- numbers ± 0.05 -->\n```text\nloss 0.52 of 3\n```\n", True),
        ("<!-- numbers ± 0.05 -->\n\n```text\nloss 0.52 of 3\n```\n", True),
        ("<!-- numbers ± 0.01 -->\n```text\nloss 0.52 of 3\n```\n", False),
        ("<!-- numbers ± 0.05 -->\n```text\nerror 0.5 of 3\n```\n", False),
        ("<!-- numbers ± 0.05 -->\n```text\nloss 0.5 of 3 4\n```\n", False),
        ("<!-- numbers ± 0.05 -->\nWords.\n\n```text\nloss 0.52 of 3\n```\n", False),
    ],
)
def test_output(shown, same):
    text = CODE.format("print('loss 0.5 of 3')") + shown
    if same:
        assert run(text) == Held(outputs=1)
    else:
        with pytest.raises(PageError, match="expected the output\n"):
            run(text)


def test_output_belongs_to_the_code_right_before_it():
    with pytest.raises(PageError, match="output without code"):
        run(CODE.format("print(1)") + "```text\n1\n```\n```text\n1\n```\n")


def test_blocks_have_their_lines_and_the_rest_keeps_its_own():
    page = read(Path("page.md"), "Words\n\n- a list\n\n  ```sh\n  make demo\n  ```\n\n:::{note}\nmore\n:::\n")
    (block,) = page.blocks
    assert (block.language, block.line, block.text) == ("sh", 6, "make demo\n")
    assert [line for line in page.prose if line] == ["Words", "- a list", ":::{note}", "more", ":::"]
    with pytest.raises(ValueError, match="an end of the block"):
        read(Path("page.md"), "```python\n1\n")

"""What the pages put in backticks is there: names, parameters, registered choices, and targets of references."""

from __future__ import annotations

import re

import pytest

from tests.docs import names
from tests.docs.pages import PAGES

PAGES_OF_PROSE = re.compile(
    r"README\.md|docs/(index|getting_started|migration|how_to/.*|explanation/.*|recipes/README)\.md"
)
#: Words of the libraries' that are no module's, class's or function's names that can be looked up, or are gone from there.
OF_OTHERS = {
    "docs/migration.md": {"use_cuda", "ttach", "augment_image", "deaugment_mask", "activations_and_grads"}
    | {"class_idx", "target_shape"},
    "docs/how_to/segmentation.md": {"backbone"},
    "docs/recipes/README.md": {"other"},
}
#: No code, though it is set like code: formulas, file names, values of options, and what stands for something.
NO_CODE = re.compile(
    r"1 \u2212 \w+|[\w./]+\.(py|html|zarr)|true|path/to/file\.py:function|[\w/]+<\w+>"
    r"|(--|batchcam |make |pip |python |torchrun).*"
)
CHECKED = {name: page for name, page in PAGES.items() if PAGES_OF_PROSE.fullmatch(name)}
#: Roles of MyST whose text is the path of something in the package.
REFERENCES = {"attr", "class", "func", "meth", "mod", "obj"}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of other libraries' modules, when they are looked through
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CHECKED)
def test_names_in_backticks_are_there(name):
    page = CHECKED[name]
    known = names.of_page(page) | OF_OTHERS.get(name, set())
    missing = [
        f"{name}:{line}: {text!r}: there is no {', '.join(found)}"
        for line, role, text in names.inline(page)
        if not role and not NO_CODE.fullmatch(text) and (found := names.unknown(text, known))
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("name", PAGES)
def test_references_lead_to_what_is_there(name):
    for line, role, text in names.inline(PAGES[name]):
        if role in REFERENCES and not re.match(r"~?(torch|captum|torchmetrics|lightning|numpy)\b", text):
            try:
                names.imported(text)
            except AttributeError:
                pytest.fail(f"{name}:{line}: {text}")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("BatchGradCam(model, layer, method=function)", []),
        ("BatchGradCam(model, layer, methods=function)", ["BatchGradCam(methods=…)"]),
        ('PrototypeLoss(…, method="hires_camera")', ["method='hires_camera'"]),
        ('distance="ssim"', []),
        ('distance="sssim"', ["distance='sssim'"]),
        ("regularizer.read_values()", []),
        ("regularizer.values_read()", ["values_read"]),
        ("weight=", []),
        ("heft=", ["f(heft=…)"]),
        ("BatchGradCamera", ["BatchGradCamera"]),
        ("torch.nn.functional", []),
        ("with regularizer:", []),
        ("lambda row: row[0]", []),
        ("not Python at all", ["not Python at all"]),
    ],
)
def test_what_is_not_there_is_found(text, missing):
    known = {"model", "layer", "function", "regularizer"}
    assert names.unknown(text, known) == missing

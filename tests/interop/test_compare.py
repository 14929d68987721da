"""The comparison of libraries: its numbers, its timing, its report; and the model as it was."""

from __future__ import annotations

import copy
import gc
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.interop.compare import Comparison, agreement, compare, draw, summary
from batchcam_captum.interop.peers import OURS, PEERS
from batchcam_captum.interop.timing import Times, Within, interleaved
from tests.models import DenseNetOutput, SmallCnn, VectorNet, strong_heads

stats = pytest.importorskip("scipy.stats")
pytest.importorskip("matplotlib")

INSTALLED = [name for name, peer in PEERS.items() if peer.version]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return SmallCnn(norm=True).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def comparison(model: nn.Module, images: Tensor) -> Comparison:
    return compare(
        model, model.layer, images, methods=["grad_cam", "layer_cam"], batch_sizes=[4, 1], repeats=2
    )


def by_library(found: Comparison, method: str = "grad_cam") -> dict[str, Any]:
    return {pair.library: pair for pair in found.pairs if pair.method == method}


# Agreement


@pytest.mark.parametrize("shape", [(40,), (20, 24), (12, 13, 14)], ids=["1d", "2d", "3d"])
def test_numbers_are_those_of_scipy_and_scikit_image(shape: tuple[int, ...]) -> None:
    from skimage.metrics import structural_similarity

    ours = torch.rand(3, 1, *shape)
    theirs = (ours + 0.1 * torch.randn_like(ours)).clamp(0, 1)
    for index, numbers in enumerate(agreement(ours, theirs, scale="unit")):
        a, b = (maps[index, 0].double().numpy() for maps in (ours, theirs))
        assert numbers["max_difference"] == np.abs(a - b).max()
        assert numbers["mean_difference"] == pytest.approx(np.abs(a - b).mean(), rel=1e-12)
        assert numbers["pearson"] == pytest.approx(stats.pearsonr(a.ravel(), b.ravel())[0], abs=1e-12)
        assert numbers["spearman"] == pytest.approx(stats.spearmanr(a.ravel(), b.ravel())[0], abs=1e-12)
        if min(shape) >= 20:  # scikit-image does not shrink its window on small maps
            similarity = structural_similarity(
                a, b, gaussian_weights=True, use_sample_covariance=False, data_range=1.0
            )
            assert numbers["ssim"] == pytest.approx(similarity, abs=1e-9)
        top = [set(np.argsort(values.ravel())[-math.ceil(a.size / 5) :]) for values in (a, b)]
        assert numbers["top_overlap"] == pytest.approx(len(top[0] & top[1]) / len(top[0] | top[1]))


def test_ties_share_ranks_and_the_top() -> None:
    ours = torch.tensor([0.0, 9.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 1, 10)
    theirs = torch.tensor([0.0, 9.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 1, 10)
    [found] = agreement(ours, theirs, scale="raw")
    # Two of ten positions are the top. Ours: the 9, and half of each 5. So (1 + 1/2) of (1 + 1 + 1/2).
    assert found["top_overlap"] == pytest.approx(1.5 / 2.5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(ours.ravel(), theirs.ravel())[0], abs=1e-12)
    ascending = torch.arange(35.0).reshape(1, 1, 35)
    other = ascending.clone()
    other[..., 27] = 100.0  # the eighth highest of 35 becomes the first of the top seven
    assert agreement(ascending, other, scale="raw")[0]["top_overlap"] == pytest.approx(6 / 8)


def test_raw_maps_are_relative_to_their_peak() -> None:
    ours, theirs = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64)
    [large], [small] = (agreement(factor * ours, factor * theirs, scale="raw") for factor in (1e3, 1e-200))
    assert large == pytest.approx(small, rel=1e-10)
    peak = torch.stack([ours, theirs]).abs().max()
    assert large["max_difference"] == pytest.approx(float((ours - theirs).abs().max() / peak))
    [opposite] = agreement(ours, -ours, scale="raw")
    assert (opposite["max_difference"], opposite["pearson"]) == (pytest.approx(2), pytest.approx(-1))


def test_equal_constant_and_broken_maps() -> None:
    ours = torch.rand(5, 1, 6, 6)
    theirs = ours.clone()
    theirs[0, 0, 2, 3] = torch.nextafter(theirs[0, 0, 2, 3], torch.tensor(2.0))
    ours[2] = theirs[2] = 0
    theirs[3] = 0
    ours[4, 0, 1, 1] = math.nan
    found = agreement(ours, theirs, scale="unit")
    assert [numbers["identical"] for numbers in found] == [False, True, True, False, False]
    assert 0 < found[0]["max_difference"] < 1.2e-7
    assert [found[1][name] for name in ("ssim", "pearson", "spearman", "top_overlap")] == [1.0] * 4
    assert [numbers["pearson"] is None for numbers in found] == [False, False, True, True, True]
    total = summary(found)
    counts = ("identical", "constant", "zero_in_both", "zero_in_one", "not_finite", "maps")
    assert [total[count] for count in counts] == [2, 2, 1, 1, 1, 5]
    assert total["max_difference"] == found[3]["max_difference"]
    with pytest.raises(ValueError, match="ours"):
        agreement(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 8, 8), scale="unit")


# Timing


def test_a_case_that_raises_is_left_out_and_the_others_go_on() -> None:
    calls = {"good": 0, "late": 0}

    def late() -> None:
        calls["late"] += 1
        if calls["late"] == 3:
            raise MemoryError

    def good() -> None:
        calls["good"] += 1

    told = []
    times = interleaved(
        {"good": good, "late": late}, "cpu", rounds=4, failed=lambda name, error: told.append(name)
    )
    assert told == ["late"]
    assert list(times.seconds) == ["good"]
    assert times.rounds == 4
    assert calls == {"good": 5, "late": 3}
    assert times.spread("late") is None
    calls["late"] = 2
    with pytest.raises(MemoryError):
        interleaved({"late": late}, "cpu", rounds=2)
    assert gc.isenabled()
    assert interleaved({}, "cpu", rounds=3) == Times({})


def test_order_rotates_and_contexts_are_entered_around_each_call() -> None:
    events: list[str] = []

    def case(name: str) -> Within:
        @contextmanager
        def enter():  # type: ignore[no-untyped-def]
            events.append("enter")
            yield lambda: events.append(name)
            events.append("leave")

        return Within(enter)

    interleaved({name: case(name) for name in "abc"}, "cpu", rounds=4)
    assert events[:3] == ["enter", "a", "leave"]
    assert "".join(event for event in events if len(event) == 1) == "abc" + "abc" + "acb" + "cab" + "cba"


# The comparison


def test_every_installed_library_is_beside_ours(comparison: Comparison, model: Any, images: Tensor) -> None:
    assert set(by_library(comparison)) == set(INSTALLED)
    with torch.no_grad():
        assert [entry["target"] for entry in comparison.images] == model(images).argmax(1).tolist()
    for pair in comparison.pairs:
        assert pair.ours.shape == pair.theirs.shape
        assert summary(pair.agreement)["max_difference"] < 1e-5
    absent = [entry.method for entry in comparison.skipped if entry.library == "Captum"]
    assert absent == ["layer_cam"]


def test_theirs_is_what_the_libraries_return(comparison: Comparison, model: Any, images: Tensor) -> None:
    from captum.attr import LayerGradCam

    model, targets = copy.deepcopy(model), [entry["target"] for entry in comparison.images]
    expected = LayerGradCam(model, model.layer).attribute(images, target=targets).detach()
    assert torch.equal(by_library(comparison)["Captum"].theirs, expected)
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with pytorch_grad_cam.LayerCAM(model, [model.layer]) as cam:
        maps = cam(images, [ClassifierOutputTarget(target) for target in targets])
    pair = by_library(comparison, "layer_cam")["pytorch-grad-cam"]
    np.testing.assert_array_equal(pair.theirs[:, 0].numpy(), maps)


def test_every_library_is_timed_at_every_batch_size(comparison: Comparison) -> None:
    timed = {(cost.method, cost.library, cost.batch_size) for cost in comparison.costs}
    able = {(pair.method, pair.library) for pair in comparison.pairs}
    able |= {(method, OURS.name) for method in ("grad_cam", "layer_cam")}
    assert timed == {(*case, size) for case in able for size in (1, 4)}
    for cost in comparison.costs:
        assert cost.rounds == 2
        assert cost.seconds is not None
        assert 0 < cost.seconds.q1 <= cost.seconds.median <= cost.seconds.q3
        assert cost.library != OURS.name or cost.ratio_to_ours.median == 1  # type: ignore[union-attr]


class Draws(SmallCnn):
    """Draws numbers in eval mode as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * torch.rand(5)


def broken(model: nn.Module, *_: Any) -> Any:
    """What a library could do to a model before it raises."""
    model.train()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    raise RuntimeError("it broke\nat length")


def test_the_model_is_not_touched_and_what_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    model = Draws(norm=True).train()
    model.tail.eval()
    model.stem[0].requires_grad_(False)
    model(images).sum().backward()
    before = copy.deepcopy(model)
    grads = [parameter.grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    monkeypatch.setitem(PEERS, "Captum", replace(PEERS["Captum"], opened=broken))
    order = ["Captum", *(name for name in INSTALLED if name != "Captum")]
    found = compare(model, "layer", images, libraries=order[1:] + order[:1], batch_sizes=[2], repeats=2)
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    [reason] = [entry.reason for entry in found.skipped if entry.library == "Captum"]
    assert reason == "RuntimeError: it broke"
    assert set(by_library(found)) == set(order[1:])
    # The libraries see the same random numbers.
    assert all(summary(pair.agreement)["max_difference"] < 1e-5 for pair in found.pairs)


def test_memory_that_runs_out_at_one_batch_size_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, model: Any, images: Tensor
) -> None:
    whole = PEERS["Captum"].opened

    @contextmanager
    def opened(*given: Any):  # type: ignore[no-untyped-def]
        with whole(*given) as call:

            def small(images: Tensor, targets: list[int]) -> Tensor:
                if len(images) > 4:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return call(images, targets)

            yield small

    monkeypatch.setitem(PEERS, "Captum", replace(PEERS["Captum"], opened=opened))
    found = compare(model, "layer", images, libraries=["Captum"], batch_sizes=[1, 8], repeats=2)
    timed = {(cost.library, cost.batch_size) for cost in found.costs}
    assert timed == {("Captum", 1), (OURS.name, 1), (OURS.name, 8)}
    [entry] = found.skipped
    assert (entry.library, entry.batch_size, entry.reason) == ("Captum", 8, "out of memory")


def test_a_library_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, model: Any, images: Tensor
) -> None:
    absent = replace(PEERS["TorchCAM"], distribution="no-such-distribution")
    monkeypatch.setitem(PEERS, "TorchCAM", absent)
    found = compare(model, "layer", images, libraries=["TorchCAM", "Captum"])
    assert found.environment["libraries"]["TorchCAM"] is None
    assert [pair.library for pair in found.pairs] == ["Captum"]
    assert "- TorchCAM is not installed" in found.text()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_precisions(model: Any, images: Tensor, dtype: torch.dtype) -> None:
    found = compare(copy.deepcopy(model).to(dtype), "layer", images)
    assert torch.zeros(0, dtype=dtype).dtype == getattr(torch, found.settings["dtype"])
    if dtype == torch.float64:
        assert all(summary(pair.agreement)["max_difference"] < 5e-7 for pair in found.pairs)
    else:
        assert "pytorch-grad-cam" in {entry.library for entry in found.skipped}, "NumPy has no bfloat16"


class Tokens(nn.Module):
    """A layer that returns (N, 1 + 4 * 4, C): a class token and a grid of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = strong_heads(nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.layer(tokens).square().mean(1))


@pytest.mark.parametrize(
    "reshape", ["tokens", lambda tokens: tokens[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1)]
)
def test_tokens_are_reshaped_for_every_library(reshape: Any) -> None:
    found = compare(Tokens().eval(), "layer", torch.rand(2, 3, 16, 16), reshape=reshape)
    assert by_library(found)["Captum"].ours.shape == (2, 1, 4, 4)
    assert set(by_library(found)) == set(INSTALLED)
    assert all(summary(pair.agreement)["max_difference"] < 1e-5 for pair in found.pairs)


def test_a_layer_that_nobody_can_explain_is_named_for_every_library() -> None:
    found = compare(VectorNet().eval(), "layer", torch.rand(2, 3, 4, 4), batch_sizes=[2])
    assert {entry.library for entry in found.skipped} == set(INSTALLED)
    assert (found.pairs, found.costs) == ([], [])
    assert "Nothing could be compared" in found.text()


def test_more_images_than_run_together_under_inference_mode(model: Any) -> None:
    images = torch.rand(19, 3, 10, 10)
    with torch.inference_mode():
        found = compare(model, "layer", images, libraries=["Captum"], targets=[2] * 19)
    expected = BatchGradCam(model, "layer").attribute(images, target=2)
    torch.testing.assert_close(found.pairs[0].theirs, expected)


def test_scores_that_are_not_finite_and_maps_that_are_zero_are_remarked_on(images: Tensor) -> None:
    model = SmallCnn().eval()
    bad = images.clone()
    bad[1] = math.nan
    [remark] = compare(model, "layer", bad, libraries=["Captum"]).remarks
    assert "1 of 3" in remark
    nn.init.zeros_(model.head.weight)
    [remark] = compare(model, "layer", images, libraries=["Captum"]).remarks
    assert "zero" in remark
    assert "3 of 3" in remark


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"methods": ["grad_kam"]}, "methods"),
        ({"methods": []}, "methods"),
        ({"libraries": ["Zennit"]}, "libraries"),
        ({"layer": "layers"}, "layer"),
        ({"layer": nn.ReLU()}, "layer"),
        ({"targets": [0, 1]}, "targets"),
        ({"targets": [0, 1, 5]}, "targets"),
        ({"targets": torch.tensor(1)}, "targets"),
        ({"batch_sizes": [0]}, "batch_sizes"),
        ({"repeats": 0}, "repeats"),
        ({"reshape": "grid"}, "reshape"),
        ({"paths": ["a"]}, "paths"),
        ({"pictures": torch.rand(2, 4, 4, 3)}, "pictures"),
        ({"images": torch.rand(0, 3, 8, 8)}, "images"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "images"),
        ({"model": DenseNetOutput()}, "model"),
    ],
)
def test_bad_input(model: Any, images: Tensor, given: dict[str, Any], argument: str) -> None:
    given = {"model": model, "layer": "layer", "images": images} | given
    with pytest.raises(ValueError, match=argument):
        compare(given.pop("model"), given.pop("layer"), given.pop("images"), **given)
    with pytest.raises(TypeError, match="images"):
        compare(model, "layer", images.numpy())  # type: ignore[arg-type]


# The report

#: What Markdown, matplotlib and a terminal would take for their own, and a byte without an encoding.
AWKWARD = "a|b*c_d`e`[f](g)<h>$i^2$#\x1b[31m\udcff.jpg"


def test_files(comparison: Comparison, tmp_path: Any) -> None:
    other = tmp_path / "comparison-2.png"
    other.write_bytes(b"the user's")
    (tmp_path / "comparison.json").write_text("old")
    named = [entry | {"path": f"folder/{AWKWARD}"} for entry in comparison.images]
    found = replace(comparison, images=named, unreadable={f"{AWKWARD}\n": "cut | short"})
    names = found.write(tmp_path)
    assert names == ["comparison.json", "comparison.md", "comparison.png"]
    assert other.read_bytes() == b"the user's"
    record = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert record["images"][2]["target"] == found.images[2]["target"]
    assert record["agreement"][0]["summary"] == pytest.approx(summary(found.pairs[0].agreement))
    assert record["costs"][0]["seconds"]["median"] == found.costs[0].seconds.median  # type: ignore[union-attr]
    assert record["images_not_read"][0]["reason"] == "cut | short"
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "](comparison.png)" in page
    for block in page.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.replace("\\|", "").count("|") for row in rows}) <= 1
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_terminal_gets_no_escapes(comparison: Comparison) -> None:
    found = replace(comparison, unreadable={AWKWARD: "no image"})
    text = found.text()
    assert "| grad_cam | Captum | raw |" in text
    assert "\\_" not in text
    assert "\x1b" not in text
    assert "grad\\_cam" in found.markdown()
    numbers = summary(found.pairs[0].agreement)
    assert f"| {numbers['max_difference']:.1e} | {numbers['mean_difference']:.1e} |" in text


def test_the_picture(comparison: Comparison) -> None:
    figure = draw(comparison)
    assert figure is not None
    # Two methods of three images; the image, and three pictures per library.
    assert len(figure.axes) == 2 * 3 * (1 + 3 * len(INSTALLED))
    assert draw(replace(comparison, pairs=[])) is None
    assert draw(replace(comparison, pictures=None)) is None

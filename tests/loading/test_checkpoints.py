"""Weights from files."""

import argparse
import re
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from batchcam_captum.loading import load_checkpoint, load_model
from tests.models import SmallCnn


def trained() -> SmallCnn:
    torch.manual_seed(1)
    model = SmallCnn(norm=True)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def prefixed(state, *prefixes):
    return {"".join(prefixes) + name: value for name, value in state.items()}


LAYOUTS = {
    "plain": lambda state: state,
    "under a key": lambda state: {"state_dict": state, "epoch": 3},
    "beside an optimizer": lambda state: {"model": state, "optimizer": {"param_groups": [{"lr": 0.1}]}},
    "nested twice": lambda state: {"state_dict": {"model": state}},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled inside": lambda state: {
        name.replace("stem.", "stem._orig_mod."): v for name, v in state.items()
    },
    "beside an average": lambda state: {
        "state_dict": state,
        "ema": {name: v + 1 for name, v in state.items()},
    },
    "before BatchNorm counted": lambda state: {
        name: value for name, value in state.items() if not name.endswith("num_batches_tracked")
    },
}
PREFIXES = {
    "module.": lambda state: AveragedModel(trained()).state_dict(),
    "model.": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}},
    "any.model.module.": lambda state: {"model": prefixed(state, "any.model.module._orig_mod.")},
}


@pytest.mark.parametrize("layout", [*LAYOUTS, *PREFIXES])
def test_layouts_of_training_programs(tmp_path, layout):
    source, model = trained(), SmallCnn(norm=True)
    torch.save({**LAYOUTS, **PREFIXES}[layout](source.state_dict()), tmp_path / "weights.pt")
    assert not same(source, model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_checkpoint(model, tmp_path / "weights.pt")
    assert [layout in str(each.message) for each in caught] == ([True] if layout in PREFIXES else [])
    if layout == "before BatchNorm counted":
        source.stem[1].num_batches_tracked.zero_()
    assert same(source, model)


def test_prefix_that_belongs_to_the_model_stays(tmp_path):
    source, model = (nn.ModuleDict({"model": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_checkpoint(model, tmp_path / "weights.pt")
    assert same(source, model)


def test_safetensors(tmp_path, monkeypatch):
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, model = trained(), SmallCnn(norm=True)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert same(source, model)
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"^checkpoint: .*damaged\.safetensors"):
        load_checkpoint(model, tmp_path / "damaged.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match="safetensors"):
        load_checkpoint(model, tmp_path / "weights.safetensors")


def quantized(value):
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("layer.weight"),
        lambda state: state.update({"other.weight": torch.zeros(1)}),
        lambda state: state.update({"head.weight": torch.zeros(7, 32)}),
        lambda state: state.update({"head.weight": [1, 2]}),
        lambda state: state.update({"head.weight": state["head.weight"].to_sparse()}),
        lambda state: state.update({"head.weight": state["head.weight"].to_sparse_csr()}),
        lambda state: state.update({"head.weight": state["head.weight"].to(torch.complex64)}),
        lambda state: state.update({"head.weight": state["head.weight"].to("meta")}),
        lambda state: state.update({"head.weight": quantized(state["head.weight"])}),
        lambda state: state.update({"stem.1.num_batches_tracked": torch.tensor(1.5)}),
    ],
    ids=[
        "missing",
        "unexpected",
        "shape",
        "list",
        "sparse",
        "csr",
        "complex",
        "meta",
        "quantized",
        "integer",
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize")
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, change):
    model = SmallCnn(norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = trained().state_dict()
    change(state)
    torch.save({"state_dict": prefixed(state, "module.")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"^checkpoint: .*(weight|num_batches_tracked).*nothing was loaded$"):
        load_checkpoint(model, tmp_path / "weights.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_head_is_told_from_the_file(tmp_path):
    torch.save(SmallCnn(num_classes=7).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="7 classes would fit"):
        load_checkpoint(SmallCnn(num_classes=5), tmp_path / "weights.pt")
    pytest.importorskip("torchvision")
    source = load_model("torchvision/squeezenet1_1", num_classes=3)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = load_model("torchvision/squeezenet1_1", checkpoint=tmp_path / "weights.pt")
    assert same(source, model)
    with pytest.raises(ValueError, match="3 classes would fit"):
        load_model("torchvision/squeezenet1_1", checkpoint=tmp_path / "weights.pt", num_classes=4)


def write_script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(1, 1)).save(path)


def write_truncated(path):
    torch.save(trained().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save(trained(), path), "got tests.models.SmallCnn"),
        (
            lambda path: torch.save({"model": {}, "args": argparse.Namespace()}, path),
            "got argparse.Namespace",
        ),
        (write_script, "TorchScript"),
        (write_truncated, "damaged"),
        (lambda path: path.write_bytes(b"hello, not a checkpoint"), "damaged"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: torch.save([1, 2], path), "got list"),
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "got dict with the keys epoch, lr"),
    ],
)
def test_file_without_weights_is_named_with_what_it_holds(tmp_path, write, message):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(ValueError, match=f"^checkpoint: .*{message}") as caught:
        load_checkpoint(SmallCnn(), path)
    assert str(path) in str(caught.value)
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pt", ""])
def test_file_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(OSError, match=f"^checkpoint: .*{re.escape(str(tmp_path / name))}"):
        load_checkpoint(SmallCnn(), tmp_path / name)

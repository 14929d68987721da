"""Weights from files."""

import argparse
import re
import sys

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
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state},
    "net": lambda state: {"net": state},
    "ema": lambda state: {"ema": state},
    "nested twice": lambda state: {"state_dict": {"model": state}},
    "data parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled inside": lambda state: {
        name.replace("stem.", "stem._orig_mod."): v for name, v in state.items()
    },
    "lightning": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}},
    "all of them": lambda state: {"model": prefixed(state, "model.", "module.", "_orig_mod.")},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **prefixed(state, "module.")},
    "plain with an average beside it": lambda state: {
        "state_dict": state,
        "ema": {name: value + 1 for name, value in state.items()},
    },
    "before BatchNorm counted": lambda state: {
        name: value for name, value in state.items() if not name.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_training_programs(tmp_path, layout):
    source, model = trained(), SmallCnn(norm=True)
    torch.save(layout(source.state_dict()), tmp_path / "weights.pt")
    assert not same(source, model)
    load_checkpoint(model, tmp_path / "weights.pt")
    if layout is LAYOUTS["before BatchNorm counted"]:
        source.stem[1].num_batches_tracked.zero_()
    assert same(source, model)


def test_average_of_torch(tmp_path):
    source, model = trained(), SmallCnn(norm=True)
    torch.save(AveragedModel(source).state_dict(), tmp_path / "weights.pt")
    load_checkpoint(model, tmp_path / "weights.pt")
    assert same(source, model)


def test_prefix_that_belongs_to_the_model_stays(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    source, model = Wrapped(), Wrapped()
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_checkpoint(model, tmp_path / "weights.pt")
    assert same(source, model)


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, model = trained(), SmallCnn(norm=True)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert same(source, model)
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"expected a file of safetensors, got .*damaged\.safetensors"):
        load_checkpoint(model, tmp_path / "damaged.safetensors")


def test_safetensors_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(b"12345678")
    with pytest.raises(ModuleNotFoundError, match="needs safetensors, which is not installed"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "weights.safetensors")


def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    model = SmallCnn(norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = trained().state_dict()
    state["backbone.weight"] = state.pop("layer.weight")
    state["head.weight"], state["head.bias"] = torch.zeros(7, 32), torch.zeros(7)
    torch.save({"state_dict": prefixed(state, "module.")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="does not fit SmallCnn") as caught:
        load_checkpoint(model, tmp_path / "weights.pt")
    message = str(caught.value)
    assert f"missing 1 of {len(before)} keys: layer.weight" in message
    assert "unexpected keys, 1: backbone.weight" in message
    assert (
        "other shapes, 2: head.weight expected (5, 32), got (7, 32), head.bias expected (5,), got (7,)"
        in message
    )
    assert "nothing was loaded" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_head_of_other_classes_alone_is_told(tmp_path):
    torch.save(SmallCnn(num_classes=7).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="a model of 7 classes would fit"):
        load_checkpoint(SmallCnn(num_classes=5), tmp_path / "weights.pt")


def test_long_lists_are_cut(tmp_path):
    torch.save({f"layer{number}.weight": torch.zeros(1) for number in range(25)}, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"unexpected keys, 25: layer0.weight, .*layer9.weight, … and 15 more;"
    ):
        load_checkpoint(SmallCnn(), tmp_path / "weights.pt")


def test_load_model_takes_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "net_with_weights.py").write_text(
        "from tests.models import SmallCnn\ndef make(): return SmallCnn(norm=True)\n"
    )
    source = trained()
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    name = f"{tmp_path / 'net_with_weights.py'}:make"
    assert same(source, load_model(name, checkpoint=tmp_path / "weights.pt"))


def write_whole_module(path):
    torch.save(trained(), path)


def write_namespace(path):
    torch.save({"model": trained().state_dict(), "args": argparse.Namespace(lr=1)}, path)


def write_script(path):
    from warnings import catch_warnings, simplefilter

    with catch_warnings():
        simplefilter("ignore")
        torch.jit.script(nn.Linear(1, 1)).save(path)


def write_truncated(path):
    torch.save(trained().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            write_whole_module,
            "got tests.models.SmallCnn too; pickled objects may run code .*weights_only=True.*state_dict",
        ),
        (write_namespace, "got argparse.Namespace too; pickled objects may run code"),
        (write_script, "got a TorchScript archive too"),
        (write_truncated, "which is damaged or something else"),
        (lambda path: path.write_bytes(b"hello, not a checkpoint"), "which is damaged or something else"),
        (lambda path: path.write_bytes(b""), "which is empty"),
        (lambda path: torch.save([1, 2], path), "expected a state_dict in .* got a list"),
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "got a dict with the keys epoch, lr"),
        (lambda path: torch.save({}, path), "expected a state_dict"),
        (lambda path: torch.save(torch.zeros(3), path), "expected a state_dict in .* got a Tensor"),
    ],
)
def test_file_without_weights_is_named_with_what_it_holds(tmp_path, write, message):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(SmallCnn(), path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pt", ""])
def test_file_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(
        OSError, match=f"checkpoint: expected a file that can be read, got {re.escape(str(tmp_path / name))}"
    ):
        load_checkpoint(SmallCnn(), tmp_path / name)

"""SECURITY.md keeps its word: what may come from strangers runs no code."""

from __future__ import annotations

import ast
import json
import pickle
from functools import cache
from pathlib import Path

import pytest

import batchcam_captum
from batchcam_captum.explain import open_store
from batchcam_captum.explain.layout import FORMAT, KEY
from batchcam_captum.explain.store import _ARRAYS

PACKAGE = Path(batchcam_captum.__file__).parent
#: Reads what the same process has just written.
OWN_FILES = "interop/comparison/memory.py"


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package: file, what is called, and the call."""
    return [
        (path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_pickles_of_weights_alone_are_loaded():
    loads = {
        file: {word.arg: ast.unparse(word.value) for word in call.keywords}.get("weights_only")
        for file, name, call in calls()
        if name == "torch.load"
    }
    assert loads.pop(OWN_FILES) == "False"
    assert set(loads.values()) == {"True"}
    assert len(loads) >= 3


def test_nothing_else_evaluates_what_it_reads():
    names = {name for _, name, _ in calls()}
    assert not names & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "np.load", "os.system"}


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("codecs", [["vlen-utf8", "pickle"], ["pickle"]])
def test_a_store_whose_chunks_are_pickles_runs_nothing(tmp_path, codecs):
    """In Zarr's older format, in which an array names its codecs freely."""
    store, mark = tmp_path / "maps.zarr", tmp_path / "ran"
    about = {"format": FORMAT, "settings": {}, "class_names": None, "environments": [], "complete": True}
    array = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "compressor": None,
        "fill_value": None,
    }
    array |= {"order": "C", "filters": [{"id": codec} for codec in codecs]}
    store.mkdir()
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    (store / ".zattrs").write_text(json.dumps({KEY: about}))
    for name in _ARRAYS:
        (store / name).mkdir()
        (store / name / ".zarray").write_text(json.dumps(array))
        (store / name / "0").write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(ValueError, match="got something else"):
        open_store(store)
    assert not mark.exists()
    pickle.loads((store / "ids" / "0").read_bytes())
    assert mark.exists()

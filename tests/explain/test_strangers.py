"""A store from a stranger runs no code and leads nowhere outside its folder."""

import json
import os
import pickle
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numcodecs.registry
import numpy as np
import pytest
import zarr
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from batchcam_captum.explain import open_store

from .stores import columns_of, write_store


class Planted:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


class Unpickling(numcodecs.abc.Codec):
    """What numcodecs does for the codec "pickle" before 0.16.6."""

    codec_id = "pickle"

    def encode(self, buf):
        return pickle.dumps(buf)

    def decode(self, buf, out=None):
        return pickle.loads(bytes(buf))


@dataclass(frozen=True)
class RunningCodec(ArrayBytesCodec):
    """A codec of Zarr 3 that runs what a chunk holds; other packages may register such ones."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data):
        return cls()

    def to_dict(self):
        return {"name": "running"}

    async def _decode_single(self, chunk_bytes, chunk_spec):
        pickle.loads(chunk_bytes.to_bytes())
        return chunk_spec.prototype.nd_buffer.create(
            shape=chunk_spec.shape, dtype=chunk_spec.dtype.to_native_dtype(), fill_value=0
        )

    async def _encode_single(self, chunk_array, chunk_spec):
        return chunk_spec.prototype.buffer.from_bytes(b"")

    def compute_encoded_size(self, input_byte_length, _):
        raise NotImplementedError


register_codec("running", RunningCodec)


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "maps.zarr", columns_of(20)).path


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setitem(numcodecs.registry.codec_registry, "pickle", Unpickling)
    return tmp_path / "ran"


def edit(file, **values):
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | values))


#: Zarr 2 unpickles a chunk by a filter of objects, or by a compressor; one of numbers it takes for a filter by its name.
FILTER = {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}], "compressor": None}
COMPRESSOR = {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}}


def older_array(**codecs):
    """Metadata of a Zarr 2 array."""
    known = {"zarr_format": 2, "shape": [20], "chunks": [20], "fill_value": None, "order": "C"}
    return known | codecs


def plant_older(path, name, mark, codecs):
    """Put a Zarr 2 array into a store."""
    (path / name).mkdir(exist_ok=True)
    (path / name / "zarr.json").unlink(missing_ok=True)
    (path / name / ".zarray").write_text(json.dumps(older_array(**codecs)))
    (path / name / "0").write_bytes(pickle.dumps(Planted(mark)))


def runs(array, mark):
    """Return True if Zarr itself runs what is planted: the trap works."""
    with suppress(Exception):  # it ran, and what it returned is no chunk
        array[:]
    return mark.exists()


def is_refused(path, mark, match):
    mark.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=match):
        open_store(path)
    return not mark.exists()


@pytest.mark.parametrize("codecs", [FILTER, COMPRESSOR], ids=["filter", "compressor"])
@pytest.mark.parametrize("name", ["ids", "extra"])
def test_an_array_of_the_older_format(path, mark, name, codecs):
    plant_older(path, name, mark, codecs)
    assert runs(zarr.open_array(path / name, mode="r"), mark)
    assert is_refused(path, mark, name)


def test_consolidated_metadata_that_say_otherwise(path, mark):
    """They are read instead of those of the array."""
    (path / "ids" / "0").write_bytes(pickle.dumps(Planted(mark)))
    array = older_array(**FILTER) | {"attributes": {}, "dimension_separator": "."}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": {"ids": array}}
    edit(path / "zarr.json", consolidated_metadata=consolidated)
    assert runs(zarr.open_group(path, mode="r", zarr_format=3)["ids"], mark)
    assert is_refused(path, mark, "consolidated_metadata")


def test_another_codec(path, mark):
    edit(path / "labels" / "zarr.json", codecs=[{"name": "running"}])
    for chunk in (path / "labels").glob("c.*"):
        chunk.write_bytes(pickle.dumps(Planted(mark)))
    assert runs(zarr.open_group(path, mode="r")["labels"], mark)
    assert is_refused(path, mark, "labels.*codecs")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_type", "int64"),
        ("shape", [21]),
        ("shape", [-20]),
        ("shape", [[[]]]),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0]}}),
        ("chunk_key_encoding", {"name": "v2", "configuration": {"separator": "/"}}),
        ("fill_value", True),
        ("attributes", {"more": 1}),
        ("storage_transformers", [{"name": "x"}]),
        ("more", {"must_understand": False}),
        ("codecs", 3),
    ],
)
def test_metadata_that_this_package_does_not_write(path, key, value):
    edit(path / "labels" / "zarr.json", **{key: value})
    with pytest.raises(ValueError, match=f"labels/zarr.json: expected {key}"):
        open_store(path)


@pytest.mark.parametrize("key", ["settings", "class_names"])
def test_attributes_of_another_type(path, key):
    known = json.loads((path / "zarr.json").read_text())
    known["attributes"]["batchcam_captum"][key] = 3
    (path / "zarr.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match=f"zarr.json: expected batchcam_captum.{key}"):
        open_store(path)


@pytest.mark.parametrize("name", ["", "labels"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"zarr_format": 2}'])
def test_metadata_that_are_none(path, name, text):
    (path / name / "zarr.json").write_text(text)
    with pytest.raises(ValueError, match="got something else"):
        open_store(path)


@pytest.mark.parametrize("name", ["labels", "labels/zarr.json", "labels/c.0", "zarr.json", "more"])
def test_a_link_out_of_the_folder(path, tmp_path, name):
    inside, outside = path / name, tmp_path / "outside"
    if inside.exists():
        inside.rename(outside)
    else:
        outside.mkdir()
    inside.symlink_to(outside)
    with pytest.raises(ValueError, match=r"symbolic link|something else"):
        open_store(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
@pytest.mark.parametrize("name", ["labels/c.0", "labels/zarr.json", "zarr.json"])
def test_a_pipe_is_not_waited_for(path, name):
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(ValueError, match=r"special file|something else"):
        open_store(path)


@pytest.mark.parametrize("name", ["more", "labels/more"])
def test_another_group_or_array(path, name):
    zarr.create_array(path / name, shape=(3,), dtype="int32")
    with pytest.raises(ValueError, match="more"):
        open_store(path)


def test_a_store_reached_through_a_link_is_opened(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    assert np.asarray(open_store(tmp_path / "link").labels[:]).shape == (20,)

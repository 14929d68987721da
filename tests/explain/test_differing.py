"""Settings: what can be one, and how two differ."""

import math
from pathlib import Path

import pytest

from batchcam_captum.explain.differing import differences, plain

from .stores import SETTINGS, opened


def test_differences_name_all_and_stay_short():
    found = differences(
        {"a": 1, "b": {"c": [1], "d": 2}, "e": 0}, {"a": 2, "b": {"c": [1], "d": "x" * 99}, "e": 0}
    )
    assert found == ["a = 1 there, 2 here", f"b.d = 2 there, '{'x' * 56}… here"]


def test_differences_of_long_values_can_be_seen():
    names = [f"class {number}" for number in range(200)]
    found = differences({"class_names": names}, {"class_names": [*names[:150], "other", *names[151:]]})
    assert len(found[0]) < 180
    one, other = found[0].removeprefix("class_names = ").split(" there, ")
    assert "'class 150'" in one
    assert "'other'" in other
    hashes = "3f" * 32, "3f" * 16 + "4a" * 16
    found = differences(
        {"names": None, "model": {"sha256": hashes[0]}}, {"names": hashes[0], "model": {"sha256": hashes[1]}}
    )
    assert found == [
        "model.sha256 = …3f3f3f3f3f3f… there, …3f3f4a4a4a4a… here (weights of the model)",
        "names = None there, '3f3f3f3f3f3… here (ids or paths of the samples)",
    ]


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (math.nan, ValueError, "equals itself when it is read again, got nan; pass None"),
        (-math.inf, ValueError, "got -inf"),
        (Path("a.pt"), TypeError, "expected text, a number, .*, got .*Path; pass 'a.pt'"),
    ],
)
def test_settings_that_could_not_be_compared_are_refused(tmp_path, value, kind, said):
    settings = SETTINGS | {"about": {"parts": [1, {"last": value}]}}
    with (
        pytest.raises(kind, match=rf"about\.parts\[1\]\.last: .*{said}"),
        opened(tmp_path / "store", settings=settings),
    ):
        pass
    assert not (tmp_path / "store").exists()


def test_plain_values_are_those_that_are_read():
    values = {"a": (1, 2.5, True, None), "b": {3: ["c"]}}
    assert plain(values) == plain(plain(values)) == {"a": [1, 2.5, True, None], "b": {"3": ["c"]}}

"""What the benchmarks measure with: ratios by round, rotating order, exact memory, and misses that are not hidden."""

import argparse
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PINNED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    yield common
    del sys.modules["common"]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tables

    yield tables
    del sys.modules["tables"], sys.modules["writing"]


def options(**given):
    defaults = {"device": "cpu", "rounds": 6, "seconds": 60.0, "quick": False, "check": False, "output": None}
    return argparse.Namespace(**(defaults | {"default_allocator": False, "resume": False} | given))


def test_a_ratio_is_taken_within_a_round(common):
    times = common.Times({"mine": [1.0, 20.0, 3.0], "other": [2.0, 10.0, 3.0]})
    ratio = times.ratio("mine", "other")
    assert ratio.median == 1.0, "the ratios are 0.5, 2 and 1; that of the medians would be 3 / 3"
    assert (ratio.q1, ratio.q3) == (0.75, 1.5)
    assert times.ratio("mine", "other", factor=4).median == 0.25


def test_cases_alternate_in_rotating_order_after_a_warm_up(common):
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "abc"}
    times = common.interleaved(cases, options(), warm_up=2)
    assert "".join(order) == "abc" * 2 + "abc" + "acb" + "cab" + "cba" + "bca" + "bac"
    assert {name: len(values) for name, values in times.seconds.items()} == dict.fromkeys("abc", 6)


def test_large_cells_get_fewer_rounds_but_five(common):
    times = common.interleaved({"a": lambda: time.sleep(0.01)}, options(rounds=50, seconds=0.001))
    assert times.rounds == 5


def test_entering_and_leaving_is_not_timed(common):
    events = []

    @contextmanager
    def enter():
        time.sleep(0.05)
        yield lambda: events.append("call")
        events.append("left")

    times = common.interleaved({"a": common.Within(enter)}, options(rounds=5), warm_up=1)
    assert events == ["call", "left"] * 6
    assert max(times.seconds["a"]) < 0.04


@pytest.mark.parametrize("check", [False, True])
def test_a_miss_is_recorded_and_fails_the_check(common, tmp_path, capsys, check):
    path = tmp_path / "folder" / "result.json"
    report = common.Report("name", options(output=path, check=check, threads=1), "a note")
    report.add_case("small", times=common.Times({"a": [1.0, 2.0, 3.0]}), batch=2)
    report.add_figure("small", "reached", common.Spread(1.0, 0.9, 1.1), reach=1.0)
    report.add_figure("small", "missed", common.Spread(1.01, 0.9, 1.1), reach=1.0)
    report.add_figure("small", "free", common.Spread.exact(7.0), reach=None)
    with pytest.raises(SystemExit) as left:
        report.finish()
    assert left.value.code == (1 if check else 0)
    record = json.loads(path.read_text())
    assert [figure["reached"] for figure in record["figures"]] == [True, False, None]
    assert record["missed"] == 1
    assert record["cases"][0]["seconds"]["a"] == {"median": 2.0, "q1": 1.5, "q3": 2.5}
    assert {"device_name", "torch", "allocator", "commit", "date", "peers"} <= set(record["environment"])
    assert "MISSED" in capsys.readouterr().err


def test_a_run_that_is_cut_short_leaves_what_it_has_measured(common, tmp_path):
    path = tmp_path / "out.json"
    options = common.parser("?", rounds=1).parse_args(["--output", str(path)])
    report = common.Report("example", options)
    for case in ("first", "second"):
        report.add_case(case)
        report.add_figure(case, "a ÷ b", common.Spread.exact(1.0), reach=None)
    assert not path.exists()
    partial = tmp_path / "out.partial.json"
    assert [figure["case"] for figure in json.loads(partial.read_text())["figures"]] == ["first"]
    with pytest.raises(SystemExit):
        report.finish()
    assert path.exists()
    assert not partial.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_allocator_is_pinned_and_memory_is_measured_without(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import json, os, torch, common\n"
        "options = common.start(common.parser('', rounds=1))\n"
        "if options.peak:\n"
        "    call = lambda: torch.ones(json.loads(options.peak)['bytes'], dtype=torch.uint8)\n"
        "    call(); print(common.peak_memory(call, 'cpu'))\n"
        "else:\n"
        f"    print(json.dumps([os.environ.get(name) for name in {PINNED}]))\n"
        "    print(common.peak_in_child(options, {'bytes': 20_000_000}))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "--threads", "1"],
        env={"PATH": "", "PYTHONPATH": str(BENCHMARKS.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pinned, peak = done.stdout.splitlines()
    assert json.loads(pinned) == ["4294967296", "17179869184", "268435456"]
    assert abs(int(peak) - 20_000_000) < 500_000


def test_tables_are_those_of_the_committed_results(tables):
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(text) == text
    assert tables.figures_csv() == tables.DATA.read_text(encoding="utf-8")


def test_tables_show_misses_and_what_is_missing(tables, tmp_path):
    assert "No result on a CPU yet" in tables.block("layers", tmp_path)
    figure = {"case": "small", "figure": "a ÷ b", "value": 1.2, "q1": 1.1, "q3": 1.3, "reach": 1.15}
    record = {
        "environment": {
            "allocator": {}, "device_name": "X", "threads": 2, "torch": "2", "date": "2026-01-01T", "commit": "abc",
        },
        "figures": [
            figure | {"reached": False},
            figure | {"case": "large", "value": 1.0, "reached": True},
            figure | {"figure": "c ÷ b", "reach": None, "reached": None},
        ],
    }  # fmt: skip
    (tmp_path / "layers-cpu.json").write_text(json.dumps(record))
    (tmp_path / "layers-cuda.json").write_text(json.dumps(record))
    block = tables.block("layers", tmp_path)
    assert "| small | **1.200** (goal: 1.15) |" in block
    assert "| large | 1.000 |" in block
    assert block.count("Missed: 1 of 2.") == 2
    assert block.index("layers-cpu") < block.index("layers-cuda")
    assert "allocator not pinned" in block

"""The drills of benchmarks/drills: what they call right and wrong, and a small part of them."""

import csv
import os
import subprocess
import sys

import pytest

from benchmarks import table
from benchmarks.drills import damage, hostile_tables, interrupted, verdicts
from benchmarks.drills.__main__ import KINDS
from benchmarks.drills.processes import HANGS, Done
from tests import many_processes

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nOSError: no'


@pytest.mark.parametrize(
    ("done", "is_right", "expected"),
    [
        (Done(0, "", ""), True, verdicts.HELD),
        (Done(0, "", ""), False, verdicts.WRONG),
        (Done(1, "state.json is damaged", "state.json is damaged"), False, verdicts.CLEAR),
        (Done(1, "read state.json\nno", "no"), False, verdicts.UNCLEAR),
        (Done(1, f"state.json\n{TRACEBACK}", ""), False, verdicts.TRACE),
        (Done(0, TRACEBACK, ""), True, verdicts.TRACE),
        (Done(-11, "state.json", ""), False, verdicts.TRACE),
        (Done(HANGS, "state.json", ""), False, verdicts.WRONG),
    ],
)
def test_verdicts(done, is_right, expected):
    assert verdicts.verdict(done, is_right, ["state.json"]).outcome == expected


def test_a_part_of_a_result_has_to_be_right():
    whole = [{"step": 1}, {"step": 2}], {1: [3], 2: [4]}, "9", ["digest"]
    assert damage._is_part(([{"step": 2}], {2: [4]}, "9", ["digest"]), whole)
    assert not damage._is_part(([{"step": 3}], {2: [4]}, "9", ["digest"]), whole)
    assert not damage._is_part(([{"step": 2}], {2: [5]}, "9", ["digest"]), whole)
    assert not damage._is_part(([{"step": 2}], {2: [4]}, "9", ["other"]), whole)
    assert damage._is_part({0: b"a", 1: None}, {0: b"a", 1: b"b"})
    assert not damage._is_part({0: b"b", 1: None}, {0: b"a", 1: b"b"})


def test_cases_differ_and_are_as_many_as_asked_for():
    for make in (interrupted.kills, interrupted.full_disks, damage.of_checkpoints, damage.of_files):
        cases = make(100)
        assert len(set(cases)) == 100
        assert cases[:10] == make(10)
        assert len({case.what for case in cases}) > 1


def test_damage_changes_a_file_and_repeats():
    data = bytes(range(256)) * 8
    for how, change in damage.HOW.items():
        if change is not None:
            once, again = (change(bytearray(data), damage.random.Random(3)) for _ in range(2))
            assert once == again, how
            assert once != data, how


def test_a_line_goes_between_others():
    rows = [(f"{i}.png", "a circle") for i in range(5)]
    whole = hostile_tables.csv_table(rows)
    found = hostile_tables.with_line(whole, b"x", damage.random.Random(0)).split(b"\n")
    assert found.count(b"x") == 1
    assert found[0] == b"image,caption"
    assert [line for line in found if line != b"x"] == whole.split(b"\n")


def test_committed_table_has_no_silent_error_and_no_trace():
    rows = table.read("drills.csv")
    sums = {name: sum(int(row[name]) for row in rows) for name in ("tried", *verdicts.OUTCOMES)}
    assert sums["tried"] >= 1000
    assert sums["tried"] == sums["held"] + sums["clear_error"]
    assert {row["kind"] for row in rows} == set(KINDS)


@pytest.mark.slow
def test_a_small_part_of_the_drills(tmp_path):
    """Commands that take a second; where it fails, see WORK/wrong."""
    out = tmp_path / "drills.csv"
    line = [sys.executable, "-m", "benchmarks.drills", "--commands=convert,prepare", "--cases=4"]
    done = subprocess.run(
        [*line, f"--work={tmp_path}/work", f"--out={out}"],
        cwd=many_processes.ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = [path.read_text() for path in (tmp_path / "work").glob("wrong/*")]
    assert said == []
    with out.open() as file:
        rows = list(csv.DictReader(file))
    sums = {name: sum(int(row[name]) for row in rows) for name in ("tried", *verdicts.OUTCOMES)}
    assert sums["tried"] >= 12
    assert sums["tried"] == sums["held"] + sums["clear_error"]
    assert {row["command"] for row in rows} == {"convert", "prepare"}

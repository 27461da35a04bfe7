"""benchmarks/device: the search for the largest batch, the limits, the tables, the wheels."""

import pathlib
import shutil
import subprocess

import pytest

from benchmarks.device import cases
from benchmarks.device.missing import missing
from benchmarks.device.rows import Rows
from benchmarks.device.run import FOLDER, LIMITS, parse_limits
from benchmarks.device.search import DoesNotFitError, Found, largest


def steps_up_to(most: int, tried: list[int]):
    def run(size: int) -> str:
        tried.append(size)
        if size > most:
            raise DoesNotFitError(f"{size} is too much")
        return f"row of {size}"

    return run


@pytest.mark.parametrize(
    ("most", "tried", "found"),
    [
        (70, [16, 32, 64, 128], 64),  # doubled until it does not fit
        (5, [16, 8, 4], 4),  # halved until it does
        (16, [16, 32], 16),
        (1, [16, 8, 4, 2], None),  # never below `least`
    ],
)
def test_largest_batch(most, tried, found):
    seen = []
    result = largest(16, steps_up_to(most, seen), lambda *_: "", least=2)
    assert seen == tried
    assert result == (found and Found(found, f"row of {found}", "memory"))


def test_the_search_ends_where_it_is_told_to():
    seen = []
    stop = lambda size, row: "time" if size >= 64 and row == f"row of {size}" else ""  # noqa: E731
    assert largest(16, steps_up_to(1000, seen), stop) == Found(64, "row of 64", "time")
    assert seen == [16, 32, 64]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def run(size: int) -> None:
        raise ValueError(size)

    with pytest.raises(ValueError, match="16"):
        largest(16, run, lambda *_: "")


def test_limits():
    assert parse_limits("") == LIMITS
    assert parse_limits("torch=0,total=300") == LIMITS | {"torch": 0, "total": 300}
    for wrong in ("tourch=1", "torch", "torch=-1", "torch=1.5", "=3"):
        with pytest.raises(ValueError, match=r"is no limit; .* total, case, torch\."):
            parse_limits(wrong)


def test_a_table_is_gone_on_with(tmp_path):
    path = tmp_path / "steps.csv"
    rows = Rows(path, cases.COLUMNS, cases.KEY)
    row = {"device": "A", "case": cases.IID, "batch": 16, "step_s": 1 / 3, "fixed_gb": 1}
    rows.put([row, row | {"batch": 32}])
    assert not cases.is_done(rows, "A", cases.IID)
    rows.put([row | {"batch": 32, "limit": "memory"}])  # in the place of the one before
    again = Rows(path, cases.COLUMNS, cases.KEY)
    assert [row["batch"] for row in again.find(device="A")] == ["16", "32"]
    assert again.find(batch=16)[0]["step_s"] == "0.3333"
    assert cases.is_done(again, "A", cases.IID)
    assert not cases.is_done(again, "B", cases.IID)
    assert cases.largest_batch(again, "A", cases.IID) == 32
    assert cases.largest_batch(again, "A", "kd_b16") is None
    assert list(tmp_path.iterdir()) == [path]


def test_wheels_of_what_is_installed_are_not():
    wheels = [pathlib.Path(f"{name}-1.0-py3-none-any.whl") for name in ("numpy", "no_such_thing")]
    assert missing(wheels) == wheels[1:]


def test_every_case_has_its_recipe():
    for case in cases.CASES.values():
        assert (FOLDER.parents[1] / "configs" / f"{case.recipe}.py").is_file()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shell_scripts():
    scripts = sorted(FOLDER.glob("*.sh"))
    assert len(scripts) == 2
    subprocess.run(["shellcheck", *scripts], check=True)

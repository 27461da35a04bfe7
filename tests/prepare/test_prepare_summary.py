"""What prepare prints: progress on standard error, and the summary, also as JSON."""

import json
import pathlib
import re
import time

import pytest

from aced.data import records
from aced.prepare import progress, summary
from aced.prepare.config import PrepareConfig
from tests import commands
from tests.prepare.small import rows, table


def statistics(**changes):
    train = {"images": 1400, "captions": 1500, "image_bytes": 2_500_000}
    return {
        "images": 1400,
        "captions": 1500,
        "captions_by_kind": {"given": 1500},
        "stored_anew": 30,
        "thumbnails": 900,
        "rejected": {},
        "splits": {"train": train},
    } | changes


def text(config=None, **changes):
    config = {"images": "x", "captions": "c.csv", "out": "o", "val": 1} | (config or {})
    return summary.text(statistics(**changes), PrepareConfig(**config))


def test_plain_summary():
    assert text() == (
        "o has 1,400 images with 1,500 captions:\n"
        "  train    1,400 images, 1,500 captions, 2.5 MB\n"
        "Nothing was left out.\n"
        "Pictures and statistics: o/statistics.html"
    )


def test_noisy_pairs_are_counted_only_where_the_input_labels_them():
    assert "noisy" not in text()
    labelled = statistics()["splits"]["train"] | {"noisy": 0}
    assert "1,400 images, 0 of them labelled noisy" in text(splits={"train": labelled})


def test_captions_by_kind_only_where_there_are_several_kinds():
    assert "by kind" not in text()
    found = text(captions_by_kind={"given": 1400, "synthetic": 2800})
    assert "\nCaptions by kind: 1,400 given, 2,800 synthetic.\n" in found


def test_changed_images_and_missing_small_copies_have_their_reason():
    assert "--max_side" not in text()
    found = text({"max_side": 256, "thumbnails": 128})
    assert "30 images were encoded again, since a side was above --max_side=256" in found
    assert "900 images have a small copy; 500 have none" in found
    assert "at most --thumbnails=128 pixels" in found


def test_each_reason_is_explained():
    found = text(rejected={"missing_file": 2, "undecodable": 12_345})
    assert "Left out, listed line by line in o/rejected.jsonl:" in found
    assert "          2  missing_file  no readable file at the path" in found
    assert "     12,345  undecodable   no picture, or a damaged one" in found


def test_every_reason_has_an_explanation():
    code = "".join(path.read_text() for path in pathlib.Path(summary.__file__).parent.glob("*.py"))
    reasons = set(re.findall(r'RejectedError\(\s*"(\w+)"', code))
    assert len(reasons) > 10
    assert reasons == summary.REASONS.keys()


def test_without_val_the_flag_is_named():
    assert "--val=N" in text({"val": 0})
    assert "--val=N" not in text({"val": 5})


def test_json_is_alone_on_standard_output(tmp_path, folder):
    flags = [f"--images={folder}", f"--captions={table(tmp_path, rows())}", "--val=2"]
    done = commands.call("prepare", *flags, f"--out={tmp_path}/out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == records.read_description(tmp_path / "out")["statistics"]
    assert "noisy" not in found["splits"]["train"]
    assert "3/3 Writing: 100%" in done.stderr


@pytest.mark.parametrize("in_place", [False, True])
def test_progress_has_totals_and_an_estimate(monkeypatch, capsys, in_place):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: in_place, raising=False)
    monkeypatch.setattr(progress, "_SECONDS", 0.1)
    progress.advance("examine")  # without a block nothing is shown
    with progress.shown():
        progress.expect("examine", 3)
        progress.expect("examine", 1)
        time.sleep(0.12)
        progress.advance("examine")
        progress.advance("examine", 3)
        progress.expect("write", 2)
        progress.advance("write", 2)
    found = capsys.readouterr().err
    assert ("\r" in found) == in_place
    assert re.search(r"2/3 Examining.* 1/4 \[.*<.*images/s\]", found)
    assert re.search(r"2/3 Examining.*100%.* 4/4", found)
    assert re.search(r"3/3 Writing: 100%.* 2/2", found)


def test_counts_of_a_task_that_is_repeated_replace_its_earlier_ones(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress.shown() as bars:
        bars.put("plan", "examine", 0, 8)
        bars.put("a", "examine", 3, 0)
        bars.put("b", "examine", 2, 0)
        bars.put("a", "examine", 1, 0)  # its worker died, and another one has begun it again
        bars.put("b", "examine", 4, 0)
        assert " 5/8 [" in capsys.readouterr().err.splitlines()[-1]
        bars.put("a", "examine", 4, 0)
    assert " 8/8 [" in capsys.readouterr().err.splitlines()[-1]

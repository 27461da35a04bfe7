"""The list of records that were left out."""

import json

from etils import epath

from aced.metrics import jsonl
from aced.metrics.skipped import SkippedRecords


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_each_record_once_and_each_process_its_own_file(tmp_path):
    with SkippedRecords(tmp_path) as first, SkippedRecords(tmp_path, 3) as fourth:
        for index in (5, 7, 5):
            first("data", index, "cut off")
        fourth("data", 8, "no caption")
    assert ids(tmp_path / "skipped.jsonl") == [5, 7]
    (line,) = jsonl.read(epath.Path(tmp_path) / "3-skipped.jsonl")
    assert {k: v for k, v in line.items() if k != "time"} == {
        "source": "data", "id": 8, "reason": "no caption",
    }  # fmt: skip


def test_an_object_store_gets_the_rest_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "is_remote", lambda path: True)
    with SkippedRecords(tmp_path) as skipped:
        for index in range(4):
            skipped("data", index, "cut off")
        assert ids(tmp_path / "skipped.jsonl") == [0]
    assert ids(tmp_path / "skipped.jsonl") == [0, 1, 2, 3]

import collections
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import fsspec.implementations.memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from aced.metrics import history, jsonl, writer
from aced.metrics.shown import Picture
from aced.metrics.writer import Budget, Writer

BUDGET = Budget(examples_trained=4, examples_scored=20, flops=1e9)


def train(workdir, first, last, *, resume=None, kill_after=None):
    """A run that writes a line a step; after `kill_after` it leaves the files as a kill would."""
    writer = Writer(workdir, BUDGET, resume)
    for step in range(first, last + 1):
        writer.write(step, {"loss": np.float32(1 / step), "wall/examples_per_s": os.urandom(1)[0]})
        if step % 4 == 0:
            writer.write(step, {"eval/top1": jnp.float32(step / 10)})
        if step == kill_after:
            files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
            writer.close()
            for path, data in files.items():
                path.write_bytes(data)
            return
    writer.close()


def without_wall(lines):
    return [
        {name: value for name, value in line.items() if not name.startswith("wall/")}
        for line in lines
    ]


def test_lines_hold_the_step_its_costs_and_the_values(tmp_path):
    writer = Writer(tmp_path, BUDGET)
    writer.write(
        3,
        {
            "loss": jnp.float32(0.1),
            "half": jnp.bfloat16(1.5),
            "count": np.int64(7),
            "skipped": jnp.array([True]),
            "flops": 5.0,  # a method that counts its own FLOPs
        },
    )
    writer.close()
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line.pop("wall/seconds") >= 0
    assert re.fullmatch("[0-9a-f]{8}", line.pop("crc32"))
    assert line == {
        "step": 3,
        "examples_trained": 12,
        "examples_scored": 60,
        "flops": 5.0,
        "loss": float(np.float32(0.1)),
        "half": 1.5,
        "count": 7,
        "skipped": 1,
    }


def test_non_finite_numbers_round_trip_as_valid_json(tmp_path):
    writer = Writer(tmp_path, BUDGET)
    writer.write(1, {"a": jnp.nan, "b": np.float32(np.inf), "c": -math.inf})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    (line,) = history.read(tmp_path)
    assert math.isnan(line["a"])
    assert (line["b"], line["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("value", [[1.0, 2.0], "text", None])
def test_non_numbers_are_refused(tmp_path, value):
    writer = Writer(tmp_path, BUDGET)
    with pytest.raises(TypeError, match="metric 'loss' must be one number"):
        writer.write(1, {"loss": value})
    writer.close()


@pytest.mark.parametrize("torn", [b"", b'{"step": 9, "lo', b"\x00\x00"])
@pytest.mark.parametrize(("killed", "checkpoint"), [(9, 8), (8, 8), (7, 4)])
def test_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path, torn, killed, checkpoint):
    train(tmp_path / "whole", 1, 12)
    train(tmp_path / "resumed", 1, 12, kill_after=killed)
    with open(tmp_path / "resumed" / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert len(history.read(tmp_path / "resumed")) == killed + killed // 4
    train(tmp_path / "resumed", checkpoint + 1, 12, resume=checkpoint)
    expected = without_wall(history.read(tmp_path / "whole"))
    assert len(expected) == 15
    assert without_wall(history.read(tmp_path / "resumed")) == expected


def test_the_picks_of_a_step_are_written_once(tmp_path):
    with Writer(tmp_path, BUDGET) as writer:
        for step in (1, 2, 2, 5, 5):
            writer.write_picks(step, np.array([step, 7]))
            writer.flush()
    picks = jsonl.read(epath.Path(tmp_path / history.PICKS_FILE))
    assert picks == [{"step": step, "ids": [step, 7]} for step in (1, 2, 5)]


def test_every_flipped_bit_of_a_line_is_found_or_changes_nothing(tmp_path):
    path = epath.Path(tmp_path / "picks.jsonl")
    lines = [{"step": 1, "ids": [3, 141]}, {"step": 2, "ids": [59, 2]}]
    data = jsonl.dumps(lines)
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            kept = jsonl.read(path)
            assert len(kept) < 2
            assert all(line in lines for line in kept)


def test_a_last_line_that_is_cut_off_is_named(tmp_path, caplog):
    path = epath.Path(tmp_path / "picks.jsonl")
    data = jsonl.dumps([{"step": 1, "ids": [3]}, {"step": 2, "ids": [4]}])
    for missing in (1, 2, 9):
        caplog.clear()
        path.write_bytes(data[:-missing])
        assert jsonl.at(path, 1.0) == {"step": 1, "ids": [3]}
        assert f"{path}, line 2 is not complete or damaged" in caplog.text


def test_lines_without_checksums_are_read(tmp_path):
    lines = [{"step": 1, "ids": [3]}, {"step": 2, "note": "Infinity"}]
    path = epath.Path(tmp_path / "picks.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert jsonl.read(path) == lines


def test_new_run_drops_all_lines(tmp_path):
    train(tmp_path, 1, 3, kill_after=3)
    train(tmp_path, 1, 2)
    assert [line["step"] for line in history.read(tmp_path)] == [1, 2]


def test_wall_time_continues_after_resumption(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "wall/seconds": 100.0}\n')
    writer = Writer(tmp_path, BUDGET, 5)
    writer.write(6, {})
    writer.close()
    assert 100.0 <= history.read(tmp_path)[-1]["wall/seconds"] < 160.0


def raw_events(workdir):
    """TensorBoard's events in the order of writing, read by the format's own definition."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # TFRecord: length u64, its CRC u32, data, its CRC u32
            length = int.from_bytes(data[:8], "little")
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def events(workdir):
    """(name, step, value) of TensorBoard's scalars, and the steps of restarts."""
    out, restarts = [], []
    for event in raw_events(workdir):
        values = [v for v in event.summary.value if v.HasField("simple_value")]
        out += [(v.tag, event.step, v.simple_value) for v in values]
        if event.HasField("session_log"):
            restarts.append(event.step)
    return out, restarts


def pictures(workdir):
    """(step, encoded) of TensorBoard's pictures."""
    return [
        (event.step, value.image.encoded_image_string)
        for event in raw_events(workdir)
        for value in event.summary.value
        if value.HasField("image")
    ]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    train(tmp_path, 1, 5, kill_after=5)
    train(tmp_path, 5, 6, resume=4)
    found, restarts = events(tmp_path)
    losses = [(step, value) for name, step, value in found if name == "loss"]
    expected = [(step, float(np.float32(1 / step))) for step in (1, 2, 3, 4, 5, 5, 6)]
    assert sorted(losses) == expected
    assert sorted(restarts) == [0, 5]  # step 5 of the first file is hidden
    assert [(n, s) for n, s, _ in found if n == "eval/top1"] == [("eval/top1", 4)]
    assert {n for n, _, _ in found} >= {"examples_trained", "examples_scored", "flops"}


def test_tensorboard_has_the_settings_pictures_and_a_table_of_results(tmp_path):
    settings = {"batch_size": 64, "schedule.peak": 0.1, "scan": True, "layers": (1, 2), "name": "x"}
    with Writer(tmp_path, BUDGET, settings=settings) as writer:
        writer.write(1, {"loss": 2.0})
        writer.show(1, "picks", Picture(b"encoded", 6, 4))
        writer.write(2, {"loss": 0.25, "eval/top1": 0.5})
    assert pictures(tmp_path) == [(1, b"encoded")]
    plugins = {}
    for event in raw_events(tmp_path):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name:
                plugins[value.tag] = (event.step, value)
    _, start = plugins["_hparams_/session_start_info"]
    found = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info
    assert found.hparams["batch_size"].number_value == 64
    assert found.hparams["schedule.peak"].number_value == 0.1
    assert found.hparams["scan"].bool_value
    assert found.hparams["layers"].string_value == "(1, 2)"
    assert found.hparams["name"].string_value == "x"
    assert "_hparams_/session_end_info" in plugins
    step, table = plugins["results/text_summary"]
    assert step == 2
    rows = table.tensor.string_val[0].decode().splitlines()
    assert {"| loss | 0.25 |", "| eval/top1 | 0.5 |", "| examples_trained | 8 |"} < set(rows)


def test_stopped_and_resumed_runs_have_the_table_at_the_end(tmp_path):
    writer = Writer(tmp_path, BUDGET)
    writer.write(1, {"eval/top1": 0.5})
    writer.close("stopped")
    tables = [v for e in raw_events(tmp_path) for v in e.summary.value if "results" in v.tag]
    assert tables == []
    with Writer(tmp_path, BUDGET, 1) as writer:
        writer.write(2, {"loss": 0.25})
    (table,) = [v for e in raw_events(tmp_path) for v in e.summary.value if "results" in v.tag]
    assert "| eval/top1 | 0.5 |" in table.tensor.string_val[0].decode()  # of the first start


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = Writer(tmp_path / "run", BUDGET)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()
    with pytest.raises(FileNotFoundError, match=r"is .* the workdir of a run"):
        history.read(tmp_path / "run")


@pytest.fixture
def bucket(monkeypatch):
    """gs://bucket in memory; returns the number of times that each object was written."""
    writes = collections.Counter()

    class Store(fsspec.implementations.memory.MemoryFileSystem):
        store = {}  # noqa: RUF012 fsspec's own way
        pseudo_dirs = [""]  # noqa: RUF012
        cachable = False

        def _open(self, path, mode="rb", **settings):
            assert "a" not in mode, "an object store cannot append"
            writes[path.rsplit("/", 1)[-1]] += "w" in mode
            return super()._open(path, mode, **settings)

    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", lambda name: Store())
    # TensorBoard's files go by another library, which would look for Google.
    monkeypatch.setattr(record_writer, "GCS_ENABLED", False)
    return writes


def test_object_stores_get_periodic_uploads(bucket):
    train("gs://bucket/run", 1, 9)
    assert bucket["metrics.jsonl"] == 2  # the first line and the rest, not a file a line
    train("gs://bucket/run", 9, 12, resume=8)
    train("gs://bucket/whole", 1, 12)
    lines = without_wall(history.read("gs://bucket/run"))
    assert lines == without_wall(history.read("gs://bucket/whole"))
    assert len(lines) == 15


def test_long_files_in_object_stores_are_cut_into_parts(bucket, monkeypatch):
    monkeypatch.setattr(jsonl, "_PART_BYTES", 1500)
    monkeypatch.setattr(writer, "_REMOTE_SECONDS", 0.0)
    path = epath.Path("gs://bucket/run/metrics.jsonl")
    train(path.parent, 1, 40)
    sizes = [part.stat().length for part in jsonl.parts(path)]
    assert len(sizes) >= 4
    assert all(1500 <= size < 1800 for size in sizes[:-1])
    assert max(bucket[part.name] for part in jsonl.parts(path)) < 15  # of 50 uploads

    train(path.parent, 9, 24, resume=8)  # drops whole parts and a piece of one
    train("gs://bucket/whole", 1, 24)
    whole = history.read("gs://bucket/whole")
    assert without_wall(history.read(path.parent)) == without_wall(whole)
    train(path.parent, 1, 2)  # anew
    assert [part.name for part in jsonl.parts(path)] == ["metrics.jsonl"]
    assert len(history.read(path.parent)) == 2


def test_parts_that_were_copied_from_an_object_store_are_one_file(tmp_path, monkeypatch):
    """Also through a mounted bucket: they are read, cut and continued."""
    train(tmp_path, 1, 12)
    whole = tmp_path / "metrics.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    whole.write_text("".join(lines[:6]))
    (tmp_path / "metrics.jsonl.1").write_text("".join(lines[6:11]))
    (tmp_path / "metrics.jsonl.2").write_text("".join(lines[11:]))
    expected = without_wall(history.read(tmp_path))
    assert len(expected) == 15
    train(tmp_path, 9, 12, resume=8)
    assert without_wall(history.read(tmp_path)) == expected
    assert not (tmp_path / "metrics.jsonl.2").exists()


def test_resuming_reads_only_the_dropped_lines(tmp_path, monkeypatch):
    """Picks of a long run are gigabytes."""
    path = epath.Path(tmp_path / "picks.jsonl")
    path.write_text("".join(f'{{"step": {i}, "ids": [{i}]}}\n' for i in range(1000)))
    parsed = []
    real = json.loads
    monkeypatch.setattr(jsonl.json, "loads", lambda text: parsed.append(text) or real(text))
    jsonl.drop_after(path, 990)
    assert len(parsed) == 10
    monkeypatch.undo()
    assert list(history.read_picks(tmp_path)) == list(range(991))


def test_a_full_disk_does_not_stop_the_run(tmp_path):
    # A limit on the size of files fails writes like a full disk, in the middle of a line.
    code = """
        import os, resource, sys
        from aced.metrics import history
        from aced.metrics.writer import Budget, Writer

        def room(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        path = os.path.join(sys.argv[1], "metrics.jsonl")
        writer = Writer(sys.argv[1], Budget(4, 20, 1e9))
        for step in range(1, 4):
            writer.write(step, {"loss": 1 / step})
        size = os.path.getsize(path)
        room(size + 10)
        for step in range(4, 60):
            writer.write(step, {"loss": 1 / step})
        assert size < os.path.getsize(path) <= size + 10  # a part of a line
        assert [line["step"] for line in history.read(sys.argv[1])] == [1, 2, 3]
        assert writer.failed_writes >= 56, writer.failed_writes
        room(resource.RLIM_INFINITY)
        writer.write(60, {"loss": 1 / 60})
        room(os.path.getsize(path) + 10)
        writer.write(61, {"loss": 1 / 61})
        writer.close()
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = history.read(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert [line["loss"] for line in lines] == [1 / step for step in range(1, 61)]
    assert done.stderr.count("could not be written to metrics.jsonl") == 2  # once per full disk
    assert "File too large" in done.stderr
    assert "1 lines of metrics are lost, steps 61 to 61" in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("torn", ["", '{"step": 99, "ids": [1'])
@pytest.mark.parametrize("cuts", [(), (1,), (7, 8)])
def test_a_line_at_a_place_of_a_long_file(tmp_path, monkeypatch, torn, cuts):
    lines = [f'{{"step": {i}, "ids": {list(range(i))}}}\n' for i in range(30)]
    path = epath.Path(tmp_path / "picks.jsonl")
    pieces = np.split(np.array(lines, object), cuts)
    for number, piece in enumerate(pieces):
        name = f"picks.jsonl.{number}" if number else "picks.jsonl"
        (tmp_path / name).write_text("".join(piece) + torn * (number == len(pieces) - 1))
    total = sum(map(len, lines)) + len(torn)
    for place in np.linspace(0, 1, 50):
        byte, ends = int(place * (total - 1)), np.cumsum([len(line) for line in lines])
        expected = min(int(np.searchsorted(ends, byte, side="right")), 29)
        assert jsonl.at(path, float(place))["step"] == expected
    parsed = []
    real = json.loads
    monkeypatch.setattr(jsonl.json, "loads", lambda text: parsed.append(text) or real(text))
    assert list(history.some_picks(tmp_path, (0.0, 1.0))) == [0, 29]
    assert len(parsed) == 2 + bool(torn)  # one is tried, and named
    assert jsonl.at(epath.Path(tmp_path / "none.jsonl"), 0.5) is None
    (tmp_path / "empty.jsonl").write_text(torn)
    assert jsonl.at(epath.Path(tmp_path / "empty.jsonl"), 1.0) is None

"""Damaged files of our own, by the commands that read them: each is named, with the line."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from aced.checkpoints import record
from aced.metrics import history
from aced.metrics.writer import Budget, Writer
from aced.select_text import command
from aced.select_text.config import SelectTextConfig
from tests import cached, commands
from tests.checkpoints.test_record import settings
from tests.data.test_records import write as write_dataset


def without(*keys):
    """Removes an entry, and the checksum, as of a file of before there were any."""

    def damage(data):
        content = json.loads(data)
        content.pop("sha256", None)
        for key in keys:
            del content[key]
        return json.dumps(content).encode()

    return damage


def not_utf8(data):
    place = data.index(b'"', len(data) // 2) + 1
    return data[:place] + b"\xff" + data[place + 1 :]


def changed(data):
    place = re.search(rb"\d", data[len(data) // 2 :]).start() + len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "cut off": (lambda data: data[: len(data) // 2], "line "),
    "not UTF-8": (not_utf8, "byte 0xff is not UTF-8"),
    "changed": (changed, "its sha256 does not match its content"),
    "no object": (lambda data: b"[1]\n", "not a JSON object but a list"),
    "empty": (lambda data: b"", "it is empty"),
    "zero bytes": (lambda data: bytes(len(data)), "zero bytes"),
}


def damaged(path, damage):
    path.write_bytes(damage(path.read_bytes()))


def refused(done, path, message):
    assert done.returncode == 1, done.stderr
    assert str(path) in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def runs(tmp_path):
    """Two runs of two lines each that differ in their seed."""
    for seed in (0, 1):
        folder = epath.Path(tmp_path / f"run{seed}")
        record.write(folder, settings(seed=seed), "data")
        with Writer(folder, Budget(4, 20, 1e9)) as writer:
            for step in (1, 2):
                writer.write(step, {"loss": 1 / step, "retrieval/mean_r1": 0.25 * step + seed / 8})
    return tmp_path


@pytest.mark.parametrize("command", ["report", "suite"])
@pytest.mark.parametrize("damage", [*DAMAGES, "no fingerprint"])
def test_config_json_of_a_run(runs, command, damage):
    damage, message = (DAMAGES | {
        "no fingerprint": (without("data_fingerprint"), "it has no 'data_fingerprint'")
    })[damage]  # fmt: skip
    damaged(runs / "run1" / "config.json", damage)
    out = [f"--out={runs}/page.html", "--pictures=0"] if command == "report" else []
    done = commands.call(command, *out, f"{runs}/run0", f"{runs}/run1")
    refused(done, runs / "run1" / "config.json", message)


def test_config_json_of_a_run_that_is_converted(runs):
    (runs / "run1" / "checkpoints").mkdir()
    damaged(runs / "run1" / "config.json", not_utf8)
    done = commands.call("convert", f"--source={runs}/run1", f"--out={runs}/out", "--to=aced")
    refused(done, runs / "run1" / "config.json", "byte 0xff is not UTF-8")


BAD_LINES = {
    "cut off": (b'{"step": 2, "lo', "not JSON"),
    "not UTF-8": (b'{"step": 2, "l\xffss": 3}', "byte 0xff is not UTF-8"),
    "no object": (b"[2]", "not a JSON object but a list"),
    "no step": (b'{"loss": 3}', "it has no 'step'"),
    "empty": (b"", "it is empty"),
    "zero bytes": (bytes(9000), "9,000 zero bytes"),
}


@pytest.mark.parametrize("damage", BAD_LINES)
def test_a_line_of_metrics_is_left_out_and_named(runs, caplog, damage):
    line, reason = BAD_LINES[damage]
    path = runs / "run1" / "metrics.jsonl"
    first, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, last, b""]))
    done = commands.call("suite", "--numbers=.*mean_r1", f"{runs}/run0", f"{runs}/run1")
    assert done.returncode == 0, done.stderr
    assert "0.5625" in done.stdout  # the mean of 0.5 and 0.625, of the last lines
    (message,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert message.startswith(f"{path}, line 2 is not complete or damaged")
    assert reason in message
    assert len(message) < 600


@pytest.mark.parametrize("damage", BAD_LINES)
def test_run_resumes_over_a_damaged_line(runs, caplog, damage):
    line, _ = BAD_LINES[damage]
    path = runs / "run1" / "metrics.jsonl"
    first, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, last, line, b""]))
    with Writer(path.parent, Budget(4, 20, 1e9), 2) as writer:
        writer.write(3, {"loss": 0.1})
    assert f"{path}, line 4 is not complete or damaged" in caplog.text
    assert [found["step"] for found in history.read(path.parent)] == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", bytes(500), b"[1]\n", b"{"])
def test_no_line_of_metrics(runs, content):
    path = runs / "run1" / "metrics.jsonl"
    path.write_bytes(content)
    done = commands.call("suite", f"{runs}/run0", f"{runs}/run1")
    refused(done, path, "has no complete line")


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_picks_at_a_damaged_place_are_those_before(tmp_path, place):
    with Writer(tmp_path, Budget(4, 20, 1e9)) as writer:
        for step in (1, 2, 3):
            writer.write_picks(step, np.arange(step))
            writer.write(step, {"loss": 1.0})
    path = tmp_path / "picks.jsonl"
    first, _, _ = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, b'{"step": 2}', b'{"step": 3, "\xff": 1}', b""]))
    assert history.some_picks(tmp_path, [place]) == {1: [0]}
    assert history.read_picks(tmp_path) == {1: [0]}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A selection of sentences that was stopped after its first pass."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "corpus.txt").write_text("".join(f"sentence number {i}\n" for i in range(90)))
    config = SelectTextConfig(
        corpus=(f"{folder}/corpus.txt",), out=f"{folder}/out", budget=9, method="random"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "choose", lambda selection: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command.run(config, jax.devices()[:1])
    return folder


def select(folder):
    return commands.call(
        "select_text", f"--corpus={folder}/corpus.txt", f"--out={folder}/out", "--budget=9",
        "--method=random",
    )  # fmt: skip


@pytest.fixture
def selecting(stopped, tmp_path):
    """A copy of that, where it was: the name of the corpus is part of the settings."""
    kept = stopped / ".kept"
    if not kept.exists():
        shutil.copytree(stopped / ".out.selecting", kept)
    shutil.rmtree(stopped / ".out.selecting", ignore_errors=True)
    shutil.rmtree(stopped / "out", ignore_errors=True)
    shutil.copytree(kept, stopped / ".out.selecting")
    return stopped


def test_a_whole_selection_goes_on(selecting):
    done = select(selecting)
    assert done.returncode == 0, done.stderr
    assert "9 sentences" in done.stdout


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("settings.json", "state.json") for damage in DAMAGES),
        ("state.json", "no blocks"),
    ],
)
def test_state_of_a_selection(selecting, name, damage):
    damage, message = (DAMAGES | {"no blocks": (without("blocks"), "it has no 'blocks'")})[damage]
    path = selecting / ".out.selecting" / name
    damaged(path, damage)
    refused(select(selecting), path, message)


@pytest.mark.parametrize("damage", ["cut off", "empty", "zero bytes"])
def test_arrays_of_a_selection(selecting, damage):
    (path,) = (selecting / ".out.selecting").glob("state-*/0.npz")
    damaged(path, DAMAGES[damage][0])
    refused(select(selecting), path, "is not readable")


@pytest.mark.parametrize("damage", [*DAMAGES, "no format"])
def test_description_of_a_model(tmp_path, damage):
    damages = DAMAGES | {"no format": (without("format"), "does not have the format")}
    damage, message = damages[damage]
    cached.write_model(tmp_path / "model")
    damaged(tmp_path / "model" / "model.json", damage)
    done = commands.call(
        "convert", f"--source={tmp_path}/model", f"--out={tmp_path}/out", "--to=aced"
    )
    refused(done, tmp_path / "model" / "model.json", message)


@pytest.mark.parametrize("damage", [*DAMAGES, "no statistics"])
def test_description_of_a_data_set(tmp_path, damage):
    damage, message = (
        DAMAGES | {"no statistics": (without("statistics"), "it has no 'statistics'")}
    )[damage]
    path = write_dataset(tmp_path / "out") / "dataset.json"
    damaged(path, damage)
    (tmp_path / "captions.jsonl").write_text('{"image": "0.png", "caption": "c"}')
    done = commands.call(
        "prepare", f"--images={tmp_path}", f"--captions={tmp_path}/captions.jsonl",
        f"--out={tmp_path}/out",
    )  # fmt: skip
    refused(done, path, message)

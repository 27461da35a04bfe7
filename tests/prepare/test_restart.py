"""Killed with SIGKILL at several moments and started again: the same as an undisturbed run."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aced.data import records
from aced.prepare import inputs
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare
from aced.prepare.workspace import Workspace

# Runs the preparation, and kills itself at the N-th call of a function; notes each image examined.
_SCRIPT = """
import importlib, json, os, pathlib, signal, sys
from aced.prepare import blocks, inputs
from aced.prepare.workspace import Workspace
from aced.prepare.command import PrepareConfig, prepare
settings, notes, module, name, number = json.loads(sys.argv[1])
inputs.BLOCK = 4
check = blocks.check
def noting(data, config):
    with open(notes, "a") as file:
        file.write("image\\n")
    return check(data, config)
blocks.check = noting
if module:
    *parents, last = name.split(".")
    holder = importlib.import_module(module)
    for parent in parents:
        holder = getattr(holder, parent)
    real, calls = getattr(holder, last), []
    def killing(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(holder, last, killing)
prepare(PrepareConfig(**settings))
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for i in range(40):
        pixels = np.random.default_rng(i % 36).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"c {i}"}))
    (images / "11.png").write_bytes(b"broken")
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    settings = {
        "images": str(images),
        "captions": str(tmp_path / "captions.jsonl"),
        "shards": 4,
        "val": 6,
        "max_side": 10,
        "threads": 1,
    }
    monkeypatch.setattr(inputs, "BLOCK", 4)
    expected = prepare(PrepareConfig(out=str(tmp_path / "undisturbed"), **settings))
    assert expected["images"] == 35
    out, notes = tmp_path / "out", tmp_path / "notes"
    moments = [
        ("aced.prepare.blocks", "check", 10),  # in the third block
        ("aced.prepare.blocks", "pack", 21),  # between the bytes of a later block
        ("aced.data.records", "encode", 13),  # in a shard
        ("aced.prepare.workspace", "Workspace.publish", 1),  # all is there
        ("aced.prepare.workspace", "Workspace.remove", 1),  # it is in its place
        ("", "", 0),
    ]
    examined, complete = [], []
    for i, moment in enumerate(moments):
        arguments = json.dumps([settings | {"out": str(out)}, str(notes), *moment])
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, arguments], capture_output=True, text=True
        )
        killed = i < len(moments) - 1
        assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
        examined.append(len(notes.read_text().splitlines()))
        complete.append(len(list((tmp_path / ".out.partial" / "blocks").glob("*.facts"))))
        assert out.exists() == (i >= 4)  # never a part of it
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert complete[:3] == [2, 7, 11]  # lines 1 to 3, 4 to 7, ..., 40
    # Only the images of blocks that were not complete are examined again.
    assert examined[1] <= examined[0] + 4 * 6
    assert examined[2:] == [examined[1] + len(range(28, 41))] * 4
    assert not (tmp_path / ".out.partial").exists()
    assert len(records.open_dataset(out, "train")) == 29


def test_workspace_with_other_settings_is_not_resumed(tmp_path):
    partial = tmp_path / ".out.partial"
    (partial / "blocks").mkdir(parents=True)
    (partial / "blocks" / "00000000.facts").write_bytes(b"of other settings")
    (partial / "settings.json").write_text("{}")
    (tmp_path / "images").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "images" / "0.png")
    (tmp_path / "captions.jsonl").write_text('{"image": "0.png", "caption": "c"}')
    settings = {"images": f"{tmp_path}/images", "captions": f"{tmp_path}/captions.jsonl"}
    assert prepare(PrepareConfig(out=f"{tmp_path}/out", **settings))["images"] == 1
    assert not partial.exists()


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Settings of a preparation that was stopped when all was there but its place; what it gives.

    Its pictures have thumbnails, and those are in no hash of a picture.
    """
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"c {i}"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    settings = {
        "images": f"{tmp_path}/images",
        "captions": f"{tmp_path}/captions.jsonl",
        "thumbnails": 16,
        "threads": 1,
    }
    prepare(PrepareConfig(out=f"{tmp_path}/expected", **settings))
    settings["out"] = f"{tmp_path}/out"
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(PrepareConfig(**settings))
    return settings, contents(tmp_path / "expected")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["settings", "input"])
def test_blocks_of_other_settings_that_appear_meanwhile_are_not_used(
    stopped, tmp_path, monkeypatch, change
):
    settings, _ = stopped
    old, blocks = tmp_path / "old", tmp_path / ".out.partial" / "blocks"
    shutil.copytree(blocks, old)
    begin = Workspace.begin

    def begin_while_others_write(workspace, settings):
        resumed = begin(workspace, settings)
        assert not resumed
        shutil.copytree(old, blocks)  # as by workers that go on after their command was stopped
        return resumed

    monkeypatch.setattr(Workspace, "begin", begin_while_others_write)
    if change == "settings":
        settings["thumbnails"] = 0
    else:
        table = pathlib.Path(settings["captions"])
        table.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    found = prepare(PrepareConfig(**settings))
    assert (found["images"], found["thumbnails"]) == {"settings": (12, 0), "input": (11, 11)}[
        change
    ]


def flip(path, seed):
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "again"),
    [
        ("blocks/*.facts", "is made again"),
        ("shards/*.json", "is made again"),
        ("out/train-*.array_record", "is made again: its checksum is wrong"),
        ("out/dataset.json", ""),  # these are written anew by every start
        ("summary.json", ""),
        ("parts/*", ""),
    ],
)
def test_files_with_flipped_bits_are_made_again(stopped, tmp_path, caplog, pattern, again):
    settings, expected = stopped
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / ".out.partial", kept)
    for seed in range(3):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(kept, tmp_path / ".out.partial", dirs_exist_ok=True)
        for path in (tmp_path / ".out.partial").glob(pattern):
            flip(path, seed)
        caplog.clear()
        prepare(PrepareConfig(**settings))
        assert contents(tmp_path / "out") == expected
        assert again in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_copy_of_a_picture_or_thumbnail_with_flipped_bits_is_refused(stopped, tmp_path, seed):
    settings, expected = stopped
    partial = tmp_path / ".out.partial"
    (spool,) = (partial / "blocks").glob("*.bytes")
    for note in (partial / "shards").iterdir():  # so that the shard is made from the copies
        note.unlink()
    flip(spool, seed)
    with pytest.raises(Exception, match=rf"{spool} is damaged. Remove \S+facts and start again"):
        prepare(PrepareConfig(**settings))
    spool.with_suffix(".facts").unlink()
    prepare(PrepareConfig(**settings))
    assert contents(tmp_path / "out") == expected


def test_damaged_settings_keep_completed_work(stopped, tmp_path):
    path = tmp_path / ".out.partial" / "settings.json"
    good = path.read_bytes()
    path.write_bytes(good[:40])
    with pytest.raises(PrepareError, match=f"{path} is not readable .line 2: not JSON"):
        prepare(PrepareConfig(**stopped[0]))
    path.write_bytes(good)
    prepare(PrepareConfig(**stopped[0]))
    assert contents(tmp_path / "out") == stopped[1]

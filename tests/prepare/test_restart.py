"""Killed with SIGKILL at several moments and started again: the same as an undisturbed run."""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from aced.data import records
from aced.prepare import inputs
from aced.prepare.command import PrepareConfig, prepare

# Runs the preparation, and kills itself at the N-th call of a function; notes each image examined.
_SCRIPT = """
import importlib, json, os, pathlib, signal, sys
from aced.prepare import blocks, inputs
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


def test_a_workspace_of_other_settings_is_not_gone_on_with(tmp_path):
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

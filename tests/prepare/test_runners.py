"""The same bytes on every runner, the options passed to it, and errors without Beam."""

import builtins
import errno
import json
import logging
import pathlib

import apache_beam as beam
import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.prepare import inputs
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare
from aced.prepare.config import EMBEDDED
from aced.prepare.runner import pipeline_on, run

PORTABLE = ["--job_endpoint=embed", "--environment_type=LOOPBACK"]  # a job server in this process


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Thirty pictures in eight blocks; some are near-duplicates or broken."""
    monkeypatch.setattr(inputs, "BLOCK", 4)
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(30):
        coarse = np.random.default_rng(i % 25).integers(0, 256, (7, 9, 3), np.uint8)
        side = 64 if i < 25 else 80
        Image.fromarray(coarse).resize((side, side)).save(tmp_path / "images" / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": [f"c {i}", "shared"], "label": str(i % 3)})
    (tmp_path / "images" / "7.png").write_bytes(b"broken")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "captions.jsonl").write_text(text)
    return {
        "images": str(tmp_path / "images"),
        "captions": str(tmp_path / "captions.jsonl"),
        "label_column": "label",
        "near_duplicates": 3,
        "near_duplicate_captions": True,
        "val": 5,
        "shards": 3,
        "thumbnails": 16,
        "threads": 2,
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


@pytest.mark.slow
def test_every_runner_gives_the_same_bytes(tmp_path, settings):
    runs = {
        "embedded": ("DirectRunner", []),
        "workers": (
            "DirectRunner",
            ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
        ),
        "portable": ("PortableRunner", PORTABLE),
    }
    for name, (runner, options) in runs.items():
        out = str(tmp_path / name)
        statistics = prepare(PrepareConfig(out=out, runner=runner, **settings), options)
        assert statistics["images"] == 24
        assert statistics["rejected"]["near_duplicate"] == 5
        assert statistics["rejected"]["undecodable"] == 1
    expected = contents(tmp_path / "embedded")
    assert len(expected) == 3 + 6 + 2  # with the hashes of two splits
    for name in ("workers", "portable"):
        found = contents(tmp_path / name)
        assert {n for n in found | expected if found.get(n) != expected.get(n)} == set()


def test_error_in_a_remote_worker_names_the_problem_of_the_input(tmp_path, settings):
    settings |= {"val": 24, "out": str(tmp_path / "out"), "runner": "PortableRunner"}
    with pytest.raises(PrepareError, match="--val=24 is too large") as caught:
        prepare(PrepareConfig(**settings), PORTABLE)
    assert "running" not in str(caught.value)  # Beam's names of steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "images"]


def test_beam_options_are_passed_on_and_unknown_options_refused():
    pipeline = pipeline_on("DirectRunner", ["--direct_num_workers=3", "--temp_location=x"], "out")
    assert pipeline.options.get_all_options()["direct_num_workers"] == 3
    assert pipeline.options.get_all_options()["temp_location"] == "x"
    with pytest.raises(ConfigError, match=r"--max_sid=4 is no flag .*; did you mean --max_side"):
        pipeline_on("DirectRunner", ["--max_sid=4"], "out")
    with pytest.raises(ConfigError, match=r"--direct_num_workers: invalid int value: 'x'; correct"):
        pipeline_on("DirectRunner", ["--direct_num_workers=x"], "out")
    with pytest.raises(ConfigError, match=r"--dask_npartitions=4 needs --runner=DaskRunner"):
        pipeline_on("DirectRunner", ["--dask_npartitions=4"], "out")


def test_no_beam(tmp_path, monkeypatch, settings):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "aced.prepare":
            raise ImportError("No module named 'apache_beam'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install '\.\[beam\]'.*apache_beam"):
        prepare(PrepareConfig(out=str(tmp_path / "out"), **settings))


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("write() failed: No space left on device"), False),
        (PrepareError("captions.jsonl, line 3: no column 'image'"), False),
        (ZeroDivisionError("division by zero"), True),
    ],
)
def test_beam_logs_the_traces_of_mistakes_in_the_code_alone(error, is_logged):
    def fail(_):
        raise error

    # Not caplog: handlers that other tests have installed may take the traces from the records.
    logger, traces = logging.getLogger("apache_beam.runners.common"), []
    handler = logging.Handler()
    handler.emit = lambda record: traces.append(record.exc_info)
    logger.addHandler(handler)
    pipeline = pipeline_on(EMBEDDED, [], "out")
    _ = pipeline | beam.Create([1]) | beam.Map(fail)
    try:
        with pytest.raises((type(error), RuntimeError)):
            run(pipeline, EMBEDDED)
    finally:
        logger.removeHandler(handler)
    assert any(traces) == is_logged

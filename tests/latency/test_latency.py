"""`aced.latency`: counts and memory compared with arithmetic, and the lines of its table."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from aced.config import ConfigError
from aced.latency import command, published
from aced.latency.__main__ import table
from aced.latency.command import LatencyConfig
from aced.models import model_folder, two_tower
from aced.models.saved import flat
from tests import commands
from tests.convert import ours

PIXELS, IDS = 30 * 30 * 3, 16 * 4  # bytes of a picture and of a text of the small model


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model_folder.write(ours.siglip(), folder)
    return str(folder)


@pytest.mark.parametrize(("precision", "sizes"), [("model", (1, 4)), ("int8_weights", (2,))])
def test_counts_times_and_memory_of_a_model_folder(folder, precision, sizes):
    flags = [f"--batch_sizes={','.join(map(str, sizes))}", f"--precisions={precision}", "--runs=4"]
    done = commands.call("latency", folder, *flags, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["published"] == [dataclasses.asdict(one) for one in published.MODELS]
    lines = {(x["tower"], x["batch_size"]): x for x in found["measured"]}
    assert len(lines) == len(found["measured"]) == 2 * len(sizes)
    params = flat(ours.siglip().params)
    for (tower, size), line in lines.items():
        own = {name: x for name, x in params.items() if name.startswith(f"{tower}/")}
        assert line["parameters"] == sum(x.size for x in own.values())
        stored = sum(bytes_of(name, x, precision) for name, x in own.items())
        assert line["arguments"] == stored + size * (PIXELS if tower == "image" else IDS)
        assert line["runs"] == 4
        assert 0 < line["ms_lower"] <= line["ms"] <= line["ms_upper"]
        assert line["per_second"] == pytest.approx(1000 / line["ms"])
        # Blocks, by hand: q, k, v, out, two layers of the MLP, and two products of attention.
        tokens, d, mlp = (9, 32, 64) if tower == "image" else (16, 24, 40)
        macs = 2 * tokens * (4 * d * d + 2 * d * mlp + 2 * tokens * d)
        if tower == "image":
            macs += 9 * 192 * 32 + 2 * 9 * d * d + 2 * 9 * d + d * d + 2 * d * mlp
        else:
            macs += d * 32
        assert line["gmacs"] == macs / 1e9
        # In a tower this small, elementwise work is a large part.
        assert macs < 1e9 * line["xla_gmacs"] < 1.5 * macs


def bytes_of(name, x, precision):
    axis = {"kernel": -2, "token": -1}.get(name.rpartition("/")[2])
    if axis is None or precision == "model":
        return 4 * x.size
    return x.size + 4 * x.size // x.shape[axis]


def test_xla_counts_what_we_count():
    model = two_tower.preset("CLIP-B/32")
    assert command.xla_macs(model, "image") == pytest.approx(4.409e9, rel=0.01)


def test_a_table_lists_what_was_measured_and_what_was_published():
    counts = {"parameters": 12_300_000, "gmacs": 1.5, "xla_gmacs": None}
    times = {"runs": 50, "ms": 2.5, "ms_lower": 2.0, "ms_upper": 3.0, "per_second": 400.0}
    memory = {"arguments": 3 << 20, "temporaries": 5 << 20}
    small = command.Measurement("m", "int8", "image", batch_size=8, **counts, **times, **memory)
    text = table([small, dataclasses.replace(small, tower="text", xla_gmacs=1.75)])
    first, second = text.splitlines()[2:4]
    assert first == (
        "m      int8       image  12.3M       1.50              8      2.5      2 to 3     400"
        "         3 MiB      5 MiB"
    )
    assert second.split("  ")[0] == "m"
    assert "1.50 (XLA: 1.75)" in second
    assert "the milliseconds are those of other hardware" in text
    assert "ACED-F0                    3.3           2.1       1.8      GMAC: arXiv" in text


def test_slow_runs_end_at_the_time_limit():
    x = jax.numpy.zeros(1)
    assert len(command._timed(lambda: x, LatencyConfig(seconds=1e-9))) == 3
    assert len(command._timed(lambda: x, LatencyConfig(seconds=1e9, runs=7))) == 7


def test_inputs_are_in_the_range_of_the_model():
    model = ours.siglip().config
    assert command.inputs(model, "image", 3).shape == (3, 30, 30, 3)
    ids = command.inputs(model, "text", 3)
    assert ids.shape == (3, 16)
    assert ids.dtype == np.int32
    assert 0 <= ids.min() <= ids.max() < model.text.vocab_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No models: give folders of models, workdirs of runs, or presets (ACED-F0,"),
        (("ACED-F3",), "ACED-F3 is neither a model or run here nor a preset; the presets are"),
        (("x", "--precisions=int4"), "--precisions: 'int4' is none of model, float32,"),
        (("x", "--batch_sizes=1,0"), "--batch_sizes must be whole numbers from 1 on"),
    ],
)
def test_wrong_arguments_end_in_a_message(arguments, message):
    done = commands.call("latency", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_wrong_source_raises():
    with pytest.raises(ConfigError, match="No models"):
        next(command.measure((), LatencyConfig()))

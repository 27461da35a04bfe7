"""The command, on slices that are not there; the search of a batch size is in test_aot.py."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from aced.config import ConfigError
from aced.cost import flops, hardware
from aced.models import two_tower
from aced.preflight import aot, command, plan, table
from configs import acid_b16

ROOT = pathlib.Path(__file__).parents[2]


def command_line(*flags):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "-m", "aced.preflight", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_step_for_eight_tpus():
    pytest.importorskip("libtpu")
    done = command_line(
        "--config=configs/acid_b16.py:tiny",
        "--topology=v5e:2x4",
        "--config.batch_size=128",
        "--config.method.selection.strata=8",
        "--config.total_steps=10",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    config = acid_b16.get_config("tiny").method.model
    model = two_tower.TwoTowerConfig(
        image=two_tower.ImageConfig(size="mu", patch=8, resolution=32),
        text=two_tower.TextConfig(
            size="mu", length=16, vocab_size=config.text.vocab_size, pool=config.text.pool
        ),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    macs = sum(flops.macs(model))

    assert (found["method"], found["fits"], found["chips"]) == ("compiled", True, 8)
    assert found["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert (found["batch_size"], found["super_batch_size"], found["strata"]) == (128, 640, 8)
    assert found["parameters"] == {"learner": parameters, "reference": parameters}
    # Trained on 128, 640 embedded by two models; the compiler may count what we leave out.
    step = 6 * macs * 128 + 2 * 2 * macs * 640
    assert found["flops"]["model"] == step
    assert 0.9 < found["flops"]["compiled"] / step < 1.5  # narrow: the loss and selection count
    assert sum(found["flops"]["by_type"].values()) == found["flops"]["compiled"]
    assert found["run"]["steps"] == 10
    assert found["run"]["flops"] == 10 * step

    hbm = found["hbm"]
    assert hbm["limit"] == 15.75 * 2**30
    assert 3 * 4 * parameters < hbm["state"] < 3 * 4 * parameters + 100  # Adam: two moments
    assert hbm["batch"] == 640 // 8 * (32 * 32 * 3 + 16 * 4 + 4)
    parts = ("state", "frozen", "batch", "padding", "temporaries", "code")
    assert sum(hbm[part] for part in parts) == hbm["used"] == hbm["limit"] - hbm["free"]

    # Gradients are summed over all: nothing else is as large, and no picture moves.
    assert set(found["collective_bytes"]) <= {"f32", "bf16", "s32", "u32", "pred"}
    assert sum(found["collective_bytes"].values()) > 2 * parameters  # bfloat16 at least
    largest = found["largest_collectives"][0]
    assert largest["kind"] == "all-reduce"
    assert largest["bytes"] <= 4 * parameters
    assert found["collectives"]["collective-permute"]["count"] >= 7  # the loss goes round
    time = found["time"]
    assert time["step"] == max(time[k] for k in ("compute", "memory", "interconnect"))
    assert time["step"] == time[time["bound_by"]]
    assert found["examples_per_second"] == pytest.approx(128 / time["step"])
    assert found["mfu"] == pytest.approx(step / time["step"] / (8 * 197e12))
    assert found["run"]["chip_hours"] == pytest.approx(10 * time["step"] * 8 / 3600)
    assert found["notes"] == ["earlier runs are not counted: reference"]
    assert len(found["assumed"]) == 1

    shown = table.table(found)
    assert "all-reduce of" in shown
    assert "FITS, with 15.7" in shown


def test_exit_code_is_1_if_the_step_does_not_fit():
    pytest.importorskip("libtpu")
    done = command_line(
        "--config=configs/siglip_b16.py:tiny",
        "--topology=v5e:2x4",
        "--config.method.model.text.vocab_size=200000000",
    )
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT: batch_size = 16 needs" in done.stdout
    assert "of 15.75 GiB on a device. No smaller batch fits either" in done.stdout
    assert "preflight: batch_size 8 needs" in done.stderr


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e:3x3", "error: libtpu refuses the topology v5e:3x3"),
        ("v7:2x2", "error: The topology 'v7:2x2' is unknown. Known are"),
    ],
)
def test_topologies_that_do_not_exist(topology, message):
    pytest.importorskip("libtpu")
    done = command_line("--config=configs/siglip_b16.py:tiny", f"--topology={topology}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install the extra \[tpu\]"):
        aot.devices(hardware.topology("v5e:2x4"))


def test_gpus_by_roofline_alone(tmp_path):
    config = acid_b16.get_config("tiny")
    config.batch_size = 128
    config.mesh.fsdp = 2
    config.method.selection.strata = 8
    wanted = plan.read(config, str(tmp_path))
    found = command.report(wanted, hardware.topology("gpu:h200x8"))
    assert (found["method"], found["fits"]) == ("roofline", True)
    assert "only a roofline" in found["notes"][0]
    assert "compiled" not in found["flops"]
    step, state = found["flops"]["model"], found["hbm"]["state"]
    time, parameters = found["time"], 4 * found["parameters"]["learner"]
    assert time["compute"] == pytest.approx(step / 8 / 989e12)
    read = found["hbm"]["frozen"] + found["hbm"]["batch"]
    assert time["memory"] == pytest.approx((2 * state + read) / 4.8e12)
    # fsdp 2: gathered twice, scattered once, half of it each time; data 4: summed, 3/4 twice.
    sent = 3 * parameters / 2 + 2 * 3 / 4 * parameters / 2
    assert time["interconnect"] == pytest.approx(sent / 450e9)
    assert state < 0.7 * 3 * parameters  # sharded, but for what is too small
    shown = table.table(found)
    assert "only known after compilation" in shown


def test_gpus_that_cannot_even_hold_the_parameters(tmp_path):
    config = acid_b16.get_config("tiny")
    config.batch_size = 128
    config.method.model.text.vocab_size = 300_000_000
    found = command.report(plan.read(config, str(tmp_path)), hardware.topology("gpu:a100x8"))
    assert not found["fits"]
    assert found["hbm"]["free"] < 0
    assert "do NOT fit" in table.table(found)
    assert "chosen pictures move between them" in " ".join(found["notes"])


@pytest.mark.parametrize(
    ("largest", "text"),
    [(None, "No smaller batch fits either"), (24_576, "largest batch_size that fits is 24,576")],
)
def test_verdict_names_the_largest_batch_that_fits(largest, text):
    report = {
        "method": "compiled",
        "fits": False,
        "batch_size": 32_768,
        "largest_batch_size": largest,
        "hbm": {"used": 20.5 * 2**30, "limit": 15.75 * 2**30},
    }
    line = table.verdict(report)
    assert "batch_size = 32,768 needs 20.50 GiB of 15.75 GiB" in line
    assert text in line

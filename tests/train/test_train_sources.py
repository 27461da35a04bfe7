"""Runs on tars, parquet and mixtures of them, by the command's own machinery."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags
from PIL import Image

from aced.config import ConfigError, to_config
from aced.data.images.filters import FilterConfig
from aced.data.shapes import scenes
from aced.data.sources import DataConfig, MemberConfig, open_source
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.metrics import history, jsonl
from aced.prepare.command import PrepareConfig, prepare
from aced.train import loop
from aced.train.config import parse
from configs import small, smoke
from tests.data import many
from tests.train import test_train

ROOT = pathlib.Path(__file__).parents[2]


def mixture(tmp_path, **settings):
    """30 rows (weight 1), and 60 in tars (weight 3); 3 of these are bad and 4 too small."""
    tars, rows = tmp_path / "tars", tmp_path / "rows"
    tars.mkdir()
    rows.mkdir()
    members = [m for i in range(60) for m in many.sample(i)]
    for i in (3, 20, 41):
        members[3 * i] = (members[3 * i][0], many.jpeg(i)[:300])
    for i in range(10, 14):
        members[3 * i] = (members[3 * i][0], many.jpeg(i, side=8))
    (tars / "0.tar").write_bytes(many.tar_bytes(members))
    many.write_parquet(rows, [30], 8)
    return DataConfig(
        source="mixture",
        mixture={
            "tars": MemberConfig(
                source="webdataset", webdataset=WebDatasetConfig(str(tars)), weight=3.0
            ),
            "rows": MemberConfig(source="parquet", parquet=ParquetConfig(str(rows))),
        },
        filters=FilterConfig(min_side=12),
        num_threads=2,
        **settings,
    )


def config(tmp_path, steps=6):
    out = smoke.get_config("method=hard,tiny")
    out.data = to_config(mixture(tmp_path))
    out.total_steps = steps
    out.log_steps = 1
    out.picks_steps = 1
    out.checkpoint.every_steps = 3
    out.optimizer.schedule.kind = "constant"  # the same in a run that is cut in two
    out.evals = {}
    return out


@pytest.mark.slow
def test_a_mixture_is_trained_on_counted_and_resumed(tmp_path):
    settings, device = config(tmp_path), jax.devices()[:1]
    loop.run(settings, str(tmp_path / "whole"), devices=device)
    lines = history.read(tmp_path / "whole")
    picks = jsonl.read(epath.Path(tmp_path) / "whole" / "picks.jsonl")
    for line, pick in zip(lines, picks, strict=True):
        assert line["sources/tars/share"] == 0.75
        assert line["sources/rows/share"] == 0.25
        share = np.mean(np.array(pick["ids"]) >= 30)
        assert line["sources/tars/picked_share"] == pytest.approx(share)
        assert line["sources/rows/picked_share"] == pytest.approx(1 - share)
        assert line["sources/rows/score"] > 0  # the learner's loss on a pair
        assert line["wall/records_skipped/rows"] == 0
        assert line["wall/records_skipped"] == line["wall/records_skipped/tars"]
    last = lines[-1]
    assert last["wall/records_skipped/tars"] >= 3
    assert last["wall/records_filtered/side"] >= 4
    skipped = jsonl.read(epath.Path(tmp_path) / "whole" / "skipped.jsonl")
    assert {(line["source"], line["id"]) for line in skipped} == {("tars", i) for i in (33, 50, 71)}
    assert not {33, 50, 71, *range(40, 44)} & {i for pick in picks for i in pick["ids"]}

    # Half of it, and then the rest, as after a kill.
    settings.total_steps = 3
    loop.run(settings, str(tmp_path / "parts"), devices=device)
    settings.total_steps = 6
    loop.run(settings, str(tmp_path / "parts"), devices=device)
    assert jsonl.read(epath.Path(tmp_path) / "parts" / "picks.jsonl") == picks
    with settings.unlocked():
        settings.data.mixture.tars.weight = 1.0
    with pytest.raises(ConfigError, match=r"data.mixture.tars.weight: 3.0 then, 1.0 now"):
        loop.run(settings, str(tmp_path / "parts"), devices=device)


def parsed(monkeypatch, *arguments):
    """The settings that these flags make of a config file, as `aced.main` defines them."""
    monkeypatch.setattr(sys, "argv", ["main", *arguments])  # where overrides are looked for
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    values(["main", *arguments])
    return parse(values["config"].value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections' own
def test_the_command_takes_tars_by_flags(monkeypatch):
    settings = parsed(
        monkeypatch,
        f"--config={ROOT}/configs/small.py:method=iid",
        "--config.data.source=webdataset",
        "--config.data.webdataset.path=/data/{00000..00098}.tar",
        "--config.data.webdataset.captions=('caption','alt')",
        "--config.data.filters.min_side=64",
    )
    assert settings.data.source == "webdataset"
    assert settings.data.webdataset.path == "/data/{00000..00098}.tar"
    assert settings.data.webdataset.captions == ("caption", "alt")
    assert settings.data.filters.min_side == 64


def test_the_recipe_takes_tars_and_parquet_by_its_arguments():
    settings = parse(small.get_config("method=iid,data=/d/{00..98}.tar,val=/d/99.parquet"))
    assert (settings.data.source, settings.data.webdataset.path) == (
        "webdataset",
        "/d/{00..98}.tar",
    )
    held_out = settings.evals["retrieval"].data
    assert (held_out.source, held_out.parquet.path) == ("parquet", "/d/99.parquet")
    prepared = parse(small.get_config("method=iid,data=/d"))
    assert prepared.data.array_record.split == "train"
    assert prepared.evals["retrieval"].data.array_record.split == "val"
    with pytest.raises(ConfigError, match=r"method=aced needs a reference: .* give clean=PATH"):
        small.get_config("data=/d/{00..98}.tar,val=/d/99.tar")
    assert small.get_config("data=/d,clean=/c").before.reference.data.array_record.path == "/c"
    for name in ("clean", "reference", "cache"):
        with pytest.raises(ConfigError, match=f"method=iid uses no reference: leave out {name}="):
            small.get_config(f"data=/d,method=iid,{name}=/c")
    with pytest.raises(ConfigError, match="set `val` to other files"):
        small.get_config("method=iid,data=/d/*.tar")


def test_the_recipe_takes_folders_of_tars_and_of_parquet(tmp_path):
    for name in ("tars", "packed", "rows", "data/data"):
        (tmp_path / name).mkdir(parents=True)
    many.write_tars(tmp_path / "tars", [1])
    (tmp_path / "packed" / "0.tar.gz").write_bytes(b"")
    many.write_parquet(tmp_path / "rows", [1], 1)
    (tmp_path / "rows" / "train-00000.parquet").rename(tmp_path / "rows" / "0.parquet")
    for split in ("train", "validation"):
        file = tmp_path / "data" / "data" / f"{split}-00000-of-00001.parquet"
        file.write_bytes((tmp_path / "rows" / "0.parquet").read_bytes())
    settings = parse(small.get_config(f"method=iid,data={tmp_path}/tars,val={tmp_path}/rows"))
    held_out = settings.evals["retrieval"].data
    assert (settings.data.source, settings.data.webdataset.path) == (
        "webdataset",
        f"{tmp_path}/tars",
    )
    assert (held_out.source, held_out.parquet.path) == ("parquet", f"{tmp_path}/rows")
    assert held_out.parquet.split == "train"
    settings = parse(small.get_config(f"method=iid,data={tmp_path}/data"))
    assert (settings.data.source, settings.data.parquet.split) == ("parquet", "train")
    held_out = settings.evals["retrieval"].data
    assert (held_out.source, held_out.parquet.split) == ("parquet", "val")
    assert len(open_source(held_out)) == 1
    with pytest.raises(ConfigError, match=r"holds 1 compressed tars, such as .*; decompress them"):
        small.get_config(f"method=iid,data={tmp_path}/packed")
    with pytest.raises(ConfigError, match=r"0.tar.gz is compressed, so it has no random access"):
        small.get_config(f"method=iid,data={tmp_path}/packed/0.tar.gz")
    for name in ("tars", "rows"):
        with pytest.raises(ConfigError, match="set `val` to other files"):
            small.get_config(f"method=iid,data={tmp_path}/{name}")


@pytest.mark.slow
def test_two_steps_on_tars_by_the_command(tmp_path):
    many.write_tars(tmp_path, [70, 20])
    command = [sys.executable, "-m", "aced.main", f"--workdir={tmp_path}/run"]
    argument = f"method=iid,data={tmp_path}/{{00000..00000}}.tar,val={tmp_path}/00001.tar,steps=2"
    done = subprocess.run(
        [*command, f"--config=configs/small.py:{argument}", "--config.batch_size=16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = history.last_values(tmp_path / "run")
    assert last["step"] == 2
    assert (last["retrieval/images"], last["retrieval/captions"]) == (20, 20)


@pytest.mark.slow
def test_a_corrupt_record_is_skipped_counted_and_named(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    drawn = scenes.Shapes(scenes.ShapesConfig(size=40, resolution=32))
    with (tmp_path / "captions.jsonl").open("w") as table:
        for i in range(40):
            Image.fromarray(drawn[i]["image"]).save(pictures / f"{i}.png")
            table.write(json.dumps({"image": f"{i}.png", "caption": drawn[i]["texts"][0]}) + "\n")
    data = tmp_path / "data"
    prepare(PrepareConfig(str(pictures), str(tmp_path / "captions.jsonl"), str(data), shards=1))
    shard = data / "train-00000-of-00001.array_record"
    content = bytearray(shard.read_bytes())
    third = [m.start() for m in re.finditer(b"IHDR", content)][2]
    content[third + 30] ^= 0xFF  # one bit pattern in the pixels of the third picture
    shard.write_bytes(content)

    settings = test_train.config("iid", steps=3)
    settings.data.source = "array_record"
    settings.data.array_record.path = str(data)
    test_train.run(settings, tmp_path / "run")
    text = (tmp_path / "run" / "skipped.jsonl").read_text()
    (line,) = [json.loads(line) for line in text.splitlines()]
    assert line["source"] == "data/train"
    assert line["id"] == 2
    assert "train-00000-of-00001.array_record, record 2" in line["reason"]
    assert history.last_values(tmp_path / "run")["wall/records_skipped"] > 0
    trained = [i for ids in history.read_picks(tmp_path / "run").values() for i in ids]
    assert set(trained) == set(range(40)) - {2}

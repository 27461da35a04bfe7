"""The command: every example once, also after kills and errors, and refusals of other caches."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image

from aced.cache import Cache, CacheError, command, making, open_for
from aced.cache.config import CacheConfig, CacheFlags
from aced.config import ConfigError, to_config
from aced.data import records, sources
from aced.data.tokenizers import get_tokenizer
from aced.files import ownership
from aced.train import loop
from aced.train.config import parse
from configs import smoke
from tests import cached, many_processes
from tests.signals import signal_at

SIZE = 90


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cached.write_data(tmp_path_factory.mktemp("data") / "pairs", SIZE)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return cached.write_model(tmp_path_factory.mktemp("models") / "reference")


def make(data, reference, out, devices=1, config=None, force=False, **changes):
    settings = {"out": str(out), "shard_size": 20, "batch_size": 8} | changes
    config = config or cached.run_config(data, reference)
    wanted = CacheFlags(**settings)
    return command.run(config, wanted, "", jax.devices()[:devices], force=force)


@pytest.fixture(scope="module")
def whole(data, reference, tmp_path_factory):
    """A cache that nothing disturbed."""
    out = tmp_path_factory.mktemp("caches") / "whole"
    make(data, reference, out)
    return out


def content(folder):
    files = sorted(pathlib.Path(folder).iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def truth(data, reference):
    """(zimg, [ztxt of its captions]) of every example, by Pillow and the model itself."""
    config = cached.model()
    tokenizer = get_tokenizer(config.tokenizer)
    source = records.open_dataset(data, "train")
    out = {}
    for i in set(range(SIZE)) - {cached.BROKEN, cached.SILENT}:
        sides = (config.image.resolution,) * 2
        picture = Image.open(io.BytesIO(source[i]["image"])).convert("RGB")
        image = np.asarray(picture.resize(sides, Image.Resampling.BICUBIC))
        texts = [text for text in source[i]["texts"] if text.strip()]
        out[i] = image, tokenizer(texts)
    images = np.stack([image for image, _ in out.values()])
    texts = np.concatenate([ids for _, ids in out.values()])
    zimg, ztxt = cached.embed(reference, images, texts)
    ends = np.cumsum([len(ids) for _, ids in out.values()])
    return dict(zip(out, zip(zimg, np.split(ztxt, ends[:-1]), strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_entries_match_the_model_in_any_order(devices, whole, truth, data, reference, tmp_path):
    out = whole
    if devices > 1:
        out = tmp_path / "two"
        make(data, reference, out, devices)
    found = Cache(out)
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.repeat(sorted(truth), 3))
    captions = np.array([rng.integers(len(truth[i][1])) for i in ids.tolist()])
    read = found.read(ids, captions)
    expected = np.stack([truth[i][0] for i in ids.tolist()])
    np.testing.assert_allclose(read["zimg"], expected, atol=1e-5)
    expected = np.stack([truth[i][1][k] for i, k in zip(ids.tolist(), captions, strict=True)])
    np.testing.assert_allclose(read["ztxt"], expected, atol=1e-5)
    # The texts are far enough from each other for another's to be seen.
    assert np.abs(expected - np.roll(expected, 1, axis=0)).max(axis=1).mean() > 1e-3
    assert found.description.captions == sum(len(z) for _, z in truth.values())


def test_unreadable_examples_are_listed(whole):
    found = Cache(whole)
    assert set(found.missing) == {cached.BROKEN, cached.SILENT}
    assert "picture" in found.missing[cached.BROKEN] or "image" in found.missing[cached.BROKEN]
    assert found.missing[cached.SILENT] == "it has no caption"
    with pytest.raises(CacheError, match="no embedding of the image of example 31: it has no cap"):
        found.read(np.array([3, cached.SILENT]), np.array([0, 0]))
    with pytest.raises(CacheError, match="example 3: it has fewer captions in the cache"):
        found.read(np.array([3]), np.array([9]))


def test_complete_cache_is_not_changed(whole, data, reference):
    before = content(whole)
    assert set(before) == {"cache.json"} | {
        f"embeddings-0000{i}-of-00005.array_record" for i in range(5)
    }
    make(data, reference, whole)
    assert content(whole) == before


def test_a_complete_cache_that_was_cut_off_since_is_refused(whole, data, reference, tmp_path):
    out = shutil.copytree(whole, tmp_path / "cut")
    os.truncate(out / "embeddings-00003-of-00005.array_record", 100)
    with pytest.raises(CacheError, match=r"00003.* has 100 bytes instead of .*remove its folder"):
        make(data, reference, out)


@pytest.mark.slow
@pytest.mark.parametrize("towers", ["image", "text"])
def test_one_tower_alone(towers, data, reference, truth, tmp_path):
    made = make(data, reference, tmp_path / "out", towers=towers, precision="bfloat16")
    read = Cache(tmp_path / "out").read(np.array([40, 2]), np.array([0, 1]))
    name = {"image": "zimg", "text": "ztxt"}[towers]
    assert set(read) == {name}
    expected = (
        [truth[40][0], truth[2][0]] if towers == "image" else [truth[40][1][0], truth[2][1][1]]
    )
    np.testing.assert_allclose(read[name], np.stack(expected), atol=5e-3)
    # A picture needs no caption. Its own is not made for the text alone, but it is read.
    assert (cached.SILENT in made.missing) == (towers == "text")
    assert made.fitted is None
    assert set(made.errors["int8"]) == {"distance"}


def interrupt_at(monkeypatch, places):
    """The writing of entries fails at these places, counted over all starts."""
    write, count = making.entries.EntryWriter.write, [0]

    def fails(self, index, rows):
        count[0] += 1
        if count[0] in places:
            raise KeyboardInterrupt
        write(self, index, rows)

    monkeypatch.setattr(making.entries.EntryWriter, "write", fails)


@pytest.mark.slow
def test_an_interrupted_pass_gives_the_same_bytes(whole, data, reference, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, {1, 22, 45, 85, 110})
    starts = 1
    while True:
        try:
            make(data, reference, tmp_path / "out")
            break
        except KeyboardInterrupt:
            starts += 1
    assert starts == 6
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_a_signal_stops_cleanly(number, code, whole, data, reference, tmp_path, monkeypatch):
    signal_at(monkeypatch, number, 4)
    with pytest.raises(SystemExit) as error:
        make(data, reference, tmp_path / "out")
    assert error.value.code == code
    assert not list((tmp_path / "out").glob("*.part"))
    monkeypatch.undo()
    make(data, reference, tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "precision: there 'float32', now 'int8'"),
        ({"shard_size": 30}, "shard_size: there 20, now 30"),
        ({"towers": "text"}, "towers: there 'both', now 'text'"),
        ({"data.max_pixels": 1 << 20}, r"fingerprint.decode: there .*, now .*1048576"),
        ({"data.source": "shapes"}, "examples: there 90, now 1000"),
        ({"batch_size": 16}, "calibration_batch_size: there 8, now 16"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_cache_in_the_folder(complete, changes, message, whole, data, reference, tmp_path):
    out = whole
    if not complete:
        out = tmp_path / "begun"
        making.begin(Cache(whole).description.plan, out)
    before = content(out)
    config = cached.run_config(data, reference)
    mine = {k: v for k, v in changes.items() if k in ("precision", "shard_size", "towers")}
    config.update_from_flattened_dict({k: v for k, v in changes.items() if k not in mine})
    with pytest.raises(CacheError, match=rf"holds another cache:(.|\n)*{message}"):
        make(data, reference, out, config=config, **mine)
    assert content(out) == before


def test_other_weights_are_another_cache(whole, data, tmp_path):
    other = cached.write_model(tmp_path / "other", seed=1)
    with pytest.raises(CacheError, match=r"fingerprint.weights: there '[0-9a-f]{64}', now "):
        make(data, other, whole)


def test_runs_that_decode_faster_read_a_cache_of_exact_pictures(whole, data, reference, tmp_path):
    config = cached.run_config(data, reference)
    exact = parse(config).data
    fast = dataclasses.replace(exact, decode="fast", thumbnails=True)
    source = sources.open_source(exact)
    assert open_for(str(whole), source, fast, None).description == Cache(whole).description
    smaller = dataclasses.replace(fast, max_pixels=1 << 20)
    with pytest.raises(CacheError, match=r"decode: here .*1048576.*, there "):
        open_for(str(whole), source, smaller, None)
    config.data.decode = "fast"
    make(data, reference, tmp_path / "fast", config=config)
    with pytest.raises(CacheError, match=r'decode: here .*"exact".*, there .*"fast"'):
        open_for(str(tmp_path / "fast"), source, exact, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "gs://bucket/cache"}, "Local paths can. Mount the store"),
        ({"shard_size": 0}, "--shard_size must be at least 1"),
        ({"model": "large"}, r"--model=large is not a model of this .*; it has: \['reference'\]"),
        ({"batch_size": 9}, "9 examples cannot be shared equally by 2 devices"),
    ],
)
def test_settings_that_do_not_fit(changes, message, data, reference, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(data, reference, **({"out": tmp_path / "out"} | changes), devices=2)


def test_a_workdir_in_a_store_holds_no_cache():
    wanted = CacheConfig(out="{workdir}/cache")
    assert wanted.folder("/runs/a") == pathlib.Path("/runs/a/cache")
    assert wanted.folder("~/a") == pathlib.Path.home() / "a" / "cache"
    with pytest.raises(ConfigError, match=r"gs://bucket/a/cache.*Mount the store"):
        wanted.folder("gs://bucket/a")


def test_messages_about_a_cache_in_a_config_name_the_setting_and_no_flag(data, tmp_path):
    for settings, message in (
        ({}, r"^config\.before_caches\.first: out is empty; set it\.$"),
        ({"out": "x", "shard_size": 0}, r"^config\.before_caches\.first\.shard_size must be at"),
    ):
        config = cached.run_config(data, "somewhere")
        config.before_caches.first = settings
        with pytest.raises(ConfigError, match=message):
            loop.run(config, str(tmp_path / "run"))
    config = cached.run_config(data, "somewhere")
    config.before_caches.first = to_config(CacheConfig(out="gs://bucket/a"))
    with pytest.raises(ConfigError, match=r"^config\.before_caches\.first\.out = 'gs://bucket/a'"):
        loop.run(config, str(tmp_path / "run"))
    config = cached.run_config(data, str(tmp_path))
    with pytest.raises(ConfigError, match=r"^model=large is not a model of this config"):
        command.run(config, CacheConfig(out=str(tmp_path / "a"), model="large"), "")


@pytest.mark.slow
def test_a_run_in_a_store_that_needs_a_cache_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"configs/smoke\.py:online"):
        loop.run(smoke.get_config("tiny"), "gs://bucket/a")


def test_no_checkpoint_no_cache(data, tmp_path):
    config = cached.run_config(data, "somewhere")
    config.method.reference.checkpoint = ""
    with pytest.raises(ConfigError, match=r"set --config\.method\.reference\.checkpoint"):
        make(data, "", tmp_path / "out", config=config)


@pytest.mark.slow
def test_second_process_is_refused_but_may_read_a_complete_result(whole, data, reference, tmp_path):
    with ownership.owned(str(tmp_path / "out" / ownership.FILE)):
        for force in (False, True):
            with pytest.raises(ownership.OwnedError, match=f"process {os.getpid()} on"):
                make(data, reference, tmp_path / "out", force=force)
    assert not (tmp_path / "out").exists()
    with ownership.owned(str(whole / ownership.FILE)):
        make(data, reference, whole)
    assert not (whole / ownership.FILE).exists()


def test_a_folder_with_other_files(data, reference, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(notes.txt\)"):
        make(data, reference, tmp_path)


def command_line(data, reference, out, *more):
    return [
        "-m", "aced.cache", f"--config=tests/small_run.py:reference={reference}", f"--out={out}",
        "--config.data.source=array_record", f"--config.data.array_record.path={data}",
        "--config.batch_size=8", "--config.method.selection.strata=4", "--shard_size=5",
        "--batch_size=4", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_five_times_gives_the_same_result(data, reference, tmp_path):
    out, rng = tmp_path / "out", random.Random(0)

    def summaries():
        return len(list(out.glob("*.json"))) - (out / ownership.FILE).exists()

    in_the_middle = 0
    for _ in range(5):
        goal = min(summaries() + 1, 18)  # on a busy machine all may be made before the kill
        with many_processes.start(1, 1, command_line(data, reference, out), tmp_path) as started:
            started.wait_for(lambda goal=goal: summaries() >= goal)
            time.sleep(rng.uniform(0, 0.05))
            in_the_middle += summaries() < 18
            started.kill()
    assert in_the_middle
    with many_processes.start(1, 1, command_line(data, reference, out), tmp_path) as started:
        assert started.exit_codes() == [0]
        assert "88 of 90 examples" in started.output(0)
    plain = tmp_path / "plain"
    with many_processes.start(1, 1, command_line(data, reference, plain), tmp_path) as started:
        assert started.exit_codes() == [0]
    assert content(out) == content(plain)
    described = json.loads((out / "cache.json").read_text())
    assert len(described["shards"]) == 18


@pytest.mark.slow
def test_two_processes_share_the_shards(data, reference, tmp_path):
    two = command_line(data, reference, tmp_path / "two", "--distributed")
    with many_processes.start(2, 1, two, tmp_path) as started:
        assert started.exit_codes() == [0, 0], started.output(0)
    made = make(data, reference, tmp_path / "one", 2, shard_size=5, batch_size=4)
    found = Cache(tmp_path / "two")
    assert found.missing == made.missing
    assert found.description.captions == made.captions
    ids = np.array(sorted(set(range(SIZE)) - set(made.missing)))
    here, there = (Cache(tmp_path / name).read(ids, np.zeros_like(ids)) for name in ("one", "two"))
    for name in ("zimg", "ztxt"):
        np.testing.assert_allclose(there[name], here[name], atol=1e-6)

"""Runs that read embeddings from a cache: the same picks, the same resumption, refusals."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest

from aced.cache import CacheError, command, description
from aced.cache.config import CacheConfig
from aced.config import ConfigError, to_config
from aced.data import sources
from aced.data.picks import CANDIDATES
from aced.files import own_files
from aced.methods.contrastive import Contrastive
from aced.methods.frozen import FrozenConfig
from aced.metrics import history
from aced.parallel import mesh as meshes
from aced.parallel import preemption
from aced.preflight import plan
from aced.train import loop
from aced.train.config import parse
from aced.train.setup import opened_caches
from configs import methods
from tests import cached
from tests.train.test_train import state

SIZE, STEPS = 90, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cached.write_data(tmp_path_factory.mktemp("data") / "pairs", SIZE)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A reference, and a teacher that is wider and sees more."""
    folder = tmp_path_factory.mktemp("models")
    large = cached.model(width=40, resolution=24, length=9)
    return {
        "reference": cached.write_model(folder / "reference"),
        "large": cached.write_model(folder / "large", large, seed=1),
    }


def make(config, out, name="reference", **changes):
    settings = {"out": str(out), "model": name, "shard_size": 32, "batch_size": 8} | changes
    return command.run(config, CacheConfig(**settings), "", jax.devices()[:1])


@pytest.fixture(scope="module")
def caches(data, models, tmp_path_factory):
    """The folder of the reference's cache in every precision."""
    folder = tmp_path_factory.mktemp("caches")
    for precision in ("float32", "int8"):
        make(cached.run_config(data, models["reference"]), folder / precision, precision=precision)
    return folder


def run(config, workdir, devices=1):
    return loop.run(config, str(workdir), devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def trained(data, models, caches, tmp_path_factory):
    """Workdirs of finished runs of STEPS steps, by name; tests only look at them."""

    @functools.cache
    def folder(name):
        workdir = tmp_path_factory.mktemp("trained") / name
        if name == "online":
            config = cached.run_config(data, models["reference"], steps=STEPS)
        else:
            config = cached.run_config(data, "", steps=STEPS, cache=caches / name)
        run(config, workdir)
        return workdir

    return folder


def with_teacher(config, models, method):
    """ACED with the reference and another teacher, of other width."""
    methods.apply(config, method, filter_ratio=0.8, weight=1.0)
    config.method.teachers.large = to_config(FrozenConfig(checkpoint=models["large"]))
    config.method.distillation.teachers = ("reference", "large")
    return config


def check_same_picks(online, offline):
    """One run as another one, but for what the reference's forward passes cost."""
    assert history.read_picks(online) == history.read_picks(offline)
    values = [history.read(workdir)[-1] for workdir in (online, offline)]
    for key in ("loss", "loss/distillation", "selection/score_selected"):
        assert values[1][key] == pytest.approx(values[0][key], rel=1e-4)
    # Neither the reference nor its pixels: its forward passes are what a step no longer costs.
    assert values[1]["flops"] < values[0]["flops"]
    # What the cache could not embed is skipped, as what cannot be read is.
    seen = {i for ids in history.read_picks(offline).values() for i in ids}
    assert not seen & {cached.BROKEN, cached.SILENT}


@pytest.mark.slow
def test_cached_run_picks_as_the_online_run(trained):
    check_same_picks(trained("online"), trained("float32"))


@pytest.mark.slow
def test_cached_run_picks_as_the_online_run_on_two_devices(data, models, caches, tmp_path):
    run(cached.run_config(data, models["reference"], steps=5), tmp_path / "online", 2)
    run(cached.run_config(data, "", steps=5, cache=caches / "float32"), tmp_path / "cached", 2)
    check_same_picks(tmp_path / "online", tmp_path / "cached")


@pytest.mark.slow
@pytest.mark.parametrize(("which", "method"), [("large", "aced_iid"), ("both", "kd")])
def test_cached_and_online_models_together(which, method, data, models, caches, tmp_path):
    online = with_teacher(cached.run_config(data, models["reference"], steps=3), models, method)
    make(online, tmp_path / "large_cache", "large")
    offline = with_teacher(cached.run_config(data, models["reference"], steps=3), models, method)
    offline.method.teachers.large.cache = str(tmp_path / "large_cache")
    if which == "both":
        offline.method.reference.cache = str(caches / "float32")
    values = [run(online, tmp_path / "online"), run(offline, tmp_path / "cached")]
    assert history.read_picks(tmp_path / "online") == history.read_picks(tmp_path / "cached")
    assert values[1]["loss/distillation"] == pytest.approx(values[0]["loss/distillation"], rel=1e-4)


@pytest.mark.slow
def test_int8_picks_nearly_the_same(trained):
    """Measured: 39 of 40. An error of 0.006 in an embedding moves few draws."""
    online, offline = (history.read_picks(trained(name)) for name in ("online", "int8"))
    kept = [len(set(ids) & set(offline[step])) / len(ids) for step, ids in online.items()]
    assert np.mean(kept) > 0.8


@pytest.mark.slow
def test_stopped_run_resumes_bit_for_bit(data, caches, trained, tmp_path, monkeypatch):
    config = cached.run_config(data, "", steps=STEPS, cache=caches / "int8")
    monkeypatch.setattr(preemption.Preemption, "reached", lambda self, step: step == 4)
    with pytest.raises(SystemExit):
        run(config, tmp_path)
    monkeypatch.undo()
    run(config, tmp_path)
    assert history.read_picks(trained("int8")) == history.read_picks(tmp_path)
    lines = [
        [{k: v for k, v in line.items() if not k.startswith("wall/")} for line in history.read(w)]
        for w in (trained("int8"), tmp_path)
    ]
    assert lines[0] == lines[1]
    for a, b in zip(state(trained("int8")), state(tmp_path), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_resuming_with_another_cache_is_refused(data, caches, trained, tmp_path):
    shutil.copytree(trained("float32"), tmp_path / "run")
    config = cached.run_config(data, "", steps=STEPS + 1, cache=caches / "int8")
    with pytest.raises(ConfigError, match=r"model_fingerprints.reference: '.*' then, '.*' now"):
        run(config, tmp_path / "run")


def other_data(config, models, tmp_path):
    config.data.array_record.path = cached.write_data(tmp_path / "other", SIZE + 1)


def other_decoding(config, models, tmp_path):
    config.data.max_pixels = 12_345


def other_weights(config, models, tmp_path):
    config.method.reference.checkpoint = cached.write_model(tmp_path / "other", seed=3)


def other_settings(config, models, tmp_path):
    """The same weights, as another library's files may have them."""
    folder = tmp_path / "other"
    shutil.copytree(models["reference"], folder)
    file = folder / "model.json"
    settings = own_files.loads(file.read_bytes())
    settings["model"]["resize.mode"] = "crop"
    settings["model"]["tokenizer.length"] -= 1
    file.write_text(json.dumps(settings))
    config.method.reference.checkpoint = str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other_data,
            r"  data: here [0-9a-f]{64}, there [0-9a-f]{64}\n  examples: here 91, there 90",
        ),
        (other_decoding, r"  decode: here .*12345.*, there .*89478485"),
        (
            other_settings,
            r"  resize.mode: here 'crop', there 'squash'\n  tokenizer.length: here 11, there 12\n"
            r"  tokenizer: shapes has other ids",
        ),
        (other_weights, r"  weights: here [0-9a-f]{64}, there [0-9a-f]{64}"),
    ],
)
def test_embeddings_of_something_else_are_refused(change, message, data, models, caches, tmp_path):
    config = cached.run_config(data, "", cache=caches / "float32")
    change(config, models, tmp_path)
    with pytest.raises(CacheError, match=message) as error:
        run(config, tmp_path / "run")
    assert "python -m aced.cache" in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_cached_model_overrides_the_assumed_one(data, caches, trained, tmp_path):
    """Recipes assume a reference, and any other may have been cached."""
    wrong = cached.run_config(data, "", steps=STEPS, cache=caches / "float32")
    wrong.method.reference.model = to_config(cached.model(resolution=24, width=40, length=9))
    run(wrong, tmp_path)
    assert history.read_picks(trained("float32")) == history.read_picks(tmp_path)


@pytest.mark.slow
def test_the_same_checkpoint_and_model_are_accepted(data, models, caches, tmp_path):
    config = cached.run_config(data, models["reference"], steps=1, cache=caches / "float32")
    config.method.reference.checkpoint = models["reference"]
    config.method.reference.model = to_config(dataclasses.replace(cached.model(), scan=False))
    assert run(config, tmp_path)["step"] == 1


def test_a_cache_of_one_tower_is_no_reference(data, models, tmp_path):
    make(cached.run_config(data, models["reference"]), tmp_path / "images", towers="image")
    with pytest.raises(CacheError, match="holds only image embeddings"):
        run(cached.run_config(data, "", cache=tmp_path / "images"), tmp_path / "run")


@pytest.mark.slow
def test_a_model_without_bias_needs_one(data, tmp_path):
    """CLIP in a run with the sigmoid loss: refused, then with the numbers that were fitted."""
    clip = cached.write_model(tmp_path / "clip", cached.model(bias=None))
    config = cached.run_config(data, clip, steps=2)
    with pytest.raises(ConfigError, match=r"method\.reference has no bias(.|\n)*cache` fits"):
        run(config, tmp_path / "run")
    made = make(config, tmp_path / "cache")
    assert made.plan.bias is None
    off = cached.run_config(data, "", steps=2, cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="has no bias"):
        run(off, tmp_path / "run")
    for each in (config, off):
        each.method.reference.bias = -3.0
        each.method.reference.scale = 7.0
    run(config, tmp_path / "online")
    run(off, tmp_path / "cached")
    assert history.read_picks(tmp_path / "online") == history.read_picks(tmp_path / "cached")
    off.method.loss = "softmax"
    off.method.reference.bias = None
    assert run(off, tmp_path / "softmax")["step"] == 2


@pytest.mark.slow
def test_a_mixture_has_a_cache_whatever_its_weights(models, tmp_path):
    def mixture(weight):
        config = cached.run_config("", models["reference"], steps=3)
        config.data.source = "mixture"
        members = {}
        for i, name in enumerate(("web", "books")):
            member = sources.MemberConfig(source="shapes", weight=weight if i else 1.0)
            members[name] = to_config(member)
            members[name].shapes.size = 40 + i
            members[name].shapes.seed = i
        config.data.mixture = members
        return config

    make(mixture(1.0), tmp_path / "cache")
    run(mixture(3.0), tmp_path / "online")
    config = mixture(3.0)
    config.method.reference.checkpoint = ""
    config.method.reference.cache = str(tmp_path / "cache")
    run(config, tmp_path / "cached")
    assert history.read_picks(tmp_path / "online") == history.read_picks(tmp_path / "cached")
    assert max(i for ids in history.read_picks(tmp_path / "cached").values() for i in ids) > 40


def test_streams_of_the_same_data_share_an_open_cache(data, caches):
    config = cached.run_config(data, "", cache=caches / "float32")
    config.method.score_ahead = 1  # the reference scores candidates, and teaches picks
    settings = parse(config)
    source = sources.open_source(settings.data)
    streams = Contrastive(settings.method.resolve("")).streams(settings.data, 40)
    found = opened_caches(streams, dict.fromkeys(streams, source))
    assert found[""]["reference/"] is found[CANDIDATES]["reference/"]
    other = dataclasses.replace(settings.data, num_threads=1)
    streams[CANDIDATES] = dataclasses.replace(streams[CANDIDATES], data=other)
    found = opened_caches(streams, dict.fromkeys(streams, source))
    assert found[""]["reference/"] is not found[CANDIDATES]["reference/"]


def test_preflight_needs_no_cache(data, models, tmp_path):
    config = cached.run_config(data, "", cache=tmp_path / "none")
    with pytest.raises(ConfigError, match="does not exist, so the width of its embeddings"):
        plan.read(config, str(tmp_path))
    config.method.reference.model = to_config(cached.model())
    read = plan.read(config, str(tmp_path))
    assert re.match(r"method\.reference\.cache = .*none' does not exist", read.assumed[0])
    built = read.program(meshes.make_mesh(jax.devices()[:1]), 8)
    assert built.frozen == {}
    shapes = {name: (x.shape, str(x.dtype)) for name, x in built.batch().items()}
    assert shapes["reference/zimg"] == shapes["reference/ztxt"] == ((40, 24), "float32")
    assert "reference/image" not in shapes


@pytest.mark.slow
def test_shards_that_are_damaged(data, models, tmp_path):
    out = tmp_path / "cache"
    make(cached.run_config(data, models["reference"]), out)
    config = cached.run_config(data, "", cache=out)
    shard = out / "embeddings-00001-of-00003.array_record"
    good = shard.read_bytes()
    shard.write_bytes(good[:-100])
    with pytest.raises(
        CacheError, match=rf"00001-of-00003.* has {len(good) - 100} bytes instead of"
    ):
        run(config, tmp_path / "short")
    bad = bytearray(good)
    for place in range(200, 6000, 100):
        bad[place] ^= 255
    shard.write_bytes(bytes(bad))
    with pytest.raises(CacheError, match=r"embeddings-00001-of-00003.* is damaged: "):
        run(config, tmp_path / "damaged")
    shard.write_bytes((out / "embeddings-00000-of-00003.array_record").read_bytes())
    with pytest.raises(CacheError, match=r"example 0 is in the place of example 32|is damaged"):
        run(config, tmp_path / "swapped")
    shard.unlink()
    with pytest.raises(CacheError, match=r"00001-of-00003.array_record is missing"):
        run(config, tmp_path / "missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(version=2), "format and version"),
        (lambda about: about["plan"].update(shard_size=-1), "shard_size must be at least 1 and"),
        (lambda about: about["plan"].update(examples=10**12), "examples must be at least 1"),
        (lambda about: about["plan"].update(scale=float("nan")), "scale must be a number"),
        (lambda about: about["plan"].update(scale=float("inf")), "above 0 and finite"),
        (lambda about: about["plan"].update(precision="pickle"), "precision must be"),
        (lambda about: about["plan"]["model"].update(embed_dim=1 << 20), "width must be 1 to"),
        (lambda about: about["shards"].pop(), "2 shards instead of 3"),
        (lambda about: about["shards"][0]["missing"].update({"99": ""}), "'99' is missing in"),
        (lambda about: about["shards"][0].update(sha256="../../x"), "not a shard"),
        (lambda about: about["shards"][0].update(path="/etc/passwd"), "path is not a setting"),
        (lambda about: about.pop("shards"), "shards"),
    ],
)
def test_inconsistent_cache_descriptions_are_refused(change, message, caches, tmp_path):
    about = json.loads((caches / "float32" / "cache.json").read_text())
    del about["sha256"]  # as of caches of before there was one
    change(about)
    (tmp_path / "cache.json").write_text(json.dumps(about))
    with pytest.raises(CacheError, match=message):
        FrozenConfig(cache=str(tmp_path)).resolve("")


def test_every_flipped_bit_of_a_description_is_found_or_changes_nothing(caches, tmp_path):
    good = (caches / "float32" / "cache.json").read_bytes()
    expected = description.read_complete(caches / "float32")
    rng, found = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "cache.json").write_bytes(data)
        try:
            assert description.read_complete(tmp_path) == expected
        except CacheError:
            found += 1
    assert found > 200  # of others, most are spaces that became others


def test_no_cache(tmp_path):
    with pytest.raises(CacheError, match=r"is not a cache: it has no cache.json"):
        FrozenConfig(cache="{workdir}/cache").resolve(str(tmp_path))
    with pytest.raises(ConfigError, match="Mount the store"):
        FrozenConfig(cache="gs://bucket/cache").resolve(str(tmp_path))

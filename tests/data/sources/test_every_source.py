"""What holds of every source: order, resuming, sharing, replacing, counting; the settings."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError, from_config, to_config
from aced.data.batch_spec import View
from aced.data.images.filters import FilterConfig
from aced.data.pipeline import InputCounters, InputError, eval_batches, train_batches
from aced.data.shapes.scenes import ShapesConfig
from aced.data.sources import ArrayRecordConfig, DataConfig, MemberConfig, SourceConfig, open_source
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.data.sources.tfds import TfdsConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.files.storage import StorageError
from tests.data import many

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow_datasets")
VIEW = View(16, TokenizerConfig(kind="shapes", length=8))
COUNT, ROWS, STEPS = 42, 8, 13  # two epochs and a half
KINDS = ["array_record", "webdataset", "parquet", "tfds", "mixture"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS[:4]}
    many.write_records(made["array_record"], COUNT)
    many.write_tars(made["webdataset"], [20, 0, 22])
    many.write_parquet(made["parquet"], [25, 17], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made["tfds"] = many.write_tfds(str(made["tfds"]), COUNT)
    return {kind: str(path) for kind, path in made.items()}


def member(cls, folders, kind, **settings):
    return cls(
        source=kind,
        array_record=ArrayRecordConfig(folders["array_record"]),
        webdataset=WebDatasetConfig(folders["webdataset"]),
        parquet=ParquetConfig(folders["parquet"]),
        tfds=TfdsConfig(builder_dir=folders["tfds"], captions=("title",)),
        **settings,
    )


def data_config(folders, kind, **settings):
    settings = {"num_threads": 3, "prefetch": 1} | settings
    if kind != "mixture":
        return member(DataConfig, folders, kind, **settings)
    names = {"z": ("parquet", 1.0), "a": ("webdataset", 2.0)}  # numbered by name
    mixture = {
        name: member(MemberConfig, folders, inner, weight=weight)
        for name, (inner, weight) in names.items()
    }
    return DataConfig(source="mixture", mixture=mixture, **settings)


def batches(config, steps, start_step=0, seed=5, rows=None, counters=None):
    """Super-batches, from a source that has just been opened, as after a kill."""
    settings = {"batch_size": ROWS, "seed": seed, "start_step": start_step, "rows": rows}
    source = open_source(config)
    with train_batches(source, config, {"": VIEW}, counters=counters, **settings) as found:
        return [next(found) for _ in range(steps)]


def assert_same(some, others):
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def grey(batch):
    return batch["image"][:, 8, 8, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_order_after_a_kill_and_in_two_processes(folders, kind):
    config = data_config(folders, kind)
    whole = batches(config, STEPS)
    assert_same(batches(config, STEPS - 5, start_step=5), whole[5:])
    halves = [batches(config, STEPS, rows=rows) for rows in np.split(np.arange(ROWS), 2)]
    together = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*halves, strict=True)
    ]
    assert_same(together, whole)
    assert not np.array_equal(batches(config, 1, seed=6)[0]["id"], whole[0]["id"])


@pytest.mark.parametrize("kind", KINDS[:4])
def test_every_record_once_an_epoch_and_in_full(folders, kind):
    config = data_config(folders, kind, caption="first")
    read = batches(config, 2 * COUNT // ROWS)
    ids = np.concatenate([batch["id"] for batch in read])
    assert sorted(ids[:COUNT]) == list(range(COUNT))
    assert ids[:COUNT].tolist() != list(range(COUNT))
    # Each picture with its own caption, in any layout.
    tokenize = get_tokenizer(VIEW.tokenizer)
    pictures = []
    for batch in read:
        found = np.array(grey(batch))
        np.testing.assert_array_equal(batch["text"], tokenize([many.caption(i) for i in found]))
        pictures += found.tolist()
    assert sorted(pictures[:COUNT]) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS[:4])
def test_evaluation_sees_every_record_once(folders, kind):
    config = data_config(folders, kind)
    with eval_batches(open_source(config), VIEW, batch_size=ROWS, config=config) as found:
        read = list(found)
    mask = np.concatenate([batch["mask"] for batch in read])
    assert np.concatenate([batch["id"] for batch in read])[mask].tolist() == list(range(COUNT))
    assert sorted(np.concatenate([grey(batch) for batch in read])[mask]) == list(range(COUNT))


def test_mixture_gives_the_member_of_a_row(folders):
    config = data_config(folders, "mixture")
    read = batches(config, 12)
    source = np.concatenate([batch["source"] for batch in read])
    ids = np.concatenate([batch["id"] for batch in read])
    np.testing.assert_array_equal(source, ids >= COUNT)
    assert np.bincount(source).tolist() == [64, 32]
    assert sorted(ids[source == 0][:COUNT]) == list(range(COUNT))
    assert config.members == ("a", "z")
    assert data_config(folders, "parquet").members == ()


# Bad records.


def bomb(side=30_000):
    """A PNG of side x side pixels, all white, in few bytes."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    line = b"\0" + b"\xff" * side
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def write_bad_tars(folder):
    """Ten examples and an empty shard; examples 1 to 5 are bad, each in another way."""
    members = [m for i in range(10) for m in many.sample(i)]
    members[3] = ("000000001.jpg", many.jpeg(1)[:-200])
    members[6] = ("000000002.png", bomb())
    members[9] = ("000000003.jpg", b"no picture")
    members[13] = ("000000004.txt", b" \n")
    data = bytearray(many.tar_bytes(members))
    place = data.index(b"000000005.jpg")
    data[place : place + 4] = b"\xff" * 4
    (folder / "00000.tar").write_bytes(data)
    (folder / "00001.tar").write_bytes(many.tar_bytes([]))


@pytest.mark.slow
def test_bad_records_are_counted_named_and_replaced(tmp_path):
    write_bad_tars(tmp_path)
    config = DataConfig(
        source="webdataset",
        webdataset=WebDatasetConfig(str(tmp_path)),
        shuffle=False,
        num_threads=2,
        prefetch=0,
    )
    events = {}
    counters = InputCounters(lambda name, index, reason: events.setdefault(index, reason))
    (first, second) = batches(config, 2, counters=counters)
    seen = np.array(grey(first) + grey(second))
    draws = np.arange(16) % 10
    bad = (draws >= 1) & (draws <= 5)
    np.testing.assert_array_equal(seen[~bad], draws[~bad])
    assert set(seen[bad]) <= {0, 6, 7, 8, 9}
    assert len(set(seen[bad])) > 2
    expected = {
        1: "not a readable picture",
        2: "30000 x 30000 pixels",
        3: "not a readable picture",
        4: "no caption",
        5: "damaged header",
    }
    assert events.keys() == expected.keys()
    for index, reason in expected.items():
        assert reason in events[index]
    assert counters.skipped == counters.by_source.total() >= 10


@pytest.mark.slow
def test_in_a_mixture_a_bad_record_is_replaced_in_its_member(tmp_path, folders):
    write_bad_tars(tmp_path)
    config = DataConfig(
        source="mixture",
        mixture={
            "bad": MemberConfig(source="webdataset", webdataset=WebDatasetConfig(str(tmp_path))),
            "good": member(MemberConfig, folders, "parquet"),
        },
        num_threads=0,
    )
    counters = InputCounters()
    read = batches(config, 10, counters=counters)
    for batch in read:
        assert np.bincount(batch["source"]).tolist() == [4, 4]
        np.testing.assert_array_equal(batch["id"] < 10, batch["source"] == 0)
        assert not set(batch["id"]) & {1, 2, 3, 4, 5}
    assert counters.by_source == {"bad": counters.skipped}
    assert 5 * 4 <= counters.skipped <= 5 * 5  # four epochs of ten; readers may run ahead


def test_error_names_the_unreadable_member(folders, tmp_path):
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("jpg", b"x"), ("txt", b"red"))]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    bad = MemberConfig(source="webdataset", webdataset=WebDatasetConfig(str(tmp_path)))
    mixture = {"good": member(MemberConfig, folders, "parquet"), "bad": bad}
    config = DataConfig(source="mixture", mixture=mixture, num_threads=0)
    with pytest.raises(InputError, match="3 records in a row of bad cannot be used"):
        batches(config, 1)


# Filters.


def varied(tmp_path):
    """Pictures of many sizes with captions of many lengths; the facts of each."""
    rng = np.random.default_rng(0)
    facts, members = [], []
    for i in range(30):
        width, height = rng.integers(4, 60, 2).tolist()
        words = ["red"] * int(rng.integers(1, 8))
        out = io.BytesIO()
        Image.new("RGB", (width, height)).save(out, "PNG")
        members += [(f"{i:03d}.png", out.getvalue()), (f"{i:03d}.txt", " ".join(words).encode())]
        facts.append((width, height, len(words)))
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    return facts


def filtered(tmp_path, counters=None, **settings):
    config = DataConfig(
        source="webdataset",
        webdataset=WebDatasetConfig(str(tmp_path)),
        filters=FilterConfig(**settings),
        shuffle=False,
        num_threads=0,
        prefetch=0,
    )
    return config, counters or InputCounters()


@pytest.mark.parametrize(
    ("settings", "passes", "reason"),
    [
        ({"min_side": 20}, lambda w, h, n: min(w, h) >= 20, "side"),
        ({"max_aspect": 2.0}, lambda w, h, n: max(w, h) <= 2 * min(w, h), "aspect"),
        ({"min_words": 3, "max_words": 5}, lambda w, h, n: 3 <= n <= 5, "caption"),
        ({"min_chars": 8, "max_chars": 15}, lambda w, h, n: 8 <= 4 * n - 1 <= 15, "caption"),
    ],
)
def test_filters_drop_examples_outside_the_limits(tmp_path, settings, passes, reason):
    facts = varied(tmp_path)
    config, counters = filtered(tmp_path, **settings)
    kept = [i for i, fact in enumerate(facts) if passes(*fact)]
    assert 3 < len(kept) < 27
    (batch, *_) = batches(config, 3, counters=counters)
    ids = batch["id"]
    assert set(ids) <= set(kept)
    assert [i for i in range(ROWS) if ids[i] == i] == [i for i in kept if i < ROWS]
    assert set(counters.filtered) == {reason}
    assert counters.skipped == 0
    counters = InputCounters()
    with eval_batches(
        open_source(config), VIEW, batch_size=30, config=config, counters=counters
    ) as found:
        (whole,) = found
    assert np.flatnonzero(whole["mask"]).tolist() == kept
    assert counters.filtered == {reason: 30 - len(kept)}


def test_of_several_captions_those_that_fit_are_drawn(tmp_path):
    many.write_tars(tmp_path, [8])
    tars = WebDatasetConfig(str(tmp_path), captions=("alt", "caption"))
    config = DataConfig(
        source="webdataset", webdataset=tars, filters=FilterConfig(max_chars=9), num_threads=0
    )
    tokenize = get_tokenizer(VIEW.tokenizer)
    # "red circle" has 10 characters, "blue circle" 11; "blue red" and "blue blue" at most 9.
    read = batches(config, 4)
    for batch in read:
        for index, text in zip(batch["id"], batch["text"], strict=True):
            options = {x for x in (f"blue {many.CAPTIONS[index % 4]}",) if len(x) <= 9}
            assert any((tokenize([x])[0] == text).all() for x in options)
    assert {int(i) % 4 for batch in read for i in batch["id"]} == {0, 2}


def test_error_if_filters_drop_everything(tmp_path):
    varied(tmp_path)
    config, counters = filtered(tmp_path, min_side=100)
    with pytest.raises(
        InputError, match=r"data.filters leave out 30 examples in a row .*side: 30.*Loosen"
    ):
        batches(config, 1, counters=counters)
    config, counters = filtered(tmp_path, min_side=100, max_in_a_row=7)
    with pytest.raises(InputError, match=r"leave out 7 examples .*filters.max_in_a_row"):
        batches(config, 1, counters=counters)


def test_filters_that_contradict_themselves():
    for settings in (
        {"min_side": -1},
        {"max_aspect": 0.5},
        {"min_words": 5, "max_words": 2},
        {"max_in_a_row": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            FilterConfig(**settings)


# Settings.


def test_settings_of_all_sources_round_trip(folders):
    for kind in KINDS:
        config = data_config(folders, kind)
        assert from_config(DataConfig, to_config(config)) == config


def test_settings_that_are_missing_or_wrong():
    for kind, key in [
        *[(k, f"data.{k}.path") for k in ("array_record", "webdataset", "parquet")],
        ("tfds", "data.tfds.name"),
        ("mixture", "data.mixture"),
    ]:
        with pytest.raises(ConfigError, match=rf"{key} is empty, but data.source='{kind}'"):
            DataConfig(source=kind)
    with pytest.raises(ConfigError, match="weight must be above 0"):
        MemberConfig(weight=0.0)
    with pytest.raises(ConfigError, match="names have only letters"):
        DataConfig(mixture={"a/b": MemberConfig()})
    with pytest.raises(StorageError, match=r"/none/x\.tar does not exist"):
        open_source(SourceConfig(source="webdataset", webdataset=WebDatasetConfig("/none/x.tar")))


def test_ids_of_a_mixture_must_fit_32_bits():
    big = MemberConfig(shapes=ShapesConfig(size=2**30))
    mixture = {"a": big, "b": big, "c": big}
    with pytest.raises(ConfigError, match=r"a\+b\+c has 3221225472 examples"):
        open_source(DataConfig(source="mixture", mixture=mixture))


def test_an_empty_set_of_tars_is_refused(tmp_path):
    (tmp_path / "0.tar").write_bytes(many.tar_bytes([]))
    config = DataConfig(source="webdataset", webdataset=WebDatasetConfig(str(tmp_path)))
    with pytest.raises(ConfigError, match="is empty"):
        open_source(config)

"""Kinds of captions: stored compactly, read from every source, and drawn by their weights."""

import dataclasses
import json

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags
from ml_collections import config_flags
from scipy import stats

from aced.config import ConfigError, from_config, to_config
from aced.data import records
from aced.data.draws import CAPTION, Draws
from aced.data.images.filters import FilterConfig
from aced.data.pipeline import InputError, train_batches
from aced.data.reader import InputCounters
from aced.data.sources import DataConfig
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.data.sources.tars import TarSource, WebDatasetConfig
from tests.data import many

CONFIG = DataConfig(num_threads=0, shuffle=False)  # a shuffle of four is slow
WEIGHTS = {"given": 1.0, "synthetic": 3.0, "none_has_it": 5.0}
KINDS = (
    ("given",),
    ("given", "synthetic"),
    ("synthetic", "given", "synthetic", "synthetic"),
    ("given", "alt", "given", "synthetic"),
)


class Captions:
    """Records without pictures, whose captions have the kinds of `KINDS` in turn."""

    name, fingerprint = "captions", "1"

    def __init__(self, kinds=KINDS, size=4):
        self._kinds, self._size = kinds, size

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        kinds = self._kinds[index % len(self._kinds)]
        record = {"image": b"", "texts": tuple(map(str, range(len(kinds)))), "id": index}
        return record if kinds == ("given",) else record | {"kinds": kinds}


class Recorder:
    """Embeddings that are the index of the caption."""

    missing, towers = {}, ("text",)

    def read(self, ids, captions, augmentations):
        return {"ztxt": captions.astype(np.float32)[:, None]}


def drawn(config, source=None, steps=1, size=256, rows=None, start=0, counters=None):
    """(id, caption) of the rows of some batches."""
    settings = {"batch_size": size, "seed": 7, "rows": rows, "start_step": start}
    batches = train_batches(
        source or Captions(), config, {}, caches={"": Recorder()}, counters=counters, **settings
    )
    with batches:
        found = [next(batches) for _ in range(steps)]
    return [(int(i), int(z)) for b in found for i, z in zip(b["id"], b["ztxt"][:, 0], strict=True)]


def test_captions_are_drawn_with_the_probabilities_of_their_kinds():
    found = drawn(dataclasses.replace(CONFIG, caption_weights=WEIGHTS), steps=10)
    expected = {
        0: [1],
        1: [1 / 4, 3 / 4],
        2: [1 / 4, 1 / 4, 1 / 4, 1 / 4],
        3: [1 / 8, 0, 1 / 8, 3 / 4],
    }
    for index, shares in expected.items():
        counts = np.bincount([c for i, c in found if i == index], minlength=len(shares))
        assert len(counts) == len(shares)
        shares = np.array(shares)
        assert counts[shares == 0].sum() == 0
        counts, shares = counts[shares > 0], shares[shares > 0]
        if len(shares) > 1:
            assert stats.chisquare(counts, counts.sum() * shares).pvalue > 0.001
        if len(set(shares)) > 1:  # the test tells them from a uniform choice
            assert stats.chisquare(counts).pvalue < 1e-6


def test_without_weights_the_choice_is_uniform_and_as_it_was():
    for (index, caption), draw in zip(drawn(CONFIG, steps=2), range(512), strict=True):
        count = len(KINDS[index])
        expected = Draws(7, CAPTION, draw).pick(range(count)) if count > 1 else 0
        assert caption == expected


def test_weighted_captions_do_not_depend_on_start_or_processes():
    config = dataclasses.replace(CONFIG, caption_weights=WEIGHTS)
    whole = drawn(config, steps=3, size=16)
    assert drawn(config, steps=1, size=16, start=2) == whole[32:]
    parts = [drawn(config, steps=3, size=16, rows=rows) for rows in np.split(np.arange(16), 2)]
    together = [row for step in range(3) for part in parts for row in part[8 * step : 8 * step + 8]]
    assert together == whole


def test_pictures_without_captions_of_weight_are_skipped_and_counted():
    counters, weights = InputCounters(), {"synthetic": 1.0}
    config = dataclasses.replace(CONFIG, caption_weights=weights)
    found = drawn(config, steps=2, size=4, counters=counters)
    assert {i for i, _ in found} == {1, 2, 3}
    assert all(KINDS[i][caption] == "synthetic" for i, caption in found)
    assert counters.skipped == 2
    (_, index, reason), *_ = counters.recent
    reason_of_kinds = "data.caption_weights has no weight for the kinds of its captions: given"
    assert (index, reason) == (0, reason_of_kinds)
    with pytest.raises(InputError, match=r"no weight for the kinds of its captions: alt"):
        drawn(config, Captions([("alt",)]))


def warnings_of(caplog):
    return [line for line in caplog.messages if "data.caption_weights" in line]


@pytest.mark.parametrize("threads", [0, 4])
def test_kinds_that_no_caption_has_are_warned_of_once(caplog, threads):
    weights = {"given": 1.0, "syntetic": 3.0, "synth": 1.0, "unused": 0.0}
    config = dataclasses.replace(CONFIG, caption_weights=weights, num_threads=threads)
    drawn(config, Captions(size=1000), size=200, steps=3)
    (line,) = warnings_of(caplog)
    assert "the kinds syntetic, synth, but none of the first 256 records of captions has" in line
    found = line.split("the kinds there are ")[1].split(". ")[0]
    assert set(found.split(", ")) == {"given", "synthetic", "alt"}


def test_a_small_data_set_is_judged_after_one_pass(caplog):
    drawn(dataclasses.replace(CONFIG, caption_weights=WEIGHTS), size=8)
    (line,) = warnings_of(caplog)
    assert "the kinds none_has_it, but none of the first 4 records" in line
    caplog.clear()
    weights = {"given": 1.0, "synthetic": 3.0}
    drawn(dataclasses.replace(CONFIG, caption_weights=weights), size=8)
    drawn(CONFIG, size=8)
    assert not warnings_of(caplog)


def test_filters_drop_captions_before_the_weights_are_shared():
    class Long(Captions):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"texts": ("long", "x", "longer", "also long")}

    filters = FilterConfig(min_chars=2)
    config = dataclasses.replace(
        CONFIG, caption_weights={"alt": 1.0, "given": 1.0}, filters=filters
    )
    found = drawn(config, Long(KINDS[3:], 1), size=64)
    assert {caption for _, caption in found} == {0, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caption_weights": {"given": 0.0}}, "one of the weights must be above 0"),
        ({"caption_weights": {"a.b": 1.0}}, r"data.caption_weights has a kind 'a\.b'"),
        ({"caption_weights": {"a": -1.0}}, "data.caption_weights.a must be at least 0"),
        ({"caption_weights": {"a": 1e308, "b": 1e308}}, "a must be 0, or 1e-06 to 1e.06, got 1e.3"),
        ({"caption_weights": {"a": 5e-324}}, "a must be 0, or 1e-06 to 1e.06, got 5e-324"),
        ({"caption_weights": {"a": 1.0}, "caption": "first"}, "data.caption to 'random'"),
    ],
)
def test_weights_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)


def test_weights_can_be_set_on_the_command_line(monkeypatch):
    arguments = ["main", "--config.caption_weights={'given': 1, 'synthetic': 3.5}"]
    monkeypatch.setattr("sys.argv", arguments)  # where the overrides are looked for
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", to_config(DataConfig()), flag_values=values)
    values(arguments)
    weights = from_config(DataConfig, values.config).caption_weights
    assert weights == {"given": 1.0, "synthetic": 3.5}
    values.config.caption_weights["synthetic"] = -3
    with pytest.raises(ConfigError, match=r"caption_weights\.synthetic must be at least 0, got -3"):
        from_config(DataConfig, values.config)


KINDS_OF_RECORD = ("given", "synthetic", "alt", "synthetic")


def test_records_keep_the_kinds_in_a_byte_per_caption():
    texts = tuple(f"caption {i}" for i in range(4))
    plain = records.Example(b"12345", texts, "k")
    example = dataclasses.replace(plain, kinds=KINDS_OF_RECORD)
    data = records.encode(example)
    assert msgpack.unpackb(data)["kinds"] == {"synthetic": [1, 3], "alt": [2]}
    assert records.decode(data) == example
    # A record of given captions alone is what it was before there were kinds.
    given = dataclasses.replace(plain, kinds=("given",) * 4)
    assert records.encode(given) == records.encode(plain)
    assert "kinds" not in msgpack.unpackb(records.encode(plain))
    assert records.decode(records.encode(plain)).kinds == ()


@pytest.mark.parametrize(
    "kinds",
    [{"a": [4]}, {"a": [-1]}, {"a": [0], "b": [0]}, {"a": [True]}, {"a b": [0]}, {"a": 1}],
)
def test_damaged_kinds_are_refused(kinds):
    data = records.encode(records.Example(b"12345", ("a", "b", "c", "d"), "k"))
    damaged = msgpack.packb(msgpack.unpackb(data) | {"kinds": kinds})
    with pytest.raises(ValueError, match="'kinds'"):
        records.decode(damaged)


@pytest.mark.parametrize("ending", ["json", "syn.json"])
def test_tars_in_the_layout_of_datacompdr(tmp_path, ending):
    """The caption of the page in KEY.txt, synthetic ones in a list in KEY.json or KEY.syn.json."""
    fields = [json.dumps({"syn_text": texts}).encode() for texts in (["one", "two"], [])]
    members = {"a.jpg": b"1", "a.txt": b"page", f"a.{ending}": fields[0]}
    members |= {"b.jpg": b"2", "b.txt": b"alone", f"b.{ending}": fields[1]}
    if ending == "syn.json":  # the other members of that data set, and captions of a lost picture
        members |= {"b.json": b'{"uid": "1"}', "b.url.txt": b"http://a", "b.paug.json": b"{}"}
        members |= {"b.npz": b"", "c.syn.json": fields[0]}
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members.items()))
    config = WebDatasetConfig(
        str(tmp_path), captions=(".txt", "syn_text"), kinds=("given", "synthetic")
    )
    source = TarSource(config)
    assert len(source) == 2
    assert source[0]["texts"] == ("page", "one", "two")
    assert source[0]["kinds"] == ("given", "synthetic", "synthetic")
    assert (source[1]["texts"], source[1]["kinds"]) == (("alone",), ("given",))
    plain = TarSource(dataclasses.replace(config, kinds=()))
    assert "kinds" not in plain[0]
    assert plain.fingerprint == source.fingerprint  # caches hold for all weights
    with pytest.raises(ConfigError, match=r"data\.webdataset\.kinds = \('given',\) must name"):
        dataclasses.replace(config, kinds=("given",))


def test_parquet_with_columns_of_captions(tmp_path):
    columns = {"image": [b"1", b"2"], "caption": ["a", None], "syn": [["b", "c"], ["d"]]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    settings = {"captions": ("caption", "syn"), "kinds": ("given", "synthetic")}
    source = ParquetSource(ParquetConfig(str(tmp_path), **settings))
    assert [(x["texts"], x["kinds"]) for x in (source[0], source[1])] == [
        (("a", "b", "c"), ("given", "synthetic", "synthetic")),
        (("d",), ("synthetic",)),
    ]

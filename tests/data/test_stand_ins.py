"""Unusable records: others stand in for them, all alike, wherever, and each counts once a pass."""

import collections
import io
import tarfile
from unittest import mock

import numpy as np
import pytest
from absl import logging
from PIL import Image

from aced.cache.reader import Cache
from aced.data import order as orders
from aced.data import records
from aced.data.batch_spec import View
from aced.data.images.filters import FilterConfig
from aced.data.pipeline import InputCounters, train_batches
from aced.data.shapes.scenes import ShapesConfig
from aced.data.sources import ArrayRecordConfig, DataConfig, MemberConfig, open_source
from aced.data.sources.mixture import Mixture
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.data.tokenizers import TokenizerConfig
from tests.data import many

VIEW = View(8, TokenizerConfig(kind="shapes", length=8))
SIZE, ROWS = 1200, 48  # 25 super-batches an epoch
SMALL = range(SIZE // 2, SIZE)  # the second half, as of two shards
FILTERS = FilterConfig(min_side=12)


@pytest.fixture(scope="module")
def pictures():
    def png(side):
        out = io.BytesIO()
        Image.new("RGB", (side, side)).save(out, "PNG")
        return out.getvalue()

    large, small = png(16), png(8)
    return [small if i in SMALL else large for i in range(SIZE)]


def array_record(folder, pictures):
    examples = (records.Example(p, ("red circle",), str(i)) for i, p in enumerate(pictures))
    shards = records.write_split(folder, "train", examples, len(pictures), 2)
    records.write_description(folder, {"train": shards}, statistics={}, settings={})
    return {"source": "array_record", "array_record": ArrayRecordConfig(str(folder))}


def tars(folder, pictures):
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(shard * SIZE // 2, (shard + 1) * SIZE // 2):
                many.add(tar, f"{i:05d}.png", pictures[i])
                many.add(tar, f"{i:05d}.txt", b"red circle")
    return {"source": "webdataset", "webdataset": WebDatasetConfig(str(folder))}


def parquet(folder, pictures, captions=None, group=50, **settings):
    import pyarrow as pa
    import pyarrow.parquet as pq

    captions = captions or ["red circle"] * len(pictures)
    table = pa.table({"image": pictures, "caption": captions})
    pq.write_table(table, folder / "0.parquet", row_group_size=group)
    return {"source": "parquet", "parquet": ParquetConfig(str(folder), **settings)}


def ids_of(config, steps=SIZE // ROWS, start=0, source=None, views=None, **settings):
    """The ids of some super-batches; without views nothing is decoded, and captions may be none."""
    source = source or open_source(config)
    settings = {"batch_size": ROWS, "seed": 3, "start_step": start} | settings
    with train_batches(source, config, views or {}, **settings) as found:
        return np.concatenate([next(found)["id"] for _ in range(steps)])


def assert_uniform(ids, usable):
    """By the chi-square; every usable one is drawn about as often as the others."""
    assert set(ids) <= set(usable)
    drawn = np.bincount(ids, minlength=max(usable) + 1)[list(usable)]
    expected = len(ids) / len(usable)
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    freedom = len(usable) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations
    assert drawn.max() <= expected + 8 * expected**0.5


@pytest.mark.slow
@pytest.mark.parametrize("make", [array_record, tars, parquet])
def test_replacements_of_a_filtered_shard_are_spread_evenly(tmp_path, pictures, make):
    config = DataConfig(**make(tmp_path, pictures), filters=FILTERS, num_threads=0)
    counters = InputCounters()
    ids = ids_of(config, counters=counters)
    assert_uniform(ids, range(SIZE // 2))
    assert counters.filtered == {"side": len(SMALL)}  # once a pass
    np.testing.assert_array_equal(ids_of(config, 9, start=16), ids[16 * ROWS :])  # as after a kill
    parts = [ids_of(config, 4, rows=rows) for rows in np.split(np.arange(ROWS), 8)]
    together = np.concatenate([part.reshape(4, -1) for part in parts], axis=1)
    np.testing.assert_array_equal(together.ravel(), ids[: 4 * ROWS])
    threads = DataConfig(**make(tmp_path, pictures), filters=FILTERS, num_threads=5)
    np.testing.assert_array_equal(ids_of(threads), ids)


def test_replacements_in_a_mixture_are_spread_evenly_over_the_member(tmp_path, pictures):
    (tmp_path / "a").mkdir()
    members = {
        "a": MemberConfig(**array_record(tmp_path / "a", pictures), weight=3.0),
        "b": MemberConfig(shapes=ShapesConfig(size=500, resolution=16), weight=1.0),
    }
    config = DataConfig(source="mixture", mixture=members, filters=FILTERS, num_threads=0)
    counters = InputCounters()
    # 48 of the 64 rows are of the member "a": one pass over it.
    ids = ids_of(config, batch_size=64, counters=counters)
    assert_uniform(ids[ids < SIZE], range(SIZE // 2))
    assert (ids < SIZE).sum() == 3 * (ids >= SIZE).sum()
    assert counters.filtered == {"side": len(SMALL)}


@pytest.mark.slow
def test_rows_of_parquet_without_captions_at_the_end(tmp_path, pictures):
    """In the whole file as one window, and in windows of one row group."""
    from aced.data.sources.parquet import ParquetSource

    usable = SIZE * 92 // 100
    captions = ["red circle"] * usable + [None] * (SIZE - usable)
    config = DataConfig(**parquet(tmp_path, pictures, captions), num_threads=0)
    for window_bytes in (1 << 30, 1):
        source = ParquetSource(config.parquet)
        source.window_bytes = window_bytes
        counters = InputCounters()
        ids = ids_of(config, source=source, counters=counters, views={"": VIEW})
        assert_uniform(ids, range(usable))
        assert counters.by_source == {source.name: SIZE - usable}


def test_windows_of_parquet_without_a_usable_row_read_few_groups(tmp_path, pictures):
    from aced.data.sources import parquet as parquet_module

    config = DataConfig(**parquet(tmp_path, pictures), filters=FILTERS, num_threads=0)
    source = parquet_module.ParquetSource(config.parquet)
    source.window_bytes = 4 * source.group_bytes[0]
    read = collections.Counter()
    table = source._table
    source._table = lambda number: read.update([number]) or table(number)
    groups = []
    inner, parquet_module._read_group = (
        parquet_module._read_group,
        lambda *a: groups.append(a[0]) or inner(*a),
    )
    try:
        assert_uniform(ids_of(config, source=source), range(SIZE // 2))
    finally:
        parquet_module._read_group = inner
    assert read.total() < 3 * SIZE  # linear: a usable one is found after two tries
    assert len(groups) < 4 * len(source.groups)


class Rows:
    """Counts what is read of it."""

    name, fingerprint = "rows", "1"

    def __init__(self, size, unusable=()):
        self.size, self.unusable, self.read = size, set(unusable), collections.Counter()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read[index] += 1
        if index in self.unusable:
            raise records.RecordError("checksum")
        return {"image": np.zeros((8, 8, 3), np.uint8), "texts": ("red",), "id": index}


def test_rows_missing_in_a_cache():
    cache = mock.create_autospec(Cache, instance=True)
    cache.towers = ("image",)
    cache.missing = {i: "no picture" for i in range(0, SIZE, 3)}
    cache.read.return_value = {}
    counters = InputCounters()
    config = DataConfig(num_threads=0)
    ids = ids_of(config, source=Rows(SIZE), caches={"": cache}, counters=counters)
    assert_uniform(ids, [i for i in range(SIZE) if i % 3])
    assert counters.skipped == SIZE // 3


@pytest.mark.parametrize("usable", [0.9, 0.5, 0.1])
def test_reads_are_proportional_to_the_share_of_unusable_records(usable):
    rng = np.random.default_rng(0)
    source = Rows(SIZE, rng.permutation(SIZE)[int(SIZE * usable) :].tolist())
    ids = ids_of(DataConfig(num_threads=0), source=source)
    assert_uniform(ids, sorted(set(range(SIZE)) - source.unusable))
    # Each once as the order has it; what turned out unusable is not read again.
    first = 100  # at most, to see what a readable record has
    assert sum(source.read[i] for i in source.unusable) <= len(source.unusable) + first
    assert source.read.total() <= 2 * SIZE + first


def test_remembered_records_do_not_change_the_result():
    source = Rows(SIZE, range(300, SIZE))
    whole = ids_of(DataConfig(num_threads=0), source=source)
    for start in (1, 7, 24):
        late = ids_of(DataConfig(num_threads=0), 1, start=start, source=source)
        np.testing.assert_array_equal(late, whole[start * ROWS : (start + 1) * ROWS])


def test_copies_in_a_super_batch_are_those_of_chance():
    ids = ids_of(DataConfig(num_threads=0), source=Rows(SIZE, SMALL)).reshape(-1, ROWS)
    # 24 stand-ins among 600, beside 24 that are usable: 1.4 copies a super-batch on average.
    assert np.mean([ROWS - len(set(step)) for step in ids]) < 3


@pytest.mark.parametrize("unusable", [SMALL, range(0, SIZE, 2)])
def test_tries_cover_all_examples_once(unusable):
    source = Rows(60)
    mixture = Mixture({"a": (Rows(40), 1.0), "b": (Rows(20), 1.0)})
    for of, members in ((source, [range(60)]), (mixture, [range(40), range(40, 60)])):
        order = orders.of(of, seed=0, shuffle=True, rows=8)
        for draw in range(30):
            tries = list(order.tries(draw))
            assert tries[0] == order[draw]
            assert sorted(tries) in [list(member) for member in members]


def test_warns_once_if_more_than_half_is_unusable(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    config = DataConfig(num_threads=0)
    ids_of(config, 20, source=Rows(SIZE, range(400, SIZE)))
    (line,) = said
    assert line.startswith("More than half of rows cannot be used, ")
    assert "are unreadable, without a caption or missing in a cache" in line
    assert "checksum" in line
    said.clear()
    ids_of(config, 20, source=Rows(SIZE, range(700, SIZE)))
    assert not said
    mixture = Mixture({"good": (Rows(50), 1.0), "bad": (Rows(SIZE, range(800)), 1.0)})
    ids_of(config, 20, source=mixture)
    (line,) = said
    assert "More than half of bad cannot be used" in line


def test_the_filters_that_leave_most_out_are_named(tmp_path, pictures, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    made = array_record(tmp_path, pictures[300:])
    ids_of(DataConfig(**made, filters=FILTERS, num_threads=0), 10)
    (line,) = said
    assert "data.filters leave out" in line
    assert "(side: " in line
    assert line.startswith(f"More than half of {tmp_path.name}/train cannot be used")

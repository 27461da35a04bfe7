"""Picks are read in full as they were scored small, once they are known."""

import concurrent.futures
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from aced.data import records
from aced.data.batch_spec import View
from aced.data.picks import PicksAhead
from aced.data.pipeline import InputCounters, train_batches
from aced.data.reader import InputError
from aced.data.sources import ArrayRecordConfig, DataConfig, open_source
from aced.data.tokenizers import TokenizerConfig

B, SIZE, COUNT = 24, 8, 60
SMALL, FULL = (View(side, TokenizerConfig(kind="shapes", length=8)) for side in (8, 16))
NO_THUMBNAIL, NO_PICTURE = range(0, COUNT, 4), range(2, COUNT, 3)  # those that do not decode


def png(side, value):
    out = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Grey pictures of 16 pixels with thumbnails of 8; the grey is that of the example's id."""
    folder = tmp_path_factory.mktemp("pairs")
    examples = [
        records.Example(
            b"broken" if i in NO_PICTURE else png(16, i),
            (f"{'red' if i % 2 else 'blue'} circle", "green circle"),
            str(i),
            thumbnail=b"broken" if i in NO_THUMBNAIL else png(8, i),
        )
        for i in range(COUNT)
    ]
    shards = records.write_split(folder, "train", examples, COUNT, 1)
    records.write_description(folder, {"train": shards}, statistics={}, settings={})
    files = ArrayRecordConfig(str(folder))
    return DataConfig("array_record", array_record=files, thumbnails=True, num_threads=2)


def read(data, view, number, **settings):
    """Super-batch `number`, or its picks."""
    settings = {"batch_size": B, "seed": 5, "start_step": number} | settings
    picks = settings.get("picks") or PicksAhead(0, 1)
    with train_batches(open_source(data), data, {"": view}, **settings) as batches, picks:
        return next(batches)


def picked(scored, seed):
    """Picks of a super-batch, as a step gives them."""
    rows = np.sort(np.random.default_rng(seed).choice(B, SIZE, replace=False))
    return np.stack([rows, scored["id"][rows]]).astype(np.int32)


@pytest.mark.parametrize("number", [0, 3])
def test_the_picks_are_the_examples_that_were_scored(data, number):
    small, seen = InputCounters(), InputCounters()
    scored = read(data, SMALL, number, counters=small)
    latest = picked(scored, number)
    halves = []
    for rows in np.split(np.arange(SIZE), 2):  # two processes, each with its half of the picks
        picks = PicksAhead(number, 1)
        picks.put(latest)
        halves.append(read(data, FULL, number, picks=picks, rows=rows, counters=seen))
    full = {name: np.concatenate([half[name] for half in halves]) for name in scored}
    assert full["image"].shape == (SIZE, 16, 16, 3)
    np.testing.assert_array_equal(full["image"][:, 0, 0, 0], full["id"])
    # Replacements of what has no thumbnail are the same, although the picture itself decodes.
    assert not set(scored["id"]) & set(NO_THUMBNAIL)
    rows, ids = latest
    fine = ~np.isin(ids, NO_PICTURE)
    np.testing.assert_array_equal(full["id"][fine], ids[fine])
    np.testing.assert_array_equal(full["text"][fine], scored["text"][rows][fine])
    # What has a thumbnail and no picture is replaced, too, and counted.
    assert not fine.all()
    assert not set(full["id"][~fine]) & (set(NO_PICTURE) | set(ids[~fine]))
    assert sorted(index for _, index, _ in seen.recent) == sorted(ids[~fine])


def test_a_cache_that_only_the_picks_need_leaves_out_candidates(data):
    """So what is trained on was scored, even where the teacher's cache lacks examples."""

    class Teacher:
        def __init__(self):
            self.missing, self.towers = dict.fromkeys(range(0, COUNT, 5), "it was lost"), ("image",)

        def read(self, ids, captions, augmentations):
            return {"zimg": np.float32(ids)[:, None]}

    whole = dataclasses.replace(data, thumbnails=False)  # so both read the same pictures
    counters, teacher = InputCounters(), Teacher()
    scored = read(whole, SMALL, 2, missing=[teacher.missing], counters=counters)
    assert not set(scored["id"]) & teacher.missing.keys()
    assert "it is missing in a cache: it was lost" in {reason for *_, reason in counters.recent}
    latest, picks = picked(scored, 2), PicksAhead(2, 1)
    picks.put(latest)
    settings = {"caches": {"teacher/": teacher}, "missing": [{}], "rows": np.arange(SIZE)}
    full = read(whole, FULL, 2, picks=picks, **settings)
    np.testing.assert_array_equal(full["id"], latest[1])
    np.testing.assert_array_equal(full["teacher/zimg"][:, 0], latest[1])


def test_readers_wait_for_picks_and_for_the_end():
    picks = PicksAhead(start=7, ahead=2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in (7, 8, 9):
            found = pool.submit(picks.of, number)
            with pytest.raises(TimeoutError):
                found.result(0.02)
            picks.put(np.full((2, 3), number))
            np.testing.assert_array_equal(found.result(10), np.full((2, 3), number))
        np.testing.assert_array_equal(picks.of(8), np.full((2, 3), 8))  # it may still be read
        found = pool.submit(picks.of, 10)
        picks.close()
        with pytest.raises(InputError, match="the training has ended"):
            found.result(10)


def test_closing_ends_a_batch_that_waits(data):
    picks = PicksAhead(0, 1)
    batches = train_batches(
        open_source(data), data, {"": FULL}, batch_size=B, seed=5, picks=picks, rows=np.arange(SIZE)
    )
    with concurrent.futures.ThreadPoolExecutor(1) as pool, batches:
        found = pool.submit(next, batches)
        with pytest.raises(TimeoutError):
            found.result(0.02)
        picks.close()
        with pytest.raises(InputError, match="the training has ended"):
            found.result(10)

import dataclasses
import gc
import io
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data.batch_spec import View
from aced.data.images.augment import AugmentConfig
from aced.data.images.filters import FilterConfig
from aced.data.images.transforms import ResizeConfig, resize
from aced.data.pipeline import InputCounters, InputError, eval_batches, train_batches
from aced.data.records import RecordError
from aced.data.shapes.scenes import Shapes, ShapesConfig
from aced.data.sources import DataConfig
from aced.data.sources.mixture import Mixture
from aced.data.tokenizers import TokenizerConfig, get_tokenizer

WORDS = TokenizerConfig(kind="shapes", length=24)
VIEW = View(16, WORDS)
CONFIG = DataConfig(num_threads=2, prefetch=1)


def png(value):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(out, "PNG")
    return out.getvalue()


class Pictures:
    """Encoded grey pictures; all pixels of picture i are i. Some records are bad."""

    name, fingerprint = "greys", "1"

    def __init__(self, size, broken=(), unreadable=(), silent=(), texts=("red", "green", "blue")):
        self.size, self.texts = size, texts
        self.broken, self.unreadable, self.silent = broken, unreadable, silent
        self.reads = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads += 1
        if index in self.unreadable:
            raise RecordError(f"shard 0, record {index}: checksum")
        image = png(index)[:40] if index in self.broken else png(index)
        texts = (" ",) if index in self.silent else self.texts
        return {"image": image, "texts": texts, "id": index}


def shapes(size=20, **settings):
    return Shapes(ShapesConfig(size=size, resolution=16, **settings))


def take(source, count, config=CONFIG, views=None, **settings):
    settings = {"batch_size": 8, "seed": 3} | settings
    with train_batches(source, config, views or {"": VIEW}, **settings) as batches:
        return [next(batches) for _ in range(count)]


def joined(batches, name="id"):
    return np.concatenate([batch[name] for batch in batches])


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])


def test_batch_matches_the_source():
    source = shapes(wrong=0.5)
    (batch,) = take(source, 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((8, 16, 16, 3), "uint8"),
        "text": ((8, 24), "int32"),
        "id": ((8,), "int32"),
        "label": ((8,), "int32"),
        "is_noisy": ((8,), "bool"),
    }
    for row, index in enumerate(batch["id"]):
        example = source[int(index)]
        np.testing.assert_array_equal(batch["image"][row], example["image"])
        np.testing.assert_array_equal(batch["text"][row], get_tokenizer(WORDS)(example["texts"])[0])
        assert batch["label"][row] == example["label"]
        assert batch["is_noisy"][row] == example["is_noisy"]


def test_every_epoch_is_another_permutation():
    ids = joined(take(shapes(20), 15)).reshape(6, 20)  # 15 * 8 rows: batches cross epochs
    assert (np.sort(ids, axis=1) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in ids}) == 6
    assert not (ids == np.arange(20)).all(axis=1).any()


def test_seeds_give_unrelated_orders():
    orders = [joined(take(shapes(64), 16, seed=seed)).reshape(2, 64) for seed in (0, 1, 2**32 - 1)]
    epochs = {tuple(epoch) for order in orders for epoch in order}
    assert len(epochs) == 6  # epoch 1 of seed 0 is not epoch 0 of seed 1


def test_without_shuffling_the_order_is_the_sources():
    config = DataConfig(num_threads=2, shuffle=False)
    ids = joined(take(shapes(20), 5, config))
    np.testing.assert_array_equal(ids, np.arange(40) % 20)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_rows(processes):
    whole = take(shapes(), 4)
    parts = [take(shapes(), 4, rows=rows) for rows in np.split(np.arange(8), processes)]
    for step in range(4):
        together = {
            name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]
        }
        assert_same(together, whole[step])


def test_a_process_may_read_any_rows():
    whole = take(shapes(), 2)
    rows = np.array([1, 6, 7])  # processes of a pod may have rows that are not adjacent
    for part, batch in zip(take(shapes(), 2, rows=rows), whole, strict=True):
        assert_same(part, {name: x[rows] for name, x in batch.items()})


@pytest.mark.parametrize("start", [1, 3, 7])
def test_any_step_can_be_the_first(start):
    source = Pictures(20)
    for batch, other in zip(
        take(source, 9)[start:], take(source, 9 - start, start_step=start), strict=True
    ):
        assert_same(batch, other)


def test_late_start_reads_no_earlier_records():
    source = Pictures(20)
    config = DataConfig(num_threads=0)
    take(source, 1, config, start_step=10**9)
    assert source.reads == 8 + 1  # one batch, and one record for the names of the fields


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_do_not_change_the_rows(threads):
    class Jittery(Pictures):
        def __getitem__(self, index):
            time.sleep(0.002 * (index % 3))
            return super().__getitem__(index)

    plain = take(Pictures(20), 4, DataConfig(num_threads=0))
    for batch, other in zip(
        plain, take(Jittery(20), 4, DataConfig(num_threads=threads)), strict=True
    ):
        assert_same(batch, other)


def test_bad_records_are_replaced_and_counted_once_per_epoch():
    source = Pictures(20, broken=(4, 5), unreadable=(19,), silent=(11,))
    events = []
    counters = InputCounters(lambda *event: events.append(event))
    config = DataConfig(num_threads=0, shuffle=False, prefetch=0)
    ids = joined(take(source, 5, config, counters=counters, batch_size=4))
    bad = [4, 5, 11, 19]
    others = np.setdiff1d(np.arange(20), bad)
    assert ids[others].tolist() == others.tolist()
    assert set(ids[bad]) <= set(others)
    images = joined(take(source, 5, config, batch_size=4), "image")
    assert images[:, 0, 0, 0].tolist() == ids.tolist()
    reasons = {index: reason for name, index, reason in events if name == "greys"}
    assert sorted(reasons) == [4, 5, 11, 19]
    assert "not a readable picture" in reasons[4]
    assert reasons[11] == "it has no caption"
    assert reasons[19] == "shard 0, record 19: checksum"
    assert counters.skipped == len(events) == 4
    assert list(counters.recent) == events


def test_processes_replace_bad_records_in_the_same_way():
    source = Pictures(20, broken=(4, 5, 13), unreadable=(19,))
    whole = joined(take(source, 5))
    halves = [joined(take(source, 5, rows=rows)) for rows in np.split(np.arange(8), 2)]
    together = np.concatenate([half.reshape(5, 4) for half in halves], axis=1)
    np.testing.assert_array_equal(whole.reshape(5, 8), together)


def test_too_many_bad_records_stop_the_run():
    source = Pictures(20, broken=range(1, 20))
    config = DataConfig(num_threads=0, shuffle=False, max_skipped_in_a_row=2)
    with pytest.raises(
        InputError,
        match=r"2 records in a row of greys .*number \d+ and those drawn in its place; .*number "
        r"\d+: not a readable picture.*data.max_skipped_in_a_row",
    ):
        take(source, 1, config)
    more = DataConfig(num_threads=2, shuffle=False, max_skipped_in_a_row=20)
    assert set(take(source, 1, more)[0]["id"]) == {0}


def test_other_errors_of_a_source_are_not_swallowed():
    class Failing(Pictures):
        def __getitem__(self, index):
            if self.reads > 3:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="the disk is gone"):
        take(Failing(20), 2)


def test_captions_are_drawn_by_seed_and_place():
    source = Pictures(20)
    names = [get_tokenizer(WORDS)([text])[0].tolist() for text in source.texts]
    first = joined(take(source, 10, DataConfig(num_threads=2, caption="first")), "text")
    assert first.tolist() == [names[0]] * 80
    drawn = joined(take(source, 30), "text").tolist()
    counts = [drawn.count(name) for name in names]
    assert sum(counts) == 240
    # Four standard deviations around 80 of 240 are 29.
    assert all(abs(count - 80) < 29 for count in counts)
    assert joined(take(source, 3, seed=4), "text").tolist() != drawn[:24]


def test_other_views_add_arrays():
    source = shapes()
    short = TokenizerConfig(kind="shapes", length=8)
    views = {
        "teacher/a/": View(8, WORDS),
        "": VIEW,
        "reference/": View(16, WORDS),
        "teacher/b/": View(8, short),
        "teacher/c/": View(16, short, ResizeConfig("crop")),
    }
    (batch,) = take(source, 1, views=views)
    assert batch.keys() == {
        "image",
        "text",
        "id",
        "label",
        "is_noisy",
        "teacher/a/image",
        "teacher/b/image",
        "teacher/b/text",
        "teacher/c/image",
        "teacher/c/text",
    }
    assert batch["teacher/a/image"] is batch["teacher/b/image"]
    for row in range(8):
        small = resize(batch["image"][row], 8, ResizeConfig())
        np.testing.assert_array_equal(batch["teacher/a/image"][row], small)
        text = source[int(batch["id"][row])]["texts"]
        np.testing.assert_array_equal(batch["teacher/b/text"][row], get_tokenizer(short)(text)[0])


class Pairs(Pictures):
    """Picture i with a second picture, 100 + i; without one where i is a multiple of 3."""

    def __getitem__(self, index):
        second = {"second": png(100 + index)} if index % 3 else {}
        return super().__getitem__(index) | second | {"label": index % 2}


SECOND = dataclasses.replace(VIEW, picture="second", tokenizer=None)


def test_second_pictures_have_an_array_of_their_own():
    views = {
        "": VIEW,
        "second/": SECOND,
        "teacher/": dataclasses.replace(VIEW, resolution=8),
        "teacher/second/": dataclasses.replace(SECOND, resolution=8),
        "other/second/": SECOND,
    }
    counters = InputCounters()
    (batch,) = take(Pairs(20), 1, views=views, batch_size=20, counters=counters)
    names = {f"{p}image" for p in views}
    assert batch.keys() == {"text", "id", "label"} | names
    assert (batch["id"] % 3 != 0).all()  # the others are counted and replaced
    assert {index % 3 for _, index, _ in counters.recent} == {0}
    assert {reason for *_, reason in counters.recent} == {
        "it has no 'second' picture, which a model needs"
    }
    for name in names:
        expected = batch["id"] + (100 if "second" in name else 0)
        assert (batch[name] == expected[:, None, None, None]).all(), name
    assert batch["second/image"] is batch["other/second/image"]


def test_single_view_of_second_pictures_may_be_augmented():
    flipped = AugmentConfig(flip=1.0)
    alone = dataclasses.replace(SECOND, augment=flipped, tokenizer=WORDS)
    (batch,) = take(Pairs(20), 1, views={"": alone})
    assert (batch["image"][:, 0, 0, 0] == batch["id"] + 100).all()
    views = {"": dataclasses.replace(VIEW, augment=flipped), "second/": SECOND}
    with pytest.raises(ConfigError, match="or of a second picture would differ"):
        take(Pairs(20), 1, views=views)


def test_crops_after_a_restart_are_the_same_where_examples_are_replaced():
    """A reader that remembers unusable examples does not cut their pictures again."""

    class Silent(Pictures):
        def __getitem__(self, index):
            rng = np.random.default_rng(index)
            noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
            return super().__getitem__(index) | {"image": noise}

    source = Silent(12, silent=range(0, 12, 2))
    config = DataConfig(num_threads=0, shuffle=False)  # a shuffle of so few is slow
    views = {"": dataclasses.replace(VIEW, augment=AugmentConfig(crop_area=(0.1, 0.5)))}
    whole = take(source, 3, config, views, batch_size=24)
    for number, batch in enumerate(whole):
        (again,) = take(source, 1, config, views, batch_size=24, start_step=number)
        assert_same(again, batch)
    same = whole[0]["id"][:, None] == whole[0]["id"]
    differ = (whole[0]["image"][:, None] != whole[0]["image"]).any(axis=(2, 3, 4))
    assert (same & differ).sum() > 20  # other crops at each draw


def test_error_if_no_record_has_a_second_picture():
    with pytest.raises(InputError, match="no 'second' picture"):
        take(Pictures(200), 1, views={"": VIEW, "second/": SECOND})


def test_filters_look_at_the_first_picture_only():
    class Wide(Pairs):
        def __getitem__(self, index):
            wide = io.BytesIO()
            Image.new("RGB", (64, 8), (7, 7, 7)).save(wide, "PNG")
            return super().__getitem__(index) | {"second": wide.getvalue()}

    config = dataclasses.replace(CONFIG, filters=FilterConfig(min_side=16, max_aspect=2.0))
    counters = InputCounters()
    take(Wide(9), 1, config, {"": VIEW, "second/": SECOND}, batch_size=9, counters=counters)
    assert not counters.filtered


def test_a_batch_larger_than_the_data_set_repeats_it():
    (batch,) = take(shapes(3), 1, batch_size=9)
    assert np.bincount(batch["id"]).tolist() == [3, 3, 3]


def test_copies_within_a_super_batch_are_warned_of(caplog):
    take(shapes(3), 1, batch_size=9)
    assert "super-batch has 9 rows of the data set shapes/train of 3 examples" in caplog.text
    caplog.clear()
    take(Mixture({"few": (shapes(3), 1.0), "many": (shapes(20), 1.0)}), 1)
    assert "4 rows of the data set few of 3 examples" in caplog.text
    assert "Lower batch_size, or data.mixture.few.weight" in caplog.text
    assert "many" not in caplog.text


def test_bad_settings_are_refused_before_step_0():
    with pytest.raises(ConfigError, match="empty"):
        take(Pictures(0), 1)
    with pytest.raises(ConfigError, match="learner"):
        take(shapes(), 1, views={"reference/": VIEW})
    with pytest.raises(ConfigError, match="seed"):
        take(shapes(), 1, seed=-1)


def test_closing_stops_threads_and_frees_memory():
    before = threading.active_count()
    source = shapes(100)
    gone = weakref.ref(source)
    for start in range(5):
        batches = train_batches(source, CONFIG, {"": VIEW}, batch_size=8, seed=0, start_step=start)
        next(batches)
        batches.close()
        batches.close()
        with pytest.raises(InputError, match="closed"):
            next(batches)
    del source, batches
    deadline = time.monotonic() + 20
    while threading.active_count() > before or gone() is not None:
        assert time.monotonic() < deadline, "threads or the source are still there"
        gc.collect()
        time.sleep(0.02)


def evaluate(source, view=VIEW, **settings):
    settings = {"batch_size": 8, "config": CONFIG} | settings
    with eval_batches(source, view, **settings) as batches:
        return list(batches)


def test_evaluation_sees_every_example_once():
    batches = evaluate(shapes(20, split="val"))
    assert [batch["image"].shape for batch in batches] == [(8, 16, 16, 3)] * 3
    mask = joined(batches, "mask")
    np.testing.assert_array_equal(joined(batches)[mask], np.arange(20))
    np.testing.assert_array_equal(mask, np.arange(24) < 20)
    assert (joined(batches)[~mask] == -1).all()
    assert (joined(batches, "label")[~mask] == -1).all()


def test_evaluation_over_processes_is_the_same():
    source = Pictures(21, broken=(2,))
    whole = evaluate(source)
    parts = [evaluate(source, rows=rows) for rows in np.split(np.arange(8), 4)]
    for step, batch in enumerate(whole):
        together = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        assert_same(together, batch)


def test_evaluation_stops_at_max_examples():
    batches = evaluate(Pictures(100), max_examples=10)
    assert len(batches) == 2
    assert joined(batches, "mask").sum() == 10


def test_evaluation_masks_unreadable_records():
    counters = InputCounters()
    (batch,) = evaluate(Pictures(8, broken=(0,), silent=(5,)), counters=counters)
    assert np.flatnonzero(~batch["mask"]).tolist() == [0]
    assert batch["image"][:, 0, 0, 0].tolist() == batch["id"].clip(0).tolist()
    assert batch["id"].tolist() == [-1, 1, 2, 3, 4, 5, 6, 7]
    assert not batch["texts_mask"][5].any()
    assert [index for _, index, _ in counters.recent] == [0]


def test_evaluation_gives_both_pictures():
    counters = InputCounters()
    (batch,) = evaluate(Pairs(8, broken=(1,)), pictures=2, counters=counters)
    assert np.flatnonzero(~batch["mask"]).tolist() == [0, 1, 3, 6]
    assert batch["image"][:, 3, 3, 0].tolist() == [0, 0, 2, 0, 4, 5, 0, 7]
    assert batch["second/image"][:, 3, 3, 0].tolist() == [0, 0, 102, 0, 104, 105, 0, 107]
    assert batch["label"].tolist() == [-1, -1, 0, -1, 0, 1, -1, 1]
    assert sorted(index for _, index, _ in counters.recent) == [0, 1, 3, 6]  # by several threads
    assert "second/image" not in evaluate(Pairs(8))[0]


def test_evaluation_gives_several_captions():
    source = Pictures(3, texts=("red star", "blue ring"))
    (batch,) = evaluate(source, batch_size=3, captions=3)
    red, blue = get_tokenizer(WORDS)(["red star", "blue ring"]).tolist()
    assert batch["texts"][1].tolist() == [red, blue, [0] * 24]
    assert batch["texts_mask"].tolist() == [[True, True, False]] * 3
    assert batch["text"].tolist() == [red] * 3

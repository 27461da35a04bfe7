"""Pictures of what a run chooses: they are those of the step, and the run is the same with them."""

import io
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from aced.data.sources import open_source
from aced.metrics import history
from aced.train import chosen, loop, sheet
from aced.train.chosen import Example, SuperBatch
from aced.train.config import parse
from aced.train.gallery import Gallery
from tests.metrics.test_metrics import pictures
from tests.train.test_train import assert_same_run, config

RED = (204, 51, 51)


def opened(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)), int)


def near(pixels, colour):
    return (np.abs(pixels - colour) < 60).all(-1)


def example(colour, *, noisy=None, side=32):
    return Example(1, np.full((side, side, 3), colour, np.uint8), ("a caption",), noisy)


def test_sheet_has_every_picture_and_frames_the_wrong_pairs():
    green, blue = (0, 160, 0), (0, 0, 200)
    batch = SuperBatch(7, 24, [example(green, noisy=True)] * 7, [example(blue, side=300)] * 2)
    picture = sheet.draw(batch, 10**6)
    pixels = opened(picture.jpeg)
    assert pixels.shape == (picture.height, picture.width, 3)
    # Pictures of any size are drawn with 128 x 128 pixels.
    assert near(pixels, green).sum() == pytest.approx(7 * 128**2, rel=0.1)
    assert near(pixels, blue).sum() == pytest.approx(2 * 128**2, rel=0.05)
    assert near(pixels, RED).sum() == pytest.approx(7 * 4 * 131 * 3, rel=0.25)
    assert near(pixels, blue).nonzero()[0].min() > near(pixels, green).nonzero()[0].max()


@pytest.mark.parametrize("broken", [None, b"no picture"])
def test_sheet_shows_why_a_picture_is_missing(broken):
    batch = SuperBatch(1, 4, [Example(3, broken, ("record 3 is damaged",), None)], [])
    empty = SuperBatch(1, 4, [Example(3, broken, ("",), None)], [])
    drawn = opened(sheet.draw(batch, 10**6).jpeg)
    assert (drawn < 100).sum() > 100  # letters
    if broken is None:
        assert (drawn < 100).sum() > (opened(sheet.draw(empty, 10**6).jpeg) < 100).sum()


def settings(method="hard", **changes):
    return parse(config(method, 40, **changes))


@pytest.mark.parametrize(
    ("method", "changes", "due"),
    [
        ("hard", {}, list(range(4, 41, 4))),
        ("hard", {"metrics.pictures_percent": 50.0}, [20, 40]),
        ("hard", {"metrics.pictures_percent": 0.0}, []),
        ("hard", {"metrics.pictures_percent": None, "metrics.pictures_steps": 15}, [15, 30]),
        ("iid", {}, []),  # everything is chosen
    ],
)
def test_steps_with_pictures(method, changes, due):
    run = settings(method, **changes)
    with Gallery(run, open_source(run.data), 40, print) as gallery:
        assert [step for step in range(1, 41) if gallery.is_due(step)] == due


def test_other_processes_draw_nothing(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = settings()
    assert not Gallery(run, open_source(run.data), 40, print).is_due(4)


def test_pictures_are_drawn_on_a_thread_and_failures_are_logged(caplog):
    run, shown = settings(), []

    def show(*what):
        shown.append((*what, threading.current_thread()))

    with Gallery(run, open_source(run.data), 40, show) as gallery:
        gallery.show(4, list(range(32)))
    ((step, name, picture, thread),) = shown
    assert (step, name) == (4, "picks")
    assert thread is not threading.main_thread()
    assert opened(picture.jpeg).shape == (picture.height, picture.width, 3)
    run = settings(**{"data.shapes.size": 10**6})  # other draws than the source has
    with Gallery(run, open_source(parse(config("hard")).data), 40, show) as gallery:
        gallery.show(8, [10**7])
    assert "No picture of what step 8 chose" in caplog.text


def test_samples_of_a_step_are_its_picks_and_other_candidates():
    run = settings()
    source = open_source(run.data)
    size = run.method.super_batch_size(run.batch_size)
    order = chosen.orders.of(source, seed=run.seed, shuffle=True, rows=size)
    candidates = {order[draw] for draw in range(3 * size, 4 * size)}
    picks = sorted(candidates)[:32]
    for count in (5, 10**6):
        batch = chosen.of_step(source, run, 4, picks, count)
        ids = [x.id for x in batch.chosen], [x.id for x in batch.left]
        assert [len(set(x)) for x in ids] == [min(32, count), min(size - 32, count)]
        assert set(ids[0]) <= set(picks)
        assert set(ids[1]) <= candidates - set(picks)


@pytest.mark.slow
def test_a_run_with_pictures_is_the_same_run(tmp_path):
    for name, every in (("with", 2), ("without", 0)):
        changed = config("hard", 6)
        changed.metrics.pictures_percent = None
        changed.metrics.pictures_steps = every
        loop.run(changed, str(tmp_path / name), jax.devices()[:1])
    assert_same_run(tmp_path / "with", tmp_path / "without")
    shown = [step for step, _ in pictures(tmp_path / "with")]
    assert shown[0] == 2
    assert set(shown) <= {2, 4, 6}  # none is begun while one is drawn
    assert pictures(tmp_path / "without") == []
    assert len(history.read_picks(tmp_path / "with")) == 6

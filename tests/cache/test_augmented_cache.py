"""Caches of stored augmentations: a row of a batch has the embedding of its own pixels."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from aced.cache import Cache, CacheError, command, making, open_for
from aced.cache.config import CacheConfig
from aced.config import ConfigError
from aced.data import records, sources
from aced.data.batch_spec import View
from aced.data.images.augment import AugmentConfig
from aced.data.pipeline import train_batches
from aced.files import own_files
from aced.metrics import history
from aced.train import caches, loop
from aced.train.config import parse
from tests import cached

SIZE, VIEWS, ROWS = 10, 3, 32


def augmented(data, reference="", **changes):
    """The settings of a run with stored augmentations."""
    config = cached.run_config(data, reference, **changes)
    config.data.augmentations = VIEWS
    config.data.augment.crop_area = (0.1, 0.5)
    config.data.augment.flip = 0.5
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cached.write_data(tmp_path_factory.mktemp("data") / "pairs", SIZE)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return cached.write_model(tmp_path_factory.mktemp("models") / "reference")


def make(config, out, **changes):
    settings = {"out": str(out), "shard_size": 4, "batch_size": 8} | changes
    return command.run(config, CacheConfig(**settings), "", jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(data, reference, tmp_path_factory):
    out = tmp_path_factory.mktemp("caches") / "augmented"
    make(augmented(data, reference), out)
    return out


def batches(data, folder, steps=1, start=0, rows=None, seed=3, **changes):
    """Batches for a learner of 12 pixels, with the pixels and embeddings of the reference."""
    changes["shuffle"] = False  # a shuffle of so few is slow
    config = dataclasses.replace(parse(augmented(data, "none")).data, **changes)
    source = sources.open_source(config)
    views = {"": View(12, cached.model().tokenizer), "reference/": View.of(cached.model())}
    caches = {"reference/": open_for(str(folder), source, config, None)} if folder else {}
    settings = {"batch_size": ROWS, "seed": seed, "start_step": start, "rows": rows}
    with train_batches(source, config, views, caches=caches, **settings) as found:
        return [next(found) for _ in range(steps)]


def check(batch, reference):
    """The embeddings of a batch are those of its pixels and texts."""
    texts = batch.get("reference/text", batch["text"])
    zimg, ztxt = cached.embed(reference, batch["reference/image"], texts)
    np.testing.assert_allclose(batch["reference/zimg"], zimg, atol=1e-6)
    np.testing.assert_allclose(batch["reference/ztxt"], ztxt, atol=1e-6)


def test_rows_have_the_embeddings_of_their_own_pixels_and_captions(data, reference, folder):
    (batch,) = batches(data, folder)
    check(batch, reference)
    # All views are drawn, and a comparison with another one would fail.
    ids, images, zimg = (batch[name] for name in ("id", "reference/image", "reference/zimg"))
    counts = [len(np.unique(images[ids == i], axis=0)) for i in range(SIZE)]
    assert max(counts) == VIEWS
    same = (ids[:, None] == ids[None]) & ~np.eye(len(ids), dtype=bool)
    differ = same & (images[:, None] != images[None]).any(axis=(2, 3, 4))
    assert differ.sum() > 20
    assert np.abs(zimg[:, None] - zimg[None]).max(axis=2)[differ].min() > 1e-4


@pytest.mark.parametrize(
    ("augmentations", "shards", "changes", "size"),
    [
        (0, 2, {}, 8),
        (1, 2, {}, 8),
        (3, 1, {}, 2),
        (3, 4, {}, 4),  # rounded up
        (20, 1, {}, 1),
        (3, 2, {"towers": "text"}, 8),  # reads no pictures
        (3, 2, {"batch_size": 6}, 6),
    ],
)
def test_a_step_holds_as_many_pictures_whatever_the_augmentations(
    augmentations, shards, changes, size, data
):
    settings = parse(augmented(data, "none"))
    config = CacheConfig(**{"out": "o"} | changes)
    assert caches.batch_size(settings, config, augmentations, shards) == size


@pytest.mark.slow
def test_embeddings_do_not_depend_on_the_examples_of_a_step(
    data, reference, folder, tmp_path, monkeypatch
):
    sizes, complete_batches = [], making.complete_batches

    def recorded(*arguments, batch_size, **others):
        sizes.append(batch_size)
        return complete_batches(*arguments, batch_size=batch_size, **others)

    monkeypatch.setattr(making, "complete_batches", recorded)
    make(augmented(data, reference), tmp_path / "cache", batch_size=0)
    assert sizes == [8 // VIEWS]  # eight in `folder`
    ids, views = (x.ravel() for x in np.mgrid[:SIZE, :VIEWS])
    found, expected = (
        Cache(path).read(ids, np.zeros_like(ids), views) for path in (tmp_path / "cache", folder)
    )
    for name, rows in expected.items():
        # XLA rounds differently for other shapes.
        np.testing.assert_allclose(found[name], rows, atol=1e-6, err_msg=name)


def test_views_do_not_depend_on_seed_step_or_row(data):
    """Other runs look at the same views, in other orders."""
    seen = {}
    for seed in (3, 4):
        for batch in batches(data, None, steps=4, seed=seed):
            for index, image in zip(batch["id"].tolist(), batch["image"], strict=True):
                seen.setdefault(index, set()).add(image.tobytes())
    assert max(map(len, seen.values())) == VIEWS


def test_restarts_and_two_processes_read_the_same_rows(data, folder):
    whole = batches(data, folder, steps=3)
    (last,) = batches(data, folder, start=2)
    halves = [batches(data, folder, steps=3, rows=rows) for rows in np.split(np.arange(ROWS), 2)]
    for name, rows in whole[2].items():
        np.testing.assert_array_equal(last[name], rows)
        np.testing.assert_array_equal(
            np.concatenate([half[2][name] for half in halves]), rows, err_msg=name
        )


def test_weights_of_captions_change_no_picture(data, reference, folder):
    """The cache has all captions, independent of their weights."""
    plain = batches(data, folder, caption_weights={})
    weighted = batches(data, folder, caption_weights={"given": 2.0})
    for batch, other in zip(plain, weighted, strict=True):
        check(other, reference)
        np.testing.assert_array_equal(batch["image"], other["image"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentations": 0, "augment": AugmentConfig()}, "data.augmentations: here 0, there 3"),
        ({"augmentations": 4}, "data.augmentations: here 4, there 3"),
        (
            {"augment": AugmentConfig((0.1, 0.5))},
            r"data\.augment\.flip: here 0\.0, there 0\.5",
        ),
    ],
)
def test_other_augmentations_are_refused(changes, message, data, folder):
    with pytest.raises(CacheError, match=rf"(?s)of another model or other data.*{message}"):
        batches(data, folder, **changes)


def test_a_cache_of_whole_pictures_is_read_as_before(data, reference, tmp_path):
    """Also one whose description was written before there were augmentations."""
    make(cached.run_config(data, reference), tmp_path / "whole")
    file = tmp_path / "whole" / "cache.json"
    about = own_files.loads(file.read_bytes())
    assert about["plan"].pop("augmentations") == 0
    del about["plan"]["augment"]
    file.write_bytes(own_files.dumps(about))
    none = {"augmentations": 0, "augment": AugmentConfig()}
    for batch in batches(data, tmp_path / "whole", **none):
        check(batch, reference)
    with pytest.raises(CacheError, match=r"data\.augmentations: here 3, there 0"):
        batches(data, tmp_path / "whole")
    with pytest.raises(CacheError, match=r"has 0 stored augmentations of each picture, but numb"):
        Cache(tmp_path / "whole").read(np.array([1]), np.array([0]), np.array([1]))


def test_the_description_has_the_augmentations(folder, data, reference):
    plan = json.loads((folder / "cache.json").read_text())["plan"]
    assert plan["augmentations"] == VIEWS
    assert (plan["augment"]["crop_area"], plan["augment"]["flip"]) == ([0.1, 0.5], 0.5)
    config = augmented(data, reference)
    config.data.augment.flip = 0.0
    with pytest.raises(CacheError, match=r"augment\.flip: there 0\.5, now 0\.0"):
        make(config, folder)


def test_without_augmentations_batches_are_of_whole_pictures(data):
    """Ids and captions are the same; the pixels are those of the records, resized by Pillow."""
    whole = {"augmentations": 0, "augment": AugmentConfig()}
    source = records.open_dataset(data, "train")
    (batch,) = batches(data, None, **whole)
    (cut,) = batches(data, None)
    np.testing.assert_array_equal(batch["id"], cut["id"])
    np.testing.assert_array_equal(batch["text"], cut["text"])
    assert (batch["image"] != cut["image"]).any(axis=(1, 2, 3)).all()
    assert batch.keys() == cut.keys()
    for index, image in zip(batch["id"].tolist(), batch["image"], strict=True):
        picture = Image.open(io.BytesIO(source[index]["image"])).convert("RGB")
        np.testing.assert_array_equal(image, picture.resize((12, 12), Image.Resampling.BICUBIC))


@pytest.mark.slow
def test_a_run_picks_as_with_a_reference_that_runs(data, reference, folder, tmp_path):
    runs = {"online": augmented(data, reference), "cached": augmented(data, "", cache=folder)}
    for name, config in runs.items():
        config.batch_size = 2  # of 10 candidates, all that there are
        config.method.selection.strata, config.method.selection.chunks = 1, 2
        loop.run(config, str(tmp_path / name), devices=jax.devices()[:1])
    online, offline = (history.read_picks(tmp_path / name) for name in runs)
    assert online == offline


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentations": 3}, "but data.augment changes no picture; set data.augment.crop_area"),
        ({"augment": AugmentConfig(flip=0.5)}, "data.augment is read only with stored"),
        ({"augmentations": -1}, "augmentations must be at least 0"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        sources.DataConfig(**changes)

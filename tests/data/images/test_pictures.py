import io

import numpy as np
import pytest
from PIL import Image

from aced.data.batch_spec import View
from aced.data.images.decode import DecodeError, decode
from aced.data.images.pictures import WHOLE, Look, Viewer
from aced.data.images.transforms import ResizeConfig, resize
from aced.data.pipeline import InputCounters, eval_batches, train_batches
from aced.data.sources import DataConfig
from aced.data.tokenizers import TokenizerConfig

LOOKS = [
    Look(24, ResizeConfig()),
    Look(64, ResizeConfig("crop")),
    Look(24, ResizeConfig("crop", "bilinear")),
    Look(200, ResizeConfig()),
]


def jpeg(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def grey(value, size=(32, 32)):
    out = io.BytesIO()
    Image.new("L", size, int(value)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize("decoder", ["exact", "fast"])
@pytest.mark.parametrize("thumbnails", [False, True])
def test_views_do_not_depend_on_each_other(decoder, thumbnails):
    record = {"image": jpeg(160, 240), "thumbnail": jpeg(64, 96, seed=1)}
    together = Viewer(LOOKS, decoder, 10**6, thumbnails)(record)
    for look, image in zip(LOOKS, together, strict=True):
        (alone,) = Viewer([look], decoder, 10**6, thumbnails)(record)
        np.testing.assert_array_equal(image, alone)
        assert image.shape == (look[0], look[0], 3)


def test_exact_is_in_full_and_by_pillow():
    data = jpeg(160, 240)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Viewer(LOOKS[:1], "exact", 10**6)({"image": data})[0], expected)


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_fast_is_nearly_exact(look):
    record = {"image": jpeg(320, 480)}
    (exact,), (fast,) = (Viewer([look], how, 10**6)(record) for how in ("exact", "fast"))
    assert 0 < np.abs(exact.astype(int) - fast).mean() < 3


def test_arrays_are_resized_exactly():
    image = decode(jpeg(80, 120))
    for decoder in ("exact", "fast"):
        np.testing.assert_array_equal(
            Viewer(LOOKS[:1], decoder, 10)({"image": image})[0], resize(image, *LOOKS[0][:2])
        )


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_thumbnails_are_used_if_large_enough(decoder):
    record = {"image": grey(200, (300, 200)), "thumbnail": grey(50, (48, 32))}
    looks = [Look(16, ResizeConfig()), Look(32, ResizeConfig("crop")), Look(33, ResizeConfig())]
    means = [round(image.mean()) for image in Viewer(looks, decoder, 10**6, True)(record)]
    assert means == [50, 50, 200]
    means = [round(image.mean()) for image in Viewer(looks, decoder, 10**6, False)(record)]
    assert means == [200, 200, 200]


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_a_transform_of_another_library_sees_the_full_picture(decoder):
    data = jpeg(160, 240)
    seen = []

    def transform(picture):
        seen.append(picture)
        return np.float32(picture[:4, :4].transpose(2, 0, 1))

    look = Look(WHOLE, ResizeConfig(), transform=transform)
    record = {"image": data, "thumbnail": jpeg(64, 96, seed=1)}
    (found,) = Viewer([look], decoder, 10**6, True)(record)
    np.testing.assert_array_equal(seen[0], decode(data))
    np.testing.assert_array_equal(found, transform(decode(data)))


def test_only_needed_pictures_are_decoded():
    looks = [Look(16, ResizeConfig())]
    good, bad = grey(50), grey(50)[:200]
    assert Viewer(looks, "exact", 10**6, True)({"image": bad, "thumbnail": good})[0].mean() == 50
    assert Viewer(looks, "exact", 10**6)({"image": good, "thumbnail": bad})[0].mean() == 50
    assert Viewer([], "exact", 10**6)({"image": bad}) == []
    with pytest.raises(DecodeError, match="the thumbnail: not a readable picture"):
        Viewer(looks, "exact", 10**6, True)({"image": good, "thumbnail": b"junk"})
    with pytest.raises(DecodeError):
        Viewer(looks, "exact", 10**6, True)({"image": good, "thumbnail": bad})


@pytest.mark.parametrize("decoder", ["exact", "fast"])
@pytest.mark.parametrize("how", ["encoded", "array"])
def test_looks_at_second_pictures(decoder, how):
    first, second = jpeg(160, 240), jpeg(120, 120, seed=1)
    pictures = {"image": first, "second": second, "thumbnail": grey(9, (48, 32))}
    if how == "array":
        pictures["second"] = decode(second)
    looks = [look._replace(picture=name) for look in LOOKS for name in ("second", "image")]
    for look, image in zip(looks, Viewer(looks, decoder, 10**6)(pictures), strict=True):
        data = pictures[look.picture]
        (alone,) = Viewer([look._replace(picture="image")], decoder, 10**6)({"image": data})
        np.testing.assert_array_equal(image, alone)
    # The thumbnail is of the first picture.
    means = [round(image.mean()) for image in Viewer(looks[:2], decoder, 10**6, True)(pictures)]
    assert means[1] == 9 != means[0]
    # The part of a cut is of each picture.
    cut = Viewer(looks[:2], decoder, 10**6)(pictures, [lambda pixels: pixels[:16, :16]])
    for look, image in zip(looks, cut, strict=False):
        data = pictures[look.picture]
        pixels = decode(data) if isinstance(data, bytes) else data
        (alone,) = Viewer([looks[1]], "exact", 10**6)({"image": pixels[:16, :16].copy()})
        assert np.abs(image.astype(int) - alone).mean() < (0.01 if decoder == "exact" else 12)


def test_missing_second_picture():
    record = {"image": grey(50)}
    with pytest.raises(DecodeError, match="no 'second' picture, which a model needs"):
        Viewer([LOOKS[0]._replace(picture="second")], "exact", 10**6)(record)


class Encoded:
    """JPEGs with thumbnails of one colour; every fifth picture is cut off."""

    name, fingerprint = "jpegs", "1"

    def __len__(self):
        return 20

    def __getitem__(self, index):
        data = jpeg(80, 120, int(index))
        data = data[: len(data) // 2] if index % 5 == 4 else data
        return {"image": data, "texts": ("a",), "id": index, "thumbnail": grey(index)}


WORDS = TokenizerConfig(kind="shapes", length=8)
VIEWS = {"": View(40, WORDS), "reference/": View(16, WORDS, ResizeConfig("crop"))}


@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_batches_have_the_views_of_all_models(decoder):
    config = DataConfig(decode=decoder, num_threads=2)
    counters = InputCounters()
    with train_batches(
        Encoded(), config, VIEWS, batch_size=20, seed=0, counters=counters
    ) as batches:
        batch = next(batches)
    assert {reason.split(":")[0] for _, _, reason in counters.recent} == {"not a readable picture"}
    assert not np.isin(batch["id"] % 5, 4).any()
    for k, index in enumerate(batch["id"]):
        for prefix, view in VIEWS.items():
            expected = Viewer([view.look], decoder, 10**6)(Encoded()[index])[0]
            np.testing.assert_array_equal(batch[f"{prefix}image"][k], expected)


@pytest.mark.parametrize(("side", "lines"), [(16, 0), (15, 1), (0, 1)])
def test_thumbnails_that_no_model_reads_are_warned_of_once(side, lines, caplog):
    class Records(Encoded):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            del record["thumbnail"]
            return record | ({"thumbnail": grey(index, (30, side))} if side and index else {})

    config = DataConfig(thumbnails=True, num_threads=0)
    with train_batches(Records(), config, VIEWS, batch_size=20, seed=0) as batches:
        for _ in range(3):
            next(batches)
    found = [line for line in caplog.messages if "data.thumbnails = True has no effect" in line]
    assert len(found) == lines
    assert all("first 20 records of jpegs" in line for line in found)


def test_batches_of_thumbnails():
    config = DataConfig(thumbnails=True, num_threads=0)
    with train_batches(Encoded(), config, VIEWS, batch_size=20, seed=0) as batches:
        batch = next(batches)
    # The reference's 16 pixels come from the thumbnail of 32, the learner's 40 do not.
    np.testing.assert_allclose(batch["reference/image"].mean((1, 2, 3)), batch["id"], atol=1)
    assert batch["image"].std((1, 2)).min() > 10


def test_evaluation_is_always_exact_and_in_full():
    config = DataConfig(decode="fast", thumbnails=True, num_threads=0)
    view = View(24, WORDS)
    with eval_batches(Encoded(), view, batch_size=4, config=config) as batches:
        batch = next(batches)
    for k, index in enumerate(batch["id"]):
        expected = Viewer([view.look], "exact", 10**6)(Encoded()[index])[0]
        np.testing.assert_array_equal(batch["image"][k], expected)

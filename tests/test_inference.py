"""`aced.load`: embeddings and logits against the model's own call, aced.evaluate's and others'."""

import dataclasses

import jax
import jaxtyping
import numpy as np
import pytest
from PIL import Image

import aced
from aced.checkpoints import checkpointer, record
from aced.config import ConfigError
from aced.convert import tokenizer_write
from aced.data.images.decode import DecodeError
from aced.data.images.transforms import resize
from aced.data.sources import DataConfig, open_source
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.files import own_files
from aced.models import model_folder
from aced.models.coca import CoCaConfig
from aced.parallel import mesh as meshes
from aced.train import loop
from tests import small_run
from tests.convert import foreign, ours

TEXTS = ["a red circle", "two blue squares above a star", "", "words that are unknown " * 9]
ONE = jax.devices()[:1]


def folder_of(model, tmp_path):
    (tmp_path / "model").mkdir()
    model_folder.write(model, tmp_path / "model")
    return tmp_path / "model"


def expected(model, pictures, texts=TEXTS):
    """The model's own embeddings, of pictures [h w 3] that were resized one by one."""
    config = model.config
    side = config.image.resolution
    n = max(len(pictures), len(texts))
    pixels = np.stack([resize(picture, side, config.resize) for picture in pictures])
    ids = tokenizer_write.opened(model)(texts)
    both = jax.jit(config.embed)(model.params, np.resize(pixels, (n, side, side, 3)), ids[
        np.arange(n) % len(texts)])  # fmt: skip
    return both.zimg[: len(pictures)], both.ztxt[: len(texts)], both.scale, both.bias


@pytest.mark.parametrize(
    "model", [ours.siglip("sentencepiece"), ours.clip()], ids=["sigmoid", "softmax"]
)
def test_a_model_folder_embeds_and_compares_as_its_model(model, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(47, 61), (30, 30), (9, 80)]]
    encoder = aced.load(folder_of(model, tmp_path), devices=ONE)
    zimg, ztxt, scale, bias = expected(model, pictures)
    close = {"atol": 1e-6, "rtol": 1e-5}
    np.testing.assert_allclose(encoder.embed_images(pictures), zimg, **close)
    np.testing.assert_allclose(encoder.embed_texts(TEXTS), ztxt, **close)
    logits = np.float64(scale) * np.float64(zimg) @ np.float64(ztxt).T + np.float64(bias)
    np.testing.assert_allclose(encoder.similarity(pictures, TEXTS), logits, atol=1e-5)
    sigmoid = 1 / (1 + np.exp(-logits))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = sigmoid if "bias" in model.params else softmax
    np.testing.assert_allclose(encoder.probabilities(pictures, TEXTS), own, atol=1e-5)
    for loss, values in (("softmax", softmax), ("sigmoid", sigmoid)):
        found = encoder.probabilities(pictures, TEXTS, loss)
        np.testing.assert_allclose(found, values, atol=1e-5)


@pytest.fixture(scope="module", name="encoder")
def _encoder():
    return aced.Encoder(ours.siglip(), devices=ONE)


def test_all_forms_of_a_picture_give_the_same_embedding(encoder, tmp_path):
    rng = np.random.default_rng(0)
    stored = Image.fromarray(rng.integers(0, 256, (40, 50, 4), np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stored.save(tmp_path / "picture.png", exif=exif)
    opened = Image.open(tmp_path / "picture.png")
    white = Image.new("RGBA", stored.size, "white")
    upright = np.asarray(Image.alpha_composite(white, stored).convert("RGB")).transpose(1, 0, 2)
    upright = np.ascontiguousarray(upright[:, ::-1])
    found = encoder.embed_images(
        [
            tmp_path / "picture.png",
            str(tmp_path / "picture.png"),
            (tmp_path / "picture.png").read_bytes(),
            opened,
            upright,
        ]
    )
    np.testing.assert_allclose(found, np.tile(found[-1], (5, 1)), atol=1e-6)
    assert encoder.embed_images(opened).shape == (1, 32)
    np.testing.assert_allclose(encoder.embed_images(upright[None])[0], found[-1], atol=1e-6)


def test_one_is_a_list_of_one_and_none_are_no_rows(encoder):
    picture = np.zeros((8, 8, 3), np.uint8)
    assert encoder.embed_texts("a red circle").shape == (1, 32)
    assert encoder.embed_texts([]).shape == (0, 32)
    assert encoder.embed_images([]).shape == (0, 32)
    assert encoder.similarity(picture, "a red circle").shape == (1, 1)


def test_a_batch_size_is_compiled_once_whatever_the_number_of_texts():
    encoder = aced.Encoder(ours.siglip(), devices=ONE)
    texts = [f"{i} circles" for i in range(11)]
    rows = encoder.embed_texts(texts, batch_size=4)
    assert encoder._towers.text._cache_size() == 1
    np.testing.assert_allclose(encoder.embed_texts(texts[:7], batch_size=4), rows[:7], atol=1e-6)
    np.testing.assert_allclose(encoder.embed_texts(texts[:3], batch_size=4), rows[:3], atol=1e-6)
    assert encoder._towers.text._cache_size() == 1
    np.testing.assert_allclose(encoder.embed_texts(texts[:1], batch_size=4), rows[:1], atol=1e-6)
    assert encoder._towers.text._cache_size() == 2  # a single text is not padded to four


def test_eight_devices_share_a_batch():
    pictures = [picture.convert("RGB") for picture in foreign.pictures().values()]
    one, eight = (aced.Encoder(ours.siglip(), devices=d) for d in (ONE, None))
    assert eight.mesh.size == 8
    for found, wanted in (
        (eight.embed_images(pictures, 5), one.embed_images(pictures, 5)),
        (eight.embed_texts(TEXTS), one.embed_texts(TEXTS)),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    rows = jax.device_put(np.zeros((8, 16), np.int32), meshes.by_example(eight.mesh))
    program = eight._towers.text.lower(eight.params, rows).compile()
    wanted = meshes.by_example(eight.mesh)
    assert program.output_shardings.is_equivalent_to(wanted, ndim=2)


def test_embeddings_are_those_of_an_evaluation(encoder):
    data = DataConfig(num_threads=0)
    source = open_source(data)
    mesh = meshes.make_mesh(ONE)
    with jax.set_mesh(mesh):
        config = EvalConfig(data=data, batch_size=8, max_examples=12, captions=1)
        model = ours.siglip()
        rows = Embedder(config, model.config, mesh).data_set(model.params, source, captions=1)
    records = [source[i] for i in range(12)]
    found = encoder.embed_images([record["image"] for record in records])
    np.testing.assert_allclose(found, rows["zimg"], atol=1e-6)
    found = encoder.embed_texts([record["texts"][0] for record in records])
    np.testing.assert_allclose(found, rows["ztxt"], atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int8_weights"])
def test_lower_precisions_stay_near(encoder, precision):
    other = aced.Encoder(ours.siglip(), precision, devices=ONE)
    cosines = (encoder.embed_texts(TEXTS) * other.embed_texts(TEXTS)).sum(axis=1)
    assert (cosines > 0.995).all()
    assert (cosines < 1 - 1e-7).any()


def test_errors_name_the_picture(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no JPEG")
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DecodeError, match=r"Picture 1, .*broken.jpg, cannot be read: not a read"):
        encoder.embed_images([good, tmp_path / "broken.jpg"])
    with pytest.raises(DecodeError, match=r"Picture 0 cannot be read"):
        encoder.embed_images(b"no picture")
    with pytest.raises(FileNotFoundError, match=r"none.jpg"):
        encoder.embed_images([str(tmp_path / "none.jpg")])
    for wrong, message in (
        (good[..., :2], r"Picture 0 is a uint8 array \[8, 8, 2\]; give a path"),
        (good.astype(np.float32), r"Picture 0 is a float32 array \[8, 8, 3\]"),
        ([good, 3], "Picture 1 is a int; give a path"),
    ):
        with pytest.raises(TypeError, match=message):
            encoder.embed_images(wrong)
    with pytest.raises(TypeError, match="Text 1 is a int; give strings"):
        encoder.embed_texts(["a", 1])
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        encoder.embed_texts("a", batch_size=0)


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a folder, an .npz file, or an owner/name"):
        aced.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"weights without settings. Convert it.*--source=x.npz"):
        aced.load("x.npz")
    folder = folder_of(ours.siglip(), tmp_path)
    for wanted in ({"which": "best"}, {"parameters": "ema"}):
        with pytest.raises(ConfigError, match="is not a run: it has one set of parameters"):
            aced.load(folder, **wanted)


def test_a_run_of_another_kind_of_model_is_named(tmp_path):
    (tmp_path / checkpointer.FOLDER).mkdir()
    model = dataclasses.asdict(CoCaConfig())
    settings = {"ema_decay": 0.0, "method": {"model": model}, "data_fingerprint": ""}
    (tmp_path / record.FILE).write_bytes(own_files.dumps(settings))
    with pytest.raises(
        ConfigError, match=r"holds no TwoTower model, .*method.model.queries is not"
    ):
        aced.load(tmp_path)


@pytest.mark.slow
def test_a_run_is_loaded_with_the_parameters_that_training_evaluates(tmp_path):
    config = small_run.get_config()
    config.ema_decay = 0.5
    loop.run(config, str(tmp_path), ONE)
    model = aced.trained_model(str(tmp_path))
    found = {}
    for key in ("params", "ema"):
        params = checkpointer.load_params(str(tmp_path), key=key, part="model")
        ids = np.resize(aced.get_tokenizer(model.tokenizer)(TEXTS[:1]), (1, model.text.length))
        side = model.image.resolution
        found[key] = jax.jit(model.embed)(params, np.zeros((1, side, side, 3), np.uint8), ids).ztxt
    assert np.abs(found["params"] - found["ema"]).max() > 1e-5
    trained = aced.load(tmp_path, devices=ONE).embed_texts(TEXTS[:1])
    np.testing.assert_allclose(trained, found["ema"], atol=1e-6)
    params = aced.load(tmp_path, parameters="params", devices=ONE).embed_texts(TEXTS[:1])
    np.testing.assert_allclose(params, found["params"], atol=1e-6)

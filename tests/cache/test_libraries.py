"""Caches of models that only another library runs, as reference and as teacher."""

import contextlib
import copy
import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from aced.cache import Cache, CacheError, command, libraries, making
from aced.cache.config import CacheConfig
from aced.cache.description import Plan
from aced.config import ConfigError
from aced.convert import open_clip
from aced.data import records
from aced.data.sources import DataConfig
from aced.methods.dime import DimeConfig
from aced.methods.frozen import FrozenConfig
from aced.metrics import progress
from aced.models.saved import InteropError
from aced.parallel import mesh as meshes
from aced.parallel.watchdog import Watchdog
from aced.train import loop
from tests import cached

SIZE = 40


@pytest.fixture(scope="module")
def foreign(request):
    """The modules of tests/convert with models of other libraries and of ours."""
    sys.path.insert(0, str(request.config.rootpath / "tests" / "convert"))
    try:
        import foreign
        import ours
    finally:
        sys.path.pop(0)
    foreign.ours = ours
    return foreign


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cached.write_data(tmp_path_factory.mktemp("data") / "pairs", SIZE)


# The smallest model of each family beside MobileCLIP, with its resolution.
FAMILIES = {"MobileCLIP2-S0": 64, "ViTamin-S": 224, "PE-Core-T-16-384": 384, "EVA02-B-16": 224}


@pytest.fixture(scope="module")
def make_model(foreign, tmp_path_factory):
    """Makes (folder, model): an image tower of open_clip and a short text tower, random weights."""
    torch, library = foreign.torch(), foreign.open_clip()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its threads wait busily for each other, on cores that JAX uses
    from open_clip.factory import get_model_config
    from safetensors.torch import save_file

    def make_model(name, resolution):
        settings = copy.deepcopy(get_model_config(name))
        settings["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
        settings["vision_cfg"]["image_size"] = resolution
        settings["embed_dim"] = 48
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        pictures = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}
        about = {"model_cfg": settings, "preprocess_cfg": pictures | {"resize_mode": "shortest"}}
        (folder / "open_clip_config.json").write_text(json.dumps(about))
        settings = {key: value for key, value in settings.items() if key != "custom_text"}
        torch.manual_seed(0)
        model = library.CustomTextCLIP(**copy.deepcopy(settings)).eval()
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder, model

    yield make_model
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mobile_clip(make_model):
    return make_model("MobileCLIP-S1", 64)


def make(data, name, out, **changes):
    config = cached.run_config(data, None, cache="unused")
    settings = {"out": str(out), "model": name, "shard_size": 16, "batch_size": 8} | changes
    return command.run(config, CacheConfig(**settings), "", jax.devices()[:1])


@pytest.fixture(scope="module")
def cache(data, mobile_clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("caches") / "mobile"
    make(data, f"open_clip:{mobile_clip[0]}", out)
    return out


def pairs(data, ids):
    """(id, picture, captions) of the examples `ids`."""
    source = records.open_dataset(data, "train")
    for i in ids:
        picture = Image.open(io.BytesIO(source[i]["image"])).convert("RGB")
        yield i, picture, [text for text in source[i]["texts"] if text.strip()]


def assert_same_embeddings(foreign, cache, folder, some):
    """Compares a cache with open_clip's own embeddings of `some`, see `pairs`."""
    torch, library = foreign.torch(), foreign.open_clip()
    name = f"local-dir:{folder}"
    model, transform = library.create_model_from_pretrained(name)
    model.eval()  # some have batch norms
    tokenizer = library.get_tokenizer(name)
    for i, picture, texts in some:
        with torch.no_grad():
            zimg = model.encode_image(transform(picture)[None], normalize=True)
            ztxt = model.encode_text(tokenizer(texts), normalize=True)
        read = cache.read(np.full(len(texts), i), np.arange(len(texts)))
        np.testing.assert_allclose(read["zimg"][:1], zimg, atol=1e-6)
        np.testing.assert_allclose(read["ztxt"], ztxt, atol=1e-6)


class Plain(libraries.LibraryModel):
    """A model without torch: sums of pixels and of letters."""

    def pixels(self, picture):
        return np.float32(np.resize(picture, (3, 2, 2))) / 255 + 0.1

    def tokens(self, texts):
        return np.array([[len(text), text.count("e") + 1] for text in texts], np.int32)

    def embed(self, tower, x):
        z = np.float32(x.reshape(len(x), -1)[:, :2])
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9)


def make_plain(data, folder, **changes):
    """Makes a cache of `Plain`, without a bias, or resumes it."""
    source = records.open_dataset(data, "train")
    settings = {"fingerprint": {"weights": "0", "preprocess": "sums"}} | changes
    plan = Plan(
        examples=SIZE,
        towers="both",
        precision="float32",
        shard_size=16,
        model=None,
        scale=20.0,
        bias=None,
        calibration_pairs=8,
        calibration_batch_size=8,
        other=libraries.About("open_clip", "plain", 2),
        **settings,
    )
    mesh = meshes.make_mesh(jax.devices()[:1])
    with jax.set_mesh(mesh), Watchdog(0.0) as watchdog:
        left = making.begin(plan, folder)
        config = DataConfig(num_threads=2)
        making.LibraryMaker(plan, folder, source, config, Plain(), mesh, 8).run(left, watchdog)
        making.end(plan, folder)
    return folder


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    return make_plain(data, tmp_path_factory.mktemp("plain") / "cache")


def test_fit_of_scale_and_bias_is_announced(data, tmp_path, monkeypatch):
    parts = []

    @contextlib.contextmanager
    def announced(part):
        parts.append(part)
        yield

    monkeypatch.setattr(progress, "announced", announced)
    make_plain(data, tmp_path / "cache")
    assert parts == ["Fitting a scale and a bias to the embeddings"]


def test_entries_are_what_the_model_makes_of_whole_pictures_and_captions(plain, data):
    model, found = Plain(), Cache(plain)
    assert set(found.missing) == {cached.BROKEN, cached.SILENT}
    for i, picture, texts in pairs(data, (0, 1, 6, 15, 39)):
        read = found.read(np.full(len(texts), i), np.arange(len(texts)))
        zimg = model.embed("image", model.pixels(np.asarray(picture))[None])
        np.testing.assert_array_equal(read["zimg"][:1], zimg)
        np.testing.assert_array_equal(read["ztxt"], model.embed("text", model.tokens(texts)))


def test_a_stopped_pass_is_resumed_to_the_same_bytes(data, plain, tmp_path, monkeypatch):
    out = tmp_path / "out"
    embed, left = Plain.embed, [7]  # in the second shard

    def stops(self, tower, x):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return embed(self, tower, x)

    monkeypatch.setattr(Plain, "embed", stops)
    with pytest.raises(KeyboardInterrupt):
        make_plain(data, out)
    monkeypatch.undo()
    assert not (out / "cache.json").exists()
    make_plain(data, out)
    for file in sorted(plain.iterdir()):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_other_preprocessing_is_another_cache(data, plain):
    with pytest.raises(CacheError, match=r"(?s)holds another cache:.*fingerprint.preprocess"):
        make_plain(data, plain, fingerprint={"weights": "0", "preprocess": "means"})


def test_a_method_needs_width_scale_and_bias_alone(plain, tmp_path):
    item = FrozenConfig(cache=str(plain), model=cached.model()).resolve("")
    assert (item.model, item.width, item.scale, item.bias) == (None, 2, 20.0, None)
    with pytest.raises(ConfigError, match=r"The model of method.reference has no bias"):
        item.check_bias("method.reference")
    dataclasses.replace(item, bias=-3.0).check_bias("method.reference")
    with pytest.raises(ConfigError, match=r"DIME-FM's student takes the teacher's text tower"):
        DimeConfig().with_frozen({"teacher": item, "sentences": item})
    checkpoint = cached.write_model(tmp_path / "model")
    with pytest.raises(CacheError, match=r"there open_clip's plain; set .checkpoint to ''"):
        FrozenConfig(cache=str(plain), checkpoint=checkpoint).resolve("")


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_embeddings_are_the_librarys_own(foreign, data, mobile_clip, cache):
    folder, model = mobile_clip
    found = Cache(cache)
    assert set(found.missing) == {cached.BROKEN, cached.SILENT}
    assert_same_embeddings(foreign, found, folder, pairs(data, (0, 1, 6, 15, 39)))
    plan = found.description.plan
    assert plan.model is None
    assert plan.other == libraries.About("open_clip", "MobileCLIP-S1", 48)
    assert plan.scale == pytest.approx(float(model.logit_scale.exp()), rel=1e-6)
    assert plan.bias is None
    assert "open_clip_torch 3." in plan.fingerprint["library"]
    assert "interpolation=bilinear" in plan.fingerprint["preprocess"]
    kinds = {"data", "decode", "weights", "library", "tokenizer", "preprocess"}
    assert set(plan.fingerprint) == kinds


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_are_not_converted(foreign, make_model, family, tmp_path):
    folder, _ = make_model(family, FAMILIES[family])
    with pytest.raises(InteropError, match=r"is not supported|cannot be read"):
        open_clip.read(folder, family)
    data = cached.write_data(tmp_path / "pairs", 4)
    make(data, f"open_clip:{folder}", tmp_path / "cache")
    assert_same_embeddings(foreign, Cache(tmp_path / "cache"), folder, pairs(data, range(4)))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_selection_and_distillation_read_it(data, cache, tmp_path):
    config = cached.run_config(data, None, steps=2, cache=str(cache))
    config.method.distillation.weight = 1.0
    config.method.distillation.loss = "feature"  # has a projection to the teacher's width
    with pytest.raises(ConfigError, match=r"has no bias .*method.reference.bias"):
        loop.run(config, str(tmp_path / "refused"), jax.devices()[:1])
    config.method.reference.bias = -5.0
    numbers = loop.run(config, str(tmp_path / "run"), jax.devices()[:1])
    for name in ("loss", "loss/distillation", "loss/contrastive"):
        assert np.isfinite(numbers[name])
    assert numbers["loss/distillation"] > 0
    picks = (tmp_path / "run" / "picks.jsonl").read_text()
    config.method.reference.scale = 50.0  # other scores, so other picks
    loop.run(config, str(tmp_path / "sharper"), jax.devices()[:1])
    assert (tmp_path / "sharper" / "picks.jsonl").read_text() != picks


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers(foreign, data, tmp_path):
    transformers, torch = foreign.transformers(), foreign.torch()
    from aced.convert import huggingface

    folder = tmp_path / "clip"
    folder.mkdir()
    huggingface.write(foreign.ours.clip(), folder)
    make(data, f"transformers:{folder}", tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    found = Cache(tmp_path / "out")
    for i, picture, texts in pairs(data, (0, 1, 6, 15, 39)):
        inputs = processor(
            images=picture, text=texts, padding="max_length", truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            theirs = model(**inputs)
        read = found.read(np.full(len(texts), i), np.arange(len(texts)))
        np.testing.assert_allclose(read["zimg"][:1], theirs.image_embeds, atol=1e-6)
        np.testing.assert_allclose(read["ztxt"], theirs.text_embeds, atol=1e-6)


def test_names_of_models():
    assert libraries.named("open_clip:/a/b") == ("open_clip", "/a/b")
    assert libraries.named("transformers:/a:b") == ("transformers", "/a:b")
    assert libraries.named("reference") is None
    assert libraries.named("gs://a/b") is None


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*open_clip_config.json. Give a folder"):
        libraries.load("open_clip", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has no weights \(\*.safetensors\)"):
        libraries.load("transformers", str(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InteropError, match=r"pytorch_model.bin, a pickle or a similar format"):
        libraries.load("transformers", str(tmp_path))


def test_weights_that_open_clip_would_not_load_are_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"has no weights \(open_clip_model.safetensors\)"):
        libraries.load("open_clip", str(tmp_path))
    (tmp_path / "open_clip_pytorch_model.bin").touch()  # open_clip prefers it
    with pytest.raises(InteropError, match=r"open_clip_pytorch_model.bin, a pickle"):
        libraries.load("open_clip", str(tmp_path))

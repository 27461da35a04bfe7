"""big_vision's npz: open_clip's own reader of these files is the oracle."""

import dataclasses
import json
import types

import foreign
import jax.numpy as jnp
import numpy as np
import ours
import pytest

from aced.config import ConfigError
from aced.convert import big_vision, tokenizer_write
from aced.models.saved import InteropError, flat

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
MODEL = ours.siglip


def written(model, folder):
    folder.mkdir()
    (note,) = big_vision.write(model, folder)
    assert "preprocessing and tokenizer" in note
    return folder / big_vision.WEIGHTS, str(folder / big_vision.SETTINGS)


def read(file, settings, tokenizer=""):
    return big_vision.read(file, settings, tokenizer, "it")


def by_open_clip(file, config):
    """The file as open_clip reads it, in a timm tower and a text tower of these sizes."""
    library, torch = foreign.open_clip(), foreign.torch()
    from open_clip.convert import load_big_vision_weights
    from open_clip.transformer import TextTransformer

    timm = pytest.importorskip("timm")
    image, text = config.image, config.text
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=image.resolution,
        patch_size=image.patch,
        embed_dim=image.dims.width,
        depth=image.dims.depth,
        num_heads=image.dims.heads,
        mlp_ratio=image.dims.mlp / image.dims.width,
        num_classes=0,
        global_pool="map",
        class_token=False,
        act_layer="gelu_tanh",
    )
    tower = TextTransformer(
        context_length=text.length,
        vocab_size=text.vocab_size,
        width=text.dims.width,
        heads=text.dims.heads,
        layers=text.dims.depth,
        mlp_ratio=text.dims.mlp / text.dims.width,
        output_dim=config.width,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        act_layer=lambda: torch.nn.GELU(approximate="tanh"),
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
    )
    model = types.SimpleNamespace(
        visual=types.SimpleNamespace(trunk=trunk),
        text=tower,
        logit_scale=torch.zeros(()),
        logit_bias=torch.zeros(()),
    )
    assert library
    load_big_vision_weights(model, str(file))
    return model


def assert_equal_outputs(theirs, model):
    torch = foreign.torch()
    images = foreign.images(model)
    ids = tokenizer_write.opened(model)(foreign.CAPTIONS[:8])
    normalize = torch.nn.functional.normalize
    with torch.no_grad():
        zimg = normalize(theirs.visual.trunk.eval()(torch.tensor(images.transpose(0, 3, 1, 2))))
        ztxt = normalize(theirs.text.eval()(torch.tensor(ids, dtype=torch.long)))
        logits = theirs.logit_scale.exp() * zimg @ ztxt.T + theirs.logit_bias
    for a, b in zip(foreign.embed(model, images, ids), (zimg, ztxt, logits), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["shapes", "sentencepiece"])
def test_written_model_is_the_same_in_open_clip_and_here(tokenizer, tmp_path):
    model = MODEL(tokenizer)
    file, settings = written(model, tmp_path / "out")
    assert_equal_outputs(by_open_clip(file, model.config), model)
    again = read(file, settings)
    foreign.assert_same_tensors(flat(model.params), flat(again.params))
    assert again.tokenizer == model.tokenizer
    assert again.config.tokenizer == model.config.tokenizer


@pytest.mark.slow
def test_blocks_stacked_for_a_scan_and_a_training_checkpoint(tmp_path):
    model = MODEL("shapes")
    file, settings = written(model, tmp_path / "out")
    with np.load(file) as archive:
        arrays = dict(archive)
    stacked = {"opt/0/mu": np.ones(3, np.float32), "opt/step": np.int32(3)}
    for name, value in arrays.items():
        if "encoderblock_0" in name:
            other = arrays[name.replace("encoderblock_0", "encoderblock_1")]
            stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack([value, other])
        elif "encoderblock_1" not in name:
            stacked[name] = value
    np.savez(tmp_path / "stacked.npz", **stacked)
    assert_equal_outputs(by_open_clip(tmp_path / "stacked.npz", model.config), model)
    again = read(tmp_path / "stacked.npz", settings)
    foreign.assert_same_tensors(flat(model.params), flat(again.params))


def test_bfloat16_as_numpy_stores_it(tmp_path):
    model = MODEL("shapes")
    file, settings = written(model, tmp_path / "out")
    with np.load(file) as archive:
        halves = {name: value.astype(jnp.bfloat16) for name, value in archive.items()}
    np.savez(tmp_path / "half.npz", **halves)
    again = read(tmp_path / "half.npz", settings)
    rounded = {k: v.astype(jnp.bfloat16).astype(np.float32) for k, v in flat(model.params).items()}
    foreign.assert_same_tensors(rounded, flat(again.params))


def test_a_tokenizer_of_its_own(tmp_path):
    model = MODEL("sentencepiece")
    file, settings = written(model, tmp_path / "out")
    given = tmp_path / "other.model"
    given.write_bytes(foreign.sentencepiece_model())
    config = json.loads((tmp_path / "out" / big_vision.SETTINGS).read_text())
    config["tokenizer"] = {}
    (tmp_path / "settings.json").write_text(json.dumps(config))
    again = read(file, str(tmp_path / "settings.json"), str(given))
    np.testing.assert_array_equal(
        tokenizer_write.opened(again)(foreign.CAPTIONS),
        tokenizer_write.opened(model)(foreign.CAPTIONS),
    )
    assert settings


def test_error_messages(tmp_path):
    file, settings = written(MODEL("shapes"), tmp_path / "out")
    with pytest.raises(
        InteropError, match=r"name their architecture with --model=NAME .*SigLIP-B/16-256"
    ):
        read(file, "")
    with pytest.raises(InteropError, match=r"'B/16' must be one of .*, or a .json file"):
        read(file, "B/16")
    with pytest.raises(InteropError, match="no tensor 'img/Transformer/encoderblock_2/"):
        read(file, "SigLIP-B/16-256")
    with pytest.raises(InteropError, match="init_bias must be a number"):
        read(file, "CLIP-B/16")
    config = json.loads((tmp_path / "out" / big_vision.SETTINGS).read_text())
    config["image"]["registers"] = 4
    (tmp_path / "wrong.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"image.registers is not a setting"):
        read(file, str(tmp_path / "wrong.json"))
    np.savez(tmp_path / "pickled.npz", t=np.array([{}], object))
    with pytest.raises(InteropError, match=r"not an .npz of plain arrays"):
        read(tmp_path / "pickled.npz", settings)
    (tmp_path / "no.npz").write_bytes(b"PK nothing")
    with pytest.raises(InteropError, match=r"not an .npz of plain arrays"):
        read(tmp_path / "no.npz", settings)
    np.savez(tmp_path / "other.npz", weights=np.ones(3, np.float32))
    with pytest.raises(InteropError, match="no number 't'"):
        read(tmp_path / "other.npz", settings)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: ours.clip(), "image.pool must be 'map'"),
        (lambda: ours.changed(MODEL(), embed_dim=8), "embed_dim must be None"),
        (lambda: ours.changed(MODEL(), "text", norm_eps=1e-5), "norm_eps must be 1e-6"),
        (lambda: ours.changed(MODEL(), "image", activation="gelu"), "must be 'gelu_tanh'"),
    ],
)
def test_settings_that_big_vision_cannot_express_are_named(model, message, tmp_path):
    with pytest.raises(InteropError, match=message):
        big_vision.write(model(), tmp_path)
    assert dataclasses.is_dataclass(model())

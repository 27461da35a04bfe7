"""open_clip's CLIP and SigLIP: read, written, and loaded again by open_clip."""

import copy
import dataclasses
import functools
import json
import pathlib
import tempfile

import foreign
import numpy as np
import ours
import pytest

import aced
from aced.convert import open_clip, open_clip_names, open_clip_write, tokenizer_write
from aced.data.images import decode, transforms
from aced.models import presets
from aced.models.saved import InteropError, flat

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
_VISION = {"image_size": 30, "layers": 2, "width": 32, "head_width": 8, "patch_size": 7}
# The image towers are timm's base towers, cut to one block; the text towers are small.
MODELS = {
    "clip": {"embed_dim": 20, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "quick": {
        "embed_dim": 12,
        "quick_gelu": True,
        "vision_cfg": _VISION | {"mlp_ratio": 3.3, "image_size": 33},
        "text_cfg": _TEXT | {"context_length": 77, "mlp_ratio": 2.1},
    },
    "custom": {
        "embed_dim": 20,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": _VISION | {"no_ln_pre": True, "act_kwargs": {"approximate": "tanh"}},
        "text_cfg": _TEXT
        | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        | {"norm_kwargs": {"eps": 1e-6}, "tokenizer_kwargs": {"clean": "canonicalize"}},
    },
    "eos": {
        "embed_dim": 20,
        "vision_cfg": _VISION,
        "text_cfg": _TEXT | {"pool_type": "eos", "eos_id": 49407, "vocab_size": 49500},
    },
}
PICTURES = {
    "mean": [0.4, 0.45, 0.5],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


@functools.cache
def source(kind):
    """(folder, model) as open_clip keeps them."""
    library = foreign.open_clip()
    folder = pathlib.Path(tempfile.mkdtemp())
    settings = MODELS[kind]
    about = {"model_cfg": settings, "preprocess_cfg": PICTURES if kind == "custom" else {}}
    (folder / open_clip.CONFIG).write_text(json.dumps(about))
    settings = copy.deepcopy(settings)
    custom = settings.pop("custom_text", False)
    model = (library.CustomTextCLIP if custom else library.CLIP)(**settings)
    foreign.randomize(model)
    pytest.importorskip("safetensors.torch").save_file(
        model.state_dict(), folder / open_clip.WEIGHTS
    )
    return folder, model


@functools.cache
def read(kind):
    return open_clip.read(source(kind)[0], kind)


def outputs(model, images, ids):
    torch = foreign.torch()
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        tokens = torch.tensor(ids, dtype=torch.long)
        zimg = model.encode_image(pixels, normalize=True)
        ztxt = model.encode_text(tokens, normalize=True)
        return zimg, ztxt, model.get_logits(pixels, tokens)[0]


def assert_equal_outputs(theirs, mine, b=8):
    images = foreign.images(mine, b)
    ids = tokenizer_write.opened(mine)(foreign.CAPTIONS[:b])
    for a, b in zip(foreign.embed(mine, images, ids), outputs(theirs, images, ids), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-5)  # logits are up to 10


def load(folder):
    """(model, preprocessing, tokenizer) as open_clip's users load them."""
    library = foreign.open_clip()
    name = f"local-dir:{folder}"
    model, pictures = library.create_model_from_pretrained(name)
    return model.eval(), pictures, library.get_tokenizer(name)


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_and_logits_are_theirs(kind):
    assert_equal_outputs(source(kind)[1], read(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "custom"])
def test_loaded_in_memory_it_agrees_with_their_transforms_and_model(kind):
    folder, _ = source(kind)
    model, transform, tokenizer = load(folder)
    pictures = [picture.convert("RGB") for picture in foreign.pictures().values()]
    texts = foreign.CAPTIONS[:8]
    pixels = np.stack([transform(picture).numpy() for picture in pictures])
    zimg, ztxt, _ = outputs(model, pixels.transpose(0, 2, 3, 1), tokenizer(texts).numpy())
    encoder = aced.load(folder)
    atol = 2e-3 if kind == "clip" else 1e-5  # a crop is off by a grey level here and there
    np.testing.assert_allclose(encoder.embed_images(pictures), zimg, atol=atol)
    np.testing.assert_allclose(encoder.embed_texts(texts), ztxt, atol=1e-5)
    scale = model.logit_scale.exp().item()
    bias = model.logit_bias.item() if kind == "custom" else 0
    logits = scale * zimg @ ztxt.T + bias
    np.testing.assert_allclose(encoder.similarity(pictures, texts), logits, atol=20 * atol)


@pytest.mark.parametrize("kind", MODELS)
def test_ids_and_pixels_are_theirs(kind):
    _, pictures, tokenizer = load(source(kind)[0])
    config = read(kind).config
    captions = [*foreign.CAPTIONS, "schÃ¶n mojibake", "&eacute;t&eacute;"]
    mine = tokenizer_write.opened(read(kind))(captions)
    np.testing.assert_array_equal(mine, tokenizer(captions))
    for name, picture in foreign.pictures().items():
        if name == "alpha":
            continue  # open_clip drops the transparency, we composite on white
        pixels = decode.decode(foreign.png(picture))
        resized = transforms.resize(pixels, config.image.resolution, config.resize)
        theirs = pictures(picture).numpy().transpose(1, 2, 0)
        theirs = (theirs * config.image.std + config.image.mean) * 255
        np.testing.assert_allclose(resized, theirs, atol=1.01, err_msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_rewritten_model_is_the_same_in_open_clip(kind, tmp_path):
    model = read(kind)
    (tmp_path / "out").mkdir()
    if kind == "custom":  # names of the two classes differ; open_clip loads either
        model = dataclasses.replace(model)
    assert open_clip_write.write(model, tmp_path / "out") == []
    loaded, pictures, tokenizer = load(tmp_path / "out")
    _, their_pictures, their_tokenizer = load(source(kind)[0])
    assert_equal_outputs(loaded, model)
    if kind != "custom":
        foreign.assert_same_tensors(source(kind)[1].state_dict(), loaded.state_dict())
    np.testing.assert_array_equal(tokenizer(foreign.CAPTIONS), their_tokenizer(foreign.CAPTIONS))
    for picture in foreign.pictures().values():
        np.testing.assert_array_equal(pictures(picture), their_pictures(picture))
    again = open_clip.read(tmp_path / "out", kind)
    foreign.assert_same_tensors(flat(model.params), flat(again.params))
    assert again.config == model.config


@pytest.mark.parametrize("name", open_clip_names.TOWERS)
def test_towers_match_timm(name):
    torch = foreign.torch()
    foreign.open_clip()
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        trunk = timm.create_model(name, num_classes=0, global_pool="map")
    tower = open_clip_names.TOWERS[name]
    mlp = trunk.blocks[0].mlp
    found = presets.Size(
        trunk.embed_dim, len(trunk.blocks), mlp.fc1.out_features, trunk.blocks[0].attn.num_heads
    )
    assert found == tower.size
    assert trunk.patch_embed.patch_size == (tower.patch,) * 2
    assert trunk.patch_embed.img_size == (tower.resolution,) * 2
    activation = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}
    for module in (mlp, trunk.attn_pool.mlp):
        assert activation[type(module.act).__name__] == tower.activation
    assert trunk.norm.eps == trunk.attn_pool.norm.eps == 1e-6
    assert trunk.attn_pool.num_heads == tower.size.heads
    assert trunk.attn_pool.mlp.fc1.out_features == tower.size.mlp


@functools.cache
def timm_model():
    """A SigLIP of ours whose image tower is timm's smallest, with a small text tower."""
    model = ours.siglip("siglip")
    image = dataclasses.replace(
        model.config.image,
        size="B",
        width=None,
        depth=None,
        mlp=None,
        heads=None,
        patch=32,
        resolution=256,
    )
    return ours.changed(model, image=image)


@pytest.mark.slow
def test_siglip_with_timms_tower(tmp_path):
    model = timm_model()
    (tmp_path / "out").mkdir()
    notes = open_clip_write.write(model, tmp_path / "out")
    assert notes == ["open_clip mends texts with ftfy before it encodes them"]
    loaded, pictures, tokenizer = load(tmp_path / "out")
    assert_equal_outputs(loaded, model, b=2)
    plain = [x for x in foreign.CAPTIONS if x.isascii() and x.isprintable() and "&" not in x]
    np.testing.assert_array_equal(tokenizer(plain), tokenizer_write.opened(model)(plain))
    picture = foreign.pictures()["47x61"]
    resized = transforms.resize(decode.decode(foreign.png(picture)), 256, model.config.resize)
    theirs = (pictures(picture).numpy().transpose(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(resized, theirs, atol=1e-3)


@pytest.mark.slow
def test_siglip_with_a_tokenizer_whose_texts_open_clip_cleans(tmp_path):
    """HFTokenizer with a tokenizer.json, as in open_clip's SigLIPs."""
    foreign.transformers()
    (tmp_path / "out").mkdir()
    open_clip_write.write(timm_model(), tmp_path / "out")
    about = json.loads((tmp_path / "out" / open_clip.CONFIG).read_text())
    about["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (tmp_path / "out" / open_clip.CONFIG).write_text(json.dumps(about))
    model = open_clip.read(tmp_path / "out", "it")
    foreign.assert_same_tensors(flat(model.params), flat(timm_model().params))
    captions = [*foreign.CAPTIONS, "schÃ¶n mojibake", "&eacute;t&eacute;"]
    _, _, tokenizer = load(tmp_path / "out")
    mine = tokenizer_write.opened(model)(captions)
    np.testing.assert_array_equal(mine, tokenizer(captions))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "vision_cfg.layers must be a count"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type = 'avg'"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool = True is not supported"),
        ("vision_cfg", {"ls_init_value": 0.1}, "ls_init_value = 0.1 is not supported"),
        (
            "vision_cfg",
            {"timm_model_name": "convnext_base"},
            "layers = 2 is not supported|cannot be read",
        ),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name = 'roberta-base'"),
        ("text_cfg", {"pool_type": "first"}, "pool_type = 'first'"),
        ("text_cfg", {"vocab_size": 49410}, "pools texts at the id 49409"),
        ("text_cfg", {"embed_cls": True}, "embed_cls = True"),
    ],
)
def test_models_with_settings_that_ours_lack_are_refused(part, changes, message, tmp_path):
    folder = source("clip")[0]
    about = json.loads((folder / open_clip.CONFIG).read_text())
    about["model_cfg"][part] |= changes
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(about))
    (tmp_path / open_clip.WEIGHTS).write_bytes((folder / open_clip.WEIGHTS).read_bytes())
    with pytest.raises(InteropError, match=message):
        open_clip.read(tmp_path, "it")


def test_quick_gelu_where_the_config_does_not_record_it(tmp_path):
    folder = source("quick")[0]
    about = json.loads((folder / open_clip.CONFIG).read_text())
    recorded = about["model_cfg"].pop("quick_gelu")
    (tmp_path / open_clip.WEIGHTS).write_bytes((folder / open_clip.WEIGHTS).read_bytes())
    file = tmp_path / open_clip.CONFIG
    file.write_text(json.dumps(about))
    assert recorded
    assert open_clip.read(tmp_path, "it").config.image.activation == "gelu"
    assert open_clip.read(tmp_path, "it", quick_gelu=True).config == read("quick").config
    about["model_cfg"]["quick_gelu"] = False
    file.write_text(json.dumps(about))
    with pytest.raises(InteropError, match="records quick_gelu = false; leave --quick_gelu out"):
        open_clip.read(tmp_path, "it", quick_gelu=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: ours.siglip(), "timm has no tower of width 32.*--to=huggingface"),
        (lambda: ours.changed(ours.clip(), "image", pool="gap"), "image.pool must be"),
        (lambda: ours.changed(ours.clip(), "image", patch_bias=True), "image.patch_bias must be F"),
        (lambda: ours.changed(ours.clip(), "text", activation="gelu"), "must both be 'quick_gelu'"),
        (lambda: ours.changed(ours.clip(), "text", length=20), "must be text.length = 20"),
    ],
)
def test_settings_that_open_clip_lacks_are_named(model, message, tmp_path):
    with pytest.raises(InteropError, match=message):
        open_clip_write.write(model(), tmp_path)


def test_ours_to_open_clip(tmp_path):
    model = ours.clip()
    (tmp_path / "out").mkdir()
    assert open_clip_write.write(model, tmp_path / "out") == []
    loaded, _, tokenizer = load(tmp_path / "out")
    assert_equal_outputs(loaded, model)
    captions = [*foreign.CAPTIONS, "schÃ¶n mojibake"]
    np.testing.assert_array_equal(tokenizer(captions), tokenizer_write.opened(model)(captions))

"""transformers' SigLIP, SigLIP 2 and CLIP: read, written, and loaded again by transformers."""

import dataclasses
import functools
import json
import pathlib
import tempfile

import foreign
import numpy as np
import pytest
import safetensors.numpy

import aced
from aced.convert import huggingface, tokenizer_build, tokenizer_write
from aced.data.images import decode, transforms
from aced.models.saved import InteropError, flat

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
# name -> (vision settings, text settings, projection)
SIZES = {
    "siglip": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 64, "image_size": 30, "patch_size": 7},
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 80, "max_position_embeddings": 12},
        32,
    ),
    "siglip2": (
        {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
        | {"intermediate_size": 40, "image_size": 32, "patch_size": 16},
        {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5}
        | {"intermediate_size": 56, "max_position_embeddings": 64},
        24,
    ),
    "clip": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 100, "image_size": 30, "patch_size": 7},
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 80, "max_position_embeddings": 20},
        20,
    ),
    "clip_legacy": (
        {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"intermediate_size": 48, "image_size": 33, "patch_size": 8, "hidden_act": "gelu"},
        {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"intermediate_size": 48, "max_position_embeddings": 77, "hidden_act": "gelu"},
        16,
    ),
}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def gemma_like(name, length):
    """A tokenizer of a class of transformers that reads Gemma's files, as SigLIP 2 has them."""
    vocab, merges = foreign.gemma_tokenizer()
    return getattr(foreign.transformers(), name)(
        vocab=vocab,
        merges=merges,
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_max_length=length,
        model_input_names=["input_ids"],
    )


def tokenizer_of(kind, length, folder):
    transformers = foreign.transformers()
    if kind == "siglip":
        (folder / "spiece.model").write_bytes(foreign.sentencepiece_model())
        return transformers.SiglipTokenizer(
            str(folder / "spiece.model"), pad_token="</s>", model_max_length=length
        )
    if kind == "siglip2":
        return gemma_like("GemmaTokenizer", length)
    vocab, merges = tokenizer_build.clip_vocabulary()
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


@functools.cache
def source(kind):
    """(folder, model, tokenizer) as transformers saves them."""
    transformers = foreign.transformers()
    folder = pathlib.Path(tempfile.mkdtemp())
    vision, text, projection = SIZES[kind]
    length = text["max_position_embeddings"]
    tokenizer = tokenizer_of(kind, length, folder)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None}
    ids["pad_token_id"] = tokenizer.pad_token_id
    side = vision["image_size"]
    if kind.startswith("siglip"):
        config = transformers.SiglipConfig(
            text_config=text | ids | {"projection_size": projection}, vision_config=vision
        )
        model = transformers.SiglipModel(config)
        pictures = transformers.SiglipImageProcessorPil(
            size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        processor = transformers.SiglipProcessor(pictures, tokenizer)
    else:
        ids["eos_token_id"] = 2 if kind == "clip_legacy" else tokenizer.eos_token_id
        config = transformers.CLIPConfig(
            text_config=text | ids, vision_config=vision, projection_dim=projection
        )
        model = transformers.CLIPModel(config)
        pictures = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=MEAN,
            image_std=STD,
        )
        processor = transformers.CLIPProcessor(pictures, tokenizer)
    foreign.randomize(model)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder / "model", model, processor


@functools.cache
def read(kind):
    return huggingface.read(source(kind)[0], kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_loaded_in_memory_it_agrees_with_their_processor_and_model(kind, tmp_path):
    folder, theirs, processor = source(kind)
    files = sorted(folder.iterdir())
    pictures = [picture.convert("RGB") for picture in foreign.pictures().values()]
    texts = ["a photo of a cat", "two dogs on a blue sofa", "word " * 90]
    length = SIZES[kind][1]["max_position_embeddings"]
    inputs = processor(
        text=texts,
        images=pictures,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_attention_mask=kind.startswith("clip"),  # SigLIP reads its padding
        return_tensors="pt",
    )
    with foreign.torch().no_grad():
        found = theirs(**inputs)
    encoder = aced.load(folder)
    atol = 2e-3 if kind.startswith("clip") else 1e-5  # a crop is off by a grey level here and there
    np.testing.assert_allclose(encoder.embed_images(pictures), found.image_embeds, atol=atol)
    np.testing.assert_allclose(encoder.embed_texts(texts), found.text_embeds, atol=1e-5)
    logits = found.logits_per_image
    np.testing.assert_allclose(encoder.similarity(pictures, texts), logits, atol=20 * atol)
    expected = logits.sigmoid() if kind.startswith("siglip") else logits.softmax(-1)
    np.testing.assert_allclose(encoder.probabilities(pictures, texts), expected, atol=5 * atol)
    assert sorted(folder.iterdir()) == files


def write(model, folder):
    folder.mkdir()
    return huggingface.write(model, folder)


def their_ids(tokenizer, length, captions=foreign.CAPTIONS):
    found = tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="np"
    )
    return found["input_ids"]


def outputs(model, images, ids):
    torch = foreign.torch()
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)),
        )
    return found.image_embeds, found.text_embeds, found.logits_per_image


def assert_equal_outputs(theirs, ours):
    images = foreign.images(ours)
    ids = tokenizer_write.opened(ours)(foreign.CAPTIONS[:8])
    for a, b in zip(foreign.embed(ours, images, ids), outputs(theirs, images, ids), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SIZES)
def test_embeddings_and_logits_are_theirs(kind):
    assert_equal_outputs(source(kind)[1], read(kind))


@pytest.mark.parametrize("kind", SIZES)
def test_ids_are_theirs(kind):
    _, _, processor = source(kind)
    ours = tokenizer_write.opened(read(kind))
    length, captions = read(kind).config.text.length, foreign.CAPTIONS
    if kind == "siglip2":  # the class of its folder keeps capitals, which training did not
        captions = [caption.lower() for caption in captions]
    theirs = their_ids(processor.tokenizer, length, captions)
    np.testing.assert_array_equal(ours(foreign.CAPTIONS), theirs)


def test_siglip2_lower_cases_whatever_class_its_folder_names(tmp_path):
    captions = ["A Photo of A Cat", "RED", "a photo of a cat", "Ünïted ÄÖ"]
    ids = {}
    for name in ("GemmaTokenizer", "Siglip2Tokenizer"):
        folder = copied("siglip2", tmp_path / name)
        tokenizer = gemma_like(name, 64)
        tokenizer.save_pretrained(folder)
        model = huggingface.read(folder, "it")
        assert model.config.tokenizer.lower
        assert bool(model.notes) == (name == "GemmaTokenizer")
        ids[name] = tokenizer_write.opened(model)(captions)
    np.testing.assert_array_equal(ids["GemmaTokenizer"], ids["Siglip2Tokenizer"])
    # The last one is transformers' own, of the class that lower-cases.
    np.testing.assert_array_equal(ids["GemmaTokenizer"], their_ids(tokenizer, 64, captions))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "GemmaTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert not huggingface.read(folder, "it").config.tokenizer.lower  # the setting is explicit


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("name", foreign.pictures())
def test_pixels_are_theirs(kind, name):
    """Within a grey level: Pillow holds the crop's box in float32. Alpha is laid on white."""
    config, picture = read(kind).config, foreign.pictures()[name]
    pixels = decode.decode(foreign.png(picture))
    side = config.image.resolution
    ours = transforms.resize(pixels, side, config.resize) / 255.0
    theirs = source(kind)[2].image_processor(picture, return_tensors="np")["pixel_values"][0]
    theirs = theirs.transpose(1, 2, 0) * np.array(config.image.std) + np.array(config.image.mean)
    tolerance = 1.01 / 255 if kind == "clip" else 1e-6
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("kind", SIZES)
def test_rewritten_model_is_the_same_in_transformers(kind, tmp_path):
    transformers = foreign.transformers()
    model = read(kind)
    notes = write(model, tmp_path / "out")
    assert [x for x in notes if "64 ids" not in x] == []
    assert len(notes) == (kind == "siglip")  # of 12 ids
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    foreign.assert_same_tensors(source(kind)[1].state_dict(), loaded.state_dict())
    assert_equal_outputs(loaded, model)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    np.testing.assert_array_equal(
        their_ids(processor.tokenizer, model.config.text.length),
        tokenizer_write.opened(model)(foreign.CAPTIONS),
    )
    for picture in foreign.pictures().values():
        first, second = (
            p.image_processor(picture, return_tensors="np")["pixel_values"]
            for p in (source(kind)[2], processor)
        )
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", SIZES)
def test_round_trip_is_bit_for_bit(kind, tmp_path):
    model = read(kind)
    write(model, tmp_path / "out")
    again = huggingface.read(tmp_path / "out", kind)
    foreign.assert_same_tensors(flat(model.params), flat(again.params))
    tokenizer = model.config.tokenizer
    if kind == "siglip2":  # the file that is written lower-cases by itself
        tokenizer = dataclasses.replace(tokenizer, lower=False)
    assert dataclasses.replace(again.config, init_scale=1.0) == dataclasses.replace(
        model.config, init_scale=1.0, tokenizer=tokenizer
    )
    write(again, tmp_path / "again")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")
    )
    assert first == second


def test_sharded_and_half_precision_weights(tmp_path):
    _, model, processor = source("siglip")
    torch = foreign.torch()
    half = type(model)(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(tmp_path, max_shard_size="20KB")
    processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = huggingface.read(tmp_path, "half")
    expected = {k: v.float() for k, v in half.state_dict().items()}
    write(ours, tmp_path / "out")
    foreign.assert_same_tensors(
        expected, safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    )


def copied(kind, folder, **changes):
    """The source's folder with changes of config.json: "text_config.hidden_act" -> value."""
    folder.mkdir()
    for file in source(kind)[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    about = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *parts, last = key.split("__")
        at = about
        for part in parts:
            at = at[part]
        at[last] = value
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"vision_config__vision_use_head": False}, "vision_use_head"),
        ({"vision_config__num_channels": 4}, "num_channels must be 3"),
        ({"vision_config__image_size": [30, 20]}, "image_size must be of type int"),
        ({"text_config__hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"text_config__hidden_size": -3}, "hidden_size must be at least 1"),
        ({"text_config__num_hidden_layers": 3}, "no tensor 'text_model.encoder.layers.2"),
        ({"text_config__num_hidden_layers": 1}, "our model does not have"),
        ({"text_config__intermediate_size": 96}, "do not fit .*text/blocks/mlp/fc1"),
        ({"text_config__num_attention_heads": 5}, "cannot be shared by text.heads = 5"),
        ({"vision_config__image_size": 60}, r"size = {'height': 30, 'width': 30} without a crop"),
    ],
)
def test_models_that_ours_are_not(changes, message, tmp_path):
    folder = copied("siglip", tmp_path / "model", **changes)
    with pytest.raises(InteropError, match=message):
        huggingface.read(folder, "it")


def test_files_that_are_missing_or_unsafe(tmp_path):
    folder = copied("siglip", tmp_path / "a")
    (folder / "processor_config.json").unlink()
    with pytest.raises(InteropError, match="which defines how pictures"):
        huggingface.read(folder, "it")
    folder = copied("siglip", tmp_path / "b")
    (folder / "spiece.model").unlink()
    with pytest.raises(InteropError, match="Save the processor beside the model"):
        huggingface.read(folder, "it")
    folder = copied("siglip", tmp_path / "c")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        InteropError, match=r"pytorch_model.bin, a pickle .*safe_serialization=True"
    ):
        huggingface.read(folder, "it")
    folder = copied("siglip", tmp_path / "d")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InteropError, match="not a complete safetensors file"):
        huggingface.read(folder, "it")
    folder = copied("siglip", tmp_path / "e")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"logit_scale": "../d/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InteropError, match=r"not a \.safetensors file beside it"):
        huggingface.read(folder, "it")


def test_padding_on_the_left_is_refused(tmp_path):
    folder = copied("siglip2", tmp_path / "a")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(InteropError, match="padding_side = 'left'"):
        huggingface.read(folder, "it")
    settings = {k: v for k, v in settings.items() if k != "padding_side"}
    for kind in ("GemmaTokenizer", "Siglip2Tokenizer"):  # which pad there by default
        changed = settings | {"tokenizer_class": kind}
        (folder / "tokenizer_config.json").write_text(json.dumps(changed))
        with pytest.raises(InteropError, match="padding_side = 'left'"):
            huggingface.read(folder, "it")


def test_settings_that_are_null(tmp_path):
    folder = copied("siglip", tmp_path / "a")
    expected = huggingface.read(folder, "it").config.tokenizer
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    nulls = {"pad_token": None, "eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | nulls))
    assert huggingface.read(folder, "it").config.tokenizer == expected
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["rescale_factor"] = None
    file.write_text(json.dumps(settings))
    with pytest.raises(InteropError, match="rescaled by 1/255, found None"):
        huggingface.read(folder, "it")


def test_old_clip_with_tokens_behind_the_end_of_text(tmp_path):
    """Pooled at the highest id: another than the end of text would be taken."""
    changes = {"text_config__eos_token_id": 2, "text_config__vocab_size": 49409}
    folder = copied("clip", tmp_path / "a", **changes)
    with pytest.raises(InteropError, match="is not the highest of 49409 ids"):
        huggingface.read(folder, "it")

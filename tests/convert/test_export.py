"""Our own models, as the recipes build them, loaded by transformers."""

import dataclasses

import foreign
import numpy as np
import ours
import pytest

from aced.convert import huggingface, tokenizer_write
from aced.data.images import decode, transforms
from aced.models.saved import InteropError

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
# transformers has no ftfy: these come out with other ids there.
NOT_MENDED = {"schÃ¶n mojibake", "&eacute;t&eacute;"}


def exported(model, folder):
    transformers = foreign.transformers()
    folder.mkdir()
    notes = huggingface.write(model, folder)
    loaded = transformers.AutoModel.from_pretrained(folder).eval()
    return loaded, transformers.AutoProcessor.from_pretrained(folder, backend="pil"), notes


def their_outputs(loaded, processor, pictures, captions):
    torch = foreign.torch()
    inputs = processor(
        images=pictures, text=captions, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = loaded(**inputs)
    return found.image_embeds, found.text_embeds, found.logits_per_image


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ours.TOKENIZERS)
def test_from_pictures_and_captions_to_equal_logits(tokenizer, tmp_path):
    model = ours.siglip(tokenizer)
    loaded, processor, _ = exported(model, tmp_path / "out")
    pictures = [x for name, x in foreign.pictures().items() if name != "alpha"]
    captions = foreign.CAPTIONS[: len(pictures)]
    config = model.config
    pixels = np.stack(
        [
            transforms.resize(decode.decode(foreign.png(x)), config.image.resolution, config.resize)
            for x in pictures
        ]
    )
    ids = tokenizer_write.opened(model)(captions)
    e = foreign.embed(model, pixels, ids)
    for a, b in zip(e, their_outputs(loaded, processor, pictures, captions), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokenizer", ours.TOKENIZERS)
def test_ids_match_except_padding_that_is_also_a_word(tokenizer, tmp_path):
    model = ours.siglip(tokenizer)
    _, processor, notes = exported(model, tmp_path / "out")
    mine = tokenizer_write.opened(model)(foreign.CAPTIONS)
    theirs = processor.tokenizer(
        foreign.CAPTIONS, padding="max_length", truncation=True, return_tensors="np"
    )
    assert list(theirs) == ["input_ids"]  # no mask: the text tower sees its padding
    if tokenizer in ("clip_bpe", "canonical"):
        assert any("padding is the new token 49408" in note for note in notes)
        table = tokenizer_write.padded_table(model, tokenizer_write.files(model))
        np.testing.assert_array_equal(table[49408], table[0])
        theirs["input_ids"][theirs["input_ids"] == 49408] = 0
    np.testing.assert_array_equal(theirs["input_ids"], mine)


def test_unmended_text_is_noted(tmp_path):
    _, processor, notes = exported(ours.siglip("clip_bpe"), tmp_path / "out")
    assert any("transformers does not use ftfy" in note for note in notes)
    mine = tokenizer_write.opened(ours.siglip("clip_bpe"))
    for caption in NOT_MENDED:
        theirs = processor.tokenizer([caption], padding="max_length")["input_ids"]
        assert mine([caption])[0, :3].tolist() != theirs[0][:3]


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_clip(activation, tmp_path):
    model = ours.clip(activation)
    loaded, processor, notes = exported(model, tmp_path / "out")
    assert type(loaded).__name__ == "CLIPModel"
    assert any("one pixel off" in note for note in notes)
    pictures = [foreign.pictures()[x] for x in ("64x64", "30x30", "grey")]
    pictures[2] = pictures[2].crop((0, 0, 40, 40))
    captions = foreign.CAPTIONS[:3]
    side = model.config.image.resolution
    pixels = [
        transforms.resize(decode.decode(foreign.png(x)), side, model.config.resize)
        for x in pictures
    ]
    ids = tokenizer_write.opened(model)(captions)
    e = foreign.embed(model, np.stack(pixels), ids)
    for a, b in zip(e, their_outputs(loaded, processor, pictures, captions), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


def test_pictures_through_torchvision_are_within_a_grey_level(tmp_path):
    """transformers' default resizes by torch: not Pillow's rounding."""
    transformers = foreign.transformers()
    exported(ours.siglip(), tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "out", backend="torchvision"
    )
    differences = []
    for picture in foreign.pictures().values():
        mine = transforms.resize(decode.decode(foreign.png(picture)), 30, transforms.ResizeConfig())
        theirs = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        differences.append(np.abs((theirs + 1) * 127.5 - mine))
    assert max(x.max() for x in differences) < 1.01
    assert max(x.mean() for x in differences) < 0.01


@pytest.mark.slow
def test_written_model_can_be_read(tmp_path):
    (tmp_path / "out").mkdir()
    huggingface.write(ours.siglip("clip_bpe"), tmp_path / "out")
    again = huggingface.read(tmp_path / "out", "again")
    mine = ours.siglip("clip_bpe")
    image = np.zeros((2, 30, 30, 3), np.uint8)
    ids = [tokenizer_write.opened(model)(["a cat", "!"]) for model in (mine, again)]
    first, second = (
        foreign.embed(model, image, x) for model, x in zip((mine, again), ids, strict=True)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: ours.changed(ours.siglip(), "image", position="sincos2d"), "image.position must"),
        (lambda: ours.changed(ours.siglip(), "image", pool="gap"), "image.pool = 'gap' must be"),
        (lambda: ours.changed(ours.siglip(), embed_dim=20), "embed_dim must be None"),
        (lambda: ours.changed(ours.siglip(), init_bias=None), "init_bias must be a number"),
        (lambda: ours.changed(ours.siglip(), "text", causal=True), "text.causal must be False"),
        (lambda: ours.changed(ours.clip(), "image", pre_norm=False), "image.pre_norm must be True"),
        (lambda: ours.changed(ours.clip(), init_bias=-4.0), "CLIPModel has no bias"),
    ],
)
def test_settings_that_transformers_cannot_express_are_named(model, message, tmp_path):
    with pytest.raises(InteropError, match=message):
        huggingface.write(model(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_byte_pair_sentencepiece_without_a_form_in_json(tmp_path):
    model = ours.siglip("sentencepiece")
    model = dataclasses.replace(model, tokenizer=foreign.sentencepiece_model("bpe"))
    with pytest.raises(InteropError, match=r"use the tokenizer.json that is published with it"):
        huggingface.write(model, tmp_path)

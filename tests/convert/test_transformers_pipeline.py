"""transformers' pipeline runs an exported folder, and its scores are our model's."""

import logging

import foreign
import numpy as np
import ours
import pytest

from aced.convert import huggingface, tokenizer_write
from aced.data.images import decode, transforms

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LABELS = [
    "cat",
    "red circle",
    "a dog that ran over the hill and away, far from the sea & its boats",
]


@pytest.mark.parametrize("kind", ["shapes", "siglip", "sentencepiece", "clip_bpe", "clip"])
def test_scores_are_ours_and_nothing_is_warned_of(kind, tmp_path, caplog):
    transformers = foreign.transformers()
    model = ours.clip() if kind == "clip" else ours.siglip(kind)
    labels = LABELS[:2] if kind == "clip" else LABELS  # no pipeline cuts texts for a CLIP
    huggingface.write(model, tmp_path, huggingface.PIPELINE_LENGTH)
    # It warns of its own defaults, for every SigLIP, and once per process.
    transformers.SiglipTextConfig()
    transformers.logging.enable_propagation()
    caplog.clear()
    pipeline = transformers.pipeline(
        "zero-shot-image-classification",
        model=str(tmp_path),
        image_processor=transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
    )
    assert [x.message for x in caplog.records if x.levelno >= logging.WARNING] == []
    picture = foreign.pictures()["64x64"]
    found = pipeline(picture, candidate_labels=labels, hypothesis_template="a photo of {}")
    config = model.config
    side = config.image.resolution
    pixels = transforms.resize(decode.decode(foreign.png(picture)), side, config.resize)
    ids = tokenizer_write.opened(model)([f"a photo of {label}" for label in labels])
    logits = foreign.embed(model, np.stack([pixels] * len(ids)), ids)[2][0]
    exponentials = np.exp(logits)
    expected = exponentials / (exponentials.sum() if kind == "clip" else 1 + exponentials)
    scores = {x["label"]: x["score"] for x in found}
    np.testing.assert_allclose([scores[x] for x in labels], expected, atol=1e-5)


def test_written_model_reads_back_with_the_same_embeddings(tmp_path):
    model = ours.siglip()
    notes = huggingface.write(model, tmp_path, 64)
    assert any("48 text positions were added" in note for note in notes)
    again = huggingface.read(tmp_path, "again")
    assert again.config.tokenizer.length == 64
    captions = ["a red circle", "", "two blue squares " * 9]
    images = foreign.images(model, 3)
    first, second = (
        foreign.embed(m, images, tokenizer_write.opened(m)(captions)) for m in (model, again)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=0)

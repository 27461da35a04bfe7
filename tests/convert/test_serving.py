"""Exported graphs run without this package. Slow, since every batch size is compiled."""

import json

import foreign
import numpy as np
import ours
import pytest

from aced.convert import onnx, serving, stablehlo
from aced.models import tensors
from aced.models.saved import InteropError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CAPTIONS = ["a red circle", "", "a photo of a cat"]


def inputs_of(model, folder):
    """Pixels, and ids by transformers' tokenizer from the files of the export."""
    tokenizer = foreign.transformers().AutoTokenizer.from_pretrained(folder)
    about = tensors.read_json(folder / serving.FILE)
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (3, *about["image"]["shape"][1:]), np.uint8)
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="np")
    return pixels, ids["input_ids"].astype(np.int32)


def expected(model, pixels, ids):
    return foreign.embed(serving.with_tokenizer(model)[0], pixels, ids)[:2]


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_stablehlo(kind, tmp_path):
    pytest.importorskip("flatbuffers")
    from jax import export

    model = getattr(ours, kind)()
    notes = stablehlo.write(model, tmp_path)
    assert any("in batches of 1, 3: image" in note for note in notes)
    pixels, ids = inputs_of(model, tmp_path)
    for name, x, z in zip(
        ("image", "text"), (pixels, ids), expected(model, pixels, ids), strict=True
    ):
        tower = export.deserialize(bytearray((tmp_path / f"{name}.stablehlo").read_bytes()))
        assert tower.platforms == ("cpu", "cuda", "tpu")
        np.testing.assert_allclose(tower.call(x), z, atol=1e-6)
    about = json.loads((tmp_path / serving.FILE).read_text())
    assert about["largest_error"]["image"] < 1e-6
    assert about["loss"] == ("sigmoid" if kind == "siglip" else "softmax")


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_onnx(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    foreign.torch()
    model = getattr(ours, kind)()
    onnx.write(model, tmp_path)
    pixels, ids = inputs_of(model, tmp_path)
    for name, x, z in zip(
        ("image", "text"), (pixels, ids), expected(model, pixels, ids), strict=True
    ):
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        np.testing.assert_allclose(session.run(None, {name: x})[0], z, atol=1e-5)


def test_an_export_that_differs_is_refused():
    model = ours.siglip()
    width = model.config.width
    with pytest.raises(InteropError, match=r"differs from the model by \{'image'"):
        serving.errors(model, {"image": lambda x: np.zeros((len(x), width), np.float32)})

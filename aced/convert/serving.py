"""Exports as two graphs, of the image and of the text tower, that need no model code.

    image.stablehlo or image.onnx    uint8 pixels [b h w 3], resized -> embeddings [b d]
    text.stablehlo or text.onnx      int32 token ids [b l], padded -> embeddings [b d]
    export.json                      preprocessing, scale and bias of the logits, measured errors
    tokenizer.json, ...              for the AutoTokenizer of transformers

b is any number; embeddings have length 1. The graph normalises the pixels. Every export is compared
with the model before it is written.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float, Num

from aced.convert import tokenizer_write
from aced.models import tensors, two_tower
from aced.models.saved import InteropError, Model
from aced.models.two_tower import TwoTowerConfig

FILE = "export.json"
BATCHES = (1, 3)  # sizes that an export is compared at
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of a component of an embedding of length 1

Run = Callable[[Num[np.ndarray, "b *n"]], Float[np.ndarray, "b d"]]  # a tower of an export


def with_tokenizer(model: Model) -> tuple[Model, tokenizer_write.TokenizerFiles]:
    """Returns the model for the ids of transformers' tokenizer, and the files of that.

    Raises:
        InteropError: the tokenizer cannot be converted.
    """
    written = tokenizer_write.files(model)
    table = tokenizer_write.padded_table(model, written)
    text = dataclasses.replace(model.config.text, vocab_size=len(table))
    params = model.params | {"text": model.params["text"] | {"token": table}}
    config = dataclasses.replace(model.config, text=text)
    return dataclasses.replace(model, config=config, params=params), written


def examples(config: TwoTowerConfig, size: int) -> dict[str, np.ndarray]:
    """Random pixels and ids by tower; every text ends where the text tower pools."""
    rng = np.random.default_rng(size)
    side, text = config.image.resolution, config.text
    ids = rng.integers(0, text.vocab_size, (size, config.tokenizer.length), np.int32)
    if text.pool == "eot":
        ids[ids == text.eot_id] = 0
        ids[:, -1] = text.eot_id
    return {"image": rng.integers(0, 256, (size, side, side, 3), np.uint8), "text": ids}


def errors(model: Model, towers: Mapping[str, Run]) -> dict[str, float]:
    """Returns the largest difference of a component of an embedding from the model's, by tower.

    Args:
        model: the model, with parameters on the host.
        towers: "image" and "text" of the export.

    Raises:
        InteropError: a difference is larger than rounding.
    """
    tower, params = two_tower.TwoTower(model.config), jax.device_put(model.params)

    @jax.jit
    def embed(image: jax.Array, text: jax.Array) -> dict[str, jax.Array]:
        e = tower.apply({"params": params}, image, text)
        return {"image": e.zimg, "text": e.ztxt}

    out = dict.fromkeys(towers, 0.0)
    for size in BATCHES:
        inputs = examples(model.config, size)
        expected = jax.device_get(embed(inputs["image"], inputs["text"]))
        for name, run in towers.items():
            embedded = np.asarray(run(inputs[name]))
            out[name] = max(out[name], float(np.abs(embedded - expected[name]).max()))
    most = _TOLERANCE[model.config.dtype]
    if wrong := {name: error for name, error in out.items() if not error <= most}:
        raise InteropError(
            f"The export differs from the model by {wrong} in a component of an embedding, more "
            f"than {most}; nothing is written. Please report it with the model's settings."
        )
    return out


def note(found: Mapping[str, float]) -> str:
    """A line about the errors of an export."""
    listed = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
    sizes = ", ".join(map(str, BATCHES))
    return f"largest difference of an embedding's component, in batches of {sizes}: {listed}"


def write_description(
    model: Model, folder: pathlib.Path, form: str, found: Mapping[str, float]
) -> None:
    """Writes export.json."""
    config = model.config
    temperature = {name: model.params[name] for name in ("t", "bias") if name in model.params}
    scale, bias = two_tower.logit_parameters(jax.device_put(temperature))
    about = {
        "format": f"aced-{form}",
        "version": 1,
        "image": {
            "file": f"image.{form}",
            "shape": ["b", config.image.resolution, config.image.resolution, 3],
            "type": "uint8",
            "color": "RGB",
            "resize": dataclasses.asdict(config.resize),
        },
        "text": {
            "file": f"text.{form}",
            "shape": ["b", config.tokenizer.length],
            "type": "int32",
            "padding": "max_length",
        },
        "width": config.width,
        "loss": "softmax" if config.init_bias is None else "sigmoid",
        "scale": float(scale),
        "bias": float(bias),
        "largest_error": dict(found),
    }
    tensors.write_json(folder / FILE, about)


def write_tokenizer(written: tokenizer_write.TokenizerFiles, folder: pathlib.Path) -> None:
    """Writes the files of the tokenizer."""
    for name, content in written.files.items():
        (folder / name).write_bytes(content)
    tensors.write_json(folder / "tokenizer_config.json", written.settings)

"""Export round trips: how far the embeddings of an export are from the model's.

    python -m benchmarks.exports

Needs the extras parity, stablehlo and onnx; minutes on two cores. Models with random parameters, of
the kinds that the formats can express, are written by `python -m aced.convert`, loaded by the other
library alone, and compared on the same pixels and ids. Columns, the largest difference of a
component of an embedding of length 1: `image`, `text`; `bytes`: of the folder. `again`: the largest
difference of a parameter after the folder was read back, empty where a format cannot be read.
"""

import argparse
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aced.convert import command, serving, tokenizer_write
from aced.convert.command import ConvertConfig
from aced.data.images.transforms import ResizeConfig
from aced.data.tokenizers import TokenizerConfig
from aced.models import model_folder, two_tower
from aced.models.saved import Model, flat
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig
from benchmarks import table

COLUMNS = ("model", "to", "loaded_by", "image", "text", "again", "bytes")
_VIT = ImageConfig(size="mu", width=128, depth=4, mlp=512, heads=4, patch=16, resolution=64)
_TEXT = TextConfig(size="mu", width=128, depth=4, mlp=512, heads=4, vocab_size=49408, length=16)
_TOKENIZER = TokenizerConfig(length=16)
# With the tower of timm that is the smallest of SigLIP's.
_TIMM = ImageConfig(size="B", patch=32, resolution=256)
_AS_CLIP = {"activation": "quick_gelu", "norm_eps": 1e-5}
MODELS = {
    "SigLIP, 16 ids": TwoTowerConfig(image=_VIT, text=_TEXT, tokenizer=_TOKENIZER),
    "SigLIP, B/32": TwoTowerConfig(image=_TIMM, text=_TEXT, tokenizer=_TOKENIZER),
    "CLIP, 16 ids": TwoTowerConfig(
        image=dataclasses.replace(_VIT, pool="cls", pre_norm=True, patch_bias=False, **_AS_CLIP),
        text=dataclasses.replace(_TEXT, pool="eot", causal=True, head_bias=False, **_AS_CLIP),
        embed_dim=96,
        init_bias=None,
        tokenizer=_TOKENIZER,
        resize=ResizeConfig("crop"),
    ),
}
FORMATS = {
    "SigLIP, 16 ids": ("huggingface", "huggingface, 64 ids", "stablehlo", "onnx"),
    "SigLIP, B/32": ("open_clip",),
    "CLIP, 16 ids": ("huggingface", "open_clip", "stablehlo", "onnx"),
}
_LIBRARIES = {"huggingface": "transformers", "open_clip": "open_clip"} | {
    "stablehlo": "jax.export",
    "onnx": "onnxruntime",
}
_TEXTS = ("a photo of a cat", "", "two red circles on the left of a blue square", "word " * 40)

Towers = dict[str, Callable[[np.ndarray], np.ndarray]]


def random_model(config: TwoTowerConfig) -> Model:
    """Random parameters, also where the initial value is special, such as zero."""
    params = jax.device_get(jax.jit(config.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(x + 0.02 * rng.normal(size=x.shape)), params)
    return Model(config, params, b"", "random")


def opened(to: str, folder: pathlib.Path, config: TwoTowerConfig) -> Towers:
    """The towers of an export, by the library alone: uint8 pixels [b h w 3], and texts."""
    if to in ("stablehlo", "onnx"):
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

        def ids(texts: np.ndarray) -> np.ndarray:
            found = tokenizer(list(texts), padding="max_length", truncation=True)
            return np.array(found["input_ids"], np.int32)

        run = {"stablehlo": _stablehlo, "onnx": _onnx}[to]
        image, text = (run(folder, name) for name in ("image", "text"))
        return {"image": image, "text": lambda texts: text(ids(texts))}
    return _torch(to, folder, config)


def _stablehlo(folder: pathlib.Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    from jax import export

    content = (folder / f"{name}.stablehlo").read_bytes()
    return export.deserialize(bytearray(content)).call


def _onnx(folder: pathlib.Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return lambda x: session.run(None, {name: x})[0]


def _torch(to: str, folder: pathlib.Path, config: TwoTowerConfig) -> Towers:
    import torch

    mean, std = np.float32(config.image.mean), np.float32(config.image.std)

    def tensor(pixels: np.ndarray) -> Any:
        x = (pixels / np.float32(255) - mean) / std
        return torch.from_numpy(x.transpose(0, 3, 1, 2))

    def normalized(z: Any) -> np.ndarray:
        return torch.nn.functional.normalize(z).detach().numpy()

    if to == "open_clip":
        import open_clip

        name = f"local-dir:{folder}"
        model, _ = open_clip.create_model_from_pretrained(name)
        tokenizer = open_clip.get_tokenizer(name)
        return {
            "image": lambda x: normalized(model.eval().encode_image(tensor(x))),
            "text": lambda texts: normalized(model.eval().encode_text(tokenizer(list(texts)))),
        }
    import transformers

    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def text(texts: np.ndarray) -> np.ndarray:
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return normalized(model.get_text_features(ids["input_ids"]).pooler_output)

    return {
        "image": lambda x: normalized(model.get_image_features(tensor(x)).pooler_output),
        "text": text,
    }


def measure(name: str, form: str, folder: pathlib.Path) -> dict[str, Any]:
    """The row of one export."""
    model = random_model(MODELS[name])
    source = folder / "model"
    source.mkdir()
    model_folder.write(model, source)
    to, _, more = form.partition(", ")
    settings = {"text_length": 64 if more else 0} if to == "huggingface" else {}
    out = folder / "out"
    command.convert(ConvertConfig(source=str(source), out=str(out), to=to, **settings))
    towers = opened(to, out, model.config)
    tower = two_tower.TwoTower(model.config)
    pixels = serving.examples(model.config, 4)["image"]
    ids = tokenizer_write.opened(model)(_TEXTS)
    e = jax.jit(tower.apply)({"params": jax.device_put(model.params)}, pixels, ids)
    found = {"image": towers["image"](pixels), "text": towers["text"](np.array(_TEXTS))}
    errors = {
        "image": np.abs(np.asarray(found["image"]) - e.zimg).max(),
        "text": np.abs(np.asarray(found["text"]) - e.ztxt).max(),
    }
    return {
        "model": name,
        "to": form,
        "loaded_by": _LIBRARIES[to],
        **{key: f"{value:.1e}" for key, value in errors.items()},
        "again": _again(model, out) if form in ("huggingface", "open_clip") else "",
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
    }


def _again(model: Model, out: pathlib.Path) -> str:
    """The largest difference of a parameter after reading the export."""
    _, again = command.read(ConvertConfig(source=str(out), out="unused", to="aced"))
    ours, theirs = flat(model.params), flat(again.params)
    # Padding may have got a token of its own.
    rows = len(ours["text/token"])
    theirs["text/token"] = theirs["text/token"][:rows]
    return f"{max(float(np.abs(ours[key] - theirs[key]).max()) for key in ours):.1e}"


def main() -> None:
    """Measures all exports and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", default=table.RESULTS / "exports.csv", type=pathlib.Path)
    out = parser.parse_args().out
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rows = []
    for name, forms in FORMATS.items():
        for form in forms:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, form, pathlib.Path(folder)))
            print(rows[-1], flush=True)
    table.write(out, rows, COLUMNS)


if __name__ == "__main__":
    main()

"""Converts models from and to transformers, open_clip and big_vision: `python -m aced.convert ...`.

    python -m aced.convert --source=google/siglip-base-patch16-224 --out=models/siglip --to=aced
    python -m aced.convert --source=runs/small --out=exports/small --to=huggingface
    python -m aced.convert --source=siglip.npz --model=settings.json --out=models/s --to=aced

The format of the source is detected: the workdir of a run, our model folder (written by --to=aced,
and used as reference, teacher or starting point), a folder of transformers (SigLIP, SigLIP 2 of
fixed resolution, CLIP) or open_clip, a big_vision .npz, or the name of a model on the Hugging Face
hub. Preprocessing and tokenizer are converted, too. Weights are safetensors or plain arrays;
nothing is unpickled. The output is written atomically.
"""

from typing import Any

import numpy as np
from absl import flags

from aced import command, command_line, flag_settings
from aced.convert import big_vision
from aced.convert.command import ConvertConfig, Converted, convert
from aced.models.saved import flat
from aced.models.vit import ImageConfig


def summary(converted: Converted, config: ConvertConfig) -> str:
    """A summary of the conversion, and the next step."""
    model, settings = converted.model, converted.model.config
    image, text, tokens = settings.image, settings.text, settings.tokenizer
    counts = {
        name: sum(x.size for x in flat(model.params[name]).values()) for name in ("image", "text")
    }
    bias = "none" if settings.init_bias is None else f"{float(model.params['bias']):.4g}"
    lines = [
        f"{config.source}: {converted.kind}",
        f"  image      {_image_tower(image)}, {image.resolution} px, "
        f"{counts['image']:,} parameters",
        f"  text       {_tower(text)}, {text.length} positions, {counts['text']:,} parameters",
        f"  embedding  {settings.width} wide, scale {np.exp(model.params['t']):.4g}, bias {bias}",
        f"  pictures   {settings.resize.mode}, {settings.resize.interpolation}, mean {image.mean}, "
        f"std {image.std}",
        f"  texts      {tokens.kind}, {tokens.length} ids, lower={tokens.lower}, "
        f"canonicalize={tokens.canonicalize}, mend={tokens.mend}, pad_id={tokens.pad_id}",
        *(f"  read       {note}" for note in model.notes),
        *(f"  differs    {note}" for note in converted.notes),
        f"{config.out}: written for {config.to}",
    ]
    return "\n".join([*lines, f"Next: {_next(config, settings.init_bias is not None)}"])


def _image_tower(image: ImageConfig) -> str:
    if image.architecture == "vit":
        return f"{_tower(image)}, patch {image.patch}"
    swin, dims = image.swin, image.swin.dims
    sizes = f"width {dims.width}, depths {dims.depths}, heads {dims.heads}"
    return f"Swin, {sizes}, window {swin.window}, patch {swin.patch}"


def _tower(tower: Any) -> str:
    dims = tower.dims
    return f"width {dims.width}, depth {dims.depth}, mlp {dims.mlp}, {dims.heads} heads"


_TRANSFORMERS = """
    from PIL import Image
    from transformers import AutoModel, AutoProcessor
    model, processor = (x.from_pretrained({out!r}) for x in (AutoModel, AutoProcessor))
    inputs = processor(images=Image.open("picture.jpg"), text=["a cat", "a dog"],
                       padding="max_length", truncation=True, return_tensors="pt")
    print(model(**inputs).logits_per_image.{activation})"""
_OPEN_CLIP = """
    import open_clip
    model, pictures = open_clip.create_model_from_pretrained({name!r})
    tokenizer = open_clip.get_tokenizer({name!r})"""


def _next(config: ConvertConfig, sigmoid: bool) -> str:
    """The command or code that uses the output."""
    out = config.out
    activation = "sigmoid()" if sigmoid else "softmax(-1)"
    return {
        "aced": f"python -m aced.main --config=configs/small.py:reference={out},data=...",
        "huggingface": _TRANSFORMERS.format(out=out, activation=activation),
        "open_clip": _OPEN_CLIP.format(name=f"local-dir:{out}"),
        "big_vision": f"model.load(..., init_file='{out}/{big_vision.WEIGHTS}') in big_vision",
    }[config.to]


def main(argv: list[str]) -> None:
    """Converts a model and prints a summary."""
    del argv
    command.quiet_libraries()
    with command.running(f"--out={flags.FLAGS.out}"):
        config = flag_settings.read(ConvertConfig)
        print(summary(convert(config), config))


if __name__ == "__main__":
    flag_settings.define(ConvertConfig)
    command_line.run(main)

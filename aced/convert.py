"""`python -m aced.convert`: models from and to transformers, open_clip and big_vision.

    python -m aced.convert --source=google/siglip-base-patch16-224 --out=models/siglip --to=aced
    python -m aced.convert --source=runs/small --out=exports/small --to=huggingface
    python -m aced.convert --source=siglip.npz --model=settings.json --out=models/s --to=aced

What the source is, is seen from its files: the workdir of a run, a model folder of ours (what
--to=aced writes; a reference, teacher or starting point of a run), a folder of transformers
(SigLIP, SigLIP 2 of fixed resolution, CLIP) or open_clip, a big_vision .npz, or the name of one of
these on the Hugging Face hub. Preprocessing and tokenizer come with the weights. Weights are
safetensors or plain arrays; nothing is unpickled. The output is there whole or not at all.
"""

import dataclasses
import pathlib
import secrets
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app
from etils import epath

from aced import checkpoint, flag_settings, record
from aced.checkpoint import CheckpointError
from aced.config import ConfigError
from aced.data import storage
from aced.flag_settings import setting
from aced.interop import (
    big_vision,
    hub,
    huggingface,
    model_folder,
    open_clip,
    open_clip_write,
)
from aced.interop.model import TOKENIZER_FILES, InteropError, Model, flat
from aced.methods.frozen import trained_model
from aced.models.vit import ImageConfig
from aced.quiet_logs import quiet_libraries

_MARKS = (model_folder.FILE, huggingface.CONFIG, open_clip.CONFIG, big_vision.WEIGHTS)


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """The command's settings; each is a flag of the same name."""

    source: str = setting("", "Folder, .npz file, gs:// run, or owner/name on the hub.")
    out: str = setting("", "Folder to make.")
    to: str = setting(
        "",
        "Format to write: aced is the model folder that a run's .checkpoint takes.",
        ("aced", "huggingface", "open_clip", "big_vision"),
    )
    which: str = setting("last", "Of a run: which of its checkpoints.", ("last", "best"))
    parameters: str = setting(
        "params", "Of a run: the parameters, or their moving average.", ("params", "ema")
    )
    model: str = setting(
        "", "Of an .npz: a model's name (CLIP-B/16, ...) or our settings in a .json file."
    )
    tokenizer: str = setting(
        "", "Of an .npz: a sentencepiece .model or tokenizer.json, if not as --model has it."
    )
    revision: str = setting("", "Of a model on the hub: branch, tag or commit.")
    overwrite: bool = setting(False, "Replace an earlier output at --out, once all went well.")

    def __post_init__(self):
        for name in ("source", "out"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is empty; set it. See --help.")
        flag_settings.check_choices(self)
        if not self.source.endswith(".npz") and (self.model or self.tokenizer):
            raise ConfigError(
                "--model and --tokenizer are for .npz files; this source says itself."
            )


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was read, and what differs in the output."""

    kind: str  # of the source, in words
    model: Model
    notes: list[str]


def convert(config: ConvertConfig) -> Converted:
    """Reads the source and writes it to `config.out`, whole or not at all.

    Raises:
        InteropError: the source cannot be read, the format cannot express it, or the output is
            there already.
        ConfigError: its settings contradict each other.
        CheckpointError: the run has no such checkpoint.
    """
    out = pathlib.Path(config.out).expanduser()
    _check_out(out, pathlib.Path(config.source).expanduser(), config.overwrite)
    kind, model = read(config)
    write: Callable[[Model, pathlib.Path], list[str] | None] = {
        "aced": model_folder.write,
        "huggingface": huggingface.write,
        "open_clip": open_clip_write.write,
        "big_vision": big_vision.write,
    }[config.to]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        notes = write(model, partial) or []
        if out.exists():
            old = partial.with_name(f"{partial.name}.old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Converted(kind, model, notes)


def read(config: ConvertConfig) -> tuple[str, Model]:
    """Returns what the source is, in words, and its model.

    Raises:
        InteropError, ConfigError, CheckpointError: as `convert`.
    """
    source = config.source
    if storage.is_remote(source):
        if not (epath.Path(source) / checkpoint.FOLDER).is_dir():
            raise InteropError(
                f"{source} has no {checkpoint.FOLDER}/: it is no run, and of what is not on a disk "
                "only runs are read; correct it, or copy the model."
            )
        return "a run", _read_run(config, source)
    path = pathlib.Path(source).expanduser()
    if path.is_file() and path.suffix == ".npz":
        return "big_vision's .npz", big_vision.read(path, config.model, config.tokenizer, source)
    if not path.exists() and hub.is_name(source):
        path = hub.download(source, config.revision)
    if not path.is_dir():
        raise InteropError(
            f"{source} is no folder, no .npz, and no owner/name of the hub; give one of these."
        )
    if model_folder.is_model_folder(str(path)):
        return "a model folder", model_folder.read(str(path))
    if (path / checkpoint.FOLDER).is_dir():
        return "a run", _read_run(config, str(path))
    if huggingface.is_folder(path):
        return "transformers' layout", huggingface.read(path, source)
    if open_clip.is_folder(path):
        return "open_clip's layout", open_clip.read(path, source)
    raise InteropError(
        f"{source} is nothing that can be read: it has neither {model_folder.FILE} (ours), nor "
        f"{record.FILE} with {checkpoint.FOLDER}/ (a run), nor {huggingface.CONFIG} "
        f"(transformers), nor {open_clip.CONFIG} (open_clip)."
    )


def _read_run(config: ConvertConfig, folder: str) -> Model:
    settings = trained_model(folder)
    params = checkpoint.load_params(folder, which=config.which, key=config.parameters, part="model")
    tokens, content = settings.tokenizer, b""
    if tokens.path:
        try:
            content = pathlib.Path(tokens.path).read_bytes()
        except OSError as error:
            raise InteropError(
                f"The run's tokenizer.path cannot be read: {error}. Put the file back there."
            ) from error
        tokens = dataclasses.replace(tokens, path=TOKENIZER_FILES[tokens.kind])
    host = _on_host(params)
    model = dataclasses.replace(settings, tokenizer=tokens)
    return Model(model, host, content, f"{config.source} ({config.which}, {config.parameters})")


def _on_host(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _on_host(value) for key, value in tree.items()}
    return np.asarray(tree)


def _check_out(out: pathlib.Path, source: pathlib.Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise InteropError(f"--out={out} is the source or holds it; choose another folder.")
    if not overwrite:
        raise InteropError(f"{out} is there already; choose another --out, or give --overwrite.")
    ours = any((out / mark).is_file() for mark in _MARKS)
    if not ours or (out / checkpoint.FOLDER).exists():
        raise InteropError(f"{out} is no earlier output of this command; it is not replaced.")


def summary(converted: Converted, config: ConvertConfig) -> str:
    """What came over, and what to do next, in some lines of text."""
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
    """What uses the output."""
    out = config.out
    activation = "sigmoid()" if sigmoid else "softmax(-1)"
    return {
        "aced": f"python -m aced.main --config=configs/small.py:reference={out},data=...",
        "huggingface": _TRANSFORMERS.format(out=out, activation=activation),
        "open_clip": _OPEN_CLIP.format(name=f"local-dir:{out}"),
        "big_vision": f"model.load(..., init_file='{out}/{big_vision.WEIGHTS}') in big_vision",
    }[config.to]


def main(argv: list[str]) -> None:
    """Reads the flags, converts, and says what came over and what to do next."""
    if len(argv) > 1:
        raise app.UsageError(f"Not a flag: {argv[1]}")
    quiet_libraries()
    try:
        config = flag_settings.read(ConvertConfig)
        print(summary(convert(config), config))
    except (ConfigError, CheckpointError) as error:  # InteropError is a ConfigError
        sys.exit(f"error: {error}")
    except OSError as error:  # a disk that is full, a folder that may not be written to
        sys.exit(f"error: --out={config.out} cannot be written, or the source not read: {error}")


if __name__ == "__main__":
    flag_settings.define(ConvertConfig)
    app.run(main)

"""Reads a model in one format and writes it in another."""

import dataclasses
import functools
import pathlib
import secrets
import shutil
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
from etils import epath

from aced.bounds import NonEmpty, NonNegativeInt
from aced.checkpoints import checkpointer, record
from aced.config import ConfigError, expand
from aced.convert import (
    big_vision,
    card,
    hub,
    huggingface,
    onnx,
    open_clip,
    open_clip_write,
    serving,
    stablehlo,
)
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.methods.frozen import trained_model
from aced.models import layouts, model_folder, tensors
from aced.models.saved import TOKENIZER_FILES, InteropError, Model

_RUN = "a run"  # description of that kind of source
_MARKS = (
    model_folder.FILE,
    layouts.TRANSFORMERS_CONFIG,
    layouts.OPEN_CLIP_CONFIG,
    big_vision.WEIGHTS,
    serving.FILE,
)


@dataclasses.dataclass(frozen=True)
class SourceConfig(FlagSettings):
    """What is read: a model, in any format."""

    source: NonEmpty = setting(
        "", "Model to read: a folder, an .npz file, a run at gs://, or owner/name on the hub."
    )
    which: Literal["last", "best"] = setting("last", "Which checkpoint of a run to read.")
    parameters: Literal["params", "ema"] = setting(
        "params", "Whether to read a run's parameters, or their exponential moving average."
    )
    model: str = setting(
        "",
        "Architecture of an .npz: a model's name (CLIP-B/16, ...) or a .json file of our settings.",
    )
    tokenizer: str = setting(
        "",
        "Tokenizer of an .npz, a sentencepiece .model or a tokenizer.json, if it is not the one "
        "that --model names.",
    )
    revision: str = setting("", "Branch, tag or commit of a model on the hub.")
    quick_gelu: bool = setting(
        False,
        "Read an open_clip model as trained with QuickGELU, as OpenAI's, DFN and MetaCLIP were, if "
        "its config does not record that.",
    )

    def _check(self) -> None:
        storage.check_scheme(
            self.source,
            "--source",
            ("gs",),
            "Download it, or give owner/name of a model on the Hugging Face hub.",
        )
        for name in ("model", "tokenizer"):
            storage.check_scheme(getattr(self, name), f"--{name}", ())
        if not self.source.endswith(".npz") and (self.model or self.tokenizer):
            raise ConfigError(
                "--model and --tokenizer are for .npz files; other sources hold their settings."
            )


@dataclasses.dataclass(frozen=True)
class ConvertConfig(SourceConfig):
    """The command's settings; each is a flag of the same name."""

    out: NonEmpty = setting("", "Folder to make.")
    to: Literal["aced", "huggingface", "open_clip", "big_vision", "stablehlo", "onnx"] = setting(
        "", "Format to write; aced is the model folder that a .checkpoint setting of a run takes."
    )
    text_length: NonNegativeInt = setting(
        huggingface.PIPELINE_LENGTH,
        "Text positions of a SigLIP written to huggingface. If the model reads fewer ids, "
        "positions are added that receive no attention, since pipeline() of transformers pads to "
        "64. 0: the weights stay as they are.",
    )
    license: str = setting(
        "", "License of the weights, for the model card: an identifier of the hub: apache-2.0, ..."
    )
    overwrite: bool = setting(
        False, "Replace an earlier output at --out, after the conversion has succeeded."
    )

    def _check(self) -> None:
        super()._check()
        storage.check_scheme(self.out, "--out", ())
        if self.text_length != huggingface.PIPELINE_LENGTH and self.to != "huggingface":
            raise ConfigError(
                f"--text_length is for --to=huggingface; leave it out for --to={self.to}."
            )
        if self.license and self.to not in card.LIBRARIES:
            raise ConfigError(
                f"--license is for model cards, which --to={self.to} does not write; the formats "
                f"with one are {', '.join(card.LIBRARIES)}."
            )


@dataclasses.dataclass(frozen=True)
class Converted:
    """The model that was read, and notes on differences of the output."""

    kind: str  # description of the source
    model: Model
    notes: list[str]


def convert(config: ConvertConfig) -> Converted:
    """Reads the source and writes it to `config.out`, atomically.

    Raises:
        InteropError: the source cannot be read, the format cannot express the model, or the output
            exists.
        ConfigError: its settings contradict each other.
        CheckpointError: the run lacks the checkpoint.
    """
    out = pathlib.Path(expand(config.out))
    _check_out(out, pathlib.Path(expand(config.source)), config.overwrite)
    kind, model = read(config)
    write: Callable[[Model, pathlib.Path], list[str] | None] = {
        "aced": model_folder.write,
        "huggingface": functools.partial(huggingface.write, text_length=config.text_length),
        "open_clip": open_clip_write.write,
        "big_vision": big_vision.write,
        "stablehlo": stablehlo.write,
        "onnx": onnx.write,
    }[config.to]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        notes = write(model, partial) or []
        if config.to in card.LIBRARIES:
            (partial / card.FILE).write_text(_card(config, kind, model, notes), encoding="utf-8")
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


def read(config: SourceConfig) -> tuple[str, Model]:
    """Returns a description of the source, and its model.

    Raises:
        InteropError, ConfigError, CheckpointError: see `convert`.
    """
    source = config.source
    if storage.is_remote(source):
        if not (epath.Path(source) / checkpointer.FOLDER).is_dir():
            raise InteropError(
                f"{source} has no {checkpointer.FOLDER}/, so it is not a run, and only runs are "
                "read from object stores; correct the path, or copy the model to a disk."
            )
        return _RUN, _read_run(config, source)
    path = pathlib.Path(expand(source))
    if not path.exists() and layouts.is_hub_name(source):
        path = hub.download(source, config.revision)
    if (path / checkpointer.FOLDER).is_dir():
        return _RUN, _read_run(config, str(path))
    layout = layouts.layout(path)
    if config.quick_gelu and layout != "open_clip":
        raise ConfigError(
            f"--quick_gelu is for models in open_clip's layout, and {source} is in another; leave "
            "it out."
        )
    if layout == "big_vision":
        return "big_vision's .npz", big_vision.read(path, config.model, config.tokenizer, source)
    if path.is_file():
        tensors.refuse_pickles([path.name], str(path.parent))
    if not path.is_dir():
        raise InteropError(
            f"{source} is not a folder, an .npz file, or an owner/name on the hub; give one of "
            "these."
        )
    if layout == "aced":
        return "a model folder", model_folder.read(str(path))
    if layout == "transformers":
        return "transformers' layout", huggingface.read(path, source)
    if layout == "open_clip":
        return "open_clip's layout", open_clip.read(path, source, config.quick_gelu)
    tensors.refuse_pickles((file.name for file in path.iterdir()), source)
    raise InteropError(
        f"{source} has no known format: it has neither {model_folder.FILE} (ours), nor "
        f"{record.FILE} with {checkpointer.FOLDER}/ (a run), nor {layouts.TRANSFORMERS_CONFIG} "
        f"(transformers), nor {layouts.OPEN_CLIP_CONFIG} (open_clip)."
    )


def _card(config: ConvertConfig, kind: str, model: Model, notes: list[str]) -> str:
    run = None
    if kind == _RUN:
        folder = str(epath.Path(expand(config.source)))
        run = card.training(folder, config.which, config.parameters)
    return card.text(
        model,
        config.to,
        name=pathlib.PurePath(config.out).name,
        license=config.license,
        base_model="" if pathlib.Path(expand(config.source)).exists() or run else config.source,
        run=run,
        notes=notes,
    )


def _read_run(config: SourceConfig, folder: str) -> Model:
    settings = trained_model(folder)
    params = checkpointer.load_params(
        folder, which=config.which, key=config.parameters, part="model"
    )
    tokens, content = settings.tokenizer, b""
    if tokens.path:
        try:
            content = pathlib.Path(tokens.path).read_bytes()
        except OSError as error:
            raise InteropError(
                f"The run's tokenizer.path cannot be read: {error}. Put the file back there."
            ) from error
        tokens = dataclasses.replace(tokens, path=TOKENIZER_FILES[tokens.kind])
    host = jax.tree.map(np.asarray, params)
    model = dataclasses.replace(settings, tokenizer=tokens)
    return Model(model, host, content, f"{config.source} ({config.which}, {config.parameters})")


def _check_out(out: pathlib.Path, source: pathlib.Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise InteropError(f"--out={out} is the source or contains it; choose another folder.")
    if not overwrite:
        raise InteropError(f"{out} already exists; choose another --out, or give --overwrite.")
    ours = any((out / mark).is_file() for mark in _MARKS)
    if not ours or (out / checkpointer.FOLDER).exists():
        raise InteropError(
            f"{out} is not an earlier output of this command, so it is not replaced; choose "
            "another --out."
        )

"""Reads a model in one format and writes it in another."""

import dataclasses
import pathlib
import secrets
import shutil
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from etils import epath

from aced.bounds import NonEmpty
from aced.checkpoints import checkpointer, record
from aced.config import ConfigError, expand
from aced.convert import big_vision, hub, huggingface, open_clip, open_clip_write
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.methods.frozen import trained_model
from aced.models import layouts, model_folder, tensors
from aced.models.saved import TOKENIZER_FILES, InteropError, Model

_MARKS = (
    model_folder.FILE,
    layouts.TRANSFORMERS_CONFIG,
    layouts.OPEN_CLIP_CONFIG,
    big_vision.WEIGHTS,
)


@dataclasses.dataclass(frozen=True)
class SourceConfig(FlagSettings):
    """What is read: a model, in any format."""

    source: NonEmpty = setting("", "Folder, .npz file, gs:// run, or owner/name on the hub.")
    which: Literal["last", "best"] = setting("last", "Of a run: which of its checkpoints.")
    parameters: Literal["params", "ema"] = setting(
        "params", "Of a run: the parameters, or their moving average."
    )
    model: str = setting(
        "", "Of an .npz: a model's name (CLIP-B/16, ...) or our settings in a .json file."
    )
    tokenizer: str = setting(
        "", "Of an .npz: a sentencepiece .model or tokenizer.json, if not as --model has it."
    )
    revision: str = setting("", "Of a model on the hub: branch, tag or commit.")

    def _check(self) -> None:
        storage.check_scheme(
            self.source,
            "--source",
            ("gs",),
            "Download it, or give owner/name of a model of the Hugging Face hub.",
        )
        if not self.source.endswith(".npz") and (self.model or self.tokenizer):
            raise ConfigError(
                "--model and --tokenizer are for .npz files; this source says itself."
            )


@dataclasses.dataclass(frozen=True)
class ConvertConfig(SourceConfig):
    """The command's settings; each is a flag of the same name."""

    out: NonEmpty = setting("", "Folder to make.")
    to: Literal["aced", "huggingface", "open_clip", "big_vision"] = setting(
        "", "Format to write: aced is the model folder that a run's .checkpoint takes."
    )
    overwrite: bool = setting(False, "Replace an earlier output at --out, once all went well.")

    def _check(self) -> None:
        super()._check()
        storage.check_scheme(self.out, "--out", ())


@dataclasses.dataclass(frozen=True)
class Converted:
    """The model that was read, and notes on differences of the output."""

    kind: str  # description of the source
    model: Model
    notes: list[str]


def convert(config: ConvertConfig) -> Converted:
    """Reads the source and writes it to `config.out`, atomically.

    Raises:
        InteropError: the source cannot be read, the format cannot express it, or the output
            exists.
        ConfigError: its settings contradict each other.
        CheckpointError: the run lacks the checkpoint.
    """
    out = pathlib.Path(expand(config.out))
    _check_out(out, pathlib.Path(expand(config.source)), config.overwrite)
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


def read(config: SourceConfig) -> tuple[str, Model]:
    """Returns a description of the source, and its model.

    Raises:
        InteropError, ConfigError, CheckpointError: see `convert`.
    """
    source = config.source
    if storage.is_remote(source):
        if not (epath.Path(source) / checkpointer.FOLDER).is_dir():
            raise InteropError(
                f"{source} has no {checkpointer.FOLDER}/, so it is no run, and only runs are "
                "read from object stores; correct it, or copy the model."
            )
        return "a run", _read_run(config, source)
    path = pathlib.Path(expand(source))
    if not path.exists() and layouts.is_hub_name(source):
        path = hub.download(source, config.revision)
    if (path / checkpointer.FOLDER).is_dir():
        return "a run", _read_run(config, str(path))
    layout = layouts.layout(path)
    if layout == "big_vision":
        return "big_vision's .npz", big_vision.read(path, config.model, config.tokenizer, source)
    if path.is_file():
        tensors.refuse_pickles([path.name], str(path.parent))
    if not path.is_dir():
        raise InteropError(
            f"{source} is no folder, no .npz, and no owner/name of the hub; give one of these."
        )
    if layout == "aced":
        return "a model folder", model_folder.read(str(path))
    if layout == "transformers":
        return "transformers' layout", huggingface.read(path, source)
    if layout == "open_clip":
        return "open_clip's layout", open_clip.read(path, source)
    tensors.refuse_pickles((file.name for file in path.iterdir()), source)
    raise InteropError(
        f"{source} is nothing that can be read: it has neither {model_folder.FILE} (ours), nor "
        f"{record.FILE} with {checkpointer.FOLDER}/ (a run), nor {layouts.TRANSFORMERS_CONFIG} "
        f"(transformers), nor {layouts.OPEN_CLIP_CONFIG} (open_clip)."
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
    if not ours or (out / checkpointer.FOLDER).exists():
        raise InteropError(f"{out} is no earlier output of this command; it is not replaced.")

"""Frozen models: the reference used for selection and the teachers used for distillation."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from absl import logging
from etils import epath
from jaxtyping import Array, Float, PyTree

from aced.bounds import PositiveFloat
from aced.cache import description, fingerprint
from aced.checkpoints import record
from aced.checkpoints.checkpointer import FOLDER, load_params
from aced.config import Checked, ConfigError, MayChange, expand, flatten, from_config
from aced.files import storage
from aced.models import layouts, model_folder, two_tower
from aced.models.base import ModelConfig
from aced.models.coca import CoCaConfig
from aced.models.saved import InteropError
from aced.models.two_tower import TwoTowerConfig

_COMPUTED = ("dtype", "scan", "remat", "attention")  # how a model is computed
_FREE = (*_COMPUTED, "init_scale", "init_bias")  # settings that may differ from the training run's


@dataclasses.dataclass(frozen=True)
class CheckpointOf(Checked):
    """The parameters of another run, or of a model folder written by `aced.convert`."""

    # Workdir of that run, or a model folder; "{workdir}" stands for the present run's workdir
    checkpoint: MayChange[str] = ""
    which: Literal["last", "best"] = "last"  # which checkpoint of a run
    parameters: Literal["params", "ema"] = "params"  # of a run: parameters, or their average

    def folder(self, workdir: str) -> str:
        """The expanded path of the run or model folder.

        Raises:
            ConfigError: the path has a scheme other than gs://.
        """
        path = expand(self.checkpoint, workdir)
        advice = (
            "Copy the run or model to one of these. For a model on the Hugging Face hub, run "
            + layouts.convert_command("OWNER/NAME")
        )
        storage.check_scheme(path, ".checkpoint (--model, --teacher)", ("gs",), advice)
        return str(epath.Path(path))


@dataclasses.dataclass(frozen=True)
class TrainedConfig(CheckpointOf):
    """A trained two-tower model: its parameters and its architecture."""

    # dtype, scan, remat and attention apply as set here. Everything else is read from the run's
    # config.json, the model folder's model.json or the cache, and is taken from here only while
    # none of these exists (pre-flight).
    model: TwoTowerConfig | None = None

    KIND: ClassVar[type[ModelConfig]] = TwoTowerConfig
    cache: ClassVar[str] = ""  # no cache, unless a subclass has the setting

    def resolve(self, workdir: str, towers: Sequence[str] = ()) -> "TrainedConfig":
        """Returns the config with `checkpoint` expanded, and `model` as it was trained.

        Raises:
            ConfigError: `checkpoint` holds no run or model.
        """
        del towers
        folder = self.folder(workdir)
        model = as_trained(self.model, trained_model(folder, self.KIND), folder)
        return dataclasses.replace(self, checkpoint=folder, model=model)


@dataclasses.dataclass(frozen=True)
class TrainedCoCaConfig(TrainedConfig):
    """A trained CoCa: its parameters and its architecture."""

    model: CoCaConfig | None = None

    KIND: ClassVar[type[ModelConfig]] = CoCaConfig


@dataclasses.dataclass(frozen=True)
class FrozenConfig(TrainedConfig):
    """A trained two-tower model that runs, or whose embeddings are in a cache."""

    # Folder written by `python -m aced.cache`: the embeddings come with the batch, and the model is
    # neither loaded nor run. If `checkpoint` is set as well, it must be the model that was cached.
    cache: MayChange[str] = ""
    # Scale and bias of its logits; None: the model's own. A model without bias (trained with the
    # softmax loss, like CLIP) needs one for the sigmoid loss; `python -m aced.cache` fits both.
    scale: PositiveFloat | None = None
    bias: float | None = None

    def resolve(self, workdir: str, towers: Sequence[str] = ("image", "text")) -> "FrozenConfig":
        """Returns the config completed from its run, or from its cache of `towers`.

        `checkpoint` and `cache` are expanded, and `model` is as it was trained; None for a cache of
        another library's model. With a cache, `scale` and `bias` default to those of the cache.

        Raises:
            ConfigError: `checkpoint` holds no run or model.
            CacheError: `cache` holds no complete cache, or lacks a tower.
        """
        if self.cache:
            return self._resolve_cached(workdir, towers)
        return super().resolve(workdir) if self.checkpoint else self

    def cache_folder(self, workdir: str) -> str:
        """The expanded path of the cache.

        Raises:
            ConfigError: the path has a scheme.
        """
        path = expand(self.cache, workdir)
        storage.check_scheme(path, ".cache", ())
        return str(epath.Path(path))

    def _resolve_cached(self, workdir: str, towers: Sequence[str]) -> "FrozenConfig":
        folder = self.cache_folder(workdir)
        plan = description.read_complete(folder).plan
        if missing := [tower for tower in towers if not plan.has(tower)]:
            raise description.CacheError(
                f"{folder} holds only {plan.towers} embeddings, but {missing[0]} embeddings are "
                "needed; make it with --towers=both."
            )
        if self.checkpoint and holds_model(own := self.folder(workdir)):
            description.refuse(folder, _other_model(trained_model(own), plan))
        model = None
        if plan.model is not None:
            model = as_trained(self.model, plan.model, folder)
            if plan.bias is None:
                model = dataclasses.replace(model, init_bias=None)
        return dataclasses.replace(
            self,
            checkpoint=self.folder(workdir) if self.checkpoint else "",
            cache=folder,
            model=model,
            scale=plan.scale if self.scale is None else self.scale,
            bias=plan.bias if self.bias is None else self.bias,
        )

    @property
    def width(self) -> int:
        """Channels of the embeddings of a resolved model or cache."""
        if self.model is not None:
            return self.model.width
        return description.read_complete(self.cache).plan.width

    def logits(self, params: PyTree | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The configured scale and bias, or else those of `params` (None: a cached model)."""
        own = (None, jnp.float32(0)) if params is None else two_tower.logit_parameters(params)
        pairs = zip((self.scale, self.bias), own, strict=True)
        return tuple(default if x is None else jnp.float32(x) for x, default in pairs)

    def check_bias(self, key: str) -> None:
        """Raises a ConfigError if the model has no logit bias, which the sigmoid loss needs."""
        own = None if self.model is None else self.model.init_bias
        if self.bias is not None or own is not None:
            return
        advice = "`python -m aced.cache` fits both to the data and prints them"
        if self.cache and description.is_complete(self.cache):
            fitted = description.read_complete(self.cache).fitted
            advice = "the cache has no fitted values, because there is no best scale"
            if fitted is not None:
                advice = f"the fit to the data gives scale = {fitted.scale}, bias = {fitted.bias}"
        raise ConfigError(
            f"The model of {key} has no bias (it was trained with the softmax loss), but the "
            f"sigmoid loss reads it. Set {key}.bias, and {key}.scale, which fits the other loss: "
            f"{advice}."
        )


def holds_model(folder: str) -> bool:
    """Whether `folder` is a run's workdir or a model folder."""
    return model_folder.is_model_folder(folder) or (epath.Path(folder) / record.FILE).exists()


def trained_model(folder: str, kind: type[ModelConfig] = TwoTowerConfig) -> ModelConfig:
    """The model of the run in `folder`, as in its config.json, or of a (two-tower) model folder.

    Raises:
        ConfigError: the folder holds neither, is damaged, or holds another kind of model.
    """
    if kind is TwoTowerConfig and model_folder.is_model_folder(folder):
        return model_folder.read_config(folder)
    file = epath.Path(folder) / record.FILE
    _check_ours(folder)
    if not file.exists():
        raise ConfigError(
            f"{folder} holds no run (no {record.FILE}) and no model (no {model_folder.FILE}). "
            "Train the reference or teacher first, or set its .checkpoint to a workdir of "
            "aced.main or a folder written by python -m aced.convert."
        )
    settings = record.read(file.parent).settings
    try:
        model = settings["method"]["model"]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} has no method.model; set .checkpoint to a workdir of aced.main."
        ) from error
    try:
        return from_config(kind, model, f"{file}:method.model")
    except ConfigError as error:
        wanted = kind.__name__.removesuffix("Config")
        raise ConfigError(f"{folder} holds no {wanted} model, which is needed: {error}") from error


def evaluated_parameters(folder: str) -> Literal["params", "ema"]:
    """The parameters that the training of the model in `folder` evaluates.

    Returns:
        "ema" for a run that keeps a moving average, otherwise "params": a model that is not a run
        has one set of parameters.
    """
    run = epath.Path(folder)
    if not (run / FOLDER).is_dir():
        return "params"
    return "ema" if record.read(run).settings.get("ema_decay", 0) > 0 else "params"


def _check_ours(folder: str) -> None:
    """Raises a ConfigError for a missing folder, and for a foreign layout, with the remedy."""
    if not epath.Path(folder).exists():
        message = (
            f"{folder} does not exist; it must be a run of aced.main, or a folder written by "
            "python -m aced.convert. Correct the path (--workdir, --model or .checkpoint)."
        )
        if layouts.is_hub_name(folder):
            command = layouts.convert_command(folder)
            message += f" To convert a model of the Hugging Face hub: {command}"
        raise ConfigError(message)
    layout = None
    with contextlib.suppress(InteropError):  # a config.json that is not transformers'
        layout = layouts.layout(pathlib.Path(folder))
    if layout not in (None, "aced"):
        raise ConfigError(
            f"{folder} holds a model in the layout of {layout}; a reference or teacher is read "
            "from a run or from our own model folder. Convert it, and give the new folder: "
            + layouts.convert_command(folder)
        )


def as_trained(assumed: ModelConfig | None, trained: ModelConfig, folder: str) -> ModelConfig:
    """The model in `folder`, computed as in `assumed`. Warns of other differences.

    Recipes assume a model so that pre-flight works before the model is trained.
    """
    if assumed is None:
        return trained
    if lines := _differences(assumed, trained, (*_FREE, "tokenizer.path")):
        logging.warning(
            "The model in %s is used as it is, although these settings assume another one: %s",
            folder,
            "; ".join([*lines[:10], *(["..."] if len(lines) > 10 else [])]),
        )
    return dataclasses.replace(trained, **{name: getattr(assumed, name) for name in _COMPUTED})


def check_same_model(
    wanted: ModelConfig, trained: ModelConfig, folder: str, free: Sequence[str] = ()
) -> None:
    """Checks that the model `wanted` can be initialised from `trained`, the model in `folder`.

    The settings `free` may differ, beside those that never matter.

    Raises:
        ConfigError: architecture or preprocessing differ; the message names the settings.
    """
    lines = _differences(wanted, trained, (*_FREE, *free, "tokenizer.path"))
    ours, theirs = wanted.tokenizer, trained.tokenizer
    prints = [fingerprint.of_tokenizer(x) for x in (ours, theirs) if ours.path != theirs.path]
    if len(set(prints)) > 1:
        lines.append(f"tokenizer.path: here {ours.path!r}, there {theirs.path!r}, another file")
    if lines:
        raise ConfigError(
            f"The model in {folder} was trained with other settings ({'; '.join(lines)}). Choose "
            "another checkpoint, or use its model in a config file: config.method.model = "
            f"to_config(trained_model({folder!r})), with aced.config and aced.methods.frozen."
        )


def _other_model(model: ModelConfig, plan: description.Plan) -> list[str]:
    """The settings in which a cached model differs from `model`."""
    if plan.model is None:
        return [f"model: there {plan.other.library}'s {plan.other.name}; set .checkpoint to ''"]
    lines = _differences(model, plan.model, (*_FREE, "tokenizer.path"))
    if fingerprint.of_tokenizer(model.tokenizer) != plan.fingerprint["tokenizer"]:
        lines.append(f"tokenizer: {model.tokenizer.path or model.tokenizer.kind} has other ids")
    return lines


def _differences(wanted: ModelConfig, trained: ModelConfig, free: Sequence[str]) -> list[str]:
    ours, theirs = _settings(wanted), _settings(trained)
    differing = [key for key in ours if key not in free and ours[key] != theirs.get(key)]
    return [f"{key}: here {ours[key]!r}, there {theirs.get(key)!r}" for key in differing]


def _settings(model: ModelConfig) -> dict[str, Any]:
    """Every setting by its path, with named sizes replaced by their dimensions."""
    out = flatten(dataclasses.asdict(model))
    for name in ("image", "text"):
        tower = getattr(model, name)
        if getattr(tower, "architecture", "vit") == "vit":
            sizes = dataclasses.asdict(tower.dims)
            out |= {f"{name}.{key}": value for key, value in sizes.items()} | {f"{name}.size": ""}
    return out


def load_model(item: CheckpointOf, shapes: PyTree | None) -> PyTree:
    """The parameters of another run's model, or of a model folder.

    Raises:
        CheckpointError: the checkpoint is missing, or its parameters have other shapes.
        ConfigError: the model folder is broken, or `item` requests what only runs have.
    """
    if model_folder.is_model_folder(item.checkpoint):
        if (item.which, item.parameters) != ("last", "params"):
            raise ConfigError(
                f"{item.checkpoint} is a model folder, which has one set of parameters. Leave "
                ".which and .parameters at their defaults, which are for checkpoints of runs."
            )
        return model_folder.read_params(item.checkpoint, shapes)
    return load_params(item.checkpoint, shapes, which=item.which, key=item.parameters, part="model")

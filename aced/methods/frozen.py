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
    which: Literal["last", "best"] = "last"  # of a run's checkpoints
    parameters: Literal["params", "ema"] = "params"  # of a run

    def folder(self, workdir: str) -> str:
        """The expanded path of the run or model folder.

        Raises:
            ConfigError: the path has a scheme other than gs://.
        """
        path = expand(self.checkpoint, workdir)
        advice = (
            "Copy the run or model to one of these; a model of the Hugging Face hub is fetched by: "
            + layouts.convert_command("OWNER/NAME")
        )
        storage.check_scheme(path, ".checkpoint (--model, --teacher)", ("gs",), advice)
        return str(epath.Path(path))


@dataclasses.dataclass(frozen=True)
class TrainedConfig(CheckpointOf):
    """A trained two-tower model: its parameters and its architecture."""

    # How it is computed. All else is as written in the run's config.json, the model folder's
    # model.json or the cache; what stands here of that is assumed where there is none of these.
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

    # Folder that `python -m aced.cache` wrote: the embeddings come with the batch, and the model is
    # neither loaded nor run. With a checkpoint as well, it must be the one that was cached.
    cache: MayChange[str] = ""
    # Of its logits; None: the model's own. One without bias (trained with the softmax loss, as
    # CLIP is) needs one where the loss is the sigmoid; `python -m aced.cache` fits both.
    scale: PositiveFloat | None = None
    bias: float | None = None

    def resolve(self, workdir: str, towers: Sequence[str] = ("image", "text")) -> "FrozenConfig":
        """Returns the config completed from its run, or from its cache of `towers`.

        `checkpoint` and `cache` are expanded, and `model` is as it was trained. With a cache,
        `scale` and `bias` default to those of the cache.

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
                f"{folder} holds {plan.towers} embeddings alone, but {missing[0]} embeddings are "
                "needed; make it with --towers=both."
            )
        if self.checkpoint and holds_model(own := self.folder(workdir)):
            description.refuse(folder, _other_model(trained_model(own), plan))
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

    def logits(self, params: PyTree | None) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The configured scale and bias, or else those of `params` (None: a cached model)."""
        own = (None, jnp.float32(0)) if params is None else two_tower.logit_parameters(params)
        pairs = zip((self.scale, self.bias), own, strict=True)
        return tuple(default if x is None else jnp.float32(x) for x, default in pairs)

    def check_bias(self, key: str) -> None:
        """Raises a ConfigError if the model has no logit bias, which the sigmoid loss needs."""
        if self.bias is not None or self.model.init_bias is not None:
            return
        advice = "`python -m aced.cache` fits both to the data and prints them"
        if self.cache and description.is_complete(self.cache):
            fitted = description.read_complete(self.cache).fitted
            advice = "the cache has no fit, since no scale is best"
            if fitted is not None:
                advice = f"fitted to the data are scale = {fitted.scale}, bias = {fitted.bias}"
        raise ConfigError(
            f"The model of {key} has no bias (it was trained with the softmax loss), but the "
            f"sigmoid loss reads it. Set {key}.bias, and {key}.scale, which fits the other loss: "
            f"{advice}."
        )


def holds_model(folder: str) -> bool:
    """Whether `folder` is a run's workdir or a model folder."""
    run = epath.Path(folder) / record.FILE
    return model_folder.is_model_folder(folder) or run.exists()


def trained_model(folder: str, kind: type[ModelConfig] = TwoTowerConfig) -> ModelConfig:
    """The model of the run in `folder`, as its config.json has it, or of a model folder.

    Args:
        folder: a run or a model folder; model folders hold two-tower models.
        kind: the expected config class.

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
            "Train the reference or teacher first, or point its .checkpoint at a workdir of "
            "aced.main or at what python -m aced.convert wrote."
        )
    settings = record.read(file.parent).settings
    try:
        model = settings["method"]["model"]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} names no method.model; point .checkpoint at a workdir of aced.main."
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
            f"{folder} does not exist, but a model should be there: a run of aced.main, or what "
            "python -m aced.convert wrote. Correct the path (--workdir, --model or .checkpoint)."
        )
        if layouts.is_hub_name(folder):
            command = layouts.convert_command(folder)
            message += f" A model of the Hugging Face hub is converted by: {command}"
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
    """The model in `folder`, computed as `assumed` has it. Warns of other differences.

    Recipes assume a model so that pre-flight works before the model is trained.
    """
    if assumed is None:
        return trained
    if lines := _differences(assumed, trained, (*_FREE, "tokenizer.path")):
        logging.warning(
            "The model in %s is used as it is, which is not what these settings assume: %s",
            folder,
            "; ".join([*lines[:10], *(["..."] if len(lines) > 10 else [])]),
        )
    return dataclasses.replace(trained, **{name: getattr(assumed, name) for name in _COMPUTED})


def check_same_model(
    wanted: ModelConfig, trained: ModelConfig, folder: str, free: Sequence[str] = ()
) -> None:
    """Checks that a model can be initialised from a trained one.

    Args:
        wanted: the model to initialise.
        trained: the trained model.
        folder: folder of the trained model.
        free: further settings that may differ.

    Raises:
        ConfigError: architecture or preprocessing differ; the message names the settings.
    """
    lines = _differences(wanted, trained, (*_FREE, *free, "tokenizer.path"))
    ours, theirs = wanted.tokenizer, trained.tokenizer
    if ours.path != theirs.path and fingerprint.of_tokenizer(ours) != fingerprint.of_tokenizer(
        theirs
    ):
        lines.append(f"tokenizer.path: here {ours.path!r}, there {theirs.path!r}, another file")
    if lines:
        raise ConfigError(
            f"The model in {folder} was trained with other settings ({'; '.join(lines)}). Choose "
            "another checkpoint, or take its model over in a config file: config.method.model = "
            f"to_config(trained_model({folder!r})), with aced.config and aced.methods.frozen."
        )


def _other_model(model: ModelConfig, plan: description.Plan) -> list[str]:
    """The settings in which a cached model differs from `model`."""
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
        ConfigError: the model folder is broken, or `item` asks for what only runs have.
    """
    if model_folder.is_model_folder(item.checkpoint):
        if (item.which, item.parameters) != ("last", "params"):
            raise ConfigError(
                f"{item.checkpoint} is a model folder: it has one set of parameters. Leave .which "
                "and .parameters as they are; python -m aced.convert has flags of these names."
            )
        return model_folder.read_params(item.checkpoint, shapes)
    return load_params(item.checkpoint, shapes, which=item.which, key=item.parameters, part="model")

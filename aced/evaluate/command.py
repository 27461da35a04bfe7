"""Which model is evaluated on what, and the evaluations one after another."""

import dataclasses
import datetime
import time
from collections.abc import Sequence
from typing import Literal

import jax
from absl import logging
from etils import epath
from jaxtyping import PyTree

from aced import evaluators
from aced.bounds import NonNegativeInt, PositiveInt
from aced.cache import fingerprint
from aced.checkpoints import record
from aced.config import ConfigError, Settings, expand
from aced.data.sources import open_source
from aced.data.tokenizers import get_tokenizer
from aced.evaluate.results import Entry, Results
from aced.evaluators import benchmarks, classification, folders, prompts, suites
from aced.evaluators.config import EvalConfig
from aced.evaluators.suites import Suites
from aced.files import ownership, storage
from aced.flag_settings import FlagSettings, setting
from aced.methods.frozen import CheckpointOf, evaluated_parameters, load_model, trained_model
from aced.models import int8_weights, model_folder
from aced.models.base import ModelConfig
from aced.models.two_tower import TwoTowerConfig
from aced.parallel import distributed
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig
from aced.train import program
from aced.train.config import parse


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(FlagSettings):
    """Which parameters of which model, on which data sets."""

    model: str = setting("", "A run's workdir or a converted model's folder. Empty: the workdir.")
    which: Literal["last", "best"] = setting("last", "Of a run's checkpoints.")
    parameters: Literal["trained", "params", "ema"] = setting(
        "trained", "Of a run: as its training evaluated them, themselves, or their moving average."
    )
    precision: Literal["model", "float32", "bfloat16", "int8_weights"] = setting(
        "model", "The model's own dtype, another one, or weights in 8-bit integers."
    )
    data: tuple[str, ...] = setting(
        (),
        "Data sets: a folder as CLIP_benchmark, DataComp, Hugging Face (parquet) or aced.prepare "
        "write it, a folder of such folders, or a pattern: --data='/data/wds/*'. May be repeated.",
    )
    suite: tuple[str, ...] = setting(
        (),
        "Only the data sets of a published suite, and their average: "
        f"{', '.join(benchmarks.SUITES)}. May be repeated.",
    )
    kind: Literal["auto", "zeroshot", "linear_probe", "retrieval"] = setting(
        "auto", "Of the evaluation; auto: zeroshot where pictures have classes, else retrieval."
    )
    prompts: str = setting(
        "",
        "Class names and prompts: open_clip:imagenet, open_clip:imagenet_simple, clip_benchmark, "
        "clip_benchmark:NAME, or a JSON file. Empty: those that the data sets bring.",
    )
    classes: Literal["named", "occurring"] = setting(
        "named", "The classes to choose from: all that have a name, or those of the labels."
    )
    label: str = setting("", "Column of the class in parquet that has several such columns.")
    batch_size: PositiveInt = setting(EvalConfig.batch_size, "Pictures or texts at once.")
    bootstrap: NonNegativeInt = setting(
        0, "Samples for intervals of 95 % of the numbers of --data; 1000 is usual, 0: none."
    )
    out: str = setting(
        "", "Folder of results.json, results.md and results.svg. Empty: MODEL/evaluation."
    )
    baselines: str = setting("", "results.json files to compare with, separated by commas.")
    json: bool = setting(False, "Print the numbers as JSON.")

    def _check(self) -> None:
        storage.check_scheme(self.out, "--out", storage.STORES)


def run(
    config: Settings | None,
    wanted: EvaluateConfig,
    workdir: str,
    devices: Sequence[jax.Device] | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Evaluates and writes results.json. Evaluations that it holds already are not run again.

    All processes make this call, with the same arguments.

    Args:
        config: settings of a `TrainConfig`, whose evaluations are added; None: none.
        wanted: the model, the kind of its parameters, and data sets.
        workdir: replaces "{workdir}"; the default place of the model.
        devices: the devices to use; None: all.
        force: see `ownership.FORCE`.

    Returns:
        The numbers as "NAME/NUMBER", and averages as "suite/NAME".

    Raises:
        ConfigError: a setting is wrong, or the model is missing or of another kind.
        CheckpointError: the checkpoint is missing.
    """
    item = CheckpointOf(checkpoint=wanted.model or workdir, which=wanted.which)
    folder = item.folder(workdir)
    kind, mesh_config, evaluations, averaged = _of_config(config, folder)
    model = trained_model(folder, kind)
    evaluations = _with_data_sets(evaluations, wanted)
    parameters = wanted.parameters
    if parameters == "trained":
        parameters = evaluated_parameters(folder)
    item = dataclasses.replace(item, checkpoint=folder, parameters=parameters)
    model.check_tokenizer(get_tokenizer(model.tokenizer))
    if wanted.precision in ("float32", "bfloat16"):
        model = dataclasses.replace(model, dtype=wanted.precision)
    mesh = meshes.make_mesh(devices, mesh_config)
    out = out_folder(wanted, workdir)
    owned = ownership.owned(f"{out}/{ownership.FILE}", force)
    with distributed.entered_by_first(owned), jax.set_mesh(mesh):
        params = load_model(item, program.model_shapes(model, mesh, mesh_config.rules))
        if wanted.precision == "int8_weights":
            params = jax.jit(int8_weights.quantized)(params)
        results = Results(out, folder, fingerprint.of_placed(params), model)
        numbers = _evaluate(evaluations, model, mesh, params, results)
        averages = suites.averages(numbers, averaged)
        for suite in wanted.suite:
            averages |= _average(suite, numbers)
        results.finish(averages)
    return numbers | averages


def out_folder(wanted: EvaluateConfig, workdir: str) -> str:
    """The folder of the results."""
    if wanted.out:
        return expand(wanted.out)
    model = CheckpointOf(checkpoint=wanted.model or workdir).folder(workdir)
    choices = "" if wanted.which == "last" else "_best"
    choices += "" if wanted.parameters == "trained" else f"_{wanted.parameters}"
    choices += "" if wanted.precision == "model" else f"_{wanted.precision}"
    return str(epath.Path(model) / f"evaluation{choices}")


def _of_config(
    config: Settings | None, folder: str
) -> tuple[type[ModelConfig], MeshConfig, dict[str, EvalConfig], Suites]:
    """The kind of the model, the mesh, the evaluations and the suites of a config.

    Without a config, the kind is that of the run in `folder`.
    """
    if config is not None:
        settings = parse(config)
        kind = type(settings.method.model)
        return kind, settings.mesh, dict(settings.evals), settings.suites
    kind = TwoTowerConfig
    if not model_folder.is_model_folder(folder) and (epath.Path(folder) / record.FILE).exists():
        kind = type(parse(record.read(epath.Path(folder)).settings).method.model)
    return kind, MeshConfig(), {}, {}


def _with_data_sets(
    evaluations: dict[str, EvalConfig], wanted: EvaluateConfig
) -> dict[str, EvalConfig]:
    """Adds the evaluations of the flags, and logs which data sets of the suites are missing."""
    if wanted.suite and not wanted.data:
        raise ConfigError("--suite needs the folder of its data sets: add --data=FOLDER.")
    choices = folders.Choices(
        wanted.kind, wanted.label, wanted.classes, wanted.batch_size, wanted.bootstrap
    )
    missing = {}
    if wanted.data:
        found, missing = folders.chosen(folders.find(wanted.data), wanted.suite, choices)
        if clash := found.keys() & evaluations.keys():
            raise ConfigError(
                f"{sorted(clash)[0]!r} is an evaluation of the config and a data set of --data; "
                "rename one of them."
            )
        evaluations = evaluations | found
    for name, reason in missing.items():
        logging.warning("%s is missing and left out: %s", name, reason)
    if not evaluations:
        raise ConfigError(
            "There is nothing to evaluate: give data sets (--data=FOLDER, also with --suite), or "
            "a --config with evaluations (config.evals)."
        )
    if not wanted.prompts:
        return evaluations
    return {name: _worded(name, e, wanted.prompts) for name, e in evaluations.items()}


def _worded(name: str, evaluation: EvalConfig, source: str) -> EvalConfig:
    """The evaluation with class names and prompts of `--prompts`, as far as it has any.

    A data set with another number of names keeps its own: a package's names are of a whole data
    set, such as ImageNet, and the data set may be a subset, or another one.
    """
    if evaluation.kind not in ("zeroshot", "linear_probe"):
        return evaluation
    words = prompts.read(source, name.removesuffix(benchmarks.PROBE))
    own = classification.class_names(evaluation, open_source(evaluation.data))
    own = own or words.class_names
    given = {key: value for key, value in words._asdict().items() if value}
    if len(own) != len(words.class_names) and prompts.is_package(source):
        given.pop("class_names", None)
    logging.info(
        "%s takes from %s: %s. It has %d class names of its own.",
        name, source, ", ".join(given) or "nothing", len(own),
    )  # fmt: skip
    return dataclasses.replace(evaluation, **given)


def _evaluate(
    evaluations: dict[str, EvalConfig],
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    params: PyTree,
    results: Results,
) -> dict[str, float]:
    """The numbers of all evaluations, those that `results` holds without running them again."""
    numbers, due = {}, {}
    for name, evaluation in evaluations.items():
        entry = _entry(name, evaluation)
        if (known := results.numbers(entry)) is not None:
            logging.info("%s is in %s already.", name, results.file)
            numbers |= known
        else:
            due[name] = entry
    # All are made before the first is run, so that mistakes in their settings end the command now.
    made = {name: evaluators.build(entry.config, model, mesh) for name, entry in due.items()}
    left, done, started = sum(entry.examples for entry in due.values()), 0, time.monotonic()
    for place, (name, entry) in enumerate(due.items(), 1 + len(evaluations) - len(due)):
        before = time.monotonic()
        eta = f"; ETA {_duration((before - started) / done * left)}" if done else ""
        logging.info(
            "Set %d of %d: %s, %d examples%s", place, len(evaluations), name, entry.examples, eta
        )
        values = {f"{name}/{k}": float(x) for k, x in made.pop(name)(params).items()}
        results.add(entry, values, time.monotonic() - before)
        numbers |= values
        done, left = done + entry.examples, left - entry.examples
    order = list(evaluations)
    return dict(sorted(numbers.items(), key=lambda x: order.index(x[0].rpartition("/")[0])))


def _entry(name: str, evaluation: EvalConfig) -> Entry:
    source = open_source(evaluation.data)
    words = classification.class_names, classification.templates
    also = [tuple(of(evaluation, source)) for of in words]
    if evaluation.kind == "linear_probe":
        also.append((open_source(evaluation.probe.data).fingerprint,))
    return Entry(name, evaluation, source.fingerprint, len(source), also)


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _average(suite: str, numbers: dict[str, float]) -> dict[str, float]:
    missing = benchmarks.missing(suite, numbers)
    average = benchmarks.average(suite, numbers)
    if missing:
        logging.warning(
            "%s is not the average of the suite: %d of its numbers are missing, %s.",
            next(iter(average), f"suite/{suite}"),
            len(missing),
            ", ".join(missing),
        )
    return average

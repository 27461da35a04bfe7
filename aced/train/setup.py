"""Sets a run up for its first step: caches, state, frozen models, evaluations."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from aced import evaluators
from aced.cache import Cache, fingerprint, open_for
from aced.checkpoints import record
from aced.checkpoints.checkpointer import Checkpointer
from aced.config import ConfigError
from aced.data import pipeline, sources
from aced.data.concepts import concept_list
from aced.data.picks import PicksAhead
from aced.data.streams import SideBySide, Stream
from aced.data.tokenizers import get_tokenizer
from aced.methods.base import Method
from aced.methods.frozen import FrozenConfig, load_model
from aced.metrics.progress import announced
from aced.models.vit import ImageConfig
from aced.optim import durations, state
from aced.parallel import mesh as meshes
from aced.train import program, starting_model
from aced.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its first step."""

    settings: TrainConfig
    program: program.Program
    folder: epath.Path
    sources: dict[str, sources.Source]  # of the program's streams, by key prefix
    # Cached embeddings of frozen models, by key prefix of the stream, then within the stream.
    caches: dict[str, dict[str, Cache]]
    start: int | None  # restored step; None: a new run
    state: state.TrainState
    frozen: dict[str, PyTree]
    checkpoints: Checkpointer
    evals: dict[str, tuple[int, evaluators.Evaluator]]  # period in steps, evaluator


def set_up(settings: TrainConfig, mesh: Mesh, folder: epath.Path, source: sources.Source) -> Run:
    """Opens the caches, loads the frozen models, and builds or restores the state.

    Raises:
        ConfigError: sizes do not fit together, or the run in `folder` had other settings.
        CacheError: embeddings are missing, damaged, or of another model or other data.
        CheckpointError: a checkpoint is missing, or its shapes differ.
    """
    with announced("Building the program"):
        prog = program.build(settings, mesh, len(source))
    by_stream = {
        prefix: source if stream.data == settings.data else opened(stream.data)
        for prefix, stream in prog.streams.items()
    }
    for prefix, stream in prog.streams.items():
        stream.check(by_stream[prefix])
        _warn_of_whole_candidates(stream)
    caches = opened_caches(prog.streams, by_stream)
    _check_models(prog.method)
    frozen = {}
    for name, item in prog.method.frozen.items():
        with announced(f"Loading {name} from {item.checkpoint}"):
            frozen[name] = load_model(item, prog.frozen[name])

    # The record of the run, which a resumed run must match.
    digests = _digests(prog, frozen, caches)
    record.check(folder, settings, source.fingerprint, digests)
    checkpoints = Checkpointer(folder, settings.checkpoint)
    train_state, start = _restored(prog, checkpoints, folder)
    if train_state is None:
        train_state = _new_state(prog, settings, frozen, folder)
    if start is None or start < prog.total_steps:  # the record of a finished run stays as it is
        record.write(folder, settings, source.fingerprint, digests)
    return Run(
        settings=settings,
        program=prog,
        folder=folder,
        sources=by_stream,
        caches=caches,
        start=start,
        state=train_state,
        frozen=frozen,
        checkpoints=checkpoints,
        evals=_evaluations(prog, settings),
    )


def _check_models(method: Method) -> None:
    """Compares the models that run with their tokenizers, and warns of pixels that they leave out.

    Raises:
        ConfigError: a vocabulary and its model do not fit together.
    """
    for prefix, model in method.models.items():
        name = prefix.rstrip("/") or "method.model"
        _warn_of_rest(name, model.image)
        try:
            model.check_tokenizer(get_tokenizer(model.tokenizer))
        except ConfigError as error:
            raise ConfigError(f"The model {name}: {error}") from error


def _digests(
    prog: program.Program, frozen: Mapping[str, PyTree], caches: Mapping[str, Mapping[str, Cache]]
) -> dict[str, str]:
    """Digests of what a run reads beside its data, by what they are of."""
    digests = {f"{name}'s weights": fingerprint.of_placed(p) for name, p in frozen.items()}
    for prefix, model in prog.method.models.items():
        name = f"{prefix.rstrip('/') or 'model'}'s tokenizer"
        digests[name] = fingerprint.of_tokenizer(model.tokenizer)
    for prefix, stream in prog.streams.items():
        for name, cache in caches[prefix].items():
            digests[f"{prefix}{name}".rstrip("/")] = cache.description.digest
        if stream.concepts:
            digests[f"{prefix}list of concepts"] = concept_list(stream.concepts).digest
    return digests


def _restored(
    prog: program.Program, checkpoints: Checkpointer, folder: epath.Path
) -> tuple[state.TrainState, int] | tuple[None, None]:
    """The state and the step of the newest checkpoint, if there is one."""
    with announced("Restoring the newest checkpoint"):
        train_state, start = checkpoints.restore_or(prog.state, default=(None, None))
    if start is not None and start < prog.total_steps:
        logging.info(
            "%s resumes after step %s of %s.", folder, f"{start:,}", f"{prog.total_steps:,}"
        )
    return train_state, start


def _new_state(
    prog: program.Program, settings: TrainConfig, frozen: dict[str, PyTree], folder: epath.Path
) -> state.TrainState:
    """The state of a new run: random, or with the model of another run."""
    with announced("Initializing the model and the optimizer"):
        train_state = prog.new_state(jax.random.key(settings.seed), frozen)
        jax.block_until_ready(train_state)
    train_state = starting_model.with_initial_model(train_state, settings, folder)
    return starting_model.with_given_parts(train_state, prog.method.given)


def _evaluations(
    prog: program.Program, settings: TrainConfig
) -> dict[str, tuple[int, evaluators.Evaluator]]:
    """The evaluations of a run with their periods in steps, by name."""
    evals = {}
    for name, item in settings.evals.items():
        every = durations.steps(item, "every", **prog.sizes, default=prog.total_steps)
        with announced(f"Preparing the evaluation {name}"):
            evals[name] = every, evaluators.build(item, prog.method.config.model, prog.mesh)
    return evals


def opened(data: sources.DataConfig) -> sources.Source:
    """Opens the data set that `data` names, and logs how many examples it has."""
    place = data.place
    with announced(f"Opening {place}"):
        source = sources.open_source(data)
    logging.info("Data: %s, %s examples.", place, f"{len(source):,}")
    return source


def opened_caches(
    streams: Mapping[str, Stream], by_stream: Mapping[str, sources.Source]
) -> dict[str, dict[str, Cache]]:
    """Opens the caches of all streams, by prefix; streams of the same data share theirs.

    Raises:
        CacheError: as `open_for`.
    """
    known: list[tuple[sources.DataConfig, FrozenConfig, Cache]] = []
    caches: dict[str, dict[str, Cache]] = {prefix: {} for prefix in streams}
    for prefix, stream in streams.items():
        for name, item in stream.caches.items():
            same = (cache for *key, cache in known if key == [stream.data, item])
            cache = next(same, None)
            if cache is None:
                cache = _open(item, by_stream[prefix], stream.data)
                known.append((stream.data, item, cache))
            caches[prefix][name] = cache
    return caches


def _open(item: FrozenConfig, source: sources.Source, data: sources.DataConfig) -> Cache:
    """Opens a frozen model's cache. If a checkpoint is set too, its weights are compared."""
    weights = functools.partial(load_model, item, None) if item.checkpoint else None
    with announced(f"Opening the embeddings in {item.cache}"):
        return open_for(item.cache, source, data, weights)


def _warn_of_rest(name: str, tower: ImageConfig) -> None:
    """Warns of pixels outside the patches. Some published models have them (So400m/14 at 384)."""
    if rest := tower.resolution % tower.patch:
        logging.warning(
            "%s: image.resolution = %d is not a multiple of patch = %d; the last %d pixels of each "
            "row and column are not looked at.",
            name,
            tower.resolution,
            tower.patch,
            rest,
        )


def _warn_of_whole_candidates(stream: Stream) -> None:
    """Warns where candidates that are scored ahead are not decoded small."""
    if stream.ahead and stream.views and stream.data.augmentations:
        logging.warning(
            "With data.augmentations = %d the whole picture of every candidate is decoded, because "
            "augmentations are parts of it, so method.score_ahead = %d saves nothing. Set one of "
            "the two to 0.",
            stream.data.augmentations,
            stream.ahead,
        )


def input_batches(run: Run, start: int, counters: pipeline.InputCounters) -> SideBySide:
    """This process's share of the input, for the steps after `start`."""
    prog = run.program
    picks = PicksAhead(start, prog.method.ahead)
    return SideBySide(
        {prefix: stream_batches(run, prefix, start, counters, picks) for prefix in prog.streams},
        picks,
    )


def stream_batches(
    run: Run,
    prefix: str,
    start: int,
    counters: pipeline.InputCounters,
    picks: PicksAhead | None = None,
    steps: int | None = None,
) -> pipeline.Batches:
    """This process's share of a stream, for the steps after `start`.

    `picks` gives the picks of a stream of picks. The stream ends after `steps`; None: it does not.
    """
    stream = run.program.streams[prefix]
    # What is scored ahead is trained on, so both streams leave out what any of their caches lacks.
    others = run.caches.values() if run.program.method.ahead else ()
    return pipeline.train_batches(
        run.sources[prefix],
        stream.data,
        stream.views,
        batch_size=stream.picked_from or stream.rows,
        seed=run.settings.seed,
        start_step=start + stream.ahead,
        steps=steps,
        rows=meshes.local_rows(run.program.mesh, stream.rows),
        counters=counters,
        caches=run.caches[prefix],
        missing=[cache.missing for caches in others for cache in caches.values()],
        picks=picks if stream.picked_from else None,
        concepts=stream.concepts,
    )

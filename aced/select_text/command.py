"""Chooses sentences from a corpus."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jax.sharding import Mesh
from jaxtyping import UInt64

from aced.config import ConfigError
from aced.data import records
from aced.data.records import DatasetError
from aced.files import ownership
from aced.parallel import distributed
from aced.parallel import mesh as meshes
from aced.parallel.preemption import Preemption
from aced.select_text import budget, prompts, reading, snapshot
from aced.select_text.collecting import Collection
from aced.select_text.config import SelectTextConfig
from aced.select_text.corpus import Corpus
from aced.select_text.images import Images, open_images
from aced.select_text.reading import Reading, Sentences
from aced.select_text.sentences import Sample, hashes, normalise
from aced.select_text.snapshot import State
from aced.select_text.workspace import Workspace

_SHARD = 4_000_000  # sentences


@dataclasses.dataclass(frozen=True)
class Selection:
    """The parts of a selection."""

    config: SelectTextConfig
    corpus: Corpus
    prompts: list[str]  # task-aware texts, which come first
    images: Images | None  # None: without a teacher
    workspace: Workspace
    settings: dict[str, Any]  # settings and fingerprints for dataset.json
    preemption: Preemption

    @property
    def searches(self) -> bool:
        """Whether neighbours are searched."""
        return self.config.method == "nearest"

    @property
    def compares(self) -> bool:
        """Whether the chosen sentences are compared with a random sample."""
        return self.searches and self.config.compare

    @property
    def block(self) -> int:
        """Sentences that this process reads at a time."""
        return self.images.block if self.images else self.config.block


def run(
    config: SelectTextConfig,
    devices: Sequence[jax.Device] | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Chooses sentences and writes them to `config.out`, resuming an earlier run.

    All processes call this, with the same arguments.

    Args:
        config: the settings.
        devices: the devices to use; None: all.
        force: take the output over from another process that is known to be dead.

    Returns:
        The statistics in the data set's dataset.json.

    Raises:
        ConfigError: a setting is wrong, `out` has another selection, or another process makes it.
        DatasetError: a data set or cache is missing or damaged, or the corpus was changed meanwhile
            or has no sentence.
        StorageError: a file of the corpus is missing or cannot be read.
        SystemExit: with `preemption.EXIT_CODE` after SIGTERM, `INTERRUPTED` after Ctrl-C.
    """
    mesh = meshes.make_mesh(devices)
    alone = ownership.owned(ownership.beside(config.out), force)
    with (
        jax.set_mesh(mesh),
        Preemption() as preemption,
        distributed.entered_by_first(alone),
    ):
        selection = set_up(config, mesh, preemption)
        if selection.workspace.begin(selection.settings):
            logging.info("%s is finished.", config.out)
        else:
            read_all(selection)
            chosen, sample = choose(selection)
            texts, others = find(selection, chosen, sample)
            measured = measure(selection, texts, others)
            if jax.process_index() == 0:
                write(selection, texts, measured)
        selection.workspace.leave()
    return records.read_description(config.out)["statistics"]


def set_up(config: SelectTextConfig, mesh: Mesh, preemption: Preemption) -> Selection:
    """Lists the corpus, loads the teacher and the images."""
    workspace = Workspace(config.out)
    distributed.check_shared(workspace.out.parent)
    corpus = Corpus(config.corpus_config, normalise)
    if config.method == "captions" and any(part.kind for part in corpus.parts):
        raise ConfigError(
            "--method=captions takes the captions of data sets, but --corpus names other files; "
            "give it the folders of the images' data sets."
        )
    texts = task_texts(config)
    images = open_images(config, mesh) if config.teacher else None
    settings = config.of_contents() | {"corpus": corpus.fingerprint}
    settings["prompts"] = f"{int(np.bitwise_xor.reduce(hashes(texts), initial=np.uint64(0))):016x}"
    settings |= images.fingerprints if images else {}
    return Selection(config, corpus, texts, images, workspace, settings, preemption)


def task_texts(config: SelectTextConfig) -> list[str]:
    """The distinct, normalised class names in their templates."""
    if not config.class_names:
        return []
    names = prompts.read_lines(config.class_names, "class_names")
    templates = prompts.TEMPLATES
    if config.templates:
        templates = prompts.read_lines(config.templates, "templates")
    texts = prompts.prompts(names, templates, config.templates_per_class, config.seed)
    texts = list(dict.fromkeys(map(normalise, texts)))
    if len(texts) > config.budget:
        raise ConfigError(
            f"--class_names make {len(texts)} texts, more than --budget={config.budget}; raise it, "
            "or lower --templates_per_class."
        )
    return texts


def read_all(selection: Selection) -> None:
    """The first pass over the corpus, whose result is the saved state."""
    config, images, workspace = selection.config, selection.images, selection.workspace
    state = State(
        blocks=0,
        reading=Reading.start(len(selection.corpus.parts)),
        sample=Sample(config.budget, config.seed),
        found=images.search.empty() if selection.searches else None,
    )
    search = images.search if selection.searches else None
    state = snapshot.restore(workspace, state, search, images.count if images else 0)
    if state.blocks:
        logging.info("%s goes on after block %d.", config.out, state.blocks)
    blocks = stream(selection, state.reading, "1/2 compared" if search else "1/2 drawn")
    texts, saved = next(blocks, None), time.monotonic()
    while distributed.anywhere(texts is not None):
        if texts is not None:
            state.sample.add(texts.hashes)
            state.reading = texts.reading
        if selection.searches:
            state.found = images.see(state.found, texts.texts if texts else [])
        state.blocks += 1
        preempted = selection.preemption.reached(state.blocks)
        if distributed.anywhere(time.monotonic() - saved > 60 * config.save_minutes) or preempted:
            snapshot.save(workspace, state)
            saved = time.monotonic()
        if preempted:
            logging.warning("Block %d is saved; start the same command again.", state.blocks)
            sys.exit(selection.preemption.exit_code)
        texts = next(blocks, None)
    snapshot.save(workspace, state)


def stream(selection: Selection, start: Reading, name: str) -> Iterator[Sentences]:
    """This process's share of the unread corpus, with a progress bar."""
    corpus = selection.corpus
    numbers = reading.share_of(start, jax.process_index(), jax.process_count())
    total = sum(corpus.parts[number].size for number in numbers)
    disable = None if jax.process_index() == 0 else True  # None: unless on a terminal
    blocks = reading.blocks(corpus, numbers, start, selection.block)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=disable) as bar:
        before, begin = start.counts["sentences"], time.monotonic()
        for texts in reading.one_ahead(blocks):
            yield texts
            bar.update(texts.work - bar.n)
            speed = (texts.reading.counts["sentences"] - before) / (time.monotonic() - begin)
            bar.set_postfix_str(f"{speed * jax.process_count():,.0f} sentences/s")


def choose(selection: Selection) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " s"]]:
    """Hashes of the chosen sentences, in order, and of a random sample of the same size."""
    workspace, size = selection.workspace, selection.config.budget
    if jax.process_index() == 0:
        sample = snapshot.sample(workspace, Sample(size, selection.config.seed)).hashes()
        first = hashes(selection.prompts)
        if selection.searches:
            lists = snapshot.neighbours(workspace, selection.images.count)
            others = budget.ranked(*lists, size - len(first), first)
        else:
            others = sample[~np.isin(sample, first)][: size - len(first)]
        chosen = np.concatenate([first, others])
        if not len(chosen):
            raise DatasetError(
                "There is no sentence to choose; what was left out of the corpus: "
                f"{dict(snapshot.counts(workspace)) or 'nothing'}."
            )
        compared = sample[: len(chosen) * selection.compares]
        workspace.save_arrays("chosen.npz", {"chosen": chosen, "sample": compared})
    workspace.wait_for_all("chosen")
    arrays = workspace.load_arrays("chosen.npz")
    return arrays["chosen"], arrays["sample"]


def find(
    selection: Selection, chosen: UInt64[np.ndarray, " n"], sample: UInt64[np.ndarray, " s"]
) -> tuple[Collection, Collection]:
    """The second pass: collects the texts of `chosen` and `sample`."""
    root = selection.workspace.root
    texts = Collection(root / "chosen-texts", chosen)
    others = Collection(root / "sample-texts", sample)
    if jax.process_index() == 0:
        texts.offer(selection.prompts, hashes(selection.prompts))
    start = Reading.start(len(selection.corpus.parts))
    for block in stream(selection, start, "2/2 collected"):
        for collection in (texts, others):
            collection.offer(block.texts, block.hashes)
        # With several processes JAX catches the signal and they continue; the first pass is saved.
        if jax.process_count() == 1 and selection.preemption.reached(0):
            logging.warning("The first pass is saved; start the same command again.")
            sys.exit(selection.preemption.exit_code)
    for collection in (texts, others):
        collection.close()
    selection.workspace.wait_for_all("collected")
    return texts, others


def measure(selection: Selection, texts: Collection, others: Collection) -> dict[str, Any]:
    """Similarity of the images to the chosen sentences, and to the random sample."""
    if selection.images is None or not selection.config.compare:
        return {}
    similarity = {"chosen": selection.images.similarity(texts.own())}
    if selection.compares:
        similarity["random"] = selection.images.similarity(others.own())
    return {"similarity": similarity}


def write(selection: Selection, texts: Collection, measured: dict[str, Any]) -> None:
    """Writes the data set."""
    workspace, chosen = selection.workspace, texts.hashes
    statistics: dict[str, Any] = {
        "sentences": len(chosen),
        "prompts": len(selection.prompts),
        "corpus": dict(sorted(snapshot.counts(workspace).items())),
    }
    if selection.images is not None:
        statistics["images"] = selection.images.count
    if selection.searches:
        lists = snapshot.neighbours(workspace, selection.images.count)
        statistics |= budget.kept(*lists, chosen)
    out = workspace.root / "out"
    out.mkdir(exist_ok=True)
    examples = (
        records.Example(image=b"", texts=(text,), key=f"{number:016x}")
        for number, text in zip(chosen.tolist(), texts.all(), strict=True)
    )
    shards = min(len(chosen), selection.config.shards or -(-len(chosen) // _SHARD))
    split = records.write_split(out, "train", examples, len(chosen), shards)
    records.write_description(
        out, {"train": split}, statistics=statistics | measured, settings=selection.settings
    )
    workspace.publish()

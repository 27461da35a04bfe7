"""OPTIMA end to end: a CoCa distilled on five tasks, by the bandit and by every baseline.

    python -m benchmarks.openclipart --out=data/openclipart
    python -m benchmarks.optima --data=data/openclipart --work=/tmp/optima \\
        --task=entailment --task=two_pictures --task=questions \\
        --out=benchmarks/results/optima_answers.csv \\
        --arms=benchmarks/results/optima_answers_arms.csv

A teacher is pretrained on captioned scenes and fine-tuned on four tasks of them: questions,
entailment, statements about two pictures, captions; entailment and two pictures after questions. A
fifth one learns to caption Open Clip Art alone; see `TASKS`. Students of half the layers, which
they start from, are distilled on each task for the same number of steps, by several seeds. An
interrupted benchmark goes on; --task does one task alone.

Columns: the task's score on held-out examples (accuracy; CIDEr-D of captions), also as a share of
the teacher's, and the modules' losses of the last batch; "most frequent answer" is what can be had
without looking. --arms gets, pull by pull, what was played
and what it was worth.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
import tokenizers
from absl import app, flags

from aced.config import to_config
from aced.data import records
from aced.data.shapes.scenes import ShapesConfig
from aced.data.shapes.tasks import CLASS_NAMES, open_shapes
from aced.evaluators import EvalConfig
from aced.methods.bandit import BanditConfig
from aced.methods.coca import CoCaTrainConfig
from aced.methods.coca_task import CoCaTaskConfig
from aced.methods.optima import MODULES, LayerWeights, OptimaConfig
from aced.metrics import history
from aced.models.coca import CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.models.vit import ImageConfig
from aced.train import loop, summary
from aced.train.config import TrainConfig
from benchmarks import table
from configs import small, tiny

_DATA = flags.DEFINE_string("data", None, "What openclipart.py made.", required=True)
_WORK = flags.DEFINE_string("work", None, "Folder for the runs.", required=True)
_OUT = flags.DEFINE_string("out", None, "The CSV of scores to write.", required=True)
_ARMS = flags.DEFINE_string("arms", None, "The CSV of pulls to write.", required=True)
_TASKS = flags.DEFINE_multi_string("task", None, "Tasks to do; none: all.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each student.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of each student, of 32 examples.")
_PULL = flags.DEFINE_integer("pull", 10, "Steps of a pull.")
# Squares of these models' hidden states are large: with weights of 1 the layers' losses are
# hundreds of times as large as the task's.
_LAYER_WEIGHT = flags.DEFINE_float("layer_weight", 0.01, "Of every module's layerwise loss.")
_PRETRAINING = flags.DEFINE_integer(
    "pretraining_steps", 2000, "Steps of the teacher on captions, of 64."
)

RESOLUTION, WIDTH, WORDS = 48, 64, 2000
POSITIONS, SHORT = 32, 16  # words of captions of scenes; of questions and statements


@dataclasses.dataclass(frozen=True)
class Task:
    """What a task's models are like, and how its teacher is made."""

    steps: int  # of 64 examples
    start: str = "pretrained"  # the run that the teacher starts from; "": none
    warmup: float = 5.0  # percent of the teacher's steps
    patch: int = 16  # pixels a side: a token for each of the nine places of a scene
    queries: int = 9
    head_hidden: int = 0


# From captions alone nothing was learned of statements in as many steps. What a linear head reads
# of two pictures is added up, and no sum tells whether they are alike: hence its hidden layer. Of
# Open Clip Art there are few pictures.
TASKS = {
    "questions": Task(5000),
    "entailment": Task(3000, "questions/teacher"),
    "two_pictures": Task(4000, "questions/teacher", head_hidden=128),
    "captions": Task(2000),
    "openclipart": Task(1000, "", warmup=10.0, patch=12, queries=8),
}
BLIND = "most frequent answer"
# How students differ: settings of the method `optima`.
STUDENTS = {
    "OPTIMA": {},
    "all modules": {"arms": "all"},
    "random module": {"bandit": BanditConfig(policy="uniform")},
    "image alone": {"bandit": BanditConfig(policy="fixed", fixed_arm=0)},
    "unimodal alone": {"bandit": BanditConfig(policy="fixed", fixed_arm=1)},
    "multimodal alone": {"bandit": BanditConfig(policy="fixed", fixed_arm=2)},
    "stationary": {"bandit": BanditConfig(discount=1.0)},
    "epsilon-greedy": {"bandit": BanditConfig(policy="epsilon_greedy")},
    "no layers": {"arms": "none"},
}


def is_captioning(task: str) -> bool:
    """Whether words are written; else answers are chosen."""
    return task in ("captions", "openclipart")


def score_of(task: str) -> str:
    """The number that a task is judged by."""
    return "val/cider" if is_captioning(task) else "val/accuracy"


def model(task: str, work: pathlib.Path, *, depth: int) -> ml_collections.ConfigDict:
    """A CoCa of `depth` layers in each module."""
    size, made = {"width": WIDTH, "mlp": 4 * WIDTH, "heads": 4}, TASKS[task]
    image = ImageConfig(patch=made.patch, resolution=RESOLUTION, pool="none", depth=depth, **size)
    text = DecoderConfig(unimodal=depth, multimodal=depth, length=POSITIONS, **size)
    config = to_config(CoCaConfig(image=image, text=text, queries=made.queries))
    if task == "openclipart":
        config.tokenizer.kind = "hf"
        config.tokenizer.path = str(work / "tokenizer.json")
        config.text.vocab_size = WORDS
        config.text.eos_id = 1
    else:
        tiny.use_scenes_tokenizer(config, POSITIONS)
    config.tokenizer.length = POSITIONS if task == "captions" else SHORT
    config.classes = len(CLASS_NAMES.get(task, ()))
    config.head_hidden = made.head_hidden
    config.pictures = 2 if task == "two_pictures" else 1
    return config


def run(
    task: str,
    method: object,
    own: ml_collections.ConfigDict,
    *,
    steps: int,
    seed: int,
    peak: float = 1e-3,
    warmup: float = 10.0,
) -> ml_collections.ConfigDict:
    """A run of `method` on a task, evaluated at its end."""
    config = to_config(TrainConfig())
    config.batch_size = 64
    config.total_steps = steps
    config.seed = seed
    config.method = to_config(method)
    config.method.model = own
    if config.method.name != "coca":
        config.method.task = "captioning" if is_captioning(task) else "answers"
    config.optimizer.schedule.kind = "cosine"
    config.optimizer.schedule.peak = peak
    config.optimizer.schedule.warmup_percent = warmup
    config.log_steps = _PULL.value
    config.picks_steps = 0
    config.checkpoint.every_steps = 500
    if is_captioning(task):
        config.evals.val = to_config(EvalConfig(kind="captioning", max_examples=600))
    else:
        config.evals.val = to_config(EvalConfig(kind="answers", max_examples=2000))
    for data, split, scenes in (
        (config.data, "train", 200_000),
        (config.evals.val.data, "val", 2_000),
    ):
        data.num_threads = 2
        data.caption = "first"
        if task == "openclipart":
            small.read(data, f"{_DATA.value}/clean", split)
        else:
            data.shapes.task = task
            data.shapes.split = split
            data.shapes.size = scenes
            data.shapes.resolution = RESOLUTION
    return config


def pretraining(work: pathlib.Path) -> ml_collections.ConfigDict:
    """The model that the teachers of scenes start from."""
    own = model("captions", work, depth=4)
    length = {"steps": _PRETRAINING.value, "peak": 2e-3, "warmup": TASKS["captions"].warmup}
    return run("captions", CoCaTrainConfig(), own, seed=1, **length)


def teacher(task: str, work: pathlib.Path) -> ml_collections.ConfigDict:
    """Fine-tuned, or for Open Clip Art trained alone."""
    own, made = model(task, work, depth=4), TASKS[task]
    method = CoCaTaskConfig(model=CoCaConfig(classes=2))  # its own model comes with `run`
    config = run(task, method, own, steps=made.steps, seed=1, warmup=made.warmup)
    if made.start:
        config.init.checkpoint = str(work / made.start)
    return config


def make_teacher(task: str, work: pathlib.Path) -> None:
    """Trains the teacher of a task, and before it what that starts from; what is there stays."""
    start = TASKS[task].start
    if start == "pretrained":
        loop.run(pretraining(work), str(work / start))
    elif start:
        make_teacher(start.removesuffix("/teacher"), work)
    loop.run(teacher(task, work), str(work / task / "teacher"))


def student(task: str, name: str, seed: int, work: pathlib.Path) -> ml_collections.ConfigDict:
    """One of `STUDENTS`."""
    own = model(task, work, depth=2)
    weights = LayerWeights(*[_LAYER_WEIGHT.value] * len(MODULES))
    method = OptimaConfig(pull_steps=_PULL.value, layer_weights=weights, **STUDENTS[name])
    config = run(task, method, own, steps=_STEPS.value, seed=seed)
    config.batch_size = 32
    config.method.teacher.checkpoint = str(work / task / "teacher")
    return config


def write_tokenizer(path: pathlib.Path) -> None:
    """The most frequent words of Open Clip Art's captions."""
    if path.exists():
        return
    source = records.open_dataset(f"{_DATA.value}/clean", "train")
    texts = [text.lower() for i in range(len(source)) for text in source[i]["texts"]]
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.WordLevelTrainer(vocab_size=WORDS, special_tokens=special)
    found.train_from_iterator(texts, trainer)
    found.save(str(path))


def without_pictures(task: str, examples: int = 4000) -> float:
    """Accuracy of the most frequent answer to texts with the same first three words."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)

    def read(split: str, size: int) -> Iterator[tuple[str, int]]:
        scenes = open_shapes(ShapesConfig(task=task, split=split, size=size, resolution=16))
        found = (scenes.example(i) for i in range(size))
        return ((" ".join(e.text.split()[:3]), e.label) for e in found)

    for words, label in read("train", examples):
        counts[words][label] += 1
    best = {words: found.most_common(1)[0][0] for words, found in counts.items()}
    return float(np.mean([best.get(words) == label for words, label in read("val", examples)]))


def row(task: str, name: str, seed: int, workdir: pathlib.Path, best: float | None) -> dict:
    """The numbers of a finished run."""
    values = summary.values(workdir)
    score = float(values[score_of(task)])
    out = {"task": task, "run": name, "seed": seed, "steps": values["step"]}
    out |= {"flops": f"{values['flops']:.3e}", "score": f"{score:.4f}"}
    out["share"] = "" if best is None else f"{score / best:.4f}"
    return out | {f"loss/{m}": f"{values.get(f'loss/{m}', float('nan')):.4f}" for m in MODULES}


def pulls(task: str, name: str, seed: int, workdir: pathlib.Path) -> list[dict]:
    """What a run played, a row each."""
    rows = []
    for line in history.read(workdir):
        on = [m for m in MODULES if line[f"bandit/played/{m}"]]
        reward = f"{line['bandit/reward']:.4f}"  # of the pull before
        out = {"task": task, "run": name, "seed": seed, "step": line["step"]}
        rows.append(out | {"played": "+".join(on), "reward_before": reward})
    return rows


def main(argv: list[str]) -> None:
    """Runs what is missing, and writes the tables after every run."""
    del argv
    work = pathlib.Path(_WORK.value).resolve()
    work.mkdir(parents=True, exist_ok=True)
    # The seeds of a student are one program.
    jax.config.update("jax_compilation_cache_dir", os.fspath(work / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    write_tokenizer(work / "tokenizer.json")
    scores, played = [], []
    for task in _TASKS.value or TASKS:
        folder = work / task
        make_teacher(task, work)
        scores.append(row(task, "teacher", 1, folder / "teacher", None))
        best = float(scores[-1]["score"])
        if not is_captioning(task):
            blind = f"{without_pictures(task):.4f}"
            scores.append(
                dict.fromkeys(scores[-1], "") | {"task": task, "run": BLIND, "score": blind}
            )
        for seed in range(_SEEDS.value):
            for name in STUDENTS:
                workdir = folder / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
                loop.run(student(task, name, seed, work), str(workdir))
                scores.append(row(task, name, seed, workdir, best))
                played += pulls(task, name, seed, workdir)
                print(scores[-1], flush=True)
                table.write(_OUT.value, scores)
                table.write(_ARMS.value, played)
    print_means(scores)


def print_means(rows: list[dict]) -> None:
    """Mean and spread of the scores over the seeds."""
    for task, name in dict.fromkeys((item["task"], item["run"]) for item in rows):
        found = [float(x["score"]) for x in rows if (x["task"], x["run"]) == (task, name)]
        print(f"{task:14}{name:18}{np.mean(found):.3f} +- {np.std(found):.3f}")


if __name__ == "__main__":
    app.run(main)

"""DIME-FM end to end: a small image encoder from unpaired pictures and sentences, and what each
part of the method gives.

    python -m benchmarks.openclipart --out=data/openclipart
    python -m benchmarks.dime --data=data/openclipart --work=/tmp/dime \\
        --out=benchmarks/results/dime.csv

A teacher is trained on clean pairs of Open Clip Art and `shapes`. Its features of other pictures
(scenes of another seed, and all of Open Clip Art's training pictures) and of sentences that are
chosen from a corpus (captions of scenes of a third seed, all captions of Open Clip Art, and
sentences of shuffled words) are made once. Students of the same small image tower are trained with
all losses, with one alone, and on as many random sentences; and contrastively, with a text tower of
the teacher's size of their own, on the pictures with their captions: as many pairs as the others
have pictures. Each by several seeds, at equal steps. An interrupted benchmark goes on.

    python -m benchmarks.dime --data=data/openclipart --work=/tmp/dime \\
        --runs=DIME-FM --linear_probe --out=benchmarks/results/dime_probe.csv

--linear_probe trains nothing: it makes a table of linear probes of the runs that are there, on the
classes of scenes, beside zero-shot classification of the same held-out ones.

Columns: retrieval (R@1, mean of both directions) and zero-shot accuracy on held-out scenes,
retrieval on held-out drawings, all also as a share of the teacher's; `flops`, of training alone.
"""

import pathlib
import random

import ml_collections
import numpy as np
from absl import app, flags

from aced import evaluate
from aced.cache.command import run as make_cache
from aced.cache.config import CacheConfig
from aced.config import to_config
from aced.data import records
from aced.data.shapes.scenes import Shapes, ShapesConfig
from aced.data.sources import MemberConfig
from aced.methods.dime import DimeConfig
from aced.select_text.command import run as select_text
from aced.select_text.config import SelectTextConfig
from aced.train import loop, summary
from benchmarks import table
from configs import small

_DATA = flags.DEFINE_string("data", None, "What openclipart.py made.", required=True)
_WORK = flags.DEFINE_string("work", None, "Folder for the runs.", required=True)
_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each student.")
_STEPS = flags.DEFINE_integer("steps", 400, "Steps of each student, of 128 pictures.")
_RUNS = flags.DEFINE_multi_string("runs", None, "Students to train, by name; none: all.")
_DEPTH = flags.DEFINE_integer("depth", 2, "Layers of a student.")
_CROP = flags.DEFINE_float("crop", 0.5, "Least share of a picture that students see; 1: all.")
_WIDTH = flags.DEFINE_integer("width", 64, "Channels of a student.")
_PROBE = flags.DEFINE_boolean("linear_probe", False, "Probe the finished runs instead.")
_TEACHER_STEPS = flags.DEFINE_integer("teacher_steps", 1500, "Steps of the teacher, of 64 pairs.")

LENGTH = 32  # tokens: captions of scenes have up to 30 words
BATCH = 128
SCENES, SENTENCES = 20_000, 8_000
# Weights of the three terms. "contrastive" has none, "random sentences" differs in its stream.
STUDENTS = {
    "DIME-FM": (0.7, 0.3, 0.0),
    "score alone": (1.0, 0.0, 0.0),
    "pseudo alone": (0.0, 1.0, 0.0),
    "distances alone": (0.0, 0.0, 1.0),
    "random sentences": (0.7, 0.3, 0.0),
    "contrastive": None,
}
PROBED = 10_000  # scenes that a probe's head is trained on
NUMBERS = ("scenes/mean_r1", "classes/top1", "drawings/mean_r1")


def mixture(data: ml_collections.ConfigDict, seed: int, drawings: str) -> None:
    """Lets `data` be scenes of this seed and the drawings in a folder, three to one."""
    scenes = to_config(MemberConfig(weight=3.0))
    scenes.shapes.seed = seed
    scenes.shapes.size = SCENES
    scenes.shapes.resolution = 48
    clips = to_config(MemberConfig())
    small.read(clips, drawings, "train")
    data.source = "mixture"
    data.mixture = {"scenes": scenes, "drawings": clips}


def run(*, depth: int, width: int, steps: int, seed: int, batch: int) -> ml_collections.ConfigDict:
    """Contrastive training of both towers; evaluated on scenes and drawings."""
    size = {"depth": depth, "width": width, "steps": steps, "seed": seed}
    config = small.run(f"{_DATA.value}/clean", f"{_DATA.value}/clean", **size)
    config.batch_size = batch
    config.data.num_threads = 4
    model = config.method.model
    model.text.length = LENGTH
    model.tokenizer.length = LENGTH
    drawings = config.evals.retrieval
    config.evals = {"drawings": drawings}
    for name, kind in (("scenes", "retrieval"), ("classes", "zeroshot")):
        evaluation = drawings.copy_and_resolve_references()
        evaluation.kind = kind
        evaluation.max_examples = 1000
        evaluation.data.source = "shapes"
        evaluation.data.shapes.split = "val"
        evaluation.data.shapes.resolution = 48
        evaluation.templates = ("a {}", "a picture of a {}")
        config.evals[name] = evaluation
    return config


def teacher() -> ml_collections.ConfigDict:
    """On clean pairs that no student sees."""
    config = run(depth=4, width=128, steps=_TEACHER_STEPS.value, seed=1000, batch=64)
    mixture(config.data, 1, f"{_DATA.value}/clean")
    return config


def student(name: str, seed: int, work: pathlib.Path) -> ml_collections.ConfigDict:
    """One of `STUDENTS`."""
    size = {"depth": _DEPTH.value, "width": _WIDTH.value, "steps": _STEPS.value}
    config = run(**size, seed=seed, batch=BATCH)
    mixture(config.data, 2, f"{_DATA.value}/all")
    image, weights = config.method.model.image, STUDENTS[name]
    if weights is None:
        towers = teacher().method.model
        config.method.model.text = towers.text
        config.method.model.embed_dim = towers.image.width
        return config
    config.method = to_config(DimeConfig())
    method = config.method
    method.model.image = image
    method.teacher.checkpoint = str(work / "teacher")
    method.teacher.cache = str(work / "pictures")
    chosen = "random" if name == "random sentences" else "nearest"
    small.read(method.sentences.data, str(work / chosen), "train")
    method.sentences.cache = str(work / f"{chosen}_features")
    loss = method.loss
    loss.score_weight, loss.pseudo_weight, loss.distance_weight = weights
    # Scenes are about places, left and right: crops of 8 % and flips, as in the paper, change them.
    method.augment.crop_area = (_CROP.value, 1.0)
    method.augment.flip = 0.0
    return config


def write_corpus(path: pathlib.Path) -> None:
    """Captions of scenes and of drawings, and as many sentences of the same words, shuffled."""
    scenes = Shapes(ShapesConfig(seed=3, size=SCENES // 2, resolution=16))
    lines = [scenes[i]["texts"][0] for i in range(len(scenes))]
    drawings = records.open_dataset(f"{_DATA.value}/all", "train")
    lines += [text for i in range(len(drawings)) for text in drawings[i]["texts"]]
    words = [word for line in lines for word in line.split()]
    rng = random.Random(0)
    lines += [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(len(lines))]
    rng.shuffle(lines)
    path.write_text("\n".join(" ".join(line.split()) for line in lines) + "\n", encoding="utf-8")


def prepare(work: pathlib.Path) -> None:
    """The teacher, its features of the pictures, the sentences and its features of them."""
    loop.run(teacher(), str(work / "teacher"))
    first = student("DIME-FM", 0, work)
    settings = CacheConfig(model="teacher", out=str(work / "pictures"), towers="image")
    make_cache(first, settings, str(work))
    if not (corpus := work / "corpus.txt").exists():
        write_corpus(corpus)
    for method in ("nearest", "random"):
        chosen = SelectTextConfig(
            corpus=(str(corpus),),
            out=str(work / method),
            method=method,
            budget=SENTENCES,
            k=4,
            teacher=str(work / "teacher"),
            features=str(work / "pictures"),
            block=4096,
        )
        print(method, select_text(chosen), flush=True)
        name = "DIME-FM" if method == "nearest" else "random sentences"
        settings = CacheConfig(
            model="sentences", out=str(work / f"{method}_features"), towers="text"
        )
        make_cache(student(name, 0, work), settings, str(work))


def probe(name: str, seed: int, workdir: pathlib.Path) -> dict:
    """The linear probe of a finished run, and its zero-shot classification."""
    config = run(depth=2, width=64, steps=1, seed=seed, batch=BATCH)  # the model is the run's own
    linear = config.evals.classes.copy_and_resolve_references()
    linear.kind = "linear_probe"
    linear.probe.data = linear.data.copy_and_resolve_references()
    linear.probe.data.shapes.split = "train"
    linear.probe.max_examples = PROBED
    config.evals = {"classes": config.evals.classes, "probe": linear}
    found = evaluate.run(config, evaluate.EvaluateConfig(), str(workdir))
    chosen = [f"probe/{key}" for key in ("learning_rate", "weight_decay", "epochs")]
    numbers = ["classes/top1", "probe/top1", "probe/validation_top1", *chosen]
    return {"run": name, "seed": seed} | {key: f"{found[key]:.4g}" for key in numbers}


def row(name: str, seed: int, workdir: pathlib.Path, best: dict[str, float] | None) -> dict:
    """The numbers of a finished run, and their shares of the teacher's."""
    values = summary.values(workdir)
    found = {number: float(values[number]) for number in NUMBERS}
    out = {"run": name, "seed": seed, "steps": values["step"], "flops": f"{values['flops']:.3e}"}
    out |= {number: f"{value:.4f}" for number, value in found.items()}
    if best is not None:
        out |= {f"{number} share": f"{found[number] / best[number]:.4f}" for number in NUMBERS}
    return out


def folder(work: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Where a student is."""
    return work / f"{name.replace(' ', '_')}-{seed}"


def write_probes(work: pathlib.Path) -> None:
    """The table of --linear_probe."""
    runs = [("teacher", 0, work / "teacher")]
    for seed in range(_SEEDS.value):
        runs += [(name, seed, folder(work, name, seed)) for name in _RUNS.value or STUDENTS]
    table.write(_OUT.value, [probe(*run) for run in runs])


def main(argv: list[str]) -> None:
    """Runs what is missing, and writes the table after every run."""
    del argv
    work = pathlib.Path(_WORK.value).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if _PROBE.value:
        write_probes(work)
        return
    prepare(work)
    values = summary.values(work / "teacher")
    best = {number: float(values[number]) for number in NUMBERS}
    rows = [row("teacher", 0, work / "teacher", best)]
    for seed in range(_SEEDS.value):
        for name in _RUNS.value or STUDENTS:
            workdir = folder(work, name, seed)
            loop.run(student(name, seed, work), str(workdir))
            rows.append(row(name, seed, workdir, best))
            print(rows[-1], flush=True)
            table.write(_OUT.value, rows)
    print_means(rows)


def print_means(rows: list[dict]) -> None:
    """Mean and spread over the seeds."""
    for name in dict.fromkeys(item["run"] for item in rows):
        parts = []
        for number in NUMBERS:
            found = np.array([float(item[number]) for item in rows if item["run"] == name])
            parts.append(f"{number} {found.mean():.3f} +- {found.std():.3f}")
        print(f"{name:18}", "   ".join(parts))


if __name__ == "__main__":
    app.run(main)

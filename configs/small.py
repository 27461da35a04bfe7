"""ACED on your own pairs, small enough for a CPU or one GPU: 48 px, CLIP's vocabulary.

Command:  python -m aced.prepare --images=PICTURES --captions=captions.jsonl --val=800 \\
              --clean_column=vendor=google --out=/data/all
          python -m aced.main --config=configs/small.py:data=/data/all
          The reference is trained on the split `clean`, or on a second prepared set of pairs that
          you trust, `clean=PATH`; with `method=iid` none is needed. Tars as img2dataset writes
          them, and parquet, need no preparation, only some of them kept for `val`:
          python -m aced.main \\
              --config='configs/small.py:method=iid,data=/data/{00000..00098}.tar,val=/data/00099.tar'
Hardware: 2 CPU cores; or any GPU.
Cost:     3.82e13 FLOPs, derived from aced/cost/flops.py.
Expect:   not measured; docs/selection.md compares the methods on icons with smaller towers.

The method is the papers'; all settings are our choice, for speed. Arguments:

  data             a prepared folder, or a path or pattern of tars or parquet files, or their folder
  clean            pairs to train the reference on, in the same forms; empty: the split of `data`
  val              pairs to evaluate on, in the same forms; empty: the split of `data`
  method           aced, or iid, kd, hard, i_acid, h_acid, aced_iid, cabs_dm, cabs_fm
  steps            of the learner
  reference_steps  of the reference, which is trained first; 0: five thirds of `steps`
  batch, lr        of both runs: the examples trained on per step, and the peak learning rate
  width, depth     of the learner's towers; those of the reference are twice as wide and deep
  resolution       of the images in pixels, a multiple of 8
  length           of the captions in tokens
  seed             of the learner; the reference's is 1,000 more
  reference        PATH of a finished run or a converted model, instead of training one
  cache            PATH of its embeddings, made by python -m aced.cache with this config; if
                   `reference` is given, too, the two are compared
  teacher          PATH of a finished run or a converted model to distil from. ACED has two models:
                   a reference of curated pairs, a teacher of more diverse ones; empty: one is both
  concepts         PATH of a list of concepts, one in each line, for cabs_dm and cabs_fm
  score_ahead      steps, 1 or 2, by which candidates are scored ahead; only the picks are decoded
                   in full (docs/guides/score_ahead.md); 0: each step scores what it trains on
  tiny             two steps with tiny models on the embedded data
"""

import os

import ml_collections

from aced.config import ConfigError, parse_arg, to_config
from aced.data import records, sources, tokenizers
from aced.data.sources import parquet_splits
from aced.evaluators import EvalConfig
from aced.methods.frozen import FrozenConfig
from configs import methods, smoke

DATA, CLEAN = "/data/all", "/data/clean"  # as in the command above
RESOLUTION = 48
LENGTH = 16  # tokens; titles are short


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        data=DATA,
        clean="",
        val="",
        method="aced",
        steps=600,
        reference_steps=0,
        batch=smoke.BATCH,
        lr=smoke.PEAK,
        width=64,
        depth=2,
        resolution=RESOLUTION,
        length=LENGTH,
        seed=0,
        reference="",
        cache="",
        teacher="",
        concepts="",
        score_ahead=0,
        tiny=False,
    )
    val = arg.val or arg.data
    common = {name: arg[name] for name in ("batch", "lr", "resolution", "length")}
    towers = {"depth": arg.depth, "width": arg.width}
    config = run(arg.data, val, steps=arg.steps, seed=arg.seed, **towers, **common)
    methods.apply(config, arg.method, filter_ratio=0.8, weight=1.0, concepts=arg.concepts)
    config.method.score_ahead = arg.score_ahead
    clean = arg.clean or (arg.data if _has_clean(arg.data) else "")
    uses_reference = methods.uses_reference(arg.method, has_teacher=bool(arg.teacher))
    _check(arg, clean, uses_reference)
    if arg.teacher:
        config.method.teachers.teacher = to_config(FrozenConfig(checkpoint=arg.teacher))
        config.method.distillation.teachers = ("teacher",)
    smoke.select(config.method.selection)
    if uses_reference and arg.cache:
        config.method.reference.cache = arg.cache
        config.method.reference.checkpoint = arg.reference  # compared with the cache
    elif uses_reference:
        config.method.reference.checkpoint = arg.reference or "{workdir}/reference"
    if config.method.reference.checkpoint and not arg.reference:
        config.before.reference = run(
            clean or CLEAN,
            val,
            depth=2 * arg.depth,
            width=2 * arg.width,
            steps=arg.reference_steps or max(1, arg.steps * 5 // 3),
            seed=1000 + arg.seed,
            **common,
        )
        if _has_clean(clean):
            config.before.reference.data.array_record.split = "clean"
    return smoke.shrink(config) if arg.tiny else config


def _check(arg: ml_collections.ConfigDict, clean: str, uses_reference: bool) -> None:
    """Raises a ConfigError if the method lacks an argument, or does not use one.

    Args:
        arg: the arguments.
        clean: what a reference can be trained on; empty: nothing.
        uses_reference: whether the method does.
    """
    given = [name for name in ("clean", "reference", "cache") if arg[name]]
    if uses_reference and not (given or clean) and arg.data != DATA:
        if sources.kind_of(arg.data) == "array_record":
            records.read_description(arg.data)  # a wrong path has an error of its own
        raise ConfigError(
            f"method={arg.method} needs a reference: prepare the data with --clean_column, or give "
            "clean=PATH (pairs that you trust, to train one on first), reference=PATH (a finished "
            "run or a converted model) or cache=PATH; or choose method=iid."
        )
    if given and not uses_reference:
        without = " with a teacher" if arg.teacher and methods.distils(arg.method) else ""
        raise ConfigError(
            f"method={arg.method}{without} uses no reference: leave out {given[0]}=, or choose "
            "another method, such as method=aced."
        )
    if arg.clean and (arg.reference or arg.cache):
        raise ConfigError(
            "clean=PATH is to train a reference on, but reference= or cache= gives one: leave out "
            "clean=, or the others."
        )
    if arg.teacher and not methods.distils(arg.method):
        raise ConfigError(
            f"method={arg.method} uses no teacher: leave out teacher=, or choose another method, "
            "such as method=aced."
        )
    if methods.uses_concepts(arg.method) != bool(arg.concepts):
        raise ConfigError(
            f"method={arg.method} with concepts={arg.concepts!r}: cabs_dm and cabs_fm need a list "
            "of concepts, concepts=PATH, and no other method reads one."
        )


def run(
    train: str,
    val: str,
    *,
    resolution: int = RESOLUTION,
    length: int = LENGTH,
    **settings: float,
) -> ml_collections.ConfigDict:
    """Uniform training on `train`, with retrieval on `val`; `settings` are those of `smoke.run`."""
    if val == train and not _has_splits(val):
        raise ConfigError(f"{train} has no split for evaluation; set `val` to other files.")
    config = smoke.run(**settings)
    read(config.data, train, "train")
    config.data.num_threads = 4

    model = config.method.model
    smoke.set_resolution(model.image, resolution)
    model.tokenizer.kind = "clip_bpe"
    model.tokenizer.length = length
    model.text.length = length
    model.text.vocab_size = tokenizers.get_tokenizer(tokenizers.TokenizerConfig()).vocab_size

    config.evals = {"retrieval": to_config(EvalConfig(kind="retrieval", every_percent=50.0))}
    read(config.evals.retrieval.data, val, "val")
    config.checkpoint.every_steps = 200
    return config


def read(data: ml_collections.ConfigDict, path: str, split: str) -> None:
    """Sets `data` to the tars or parquet files of `path`, or to the split if it has splits."""
    data.source = sources.kind_of(path)
    data[data.source].path = path
    if _has_splits(path):
        data[data.source].split = split


def _has_clean(path: str) -> bool:
    """Whether `path` is a data set that was prepared with --clean_column."""
    is_prepared = os.path.isfile(os.path.join(path, records.DESCRIPTION))
    return is_prepared and "clean" in records.read_description(path)["splits"]


def _has_splits(path: str) -> bool:
    """Whether `path` is a prepared data set, or a folder of parquet files by splits."""
    kind = sources.kind_of(path)
    return kind == "array_record" or (kind == "parquet" and bool(parquet_splits.names(path)))

"""ACED on a laptop: a reference on clean pairs, then a small learner on noisy ones. No download.

Command:  python -m aced.main --config=configs/smoke.py
Hardware: 2 CPU cores.
Cost:     6.94e12 FLOPs, derived from aced/cost/flops.py.
Expect:   5 minutes on 2 idle cores; R@1 of ACED 10.8 %, of IID at equal examples 0.3 %, of the
          reference 14.8 % (one run, benchmarks/results/smoke.txt).

The data are 10,000 scenes of the built-in `shapes`. Half of the captions are wrong and labelled so,
and `selection/noisy_share` shows the effect of selection. First a reference is trained on other,
clean scenes, then a learner on uniform batches (IID). The reference embeds the 10,000 scenes once,
and the method's learner is trained with these embeddings. The method is the papers'; all settings
are our choice, for speed. One model is both reference and teacher, where ACED has two. Arguments:

  method           aced, or iid, kd, hard, i_acid, h_acid, aced_iid, cabs_dm, cabs_fm
  steps            of the learners
  reference_steps  of the reference; 0: four thirds of `steps`
  batch, lr        of all runs: the examples trained on per step, and the peak learning rate
  width, depth     of the learners' towers; those of the reference are twice as wide and deep
  resolution       of the images in pixels, a multiple of 8
  seed             of the learners; the reference's is 1,000 more
  reference        PATH of a finished run, instead of training one
  alone            no IID run beside the method's
  online           the reference runs in every step, instead of once
  score_ahead      steps, 1 or 2, by which candidates are scored ahead; only the picks are decoded
                   in full (docs/guides/score_ahead.md); 0: each step scores what it trains on
  tiny             two steps with tiny models
"""

import math
import pathlib

import ml_collections

from aced.cache.config import CacheConfig
from aced.config import ConfigError, parse_arg, to_config
from aced.data.shapes import scenes
from aced.evaluators import EvalConfig
from aced.train.config import TrainConfig
from configs import methods, tiny

RESOLUTION = 32
BATCH = 64
PEAK = 1e-3  # of the learning rate
POOL = 10_000  # pairs
CONCEPTS = str(pathlib.Path(__file__).with_name("shapes_concepts.txt"))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        method="aced",
        steps=300,
        reference_steps=0,
        batch=BATCH,
        lr=PEAK,
        width=64,
        depth=2,
        resolution=RESOLUTION,
        seed=0,
        reference="",
        alone=False,
        online=False,
        score_ahead=0,
        tiny=False,
    )

    common = {"batch": arg.batch, "lr": arg.lr, "resolution": arg.resolution}
    towers = {"depth": arg.depth, "width": arg.width}
    config = learner(arg.method, steps=arg.steps, seed=arg.seed, **towers, **common)
    config.method.score_ahead = arg.score_ahead
    if methods.uses_reference(arg.method):
        if not arg.reference:
            # With another seed the reference sees neither the learner's pairs nor their noise.
            config.before.reference = run(
                depth=2 * arg.depth,
                width=2 * arg.width,
                steps=arg.reference_steps or max(1, arg.steps * 4 // 3),
                seed=1000 + arg.seed,
                **common,
            )
        config.method.reference.checkpoint = arg.reference or "{workdir}/reference"
        if not arg.online:
            embeddings = "{workdir}/embeddings"
            config.before_caches.reference = to_config(CacheConfig(out=embeddings, batch_size=320))
            config.method.reference.cache = embeddings
    if arg.tiny:
        return shrink(config)
    if arg.method != "iid" and not arg.alone:
        config.before.iid = learner("iid", steps=arg.steps, seed=arg.seed, **towers, **common)
    return config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The tiny form."""
    tiny.shrink_run(config)
    tiny.shrink_towers(config.method.model)
    config.method.selection.chunks = 2
    config.method.selection.strata = 1
    tiny.train_first(config, "reference", config.method.reference)
    return config


def learner(method: str, **settings: float) -> ml_collections.ConfigDict:
    """A small learner on noisy pairs, without the earlier runs; `settings` are those of `run`."""
    config = run(**settings)
    config.data.shapes.wrong = 0.5
    config.data.shapes.size = POOL
    methods.apply(config, method, filter_ratio=0.8, weight=1.0, concepts=CONCEPTS)
    select(config.method.selection)
    return config


def select(selection: ml_collections.ConfigDict) -> None:
    """Makes draws equally sharp for small and large batches; see docs/selection.md."""
    selection.chunks = 8
    if selection.concepts:
        return  # scores of concepts have the same scale in every batch
    selection.normalization = "perplexity"
    selection.perplexity_share = 0.5
    selection.reference_weight = 2.0


def run(
    *,
    depth: int,
    width: int,
    steps: int,
    seed: int,
    batch: int = BATCH,
    lr: float = PEAK,
    resolution: int = RESOLUTION,
) -> ml_collections.ConfigDict:
    """Uniform training of two towers of this depth and width on clean pairs."""
    if width < 32 or width % 32:
        raise ConfigError(f"width = {width} must be a multiple of 32, the width of a head.")
    if batch < 1:
        raise ConfigError(f"batch = {batch} must be at least 1.")
    config = to_config(TrainConfig())
    config.seed = seed
    config.batch_size = batch
    config.total_steps = steps
    config.log_steps = 10
    config.picks_steps = 10

    config.data.source = "shapes"
    config.data.shapes.seed = seed
    config.data.shapes.resolution = resolution

    model = config.method.model
    for tower in (model.image, model.text):
        tower.size = "mu"
        tower.depth = depth
        tower.width = width
        tower.mlp = 4 * width
        tower.heads = width // 32
    model.image.patch = 8
    set_resolution(model.image, resolution)
    tiny.use_shapes_tokenizer(model, length=20)
    model.init_bias = -4.0 - math.log(batch / BATCH)  # near -log(batch)

    config.optimizer.schedule.peak = lr
    config.optimizer.schedule.warmup_percent = 10.0

    for name, kind in (("retrieval", "retrieval"), ("classes", "zeroshot")):
        evaluation = to_config(EvalConfig(kind=kind, max_examples=1000, every_percent=50.0))
        evaluation.data.source = "shapes"
        evaluation.data.shapes.split = "val"
        evaluation.data.shapes.resolution = resolution
        evaluation.templates = scenes.TEMPLATES
        config.evals[name] = evaluation
    config.checkpoint.every_steps = 100
    return config


def set_resolution(image: ml_collections.ConfigDict, resolution: int) -> None:
    """Sets the resolution of an image tower, which its patches have to fill."""
    if resolution < image.patch or resolution % image.patch:
        raise ConfigError(
            f"resolution = {resolution} must be a multiple of {image.patch}, the side of a patch."
        )
    image.resolution = resolution

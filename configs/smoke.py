"""ACED on a laptop: a reference on clean pairs, then a small learner on noisy ones. No download.

Command:  python -m aced.main --config=configs/smoke.py
Hardware: 2 CPU cores.
Cost:     1.51e13 FLOPs, derived from aced/flops.py.
Expect:   less than benchmarks/results/shapes.csv, whose reference and learners are trained for
          1,500 and 600 steps, not for 500 and 400 as here.

The data are the embedded `shapes`; half of the learner's captions are wrong, and which ones is
known, so that `selection/noisy_share` shows what selection does. Everything here is ours, chosen
for speed; only the method is the papers'. Arguments: `:method=iid` (or kd, hard, i_acid, h_acid,
aced, aced_iid), `:steps=400`, `:seed=1`, `:reference=PATH` (a finished run, instead of training
one), `:tiny`.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.data import shapes
from aced.evaluators import EvalConfig
from aced.train import TrainConfig
from configs import methods, tiny

RESOLUTION = 32


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, method="aced", steps=400, seed=0, reference="", tiny=False)

    config = run(depth=2, width=64, steps=arg.steps, seed=arg.seed)
    config.data.shapes.wrong = 0.5
    methods.apply(config, arg.method, filter_ratio=0.8, weight=1.0)
    config.method.selection.chunks = 8
    config.method.selection.gain = 10.0  # remembered for ACID; JEST's 100 learns slower here
    if methods.uses_reference(arg.method):
        config.method.reference.checkpoint = arg.reference or "{workdir}/reference"
    if methods.uses_reference(arg.method) and not arg.reference:
        # Another seed: the reference sees neither the learner's pairs nor its noise.
        config.before.reference = run(depth=4, width=128, steps=500, seed=1000 + arg.seed)
    return tiny.shrink(config) if arg.tiny else config


def run(*, depth: int, width: int, steps: int, seed: int) -> ml_collections.ConfigDict:
    """Uniform training of two towers of this depth and width on clean pairs."""
    config = to_config(TrainConfig())
    config.seed = seed
    config.batch_size = 64
    config.total_steps = steps
    config.log_steps = config.picks_steps = 10

    config.data.source = "shapes"
    config.data.shapes.seed = seed
    config.data.shapes.resolution = RESOLUTION

    model = config.method.model
    for tower in (model.image, model.text):
        tower.size = "mu"
        tower.depth, tower.width, tower.mlp, tower.heads = depth, width, 4 * width, width // 32
    model.image.patch, model.image.resolution = 8, RESOLUTION
    tiny.use_shapes_tokenizer(model, length=20)
    model.init_bias = -4.0  # near -log(batch)

    config.optimizer.schedule.peak = 1e-3
    config.optimizer.schedule.warmup_percent = 10.0

    for name, kind in (("retrieval", "retrieval"), ("classes", "zeroshot")):
        evaluation = to_config(EvalConfig(kind=kind, max_examples=1000, every_percent=50.0))
        evaluation.data.source = "shapes"
        evaluation.data.shapes.split = "val"
        evaluation.data.shapes.resolution = RESOLUTION
        evaluation.templates = shapes.TEMPLATES
        config.evals[name] = evaluation
    config.checkpoint.every_steps = 100
    return config

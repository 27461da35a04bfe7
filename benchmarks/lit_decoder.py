"""Whether a LiT-Decoder distinguishes encoders that were trained for more and more steps.

    python -m benchmarks.lit_decoder --out=benchmarks/results/lit_decoder.csv

The encoders are configs/smoke.py's reference after `steps` steps on clean embedded scenes (after
one it is as good as random). Each is frozen, and a decoder of 1 + 2 layers and 64 channels
learns captions of the same scenes from its tokens, for `decoder_steps` steps with each of `seeds`
seeds. Columns: the encoder's own `mean_r1`; of the decoder on held-out scenes, `cider`, `exact`
(the share of captions that are right to the word) and `loss` in nats a word; `flops` of the
decoder's training, the frozen encoder's forward passes included.
"""

import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import app, flags

from aced.config import to_config
from aced.evaluators import EvalConfig
from aced.methods.lit_decoder import LitDecoderConfig
from aced.models.coca import CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.train import loop
from aced.train.config import TrainConfig
from benchmarks import table
from configs import smoke, tiny

_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 2, "Decoders of each encoder.")
_STEPS = flags.DEFINE_integer("decoder_steps", 400, "Of 64 scenes, of each decoder.")
_ENCODERS = flags.DEFINE_multi_integer("steps", [1, 50, 500], "Of the encoders' training.")


def encoder(steps: int) -> ml_collections.ConfigDict:
    """The config of the first command's reference, trained for `steps` steps."""
    return smoke.run(depth=4, width=128, steps=steps, seed=1000)


def decoder(folder: str, base: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """A decoder of what the encoder in `folder`, whose run was `base`, sees of the same scenes."""
    config = to_config(TrainConfig())
    theirs = base.method.model
    text = DecoderConfig(width=64, mlp=256, heads=2, unimodal=1, multimodal=2)
    model = CoCaConfig(text=text, queries=0)
    config.method = to_config(LitDecoderConfig(task="captioning", model=model))
    tiny.use_scenes_tokenizer(config.method.model, length=theirs.text.length)
    config.method.encoder.checkpoint = folder
    config.seed = seed
    config.batch_size = 64
    config.total_steps = _STEPS.value
    config.data = base.data
    config.log_steps = 50
    config.picks_steps = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.schedule.peak = 3e-3
    config.optimizer.schedule.warmup_percent = 10.0
    config.evals.val = to_config(EvalConfig(kind="captioning", max_examples=500, batch_size=50))
    config.evals.val.data = base.evals.retrieval.data
    config.evals.val.generation.kind = "greedy"
    return config


def measure(folder: pathlib.Path) -> list[dict[str, Any]]:
    """A row for each encoder and seed; the runs' folders go below `folder`."""
    rows = []
    for steps in _ENCODERS.value:
        base, place = encoder(steps), str(folder / f"encoder{steps}")
        own = loop.run(base, place)
        for seed in range(_SEEDS.value):
            last = loop.run(decoder(place, base, seed), str(folder / f"lit{steps}_{seed}"))
            numbers = {name: round(last[f"val/{name}"], 4) for name in ("cider", "exact", "loss")}
            row = {"steps": steps, "seed": seed, "mean_r1": round(own["retrieval/mean_r1"], 4)}
            rows.append(row | numbers | {"flops": f"{last['flops']:.3g}"})
            print(rows[-1], flush=True)
    return rows


def main(_: Sequence[str]) -> None:
    """Measures and writes the CSV."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(pathlib.Path(folder))
    table.write(_OUT.value, rows)


if __name__ == "__main__":
    app.run(main)

"""SigLIP ViT-B/16 on image-text pairs, uniform batches: the IID baseline.

Command:  python -m aced.main --config=configs/siglip_b16.py --workdir=gs://BUCKET/siglip_b16 \\
              --config.data.array_record.path=/data/pairs
Hardware: 256 TPU v5e chips (JEST).
Cost:     5.21e20 FLOPs, 1,470 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   the same recipe with 40B examples gives 76.7 ImageNet 0-shot, COCO R@1 65.2 image to
          text, 47.4 text to image (SigLIP B, as printed in JEST).

Every number is from JEST (arXiv 2406.17711) unless noted otherwise: ViT-B/16 with a B text tower,
batch 32,768, 3B examples, 256 px without augmentation, SentencePiece C4 32k with 64 tokens, Adam
with b2 = 0.95, learning rate 1e-3 after 1 % of warm-up, then cosine, weight decay 1e-4, clip 1.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.evaluators import EvalConfig
from aced.train.config import TrainConfig
from configs import tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False)
    config = base()
    return shrink(config) if arg.tiny else config


def base() -> ml_collections.ConfigDict:
    """The recipe; the other B/16 recipes modify it."""
    config = to_config(TrainConfig())
    config.batch_size = 32_768
    config.total_examples = 3_000_000_000  # examples trained

    config.data.source = "array_record"
    config.data.array_record.path = "/data/pairs"  # made by `python -m aced.prepare`

    model = config.method.model
    model.image.size = "B"
    model.image.patch = 16
    model.image.resolution = 256
    model.text.size = "B"
    model.text.length = 64
    model.text.vocab_size = 32_000
    model.tokenizer.kind = "sentencepiece"
    model.tokenizer.path = "/data/c4_en_32k.model"
    model.dtype = "bfloat16"
    model.remat = "full"
    config.method.loss = "sigmoid"
    model.init_scale = 10.0
    model.init_bias = -10.0

    schedule = config.optimizer.schedule
    schedule.kind = "cosine"
    schedule.peak = 1e-3
    schedule.warmup_percent = 1.0
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0

    config.checkpoint.every_steps = 1_000
    config.evals.retrieval = to_config(EvalConfig(kind="retrieval", every_percent=10.0))
    held_out = config.evals.retrieval.data
    held_out.source = "array_record"
    held_out.array_record.split = "val"
    held_out.array_record.path = config.data.array_record.get_ref("path")  # follows the data
    return config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The tiny form; the other B/16 recipes say what they shrink beside it."""
    tiny.shrink_run(config)
    tiny.shrink_towers(config.method.model)
    return config

"""H-ACID (JEST), ViT-B/16: the most learnable fifth of every super-batch, chosen jointly.

Command:  python -m aced.main --config=configs/acid_b16.py --workdir=gs://BUCKET/acid_b16 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.reference.checkpoint=gs://BUCKET/reference
          The reference is a run of configs/siglip_b16.py on a small, clean data set.
Hardware: 256 TPU v5e chips (JEST).
Cost:     2.26e21 FLOPs, 6,360 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 1.39e21 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, which python -m aced.cache makes once with this config.
Expect:   JEST++ B with 4B examples: 76.9 ImageNet 0-shot, COCO R@1 70.3 image to text, 53.3 text
          to image (printed in JEST, with its own reference and data).

As configs/siglip_b16.py, and from JEST (arXiv 2406.17711): super-batch 163,840, filter ratio 0.8,
16 chunks, gain 100, a reference of the learner's size. `:method=i_acid` scores by easy reference,
`:method=hard` by the learner's loss alone. Our choice: 256 strata, so that no image moves between
chips, and scoring in micro-batches of 128 examples per chip, of 256 chips.
"""

import ml_collections

from aced.config import parse_arg
from configs import methods, siglip_b16, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False, method="h_acid", cache="")
    config = siglip_b16.base()
    add_reference(config, "/data/reference", arg.cache)
    methods.apply(config, arg.method, filter_ratio=0.8, weight=1.0)
    config.method.selection.strata = 256
    config.method.score_micro_batch = 32_768
    return shrink(config) if arg.tiny else config


def add_reference(config: ml_collections.ConfigDict, checkpoint: str, cache: str) -> None:
    """Makes the reference a model of the learner's architecture, or its embeddings in `cache`."""
    config.method.reference.checkpoint = "" if cache else checkpoint
    config.method.reference.cache = cache
    config.method.reference.model = config.method.model.copy_and_resolve_references()


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The tiny form, whose reference is trained first."""
    siglip_b16.shrink(config)
    config.method.selection.chunks = 2
    config.method.selection.strata = 1
    config.method.score_micro_batch = tiny.BATCH_SIZE  # divides the super-batch
    tiny.train_first(config, "reference", config.method.reference)
    return config

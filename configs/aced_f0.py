"""ACED-F0: ViT-S/32 at 288 px with an S text tower, selected by and distilled from an L/16.

Command:  python -m aced.main --config=configs/aced_f0.py --workdir=gs://BUCKET/aced_f0 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.reference.checkpoint=gs://BUCKET/reference
Hardware: 256 TPU v5e chips (assumed: JEST's).
Cost:     1.38e22 FLOPs, 38,900 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 6.86e20 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, which python -m aced.cache makes once with this config.
Expect:   ImageNet 0-shot 68.5, COCO 51.0, Flickr 79.5, 64.0 on average of 27 evaluations
          (arXiv 2411.18674, from secondary summaries).

The recipe is ACED-ACIDistill of arXiv 2411.18674. From secondary summaries: DataComp-1B, 13B
examples trained, S <- L as the best pair, softmax-KD on the selected batch. Derived: the model's
size, from its 3.30 G multiply-adds. Assumed: batch, filter ratio, chunks, b2, weight decay and clip
as in JEST (arXiv 2406.17711), the reference's patch size. Our choice: a cosine schedule with 10 %
of warm-up to 1e-3, distillation weight 1, gain 10, strata, micro-batches.
"""

import ml_collections

from aced.config import parse_arg
from aced.models import presets
from configs import acid_b16, methods, siglip_b16


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False, method="aced", cache="")
    config = base("ACED-F0", reference="L", method=arg.method, cache=arg.cache)
    return acid_b16.shrink(config) if arg.tiny else config


def base(model: str, *, reference: str, method: str, cache: str) -> ml_collections.ConfigDict:
    """The recipe of all three sizes; `model` is a preset, `reference` the size of an X/16.

    With `cache`, the reference's embeddings are read from there.
    """
    config = siglip_b16.base()
    config.total_examples = 13_000_000_000
    config.optimizer.schedule.warmup_percent = 10.0

    acid_b16.add_reference(config, "/data/reference", cache)
    towers = config.method.reference.model
    towers.image.size = reference
    towers.text.size = reference

    for tower in ("image", "text"):
        config.method.model[tower].update(presets.MODELS[model][tower])

    methods.apply(config, method, filter_ratio=0.8, weight=1.0)
    config.method.selection.gain = 10.0
    config.method.selection.strata = 256
    config.method.score_micro_batch = 32_768
    return config

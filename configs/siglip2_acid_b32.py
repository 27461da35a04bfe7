"""SigLIP 2's last stage for small models: a trained B/32 goes on with H-ACID, without explicit KD.

Command:  python -m aced.main --config=configs/siglip2_acid_b32.py --workdir=gs://BUCKET/b32 \\
              --config.data.array_record.path=/data/pairs \\
              --config.init.checkpoint=gs://BUCKET/trained_b32 \\
              --config.method.reference.checkpoint=gs://BUCKET/curated_reference
Hardware: 256 TPU v5e chips (assumed: JEST's).
Cost:     1.56e21 FLOPs, 4,390 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 6.30e20 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, which python -m aced.cache makes once with this config.
Expect:   unknown for this stage alone.

From SigLIP 2 (section 2.5): 4B examples, learning rate 1e-5, no weight decay, sigmoid loss, H-ACID
with filter ratio 0.75 for B/32 (0.5 for B/16: `:patch=16,filter_ratio=0.5`), one reference
fine-tuned on curated data. Assumed: batch, schedule (cosine, 1 % warm-up),
b2, chunks and gain as in JEST (arXiv 2406.17711), 256 px, and a reference of B/16. Our choice:
strata, micro-batches.
"""

import ml_collections

from aced.config import parse_arg
from configs import acid_b16, methods, siglip_b16, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False, patch=32, filter_ratio=0.75, cache="")
    config = siglip_b16.base()
    config.total_examples = 4_000_000_000
    config.init.checkpoint = "/data/trained_b32"
    config.optimizer.schedule.peak = 1e-5
    config.optimizer.weight_decay = 0.0
    acid_b16.add_reference(config, "/data/curated_reference", arg.cache)
    config.method.model.image.patch = arg.patch
    methods.apply(config, "h_acid", filter_ratio=arg.filter_ratio, weight=0.0)
    config.method.selection.strata = 256
    config.method.score_micro_batch = 32_768
    if arg.tiny:
        acid_b16.shrink(config)
        tiny.train_first(config, "start", config.init)
    return config

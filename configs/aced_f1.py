"""ACED-F1: ViT-B/32 at 256 px with an S text tower, selected by and distilled from a g/16.

Command:  python -m aced.main --config=configs/aced_f1.py --workdir=gs://BUCKET/aced_f1 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.reference.checkpoint=gs://BUCKET/reference
Hardware: 256 TPU v5e chips (assumed: JEST's).
Cost:     4.47e22 FLOPs, 126,000 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 1.49e21 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, which python -m aced.cache makes once with this config.
Expect:   ImageNet 0-shot 74.9, COCO 55.6, Flickr 84.7, 69.7 on average of 27 evaluations
          (arXiv 2411.18674, from secondary summaries).

As configs/aced_f0.py, which has the source of every number; the model's size is derived from its
7.14 G multiply-adds, and B <- g is the best pair (from secondary summaries).
"""

import ml_collections

from aced.config import parse_arg
from configs import aced_f0, acid_b16


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False, method="aced", cache="")
    config = aced_f0.base("ACED-F1", reference="g", method=arg.method, cache=arg.cache)
    return acid_b16.shrink(config) if arg.tiny else config

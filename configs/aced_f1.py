"""ACED-F1: ViT-B/32 at 256 px, S text tower, selected by one g/16, distilled from another.

Command:  python -m aced.main --config=configs/aced_f1.py --workdir=gs://BUCKET/aced_f1 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.reference.checkpoint=gs://BUCKET/reference \\
              --config.method.teachers.teacher.checkpoint=gs://BUCKET/teacher
          The reference is trained on curated pairs, the teacher on more diverse ones.
Hardware: 256 TPU v5e chips (assumed: JEST's).
Cost:     5.33e22 FLOPs, 150,000 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 1.01e22 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, and 1.49e21 with `teacher_cache=PATH` as well, which
          python -m aced.cache makes once with this config.
Expect:   ImageNet 0-shot 74.9, COCO 55.6, Flickr 84.7, 69.7 on average of 27 evaluations
          (arXiv 2411.18674, from secondary summaries).

As configs/aced_f0.py, which has the source of every number; the model's size is derived from its
7.14 G multiply-adds, and B <- g is the best pair (from secondary summaries).
"""

import ml_collections

from configs import aced_f0


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return aced_f0.recipe("ACED-F1", "g", arg)

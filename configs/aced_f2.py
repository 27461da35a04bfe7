"""ACED-F2: ViT-B/24 at 240 px, S text tower, selected by one g/16, distilled from another.

Command:  python -m aced.main --config=configs/aced_f2.py --workdir=gs://BUCKET/aced_f2 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.reference.checkpoint=gs://BUCKET/reference \\
              --config.method.teachers.teacher.checkpoint=gs://BUCKET/teacher
          The reference is trained on curated pairs, the teacher on more diverse ones.
Hardware: 256 TPU v5e chips (assumed: JEST's).
Cost:     5.40e22 FLOPs, 152,000 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 1.08e22 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, and 2.15e21 with `teacher_cache=PATH` as well, which
          python -m aced.cache makes once with this config.
Expect:   ImageNet 0-shot 76.9, COCO 58.3, Flickr 85.3, 70.9 on average of 27 evaluations
          (arXiv 2411.18674, from secondary summaries).

As configs/aced_f0.py, which has the source of every number; the model's size is derived from its
10.29 G multiply-adds, and B <- g is the best pair (from secondary summaries).
"""

import ml_collections

from configs import aced_f0


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return aced_f0.recipe("ACED-F2", "g", arg)

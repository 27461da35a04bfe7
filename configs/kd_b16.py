"""Softmax-KD, ViT-B/16 from a larger teacher, on uniform batches.

Command:  python -m aced.main --config=configs/kd_b16.py --workdir=gs://BUCKET/kd_b16 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.teachers.large.checkpoint=gs://BUCKET/teacher
Hardware: 256 TPU v5e chips, to compare with configs/siglip_b16.py (ours).
Cost:     1.13e21 FLOPs, 3,170 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   less than H-ACID at every teacher size; it helps at all only with large teachers
          (arXiv 2411.18674, from secondary summaries).

As configs/siglip_b16.py, with the softmax distillation loss of arXiv 2411.18674. Our choice: its
weight, 1, and the teacher's size, L/16.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.methods.frozen import FrozenConfig
from configs import methods, siglip_b16, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False)
    config = siglip_b16.base()
    methods.apply(config, "kd", filter_ratio=0.0, weight=1.0)
    teacher = to_config(FrozenConfig(checkpoint="/data/teacher"))
    teacher.model = config.method.model.copy_and_resolve_references()
    teacher.model.image.size = "L"
    teacher.model.text.size = "L"
    config.method.teachers.large = teacher
    config.method.distillation.teachers = ("large",)
    if arg.tiny:
        siglip_b16.shrink(config)
        tiny.train_first(config, "large", config.method.teachers.large)
    return config

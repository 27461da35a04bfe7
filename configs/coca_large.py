"""CoCa-Large, OPTIMA's teacher: configs/coca_base.py with a larger model (arXiv 2205.01917).

Command:  python -m aced.main --config=configs/coca_large.py --workdir=gs://BUCKET/coca_large \\
              --config.data.array_record.path=/data/pairs
          Then, on a task (vqa, snli_ve, nlvr2, coco_caption):
          python -m aced.main --config=configs/coca_large.py:task=vqa --workdir=gs://BUCKET/vqa \\
              --config.init.checkpoint=gs://BUCKET/coca_large \\
              --config.data.array_record.path=/data/vqa
Hardware: 256 TPU v5e chips (assumed).
Cost:     2.26e22 FLOPs, 63,623 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   unknown; the paper's numbers are of image-text data that are not public.

See there for what is from the paper and what is assumed. Arguments: `task`, `acid`, `tiny`.
"""

import ml_collections

from configs import coca_base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return coca_base.of_model("CoCa-Large", arg)

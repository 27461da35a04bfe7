"""OPTIMA: CoCa-Large into a student of 6 layers, module by module (arXiv 2310.04550).

Command:  python -m aced.main --config=configs/optima_coca_tiny6.py:task=vqa \\
              --workdir=gs://BUCKET/optima --config.data.array_record.path=/data/vqa \\
              --config.method.teacher.checkpoint=gs://BUCKET/vqa
Hardware: 16 TPU v5e chips (assumed).
Cost:     1.63e18 FLOPs, 4.60 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   unknown; we had access to the paper's abstract and introduction only.

As configs/optima_coca_tiny12.py, which lists what is from the paper and what is our choice.
Arguments: `task`, `tiny`.
"""

import ml_collections

from configs import optima_coca_tiny12


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return optima_coca_tiny12.of_student("coca_tiny6", arg)

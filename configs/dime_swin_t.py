"""DIME-FM: CLIP ViT-L/14 into a Swin-T image encoder, from unpaired pictures and sentences.

Command:  as configs/dime_b32.py, with this file
Hardware: 16 TPU v5e chips (assumed).
Cost:     1.08e20 FLOPs, 303 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py; the caches and the choice of sentences come on top.
Expect:   unknown for this student.

As configs/dime_b32.py. The paper also trains a Swin-T; we do not know with which changes. Our
choice: micro-batches, since windows of 49 tokens need much memory on a TPU (not yet compiled for
one). Arguments: `tiny`.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.models.vit import ImageConfig
from configs import dime_b32


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False)
    config = dime_b32.base()
    clip = config.method.model.image
    config.method.model.image = to_config(
        ImageConfig(architecture="swin", resolution=224, mean=clip.mean, std=clip.std)
    )
    config.method.train_micro_batch = 3_072
    return dime_b32.shrink(config) if arg.tiny else config

"""LiT-Decoder: evaluates a frozen image encoder with a small text decoder (arXiv 2411.18674).

Command:  python -m aced.main --config=configs/lit_decoder.py:task=coco_caption \\
              --workdir=gs://BUCKET/lit_f1 --config.data.array_record.path=/data/coco_caption \\
              --config.method.encoder.checkpoint=gs://BUCKET/aced_f1
          The encoder is a run's workdir, or what python -m aced.convert wrote. Tasks:
          coco_caption, vqa, vqa_words, snli_ve, nlvr2.
Hardware: 16 TPU v5e chips (assumed).
Cost:     1.58e17 FLOPs, 0.444 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   unknown; the size of the paper's decoders is not known to us.

From the paper: the encoder is frozen, a small autoregressive decoder reads it by cross-attention,
and it is evaluated by CIDEr of captions and accuracy of answers. Our choice: everything else. The
decoder has width 384, 1 + 5 layers and CLIP's vocabulary; AdamW, learning rate 1e-3, no weight
decay; steps and batch of CoCa's fine-tuning; answers by CoCa's head, or with `task=vqa_words` by
the decoder. Pre-flight without an encoder assumes the size of ACED-F1. Arguments: `task`, `tiny`.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.methods.lit_decoder import LitDecoderConfig, reading
from aced.models import two_tower
from aced.models.coca import CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.train.config import TrainConfig
from configs import coca_tasks, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False, task="coco_caption")
    config = to_config(TrainConfig())
    task = coca_tasks.get(arg.task)
    text = DecoderConfig(size="S", unimodal=1, multimodal=5, vocab_size=49_408)
    encoder = two_tower.preset("ACED-F1", dtype="bfloat16")
    model = reading(CoCaConfig(text=text, queries=0, **task.heads), encoder)
    config.method = to_config(LitDecoderConfig(model=model, task=task.kind))
    coca_tasks.apply(config, arg.task)
    optimizer = config.optimizer
    optimizer.name = "adamw"
    optimizer.weight_decay = 0.0
    optimizer.lr_rules = ()
    optimizer.schedule.peak = 1e-3
    method = config.method
    method.model.dtype = "bfloat16"
    method.model.remat = "full"
    method.encoder.checkpoint = "/data/aced_f1"
    # For pre-flight before the encoder exists.
    method.encoder.model = to_config(encoder)
    if arg.tiny:
        coca_tasks.shrink(config, arg.task)
        tiny.train_first(config, "encoder", method.encoder)
    return config

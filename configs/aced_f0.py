"""ACED-F0: ViT-S/32 at 288 px, S text tower, selected by one L/16, distilled from another.

Command:  python -m aced.main --config=configs/aced_f0.py --workdir=gs://BUCKET/aced_f0 \\
              --config.data.array_record.path=/data/pairs \\
              --config.method.reference.checkpoint=gs://BUCKET/reference \\
              --config.method.teachers.teacher.checkpoint=gs://BUCKET/teacher
          The reference is trained on curated pairs, the teacher on more diverse ones.
Hardware: 256 TPU v5e chips (assumed: JEST's).
Cost:     1.64e22 FLOPs, 46,300 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py. 3.31e21 FLOPs with `:cache=PATH`, the reference's
          embeddings of all pairs, and 6.86e20 with `teacher_cache=PATH` as well, which
          python -m aced.cache makes once with this config.
Expect:   ImageNet 0-shot 68.5, COCO 51.0, Flickr 79.5, 64.0 on average of 27 evaluations
          (arXiv 2411.18674, from secondary summaries).

The recipe is ACED-ACIDistill of arXiv 2411.18674. From the paper of SigLIP 2 (arXiv 2502.14786,
section 2.5): reference and teacher are two models, one trained on curated pairs, the other on more
diverse ones. From secondary summaries: DataComp-1B, 13B examples trained, S <- L as the best pair,
softmax-KD on the selected batch. Derived: the model's size, from its 3.30 G multiply-adds. Assumed:
batch, filter ratio, chunks, b2, weight decay and clip as in JEST (arXiv 2406.17711), the patch size
of the reference, and a teacher of its size. Our choice: a cosine schedule with 10 % of warm-up to
1e-3, distillation weight 1, gain 10, strata, micro-batches. With `:shared` the reference is also
the teacher, which saves the teacher's training and forward passes.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.methods.frozen import FrozenConfig
from aced.models import presets
from configs import acid_b16, methods, siglip_b16, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return recipe("ACED-F0", "L", arg)


def recipe(model: str, size: str, arg: str) -> ml_collections.ConfigDict:
    """The recipe of one size, with its arguments.

    Args:
        model: a preset.
        size: of the reference and of the teacher, which are X/16.
        arg: the arguments. With `cache` and `teacher_cache`, the embeddings of the reference and of
            the teacher are read from there. With `shared`, the reference is also the teacher.
    """
    arg = parse_arg(arg, tiny=False, method="aced", cache="", teacher_cache="", shared=False)
    config = siglip_b16.base()
    config.total_examples = 13_000_000_000
    config.optimizer.schedule.warmup_percent = 10.0

    acid_b16.add_reference(config, "/data/reference", arg.cache)
    towers = config.method.reference.model
    towers.image.size = size
    towers.text.size = size
    if methods.distils(arg.method) and not arg.shared:
        teacher = FrozenConfig(
            checkpoint="" if arg.teacher_cache else "/data/teacher", cache=arg.teacher_cache
        )
        config.method.teachers.teacher = to_config(teacher)
        config.method.teachers.teacher.model = towers.copy_and_resolve_references()
        config.method.distillation.teachers = ("teacher",)

    for tower in ("image", "text"):
        config.method.model[tower].update(presets.MODELS[model][tower])

    methods.apply(config, arg.method, filter_ratio=0.8, weight=1.0)
    config.method.selection.gain = 10.0
    config.method.selection.strata = 256
    config.method.score_micro_batch = 32_768
    if arg.tiny:
        acid_b16.shrink(config)
        for name, item in config.method.teachers.items():
            tiny.train_first(config, name, item)
    return config

"""DIME-FM: CLIP ViT-L/14 into a ViT-B/32 image encoder, from unpaired pictures and sentences.

Command:  python -m aced.convert --source=openai/clip-vit-large-patch14 --to=aced \\
              --out=/data/clip_l14
          python -m aced.cache --config=configs/dime_b32.py --model=teacher --towers=image \\
              --precision=int8 --out=/data/cache_images
          python -m aced.select_text --corpus='/data/text/*.txt.gz' --teacher=/data/clip_l14 \\
              --features=/data/cache_images --budget=28400000 --out=/data/sentences
          python -m aced.cache --config=configs/dime_b32.py --model=sentences --towers=text \\
              --precision=int8 --out=/data/cache_sentences
          python -m aced.main --config=configs/dime_b32.py --workdir=gs://BUCKET/dime_b32 \\
              --config.data.array_record.path=/data/images \\
              --config.evals.retrieval.data.array_record.path=/data/pairs
          /data/pairs has a split "val" of pictures with captions, to measure retrieval on.
Hardware: 16 TPU v5e chips (assumed).
Cost:     1.06e20 FLOPs, 298 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py; the caches and the choice of sentences come on top.
Expect:   with sentences chosen from a text corpus: ImageNet 0-shot 66.5, ELEVATER 0-shot 56.4,
          linear probe 79.2, average of five shifts 50.2 (arXiv 2303.18232, from the authors'
          log and README).

From the authors' code and logs: AdamW (0.9, 0.999), weight decay 0.05, none on vectors, biases and
position tables; cosine from 8e-4 to 4e-5 after 4 epochs of warm-up from 4e-6; 100 epochs of 39.9M
pictures = 324,800 steps of 12,288; random crops of 8 to 100 % of the area and flips for the
student; the losses' weights and temperatures; 40M pictures and 28.4M sentences; random
initialisation. Assumed: no clipping of gradients, the teacher's own preprocessing and activation
for the student, as many sentences as pictures per step. Arguments: `tiny`.
"""

import ml_collections

from aced.cache.config import CacheConfig
from aced.config import parse_arg, to_config
from aced.evaluators import EvalConfig
from aced.methods.dime import DimeConfig
from aced.models import two_tower
from aced.models.text import TextConfig
from aced.train.config import TrainConfig
from configs import tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tiny=False)
    config = base()
    return shrink(config) if arg.tiny else config


def base() -> ml_collections.ConfigDict:
    """The recipe; dime_swin_t.py changes it for Swin-T."""
    config = to_config(TrainConfig())
    config.batch_size = 12_288
    config.total_steps = 324_800  # 100 epochs of 39.9M pictures

    config.data.source = "array_record"
    config.data.array_record.path = "/data/images"
    config.data.decode = (
        "fast"  # for 12,288 crops per step; the teacher's inputs were decoded exactly
    )

    config.method = to_config(DimeConfig(model=two_tower.preset("CLIP-B/32", embed_dim=768)))
    method = config.method
    method.model.dtype = "bfloat16"
    method.model.remat = "full"
    method.model.resize.mode = "crop"
    method.teacher.checkpoint = "/data/clip_l14"
    method.teacher.cache = "/data/cache_images"
    method.sentences.cache = "/data/cache_sentences"
    method.sentences.data.source = "array_record"
    method.sentences.data.array_record.path = "/data/sentences"
    # For pre-flight before the teacher exists; its run or folder must agree.
    method.teacher.model = to_config(two_tower.preset("CLIP-L/14"))

    optimizer = config.optimizer
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.weight_decay = 0.05
    optimizer.decay_follows = "lr"
    optimizer.clip_norm = None
    schedule = optimizer.schedule
    schedule.kind = "cosine"
    schedule.peak = 8e-4
    schedule.end_factor = 0.05
    schedule.start_factor = 0.005
    schedule.warmup_percent = 4.0  # 4 of 100 epochs

    config.checkpoint.every_steps = 1_000
    config.evals.retrieval = to_config(EvalConfig(kind="retrieval", every_percent=10.0))
    held_out = config.evals.retrieval.data
    held_out.source = "array_record"
    held_out.array_record.path = "/data/pairs"
    held_out.array_record.split = "val"
    return config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The tiny form: a teacher is trained, and embeds pictures and sentences, before the run."""
    tiny.shrink_run(config)
    method = config.method
    method.model.text = to_config(TextConfig())  # the tiny teacher's takes its place
    tiny.shrink_towers(method.model)
    tiny.train_first(config, "teacher", method.teacher)
    tiny.shrink_data(method.sentences.data)
    method.sentences.data.shapes.seed = 7  # other scenes: nothing is paired
    method.teacher.cache = "{workdir}/pictures"
    method.sentences.cache = "{workdir}/sentences"
    config.before_caches.teacher = to_config(
        CacheConfig(model="teacher", out=method.teacher.cache, towers="image")
    )
    config.before_caches.sentences = to_config(
        CacheConfig(model="sentences", out=method.sentences.cache, towers="text")
    )
    return config

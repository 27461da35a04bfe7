"""Embeddings of a run's whole data set by its reference or a teacher, once instead of every step.

    python -m aced.cache --config=configs/aced_f0.py --model=reference --out=/data/reference_cache
    python -m aced.main --config=configs/aced_f0.py:cache=/data/reference_cache --workdir=...

The config is the run's own: its data and decoding, and method.reference or method.teachers.NAME
with a checkpoint. It runs on the devices and processes of training (--distributed). A stopped pass
is resumed by the same command; exit code 42 after SIGTERM, 130 after Ctrl-C.
"""

import dataclasses

import jax
from absl import app, flags

from aced import main as training
from aced.cache.command import run
from aced.cache.config import CacheConfig
from aced.cache.description import TOWERS, Description
from aced.cache.precision import PRECISIONS
from aced.files import ownership
from aced.methods.contrastive_settings import REFERENCE


def report(cache: Description) -> str:
    """A summary of the cache."""
    plan = cache.plan
    size = sum(shard.bytes for shard in cache.shards)
    embedded = plan.examples - len(cache.missing)
    lines = [
        f"{embedded:,} of {plan.examples:,} examples, {cache.captions:,} captions, width "
        f"{plan.width}, {plan.precision}: {size / 2**20:,.1f} MiB, "
        f"{size / max(embedded, 1):,.0f} bytes an example.",
        "Error, root mean square and maximum, of an embedding (length 1) and of a pair's cosine:",
    ]
    for name, kinds in cache.errors.items():
        numbers = "   ".join(f"{kind} {e['rms']:.1e} {e['max']:.1e}" for kind, e in kinds.items())
        lines.append(f"  {name:9}{numbers}{'   <- kept' if name == plan.precision else ''}")
    bias = "none" if plan.bias is None else f"{plan.bias:.3f}"
    lines.append(f"The model's own scale {plan.scale:.3f}, bias {bias}.")
    if (fit := cache.fitted) is not None:
        lines.append(
            f"Fitted for the sigmoid loss in batches of {fit.batch_size:,}: scale {fit.scale:.3f}, "
            f"bias {fit.bias:.3f} (loss {fit.loss:.4f} over {fit.pairs:,} pairs)."
        )
    if cache.missing:
        first, reason = next(iter(cache.missing.items()))
        lines.append(
            f"{len(cache.missing):,} examples are missing, and training will skip them; the first, "
            f"number {first}: {reason}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Makes the cache and prints a summary."""
    values = flags.FLAGS
    with training.running(argv, f"--out={values.out}"):
        fields = dataclasses.fields(CacheConfig)
        settings = CacheConfig(**{field.name: values[field.name].value for field in fields})
        cache = run(values.config, settings, training.workdir(), force=values.force)
        if jax.process_index() == 0:
            print(f"{settings.out}: {report(cache)}")


if __name__ == "__main__":
    flags.adopt_module_key_flags(training)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    flags.DEFINE_string("model", REFERENCE, "Which frozen model: 'reference', or a teacher's name.")
    flags.DEFINE_string("out", None, "Folder to make, on a file system that all processes share.")
    flags.DEFINE_enum(
        "precision",
        CacheConfig.precision,
        PRECISIONS,
        "Of the stored numbers. int8 has one float32 scale per embedding: 1.5 KB a pair of width "
        "768. The error of each is measured and printed, whichever is kept.",
    )
    flags.DEFINE_enum("towers", CacheConfig.towers, list(TOWERS), "Which embeddings.")
    flags.DEFINE_integer("shard_size", CacheConfig.shard_size, "Examples of a file.", 1)
    flags.DEFINE_integer(
        "batch_size",
        CacheConfig.batch_size,
        "Examples at a time over all devices; 0: as scored.",
        0,
    )
    flags.DEFINE_integer(
        "calibration_pairs",
        CacheConfig.calibration_pairs,
        "Pairs that a scale and a bias for the sigmoid loss are fitted to.",
        0,
    )
    for name in ("config", "out"):
        flags.mark_flag_as_required(name)
    app.run(main, flags_parser=training.parse_flags)

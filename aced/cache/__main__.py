"""Embeds a run's whole data set by its reference or a teacher, once instead of in every step.

    python -m aced.cache --config=configs/aced_f0.py --model=reference --out=/data/reference_cache
    python -m aced.main --config=configs/aced_f0.py:cache=/data/reference_cache --workdir=...

The config is the run's own: its data and decoding, and method.reference or method.teachers.NAME
with a checkpoint. It runs on the devices and processes of training (--distributed). A stopped pass
is resumed by the same command; exit code 42 after SIGTERM, 130 after Ctrl-C.
"""

import jax
from absl import flags

from aced import command_line, flag_settings, run_flags
from aced.cache.command import run
from aced.cache.config import CacheFlags
from aced.cache.description import Description
from aced.files import ownership


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
    del argv
    values = flags.FLAGS
    with run_flags.running(f"--out={values.out}"):
        settings = flag_settings.read(CacheFlags)
        cache = run(values.config, settings, run_flags.workdir(), force=values.force)
        if jax.process_index() == 0:
            print(f"{settings.out}: {report(cache)}")


if __name__ == "__main__":
    run_flags.define()
    flag_settings.define(CacheFlags)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    command_line.run(main, run_flags.parse)

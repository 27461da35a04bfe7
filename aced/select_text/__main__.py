"""Selects sentences for distillation without pairs: `python -m aced.select_text ...`.

    python -m aced.select_text --corpus='text/*.txt.gz' --teacher=models/l14 \\
        --features=caches/photos_l14 --k=8 --budget=28000000 --out=data/sentences

Chooses the k nearest sentences of every training image, by the teacher's image features
(`python -m aced.cache`) and its text tower: first all nearest neighbours, then all second ones, and
so on without repetition, until the budget is full (after DIME-FM, arXiv 2303.18232). Writes a data
set of sentences without images. With --distributed it runs on many machines. A stopped selection
is resumed by the same command, with the same result.
"""

from typing import Any

import jax
from absl import flags

from aced import command, command_line, flag_settings
from aced.files import ownership
from aced.select_text.command import run
from aced.select_text.config import SelectTextConfig
from aced.select_text.corpus import Counts


def report(out: str, statistics: dict[str, Any]) -> str:
    """A summary of the selection."""
    lines = [f"{out}: {statistics['sentences']:,} sentences, of {statistics['prompts']:,} prompts."]
    for reason, count in Counts(statistics["corpus"]).most_common():
        lines.append(f"  {'read' if reason == 'sentences' else reason:16}{count:14,}")
    if (share := statistics.get("first_neighbour_kept")) is not None:
        lines.append(f"{share:.1%} of {statistics['images']:,} images keep their first neighbour.")
        lines.append(f"Similarity of kept neighbours {statistics['neighbour_similarity']:.4f}.")
    for name, values in statistics.get("similarity", {}).items():
        lines.append(
            f"Similarity of an image to the nearest of them ({name}) {values['nearest']:.4f}, to "
            f"its k nearest {values['k_nearest']:.4f}."
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Selects sentences and prints a summary."""
    del argv
    with command.running_together(f"--out={flags.FLAGS.out}", flags.FLAGS.distributed):
        config = flag_settings.read(SelectTextConfig)
        statistics = run(config, force=flags.FLAGS.force)
        if jax.process_index() == 0:
            print(report(config.out, statistics))


if __name__ == "__main__":
    flag_settings.define(SelectTextConfig)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    flags.DEFINE_boolean(
        "distributed",
        None,
        "Start this command on every machine and select as one; see python -m aced.main --help.",
    )
    command_line.run(main)

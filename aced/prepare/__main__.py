"""Makes a prepared data set of images and captions: `python -m aced.prepare ...`.

    python -m aced.prepare --images=photos --captions=captions.jsonl --out=data/photos --val=800
    python -m aced.prepare --images=pics --captions=c.csv --out=data --val=800 --clean_column=src=me
    python -m aced.prepare --tars='cc12m/{00000..00099}.tar' --out=data/cc12m --near_duplicates=2
    python -m aced.prepare --parquet=coco --out=gs://b/coco --runner=DataflowRunner --project=...
    python -m aced.prepare --parquet=/nfs/coco --out=/nfs/data/coco --runner=DaskRunner

The table is JSON lines or CSV with one caption per line; an image may have several lines. Every
image is decoded in full here, so training never meets a broken one. Rejected lines and images are
counted and listed with a reason in `rejected.jsonl`; `statistics.html` summarises the data set.
Images with equal stored bytes become one example, with the captions of all of them. With
`--clean_column` the clean training examples are also written to a third split, `clean`. With
`--near_duplicates` copies at another size or quality are dropped too: images whose perceptual
hashes differ in a few bits and whose colours almost agree. With `--separate` every line stays an
example with its own label: questions and answers about a picture, or, with `--second_column`,
statements about two pictures.

The command is an Apache Beam pipeline (aced/prepare/graph.py). By default it runs in this process,
which holds the metadata of all images in memory, but no pixels (with `--near_duplicates`, 384 bytes
of colours per image). With `--runner`, Beam's own flags are passed on; workers need this package
installed and access to the input and `--out`. `--runner=DaskRunner` spreads the work over a Dask
cluster (`--dask_client_address`, `--dask_scheduler_file`; neither: processes on this machine) and
shows its progress here. The same input and settings give the same bytes on every runner. A second
run does nothing. A killed run is resumed by the same command: it reads the table again and repeats
only the blocks (256 images, or a row group of parquet) and shards that were unfinished. Until the
data set is complete, `.NAME.partial` beside it holds a copy of the images.
"""

import contextlib
import json
import sys

from absl import flags

from aced import command, command_line, flag_settings
from aced.files import ownership
from aced.prepare import summary
from aced.prepare.command import prepare
from aced.prepare.config import PrepareConfig


def main(argv: list[str]) -> None:
    """Prepares the data set, then prints a summary and the next command."""
    out, as_json = flags.FLAGS.out, flags.FLAGS.json
    with command.running(f"--out={out}"):
        config = flag_settings.read(PrepareConfig)
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
            statistics = prepare(config, argv[1:], force=flags.FLAGS.force)
    if as_json:
        print(json.dumps(statistics, indent=2))
    else:
        print(summary.text(statistics, config))
        print(f"Next: python -m aced.main --config=configs/small.py:method=iid,data={out}")


if __name__ == "__main__":
    flag_settings.define(PrepareConfig)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    flags.DEFINE_boolean("json", False, "Print the statistics as JSON, alone on standard output.")
    command_line.run(main, command_line.passing_on, takes="flags of Apache Beam")

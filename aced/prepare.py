"""`python -m aced.prepare`: images and captions -> a prepared data set.

    python -m aced.prepare --images=photos --captions=captions.jsonl --out=data/photos --val=800
    python -m aced.prepare --tars='cc12m/{00000..00099}.tar' --out=data/cc12m --near_duplicates=2
    python -m aced.prepare --parquet=coco --out=gs://b/coco --runner=DataflowRunner --project=...

The table is JSON lines or CSV, one caption a line; several lines of one image are several captions.
Every image is decoded in full once, here, so that training meets no broken one. What is left out is
counted and listed with its reason in `rejected.jsonl`; `statistics.html` shows what is kept. Images
whose stored bytes are equal become one example, the input's first, with the captions of all.
With `--separate` every line stays an example with its own label: questions with answers about a
picture, or, with `--second_column`, statements about two pictures.

It is an Apache Beam pipeline (aced/preparation/graph.py). By default it runs in this process, which
holds the facts of all images in memory, but no pixels. With `--runner`, Beam's own flags are passed
on; workers need this package installed and must reach the input and `--out`. The same input and
settings give the same bytes, wherever it runs. A second run finds nothing to do. A run that was
killed is taken up by the same command: it reads the table again, and of the images it repeats the
blocks (256 images, or a row group of parquet) and shards that were in work. Until the data set is
complete, `.NAME.partial` beside it holds a copy of the images.
"""

import hashlib
import json
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import fsspec
from absl import app, flags

from aced import flag_settings, ownership
from aced.config import ConfigError
from aced.data import records, storage
from aced.data.captions import PrepareError
from aced.preparation.config import PrepareConfig
from aced.preparation.workspace import Workspace

REJECTED = "rejected.jsonl"
PAGE = "statistics.html"
__all__ = ["PrepareConfig", "prepare"]


def prepare(
    config: PrepareConfig, options: Sequence[str] = (), *, force: bool = False
) -> dict[str, Any]:
    """Makes the data set `config.out`, all of it or nothing; returns its statistics.

    Where it is there already, of the same input and settings, nothing is done.

    Args:
        config: the settings.
        options: Beam's flags, for its runner.
        force: take the output over from another process that is known to be dead.

    Raises:
        PrepareError: the table has no such column or can't be read, `out` is taken, or nothing
          is left to train on.
        ConfigError: Beam is not installed, an option is not known, or another process prepares it.
    """
    graph, inputs, runner = _beam()
    pipeline = runner.pipeline_on(config.runner, options)
    blocks: list[tuple[int, int]] = []
    settings = config.of_contents()
    if config.captions:
        _check_table(config)
        settings["input"] = _sha256(config.captions)
    else:
        inputs.open_records.cache_clear()  # the files may have changed since
        source = inputs.open_records(config)
        settings["input"], blocks = source.fingerprint, inputs.blocks_of(source)
        print(f"{source.name} is read, {len(source)} records.")
    workspace = Workspace(config.out)
    if (done := _found(config, settings)) is not None:
        workspace.end(settings)
        return done
    with ownership.owned(ownership.beside(workspace.out), force):
        if (done := _found(config, settings)) is not None:  # by another process, just now
            return done
        if workspace.begin(settings):
            print(f"Going on with what an earlier run left in {workspace.root}.")
        try:
            graph.build(pipeline, config, blocks)
            runner.run(pipeline, config.runner)
            return _complete(config, workspace, settings)
        except Exception as error:
            if (refusal := workspace.refusal()) is not None:
                workspace.remove()
                raise PrepareError(refusal) from error
            raise


def _beam() -> tuple[Any, Any, Any]:
    """The modules that need Beam."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Beam misses Google's packages, which are not used here
    try:
        from aced.preparation import graph, inputs, runner
    except ImportError as error:
        raise ConfigError(f"aced.prepare needs `pip install '.[beam]'`: {error}.") from error
    finally:
        logging.disable(before)
    return graph, inputs, runner


def _check_table(config: PrepareConfig) -> None:
    for path, exists in (
        (config.images, storage.is_remote(config.images) or os.path.isdir(config.images)),
        (config.captions, storage.stat(config.captions) is not None),
    ):
        if not exists:
            raise PrepareError(f"{path} does not exist; correct --images or --captions.")


def _sha256(path: str) -> str:
    with fsspec.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _found(config: PrepareConfig, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics of the data set that is at `config.out`, if it is the one asked for.

    Raises:
        PrepareError: there is another one, or something else.
    """
    out = Workspace(config.out).out
    store, inner = fsspec.url_to_fs(out)
    if not store.exists(inner) or (store.isdir(inner) and not store.ls(inner)):
        return None
    is_folder = store.isdir(inner)
    description = storage.stat(f"{out}/{records.DESCRIPTION}") if is_folder else None
    if description is None:
        raise PrepareError(
            f"{out} exists and is no data set, so it is not overwritten; choose another --out."
        )
    if config.overwrite:
        return None
    found = json.loads(storage.read(description.path, 0, description.size))
    if found.get("settings") == json.loads(json.dumps(settings)):
        print(f"{out} is made with these settings already; nothing to do.")
        if missing := found["statistics"]["rejected"].get("missing_file"):
            print(f"Of {missing} images there was no file then; --overwrite looks again.")
        return found["statistics"]
    raise PrepareError(
        f"{out} exists, with other settings or of another input; choose another --out, or replace "
        "it with --overwrite."
    )


def _complete(
    config: PrepareConfig, workspace: Workspace, settings: dict[str, Any]
) -> dict[str, Any]:
    """Adds to the shards what describes them, and moves the whole to its place."""
    from aced.preparation import graph, page
    from aced.preparation.blocks import read_spool

    summary = json.loads(workspace.read("summary.json"))
    with workspace.file(f"out/{REJECTED}") as path, path.open("wb") as listing:
        for part in summary["parts"]:
            listing.write(workspace.read(graph.part_name(part)))
    text = page.page(
        summary, lambda picture: read_spool(workspace, *picture[1:]), config.max_pixels
    )
    workspace.write(f"out/{PAGE}", text.encode())
    with tempfile.TemporaryDirectory() as folder:
        records.write_description(
            folder,
            summary["shards"],
            statistics=summary["statistics"],
            settings=settings,
            class_names=summary["class_names"],
        )
        description = pathlib.Path(folder, records.DESCRIPTION).read_bytes()
    workspace.write(f"out/{records.DESCRIPTION}", description)
    files = {REJECTED, PAGE, records.DESCRIPTION}
    for split, shards in summary["shards"].items():
        files |= {records.shard_name(split, i, len(shards)) for i in range(len(shards))}
    workspace.publish(files, config.overwrite)
    return summary["statistics"]


def _report(statistics: dict[str, Any], out: str) -> None:
    print(f"{statistics['images']} images with {statistics['captions']} captions are kept,")
    print(f"{statistics['stored_anew']} of them stored anew. Left out:")
    for reason, count in statistics["rejected"].items():
        print(f"  {reason:20} {count:9}")
    if not statistics["rejected"]:
        print("  nothing")
    for name, part in statistics["splits"].items():
        print(f"{out}, split {name}: " + ", ".join(f"{n} {what}" for what, n in part.items()))
    print(f"What was left out, line by line: {out}/{REJECTED}")
    print(f"What is in it: {out}/{PAGE}")


def main(argv: list[str]) -> None:
    """Reads the flags, prepares, and says what came out and what to do next."""
    out = flags.FLAGS.out
    try:
        config = flag_settings.read(PrepareConfig)
        _report(prepare(config, argv[1:], force=flags.FLAGS.force), out)
    except (PrepareError, ConfigError, records.DatasetError, storage.StorageError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a disk that is full, a folder that may not be written to
        sys.exit(f"error: --out={out} cannot be written, or an input not read: {error}")
    if not flags.FLAGS.val:
        print("The recipes evaluate on a split 'val': prepare again with --val=N to hold some out.")
    print(f"Next: python -m aced.main --config=configs/small.py:method=iid,data={out}")


if __name__ == "__main__":
    flag_settings.define(PrepareConfig)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    # Flags that are not this command's are Beam's.
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))

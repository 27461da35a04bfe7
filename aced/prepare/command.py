"""Makes a prepared data set, whole or not at all."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import fsspec

from aced.config import ConfigError
from aced.data import picture_hashes, records
from aced.files import own_files, ownership, storage
from aced.prepare.captions import PrepareError
from aced.prepare.config import PrepareConfig
from aced.prepare.workspace import Workspace

REJECTED = "rejected.jsonl"
PAGE = "statistics.html"
_READERS = 16  # threads that read small files of the workspace, which may be in an object store
__all__ = ["PrepareConfig", "prepare"]


def prepare(
    config: PrepareConfig, options: Sequence[str] = (), *, force: bool = False
) -> dict[str, Any]:
    """Makes the data set `config.out`, all of it or nothing; returns its statistics.

    Does nothing if a data set with the same input and settings exists.

    Args:
        config: the settings.
        options: Beam's flags, for its runner.
        force: take the output over from another process that is known to be dead.

    Raises:
        PrepareError: the table lacks a column or can't be read, `out` holds something else, or no
            image is left to train on.
        ConfigError: Beam is not installed, an option is unknown, or another process prepares it.
    """
    graph, inputs, runner = _beam()
    pipeline = runner.pipeline_on(config.runner, options, config.out)
    blocks: list[tuple[int, int]] = []
    settings = config.of_contents()
    if config.captions:
        _check_table(config)
        with storage.open_file(config.captions) as table:
            settings["input"] = hashlib.file_digest(table, "sha256").hexdigest()
    else:
        inputs.open_records.cache_clear()  # the files may have changed since an earlier call
        source = inputs.open_records(config)
        settings["input"], blocks = source.fingerprint, inputs.blocks_of(source)
        print(f"{source.name} is read, {len(source)} records.")
    workspace = Workspace(config.out)
    if (statistics := _existing(config, settings)) is not None:
        workspace.end(settings)
        return statistics
    with ownership.owned(ownership.beside(workspace.out), force):
        # Another process may have completed it meanwhile.
        if (statistics := _existing(config, settings)) is not None:
            return statistics
        if workspace.begin(settings):
            print(f"Going on with what an earlier run left in {workspace.root}.")
        try:
            graph.build(pipeline, config, blocks, _digest(settings))
            runner.run(pipeline, config.runner)
            return _complete(config, workspace, settings)
        except Exception as error:
            if (refusal := workspace.refusal()) is not None:
                workspace.remove()
                raise PrepareError(refusal) from error
            raise


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _beam() -> tuple[Any, Any, Any]:
    """Imports the modules that need Beam, which takes seconds."""
    print("Loading Apache Beam ...", flush=True)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # about Google's packages, which are not used here
    try:
        from aced.prepare import graph, inputs, runner
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


def _existing(config: PrepareConfig, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics of the data set at `config.out`, if it has these settings.

    Raises:
        PrepareError: `out` is a data set of other settings, or no data set.
    """
    out = Workspace(config.out).out
    store, inner = fsspec.url_to_fs(out)
    if not store.exists(inner) or (store.isdir(inner) and not store.ls(inner)):
        return None
    is_folder = store.isdir(inner)
    description = storage.stat(f"{out}/{records.DESCRIPTION}") if is_folder else None
    if description is None:
        raise PrepareError(
            f"{out} exists and is not a data set, so it is not overwritten; choose another --out."
        )
    if config.overwrite:
        return None
    with own_files.reading(description.path, records.ADVICE, PrepareError):
        existing = own_files.loads(storage.read(description.path, 0, description.size))
        statistics = existing["statistics"]
        missing = statistics["rejected"].get("missing_file")
    # A data set made before there was a setting has its default.
    defaults = {x.name: x.default for x in dataclasses.fields(config) if x.name in settings}
    then = defaults | existing.get("settings", {})
    if json.loads(json.dumps(then)) == json.loads(json.dumps(settings)):
        print(f"{out} was already made with these settings; nothing to do.")
        if missing:
            print(f"The files of {missing} images were missing then; --overwrite looks again.")
        return statistics
    raise PrepareError(
        f"{out} exists, with other settings or another input; choose another --out, or replace "
        "it with --overwrite."
    )


def _complete(
    config: PrepareConfig, workspace: Workspace, settings: dict[str, Any]
) -> dict[str, Any]:
    """Adds the description, the rejected entries and the page, and publishes the data set."""
    from aced.prepare import graph, page
    from aced.prepare.blocks import ahead, read_spool
    from aced.prepare.shards import hashes_name

    summary = workspace.read_json("summary.json")
    with workspace.file(f"out/{REJECTED}") as path, path.open("wb") as listing:
        for part in summary["parts"]:
            with workspace.reading(graph.part_name(part)):
                listing.write(own_files.unseal(workspace.read(graph.part_name(part))))
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
        names = [records.shard_name(split, i, len(shards)) for i in range(len(shards))]
        hashes = picture_hashes.file_name(split)
        with workspace.file(f"out/{hashes}") as path, path.open("wb") as whole:
            for part in ahead(workspace.read, map(hashes_name, names), _READERS):
                whole.write(part)
        files |= {*names, hashes}
    workspace.publish(files, config.overwrite)
    return summary["statistics"]

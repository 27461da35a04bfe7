"""Blocks of images: the unit of work that is examined, kept, and not repeated by a restart.

The encoded bytes of a block's images go to one file, the spool, and the facts to another, written
last. Later steps see facts alone, and read bytes from the spool by their offset: no pixel goes
through a shuffle, no input need be readable at random, and none is decoded or shrunk twice. It
costs the space of the data set once more, until that is complete. A restart takes the images of
complete blocks as they were then, even if their files have changed since.
"""

import dataclasses
import hashlib
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import msgpack
from absl import logging

from aced.files import own_files, storage
from aced.prepare import progress
from aced.prepare.ahead import ahead
from aced.prepare.captions import CaptionedImage, PrepareError, RejectedError, Rejects
from aced.prepare.config import PrepareConfig
from aced.prepare.facts import Facts, pack
from aced.prepare.images import Checked, check
from aced.prepare.workspace import Workspace

# Images (lines of the table): what a restart may repeat in each worker, and what a worker takes at
# a time. The memory of a worker does not depend on it.
BLOCK = 256
REJECTED = "rejected"  # tag of what is left out, in every step

# An image of the input, its bytes, and those of the second picture, where there is one.
Found = tuple[CaptionedImage, bytes, bytes | None]
Item = Any  # what a block is made of, and `fetch` understands


def examine(
    config: PrepareConfig, block: int, items: Iterable[Item], fetch: Callable[[Item], Found]
) -> Iterator[Any]:
    """Yields the packed facts of a block's images, and, tagged, what is left out of it.

    Args:
        config: the settings.
        block: its number.
        items: at most `BLOCK`, in the input's order.
        fetch: gets the image of an item. It raises `RejectedError` with a third argument: where
            that is (`line`, maybe `image`).
    """
    workspace = Workspace(config.out)
    facts = _facts_file(block)
    found = _of_earlier_run(workspace, facts)
    is_there = found is not None
    if not is_there:
        found = _examined(config, block, items, fetch)
        with workspace.file(facts) as path:
            path.write_bytes(own_files.seal(msgpack.packb(found)))
    kept, rejected, seen = found
    beam.metrics.Metrics.counter("aced", "examined").inc(seen)
    if is_there:
        progress.advance("examine", seen)
    yield from kept
    for entry in rejected:
        yield beam.pvalue.TaggedOutput(REJECTED, tuple(entry))


def _of_earlier_run(workspace: Workspace, facts: str) -> list[Any] | None:
    """What `_examined` returned for the file `facts`; None: not yet, or the file is damaged."""
    if not workspace.exists(facts):
        return None
    try:
        return msgpack.unpackb(own_files.unseal(workspace.read(facts)))
    except own_files.UnreadableError as error:
        logging.warning("%s is made again: %s.", workspace.path(facts), error)
        return None


def _examined(
    config: PrepareConfig, block: int, items: Iterable[Item], fetch: Callable[[Item], Found]
) -> tuple[list[bytes], list[tuple[int, str, str]], int]:
    """Fills the spool of a block; returns its packed facts, its rejects and how many it had."""

    of_second = dataclasses.replace(config, thumbnails=0)

    def load(item: Item) -> tuple[CaptionedImage, Checked, Checked | None] | RejectedError:
        try:
            image, data, second = fetch(item)
        except RejectedError as error:
            return error
        where = {"image": image.key, "line": image.line}
        try:
            checked = check(data, config)
        except RejectedError as error:
            return RejectedError(*error.args, where)
        try:
            return image, checked, None if second is None else check(second, of_second)
        except RejectedError as error:
            reason, detail = error.args
            return RejectedError(reason, f"the second picture: {detail}", where)

    kept, rejects, seen = [], Rejects(config.place), 0
    with (
        Workspace(config.out).file(_spool(block)) as path,
        path.open("wb") as spool,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # remarks about odd files that decode nevertheless
        for loaded in ahead(load, items, config.decoders):
            seen += 1
            progress.advance("examine")
            if isinstance(loaded, RejectedError):
                *what, where = loaded.args
                rejects.add(RejectedError(*what), **where)
                continue
            image, checked, second = loaded
            kept.append(pack(_facts(image, checked, second, block, spool.tell())))
            spool.write(checked.data)
            spool.write(checked.thumbnail)
            if second is not None:
                spool.write(second.data)
    return kept, rejects.take(), seen


def _facts(
    image: CaptionedImage, checked: Checked, second: Checked | None, block: int, offset: int
) -> Facts:
    data = second.data if second is not None else b""
    return Facts(
        **vars(image),
        block=block,
        offset=offset,
        size=len(checked.data),
        thumbnail_size=len(checked.thumbnail),
        second_size=len(data),
        crc=zlib.crc32(checked.data + checked.thumbnail + data),
        sha256=hashlib.sha256(checked.data + data).digest(),
        width=checked.width,
        height=checked.height,
        anew=checked.anew or (second is not None and second.anew),
        look=checked.look,
        miniature=checked.miniature,
    )


def read_pictures(workspace: Workspace, facts: Facts) -> tuple[bytes, bytes, bytes]:
    """The encoded picture, its thumbnail and the second picture; empty where there is none.

    Raises:
        PrepareError: they are not what was written.
    """
    behind = facts.size + facts.thumbnail_size  # where the second picture begins
    data = read_spool(workspace, facts.block, facts.offset, behind + facts.second_size)
    if zlib.crc32(data) != facts.crc:
        raise PrepareError(
            f"The copy of {facts.key} in {workspace.path(_spool(facts.block))} is damaged. Remove "
            f"{workspace.path(_facts_file(facts.block))} and start again, which copies that block "
            "anew."
        )
    return data[: facts.size], data[facts.size : behind], data[behind:]


def read_spool(workspace: Workspace, block: int, offset: int, size: int) -> bytes:
    """Bytes of the spool of `block`, to look at: they are not compared with a checksum."""
    return storage.read(workspace.path(_spool(block)), offset, size)


def _spool(block: int) -> str:
    return f"blocks/{block:08d}.bytes"


def _facts_file(block: int) -> str:
    return f"blocks/{block:08d}.facts"

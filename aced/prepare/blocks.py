"""Blocks of images: the unit of work that is checked, stored, and not repeated by a restart.

The encoded bytes of a block's images go to one file, the spool, and their metadata (`Facts`) to
another, written last. Later steps pass only facts and read bytes from the spool by offset, so no
pixels are shuffled, the input needs no random access, and no image is decoded or shrunk twice. The
spools take as much space as the data set, until it is complete. A restart uses the images of
complete blocks as first read, even if their files have changed since.

The names of blocks have a digest of the settings and the input: workers of a cluster may go on
after their command was stopped, and write blocks of its settings into the next one's workspace.
"""

import collections
import dataclasses
import hashlib
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import apache_beam as beam
import msgpack
from absl import logging

from aced.files import own_files, storage
from aced.prepare import progress
from aced.prepare.captions import CaptionedImage, PrepareError, RejectedError, Rejects, located
from aced.prepare.config import PrepareConfig
from aced.prepare.images import Checked, check
from aced.prepare.workspace import Workspace

# Images (lines of the table) per block: the unit of work of a worker, and the most that a restart
# repeats in each of them. A worker's memory does not depend on it.
BLOCK = 256
REJECTED = "rejected"  # tag of the rejected lines and images, in every step

# An image of the input, its bytes, and the bytes of its second picture, if it has one.
Fetched = tuple[CaptionedImage, bytes, bytes | None]
Item = Any  # whatever `fetch` takes
T = TypeVar("T")
U = TypeVar("U")


@dataclasses.dataclass
class Facts(CaptionedImage):
    """A captioned image that was checked, and where its bytes are stored until it is written."""

    block: str  # name of the block with its bytes
    offset: int  # of its bytes in the spool
    size: int  # bytes of the image
    thumbnail_size: int  # bytes of the thumbnail, which follows; 0: no thumbnail
    second_size: int  # bytes of the second picture, which follows; 0: no second picture
    crc: int  # CRC-32 of all these bytes
    sha256: bytes  # of the image's bytes followed by the second picture's
    width: int  # pixels, as stored
    height: int
    anew: bool  # whether a picture was re-encoded
    look: bytes  # perceptual hash; empty if not needed
    miniature: bytes  # colours that verify equal hashes; empty if not needed

    @property
    def image_bytes(self) -> int:
        """Size of both pictures."""
        return self.size + self.second_size


# Between steps, facts travel as msgpack: a runner ships them to other machines, and would pickle
# objects.
def pack(image: CaptionedImage) -> bytes:
    """Serializes a `CaptionedImage` or `Facts`."""
    fields = [getattr(image, field.name) for field in dataclasses.fields(image)]
    return msgpack.packb(fields, use_bin_type=True)


def unpack_captions(data: bytes) -> CaptionedImage:
    """Returns the `CaptionedImage` that `pack` serialized."""
    return CaptionedImage(*msgpack.unpackb(data))


def unpack(data: bytes) -> Facts:
    """Returns the `Facts` that `pack` serialized."""
    return Facts(*msgpack.unpackb(data))


def block_name(number: int, digest: str) -> str:
    """The name of a block; `digest` is that of the settings and the input."""
    return f"{number:08d}-{digest[:16]}"


def examine(
    config: PrepareConfig, block: str, items: Iterable[Item], fetch: Callable[[Item], Fetched]
) -> Iterator[Any]:
    """Yields the packed facts of the images of a block and, tagged, its rejected entries.

    `block` is its name, from `block_name`; it has at most `BLOCK` items, in the input's order.
    `fetch` gets the image of an item. It raises `RejectedError` with a third argument, the
    location: `line`, and `image` if known.
    """
    workspace = Workspace(config.out)
    facts = _facts_file(block)
    result = _from_earlier_run(workspace, facts)
    is_cached = result is not None
    if not is_cached:
        result = _check_images(config, block, items, fetch)
        with workspace.file(facts) as path:
            path.write_bytes(own_files.seal(msgpack.packb(result)))
    kept, rejected, seen = result
    beam.metrics.Metrics.counter("aced", "examined").inc(seen)
    if is_cached:
        progress.advance("examine", seen)
    yield from kept
    for entry in rejected:
        yield beam.pvalue.TaggedOutput(REJECTED, tuple(entry))


def _from_earlier_run(workspace: Workspace, facts: str) -> list[Any] | None:
    """The result of `_check_images` in the file `facts`, or None if it is missing or damaged."""
    if not workspace.exists(facts):
        return None
    try:
        return msgpack.unpackb(own_files.unseal(workspace.read(facts)))
    except own_files.UnreadableError as error:
        logging.warning("%s is made again: %s.", workspace.path(facts), error)
        return None


def _check_images(
    config: PrepareConfig, block: str, items: Iterable[Item], fetch: Callable[[Item], Fetched]
) -> tuple[list[bytes], list[tuple[int, str, str]], int]:
    """Fills the spool of a block; returns packed facts, rejected entries and the item count."""
    second_config = dataclasses.replace(config, thumbnails=0)

    def load(item: Item) -> tuple[CaptionedImage, Checked, Checked | None] | RejectedError:
        try:
            image, data, second = fetch(item)
            with located(image):
                checked = check(data, config)
            with located(image, "the second picture: "):
                return image, checked, None if second is None else check(second, second_config)
        except RejectedError as error:
            return error

    kept, rejects, seen = [], Rejects(config.place), 0
    with (
        Workspace(config.out).file(_spool(block)) as path,
        path.open("wb") as spool,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about odd files that decode nevertheless
        for loaded in ahead(load, items, config.decoders):
            seen += 1
            progress.advance("examine")
            if isinstance(loaded, RejectedError):
                reason, detail, where = loaded.args
                rejects.add(RejectedError(reason, detail), **where)
                continue
            image, checked, second = loaded
            kept.append(pack(_facts(image, checked, second, block, spool.tell())))
            spool.write(checked.data)
            spool.write(checked.thumbnail)
            if second is not None:
                spool.write(second.data)
    return kept, rejects.take(), seen


def _facts(
    image: CaptionedImage, checked: Checked, second: Checked | None, block: str, offset: int
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


def tagged(rejects: Rejects) -> Iterator[beam.pvalue.TaggedOutput]:
    """Takes the entries out of `rejects` as outputs with the tag `REJECTED`."""
    for entry in rejects.take():
        yield beam.pvalue.TaggedOutput(REJECTED, entry)


def ahead(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """Yields `function(item)` of all `items` in order, computed in threads, at most 4 per thread
    in advance.
    """
    waiting: collections.deque[futures.Future[U]] = collections.deque()
    with futures.ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_pictures(workspace: Workspace, facts: Facts) -> tuple[bytes, bytes, bytes]:
    """The encoded picture, thumbnail and second picture; the last two may be empty.

    Raises:
        PrepareError: the checksum does not match.
    """
    second_offset = facts.size + facts.thumbnail_size
    data = read_spool(workspace, facts.block, facts.offset, second_offset + facts.second_size)
    if zlib.crc32(data) != facts.crc:
        raise PrepareError(
            f"The copy of {facts.key} in {workspace.path(_spool(facts.block))} is damaged. Remove "
            f"{workspace.path(_facts_file(facts.block))} and start again, which copies the block "
            "again."
        )
    return data[: facts.size], data[facts.size : second_offset], data[second_offset:]


def read_spool(workspace: Workspace, block: str, offset: int, size: int) -> bytes:
    """Bytes of the spool of `block`, without comparing a checksum."""
    return storage.read(workspace.path(_spool(block)), offset, size)


def _spool(block: str) -> str:
    return f"blocks/{block}.bytes"


def _facts_file(block: str) -> str:
    return f"blocks/{block}.facts"

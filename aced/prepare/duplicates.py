"""Images whose stored bytes are equal become one: the input's first, with the captions of all.

Of examples about two pictures both must be equal; those that are to stay separate never are one.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from aced.prepare.blocks import REJECTED
from aced.prepare.captions import RejectedError, Rejects, merge
from aced.prepare.config import PrepareConfig
from aced.prepare.facts import pack, unpack


def drop_duplicates(
    config: PrepareConfig, examined: beam.PCollection[bytes]
) -> tuple[beam.PCollection[bytes], beam.PCollection]:
    """Returns the packed facts of the images that are left, and what is left out."""
    merged = (
        examined
        | "key by content" >> beam.Map(_by_content, config).with_output_types(tuple[bytes, bytes])
        | "group by content" >> beam.GroupByKey()
        | "merge equal ones"
        >> beam.FlatMap(_merge, config).with_output_types(bytes).with_outputs(REJECTED, main="kept")
    )
    return merged.kept, merged[REJECTED]


def _by_content(packed: bytes, config: PrepareConfig) -> tuple[bytes, bytes]:
    facts = unpack(packed)
    # The lengths tell where the second picture begins.
    key = f"{facts.size} {facts.second_size} {facts.line if config.separate else ''} "
    return key.encode() + facts.sha256, packed


def _merge(grouped: tuple[bytes, Iterable[bytes]], config: PrepareConfig) -> Iterator[Any]:
    _, group = grouped
    first, *others = sorted(map(unpack, group), key=lambda facts: facts.line)
    rejects = Rejects(config.place)
    for other in others:
        error = RejectedError("duplicate_image", f"the same picture as {first.key}")
        rejects.add(error, image=other.key, line=other.line)
        merge(first, other, rejects)
    yield pack(first)
    for entry in rejects.take():
        yield beam.pvalue.TaggedOutput(REJECTED, entry)

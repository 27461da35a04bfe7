"""Reads the normalisation of a sentencepiece .model file from protobuf's wire format.

The library gives pieces and scores, but not the model type or the table of the normaliser, and its
generated protobuf module works with few versions of protobuf.
"""

import dataclasses
from collections.abc import Iterator

from aced.models.saved import InteropError

_TRAINER, _NORMALIZER = 2, 3  # fields of ModelProto (sentencepiece_model.proto)
_MODEL_TYPE = 3  # of TrainerSpec
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES = 2, 3, 4  # of NormalizerSpec
_UNIGRAM = 1


@dataclasses.dataclass(frozen=True)
class Normalization:
    """The parts of ModelProto that a tokenizer.json needs besides the pieces."""

    unigram: bool  # False: byte-pair encoding, words or characters
    charsmap: bytes  # the "precompiled" table of replacements; empty: characters are kept
    dummy_prefix: bool  # whether a space is put in front of a text
    remove_extra_spaces: bool


def normalization(content: bytes) -> Normalization:
    """Parses the content of a .model file.

    Raises:
        InteropError: the content is damaged.
    """
    parts: dict[int, dict[int, int | bytes]] = {_TRAINER: {}, _NORMALIZER: {}}
    try:
        for field, value in _fields(content):
            if field in parts and isinstance(value, bytes):
                parts[field] |= dict(_fields(value))
    except (IndexError, ValueError) as error:
        raise InteropError(f"The sentencepiece model is broken: {error}") from error
    normalizer = parts[_NORMALIZER]
    charsmap = normalizer.get(_CHARSMAP, b"")
    return Normalization(
        unigram=parts[_TRAINER].get(_MODEL_TYPE, _UNIGRAM) == _UNIGRAM,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, True)),
        remove_extra_spaces=bool(normalizer.get(_EXTRA_SPACES, True)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and raw values of a message's fields."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError(f"field {key >> 3} at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} has no end")

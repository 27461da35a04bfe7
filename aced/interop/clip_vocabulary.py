"""The vocabulary of CLIP's byte-pair encoding, rebuilt from the tokenizer that has it built in.

Ids 0-255 are bytes, 256-511 bytes that end a word, and 512 + i is what merge i makes. A token's
text is known (for parts of characters, inside a character that they complete); which two tokens a
merge joins is what the merges before it leave of that text.
"""

import functools
import itertools

import instant_clip_tokenizer

END_OF_WORD = "</w>"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"  # transformers' names
_START_ID = 49406
# What a part of a UTF-8 character may need before and behind it to be a whole one.
_BEFORE = (b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80")
_BEHIND = (b"", b"\x80", b"\x80\x80", b"\xa0\x80", b"\x80\x80\x80", b"\x90\x80\x80")


def byte_alphabet() -> list[str]:
    """One printable character for each byte, in the order of the bytes' ids (GPT-2's)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


def _id_bytes() -> bytes:
    """The byte that each of the ids 0-255 stands for."""
    plain = [ord(char) for char in byte_alphabet() if ord(char) < 256]
    return bytes([*plain, *(byte for byte in range(256) if byte not in plain)])


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the id of every token, and the merges in order; 49,408 and 48,894 of them."""
    bpe, alphabet, id_bytes = instant_clip_tokenizer.Tokenizer(), byte_alphabet(), _id_bytes()
    char_of = dict(zip(id_bytes, alphabet, strict=True))
    id_of = {byte: i for i, byte in enumerate(id_bytes)}
    tokens = [*alphabet, *(char + END_OF_WORD for char in alphabet)]
    ranks: dict[tuple[str, str], int] = {}
    for token in range(len(tokens), _START_ID):
        ends, content = _content(bpe, token, id_of)
        chars = [char_of[byte] for byte in content]
        if ends:
            chars[-1] += END_OF_WORD
        left, right = _merge(chars, ranks)
        ranks[left, right] = len(ranks)
        tokens.append(left + right)
    tokens += [START_OF_TEXT, END_OF_TEXT]
    return {token: i for i, token in enumerate(tokens)}, list(ranks)


def _content(
    bpe: instant_clip_tokenizer.Tokenizer, token: int, id_of: dict[int, int]
) -> tuple[bool, bytes]:
    """Whether the token ends a word, and its bytes."""
    ends = bpe.decode([token]).endswith(" ")  # no merge holds a space
    for before, behind in itertools.product(_BEFORE, _BEHIND):
        ids = [*(id_of[byte] for byte in before), token, *(id_of[byte] for byte in behind)]
        text = bpe.decode(ids)
        # A token that ends a word leaves a space before what is put behind it.
        if "\ufffd" not in text:
            found = text.encode()
            found = found[len(before) : len(found) - len(behind)]
            return ends, found.removesuffix(b" ") if ends else found
    return ends, "\ufffd".encode()  # the replacement character itself is a token, too


def _merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding: the earliest merge first, wherever it applies."""
    while True:
        known = [pair for pair in itertools.pairwise(parts) if pair in ranks]
        if not known:
            return parts
        first = min(known, key=ranks.__getitem__)
        out: list[str] = []
        for part in parts:
            if out and (out[-1], part) == first:
                out[-1] += part
            else:
                out.append(part)
        parts = out

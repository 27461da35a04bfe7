"""The byte-pair encoding of OpenAI's CLIP: cleaned texts to ids, and back.

`merges.txt` has OpenAI's 48,894 merges (MIT, see `LICENSE`), one per line, the earliest first: the
unchanged lines 2 to 48,895 of `bpe_simple_vocab_16e6.txt.gz` in open_clip_torch 3.3.0 (sha256
924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a). The sha256 of `merges.txt` is
d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02.
"""

import functools
import pathlib

from tokenizers import Regex, decoders, models, pre_tokenizers

END_OF_WORD = "</w>"
START_ID, END_ID = 49406, 49407  # of the text
# open_clip also recognises them in the text of a caption.
_SPECIAL = {"<start_of_text>": [START_ID], "<end_of_text>": [END_ID]}
# open_clip's pattern for cleaned text. Its IGNORECASE has two effects there: "ſ" matches "s", and
# U+0345, a mark whose upper case is a letter, is in none of the classes.
_WORDS = (
    r"<[sſ]tart_of_text>|<end_of_text>|'[sſ]|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\u0345]+"
)
_KEPT_PARTS = 2**16
_LONGEST_KEPT = 64  # characters


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the ids of the 49,406 tokens that are not special, and the merges in order.

    Ids 0-255 are bytes, 256-511 are bytes that end a word, and 512 + i is the result of merge i.
    """
    lines = pathlib.Path(__file__).with_name("merges.txt").read_text("utf-8").splitlines()
    merges = [(left, right) for left, right in map(str.split, lines)]
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(char + END_OF_WORD for char in alphabet)]
    tokens += [left + right for left, right in merges]
    return {token: i for i, token in enumerate(tokens)}, merges


def _byte_alphabet() -> list[str]:
    """One printable character for each byte, in the order of the bytes' ids (GPT-2's)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]


class ClipBpe:
    """Encodes and decodes; thread-safe, and starts no threads."""

    def __init__(self):
        tokens, merges = vocabulary()
        self._model = models.BPE(tokens, merges, end_of_word_suffix=END_OF_WORD)
        self._words = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        space = decoders.Replace(END_OF_WORD, "Ġ")  # ByteLevel's character for a space
        self._decoder = decoders.Sequence([space, decoders.ByteLevel()])
        self._kept = functools.lru_cache(_KEPT_PARTS)(self._encode_part)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a cleaned text, without start and end.

        Words contain no spaces, so the ids of each part between spaces are cached, which is much
        faster than encoding: most parts occur in many captions.
        """
        ids: list[int] = []
        for part in text.split(" "):
            ids += self._kept(part) if len(part) <= _LONGEST_KEPT else self._encode_part(part)
        return ids

    def _encode_part(self, part: str) -> list[int]:
        ids: list[int] = []
        for word, _ in self._words.pre_tokenize_str(part):
            ids += _SPECIAL.get(word) or [token.id for token in self._model.tokenize(word)]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of `ids`, with a space between words and without special ids."""
        tokens = map(self._model.id_to_token, ids)
        return self._decoder.decode([token for token in tokens if token is not None]).strip()


@functools.cache
def load() -> ClipBpe:
    """The encoding; loaded once per process."""
    return ClipBpe()

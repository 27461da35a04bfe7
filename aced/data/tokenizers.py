"""Captions to token ids, int32 [n length], and back: CLIP, sentencepiece, `tokenizer.json`, scenes.

All kinds share one convention: ids are cut to `length`, keeping the end-of-text id as the last one
("sticky" in big_vision), and padded with the padding id.
"""

import dataclasses
import functools
import html
import os
import re
import string
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import ftfy
import numpy as np
import sentencepiece
import tokenizers
from annotated_types import Ge
from jaxtyping import Int

from aced.config import Checked, ConfigError, MayChange
from aced.data import clip_bpe
from aced.data.shapes import scenes, tasks

CLIP_EOS = clip_bpe.END_ID
# Usual names of the end-of-text token in a `tokenizer.json`, the most specific first.
_HF_EOS_TOKENS = ("</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "[SEP]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
    """How captions become ids. Stored with the model, whose weights are trained for these ids."""

    # "clip_bpe": OpenAI's CLIP; "sentencepiece": SigLIP's kind of model file; "hf": a
    # tokenizer.json; "shapes": the words of the captions of the embedded data set; "scenes": the
    # same ids, followed by those of the words of its tasks. The last two need no file.
    kind: Literal["clip_bpe", "sentencepiece", "hf", "shapes", "scenes"] = "clip_bpe"
    path: MayChange[str] = ""  # the model file of "sentencepiece" and "hf"; empty for the others
    # Ids per caption, end of text and padding included. SigLIP 64, CLIP 77
    length: Annotated[int, Ge(3)] = 64
    lower: bool = True  # lower-case first. SigLIP does; kinds without a file always do
    # Mend broken Unicode and HTML entities and squeeze white space first, as open_clip does;
    # "clip_bpe" always does
    mend: bool = False
    # Delete ASCII punctuation and squeeze white space first, as SigLIP's own text processing in
    # transformers and open_clip does; big_vision trained it on lower-cased text with punctuation.
    canonicalize: bool = False
    # What `canonicalize` does with "_": transformers deletes it, open_clip makes it a space
    underscore: Literal["delete", "space"] = "delete"
    eos: bool = True  # end every caption with eos_id; kinds without a file always do
    eos_id: int | None = None  # None: as in the file (CLIP 49407, shapes and scenes 1)
    # None: 0 for CLIP (open_clip; transformers pads with 49407, which a causal tower pooled at the
    # end of text cannot see), 1 for "sentencepiece" (SigLIP), 0 for "shapes" and "scenes", and for
    # "hf" the file's own padding id, or 0 if it has none.
    pad_id: int | None = None

    def _check(self) -> None:
        needs_file = self.kind in ("sentencepiece", "hf")
        if needs_file and not self.path:
            what = {"sentencepiece": "a sentencepiece .model file", "hf": "a tokenizer.json"}
            raise ConfigError(
                f"tokenizer.path is empty, but tokenizer.kind={self.kind!r} reads a file; "
                f"set it to {what[self.kind]}."
            )
        if self.path and not needs_file:
            raise ConfigError(
                f"tokenizer.path={self.path!r} is never read by tokenizer.kind={self.kind!r}; "
                "leave it empty, or set kind to 'sentencepiece' or 'hf'."
            )
        if self.underscore == "space" and not self.canonicalize:
            raise ConfigError(
                "tokenizer.underscore='space' is never read without tokenizer.canonicalize=True; "
                "set that, or leave underscore at 'delete'."
            )
        if not needs_file:
            fixed = {"lower": True, "eos": True, "eos_id": None}
            for key, value in fixed.items():
                if getattr(self, key) != value:
                    raise ConfigError(
                        f"tokenizer.{key} is fixed for tokenizer.kind={self.kind!r}; leave it "
                        f"at {value!r}."
                    )


class Tokenizer:
    """Turns captions into int32 ids [n length]; equal configs give equal ids.

    Attributes:
        config: the settings.
        vocab_size: number of ids; every id is below it.
        eos_id: the end-of-text id, at which some text towers pool; None if the file has none.
        pad_id: the padding id.
    """

    def __init__(self, config: TokenizerConfig):
        """Loads the vocabulary.

        Raises:
            ConfigError: the file is missing or unreadable, or holds no end-of-text token.
        """
        self.config = config
        load = {
            "clip_bpe": _load_clip,
            "sentencepiece": _load_sentencepiece,
            "hf": _load_hf,
            "shapes": _load_closed,
            "scenes": _load_closed,
        }[config.kind]
        self._encode, self._decode, self.vocab_size, eos_id, pad_id = load(config)
        self.eos_id = config.eos_id if config.eos_id is not None else eos_id
        self.pad_id = config.pad_id if config.pad_id is not None else pad_id
        if config.eos and self.eos_id is None:
            raise ConfigError(
                f"{config.path} has no end-of-text token; set tokenizer.eos_id to its id, or "
                "tokenizer.eos=False."
            )
        for key, value in (("eos_id", self.eos_id), ("pad_id", self.pad_id)):
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(
                    f"tokenizer.{key}={value} is outside the vocabulary of {self.vocab_size} ids "
                    f"of {config.path or config.kind}."
                )

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "n length"]:
        """Returns the ids of `texts`, one row each."""
        length = self.config.length
        out = np.full((len(texts), length), self.pad_id, np.int32)
        for row, ids in zip(out, self._words(texts), strict=True):
            if self.config.eos:
                row[: len(ids[: length - 1])] = ids[: length - 1]
                row[min(len(ids), length - 1)] = self.eos_id
            else:
                row[: len(ids[:length])] = ids[:length]
        return out

    def fit(self, texts: Sequence[str]) -> list[bool]:
        """Whether each of `texts` keeps all of its ids, end of text included."""
        longest = self.config.length - self.config.eos
        return [len(ids) <= longest for ids in self._words(texts)]

    def _words(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """All ids of `texts`, without the end of text if `__call__` adds it."""
        if not texts:
            return []
        encoded = self._encode([self._clean(text) for text in texts])
        if not self.config.eos:
            return encoded
        # Some files append the end of text themselves.
        return [ids[:-1] if len(ids) and ids[-1] == self.eos_id else ids for ids in encoded]

    def decode(self, ids: Int[np.ndarray, "n l"]) -> list[str]:
        """Returns the texts of rows of ids, each up to its end of text, without special ids.

        Texts come back as they were cleaned. Where the vocabulary splits words, as CLIP's does at
        punctuation, their parts are separated by spaces. Ids beyond the vocabulary are dropped.
        """
        return [self._decode(self._content(row)) for row in ids.tolist()]

    def _content(self, row: list[int]) -> list[int]:
        """A row up to its end of text, or without padding if texts have no end."""
        if self.eos_id in row:
            row = row[: row.index(self.eos_id)]
        # Only at the end: the padding id may also be a word, as 0 is in CLIP.
        while not self.config.eos and row and row[-1] == self.pad_id:
            row = row[:-1]
        return [i for i in row if i < self.vocab_size]

    def _clean(self, text: str) -> str:
        config = self.config
        text = clip_clean(text) if config.mend or config.kind == "clip_bpe" else text
        text = text.lower() if config.lower else text
        text = text.replace("_", " ") if config.underscore == "space" else text
        return canonicalize(text) if config.canonicalize else text


@functools.lru_cache(maxsize=32)
def get_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of `config`; loaded once per process, since files can take seconds."""
    return Tokenizer(config)


def clip_clean(text: str) -> str:
    """open_clip's cleaning: broken Unicode and HTML entities mended, white space squeezed.

    Printable ASCII without '&' skips ftfy and html.unescape, which leave it unchanged; 30 times as
    fast on usual captions.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def canonicalize(text: str) -> str:
    """Deletes ASCII punctuation and squeezes white space, as transformers' SiglipTokenizer."""
    return re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip()


Encode = Callable[[list[str]], Sequence[Sequence[int]]]
Decode = Callable[[list[int]], str]  # of ids before the end of text
Loaded = tuple[Encode, Decode, int, int | None, int]


def _load_clip(config: TokenizerConfig) -> Loaded:
    bpe = clip_bpe.load()

    def encode(texts: list[str]) -> list[list[int]]:
        return [[clip_bpe.START_ID, *bpe.encode(text)] for text in texts]

    return encode, bpe.decode, CLIP_EOS + 1, CLIP_EOS, 0


def _load_sentencepiece(config: TokenizerConfig) -> Loaded:
    _require_file(config.path, "a sentencepiece .model file")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=config.path)
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"tokenizer.path={config.path} is not a sentencepiece model ({error}); give the .model "
            "file itself, not a .vocab or a tokenizer.json (that is tokenizer.kind='hf')."
        ) from error
    eos = model.eos_id()
    # SigLIP pads with 1, its end-of-text id, although the file also has a padding id.
    return model.encode, model.decode, model.get_piece_size(), (eos if eos >= 0 else None), 1


def _load_hf(config: TokenizerConfig) -> Loaded:
    _require_file(config.path, "a tokenizer.json")
    try:
        model = tokenizers.Tokenizer.from_file(config.path)
    except Exception as error:  # the library raises a bare Exception for a malformed file
        raise ConfigError(
            f"tokenizer.path={config.path} is not a tokenizer.json of the `tokenizers` library "
            f"({error}); for a sentencepiece .model file set tokenizer.kind='sentencepiece'."
        ) from error
    pad = model.padding["pad_id"] if model.padding else 0
    model.no_padding()
    model.no_truncation()
    eos_ids = (model.token_to_id(token) for token in _HF_EOS_TOKENS)
    eos = next((token for token in eos_ids if token is not None), None)
    size = model.get_vocab_size(with_added_tokens=True)
    # Tokens that the file puts around texts are not always marked as special.
    return _encoder(model), _decoder(model, model.encode("").ids), size, eos, pad


def closed_tokenizer(kind: Literal["shapes", "scenes"]) -> tokenizers.Tokenizer:
    """A vocabulary of the embedded data set: <pad> 0, </s> 1, <unk> 2, then its words.

    "scenes" extends "shapes" by the words of the tasks.
    """
    words = (*scenes.WORDS, *(tasks.WORDS if kind == "scenes" else ()))
    vocab = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return model


def _load_closed(config: TokenizerConfig) -> Loaded:
    model = closed_tokenizer(config.kind)
    return _encoder(model), _decoder(model, [0, 1]), model.get_vocab_size(), 1, 0


def _encoder(model: tokenizers.Tokenizer) -> Callable[[list[str]], Sequence[Sequence[int]]]:
    # One text at a time: `encode_batch` would start more threads.
    return lambda texts: [model.encode(text).ids for text in texts]


def _decoder(model: tokenizers.Tokenizer, special: Sequence[int]) -> Decode:
    return lambda ids: model.decode([i for i in ids if i not in special])


def _require_file(path: str, what: str) -> None:
    if not os.path.isfile(path):
        raise ConfigError(f"tokenizer.path={path} does not exist; it must be {what} on this host.")

"""Builds tokenizers with the `tokenizers` library; transformers and open_clip load their files."""

import re
import string

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from aced.convert import sentencepiece_file
from aced.data import clip_bpe
from aced.data.tokenizers import TokenizerConfig, closed_tokenizer
from aced.models.saved import InteropError

START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"  # CLIP's, in transformers
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# The common replacements of ftfy and html.unescape (`tokenizers.clip_clean`).
_MENDED = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&#39;": "'",
    "&#x27;": "'",
    "&nbsp;": " ",
    "ﬀ": "ff",
    "ﬁ": "fi",
    "ﬂ": "fl",
    "ﬃ": "ffi",
    "ﬄ": "ffl",
    "ﬅ": "ſt",
    "ﬆ": "st",
}
_UNCURLED = (("[\u02bc\u2018\u2019\u201b]", "'"), ("[\u201c\u201d\u201f]", '"'))
_SPACE = r"[\s\x1c-\x1f\x85]+"
_CONTROL = r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b\x0e-\x1a\x7f\u200e\u200f\ufeff]"


def build(config: TokenizerConfig, content: bytes) -> tokenizers.Tokenizer:
    """Returns a tokenizer that cleans, encodes and ends texts as `Tokenizer`, without padding.

    For `mend` and CLIP it replaces quotes, ligatures, full-width letters, control characters and
    common HTML entities as ftfy does. Unlike ftfy it does not repair broken encodings.

    Args:
        config: the settings of our tokenizer.
        content: of the tokenizer's file; empty for kinds without one.

    Raises:
        InteropError: the type of sentencepiece model is not supported.
    """
    if config.kind == "clip_bpe":
        model = clip(*clip_vocabulary())
    elif config.kind in ("shapes", "scenes"):
        model = closed_tokenizer(config.kind)
    elif config.kind == "sentencepiece":
        model = _from_sentencepiece(content)
    else:
        model = tokenizers.Tokenizer.from_str(content.decode())
        model.no_padding()
        model.no_truncation()
    steps = _cleaning(config)
    if steps:
        own = [model.normalizer] if model.normalizer is not None else []
        model.normalizer = normalizers.Sequence([*steps, *own])
    return model


def end_texts(
    model: tokenizers.Tokenizer, eos_id: int, *, pad_id: int = 0, unread: int = 0
) -> None:
    """Makes `model` end every text with `eos_id`, unless it does so already.

    Args:
        model: the tokenizer to change.
        eos_id: the end-of-text id.
        pad_id: the padding id.
        unread: the number of positions before the last one that receive no attention
            (`positions.extend`). They are filled with padding between two ends of text, so that
            texts are cut at the same word as before, and end at the last position.
    """
    ids = model.encode("").ids
    if ids and ids[-1] == eos_id:
        if not unread:
            return
        ids = ids[:-1]
    before = [model.id_to_token(i) for i in ids]
    eos, pad = model.id_to_token(eos_id), model.id_to_token(pad_id)
    after = [eos, *[pad] * (unread - 1), eos] if unread else [eos]
    special = [(token, model.token_to_id(token)) for token in {*before, *after}]
    model.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=special
    )


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns the ids of CLIP's 49,408 tokens by transformers' names, and its 48,894 merges."""
    tokens, merges = clip_bpe.vocabulary()
    return tokens | {START_OF_TEXT: clip_bpe.START_ID, END_OF_TEXT: clip_bpe.END_ID}, merges


def clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's tokenizer as transformers builds it: NFC, lower case, words, byte-pair encoding.

    The vocabulary maps tokens to ids; the merges are pairs of tokens, the earliest first.

    Raises:
        InteropError: the vocabulary lacks `<|startoftext|>` or `<|endoftext|>`.
    """
    start, end = START_OF_TEXT, END_OF_TEXT
    if not {start, end} <= set(vocabulary):
        raise InteropError(f"The vocabulary has no {start} and {end}; it is not CLIP's.")
    model = tokenizers.Tokenizer(
        BPE(vocabulary, merges, end_of_word_suffix=clip_bpe.END_OF_WORD, unk_token=end)
    )
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model.post_processor = processors.TemplateProcessing(
        single=[start, "$A", end],
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    model.add_special_tokens([AddedToken(start, special=True), AddedToken(end, special=True)])
    return model


def _cleaning(config: TokenizerConfig) -> list[normalizers.Normalizer]:
    """The steps of `Tokenizer._clean`, in the same order."""
    steps: list[normalizers.Normalizer] = []
    if config.mend or config.kind == "clip_bpe":
        for _ in range(2):  # html.unescape is applied twice: "&amp;lt;"
            steps += [normalizers.Replace(old, new) for old, new in _MENDED.items()]
        steps += [normalizers.Replace(Regex(old), new) for old, new in _UNCURLED]
        full_width = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
        steps += [normalizers.Replace(old, new) for old, new in full_width.items()]
        steps += [normalizers.Replace("\u3000", " "), normalizers.Replace(Regex(_CONTROL), "")]
        steps += [normalizers.NFC(), normalizers.Replace(Regex(_SPACE), " "), normalizers.Strip()]
    if config.lower:
        # Python's lower() has a special form of sigma at the end of a word.
        final = Regex(r"(?<=\p{L})Σ(?!\p{L})")
        steps += [normalizers.Replace(final, "ς"), normalizers.Lowercase()]
    if config.underscore == "space":
        steps.append(normalizers.Replace("_", " "))
    if config.canonicalize:
        punctuation = Regex(f"[{re.escape(string.punctuation)}]")
        steps += [normalizers.Replace(punctuation, ""), normalizers.Replace(Regex(_SPACE), " ")]
        steps.append(normalizers.Strip())
    return steps


def _from_sentencepiece(content: bytes) -> tokenizers.Tokenizer:
    """Converts a unigram model of the sentencepiece library."""
    spec = sentencepiece_file.normalization(content)
    if not spec.unigram:
        raise InteropError(
            "This sentencepiece model is not a unigram model (Gemma's is byte-pair encoding), so "
            "it cannot be converted exactly; use the tokenizer.json that is published with it, "
            "with tokenizer.kind='hf'."
        )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    ids = range(pieces.get_piece_size())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in ids]
    byte_fallback = any(pieces.is_byte(i) for i in ids)
    model = tokenizers.Tokenizer(Unigram(vocabulary, pieces.unk_id(), byte_fallback))
    steps: list[normalizers.Normalizer] = []
    if spec.charsmap:
        steps.append(normalizers.Precompiled(spec.charsmap))
    if spec.remove_extra_spaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    model.normalizer = normalizers.Sequence(steps)
    prefix = "always" if spec.dummy_prefix else "never"
    model.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prefix)
    return model

"""Writes our tokenizer for transformers' AutoTokenizer and open_clip's HFTokenizer."""

import dataclasses
import json
import pathlib
import re
import tempfile
from typing import Any

import numpy as np
import sentencepiece

from aced.convert import tokenizer_build
from aced.data.tokenizers import Tokenizer
from aced.models.saved import Model

_PAD = "<|pad|>"
_SPECIAL = re.compile(r"<.+>|\[.+\]")  # the form of special tokens, which captions do not have


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The files and settings of a tokenizer, and the change of the model's token table."""

    files: dict[str, bytes]
    settings: dict[str, Any]  # of tokenizer_config.json
    eos_id: int | None
    pad_id: int
    # Row of the token table that is copied for a new padding token; None: no new token
    pad_like: int | None = None
    notes: tuple[str, ...] = ()  # what differs from our own tokenizer, in words


def opened(model: Model) -> Tokenizer:
    """Loads the tokenizer of `model` from the content of its file."""
    config = model.config.tokenizer
    if not model.tokenizer:
        return Tokenizer(config)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / config.path
        file.write_bytes(model.tokenizer)
        return Tokenizer(dataclasses.replace(config, path=str(file)))


def files(model: Model, unread: int = 0) -> TokenizerFiles:
    """Returns the files for the tokenizer of `model`.

    Args:
        model: the model.
        unread: number of positions before the last one that receive no attention.

    Raises:
        InteropError: the tokenizer cannot be converted.
    """
    ours = opened(model)
    settings = {
        "model_max_length": model.config.tokenizer.length,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    if not model.config.text.causal:
        # Masking padding would change the text tower's input.
        settings["model_input_names"] = ["input_ids"]
    # SiglipTokenizer cuts texts at the last position alone: padding must be like an end of text.
    if _is_siglip_tokenizer(model) and (not unread or ours.pad_id == ours.eos_id):
        return _siglip(model, ours, settings)
    return _fast(model, ours, settings, unread)


def padded_table(model: Model, written: TokenizerFiles) -> np.ndarray:
    """The token table [vocab d], with the new padding token's row if there is one."""
    table = model.params["text"]["token"]
    if written.pad_like is None:
        return table
    row = table[written.pad_like]
    if written.pad_id == len(table):
        return np.concatenate([table, row[None]])
    table = table.copy()
    table[written.pad_id] = row  # beyond the tokenizer's ids, so captions do not use this row
    return table


def _is_siglip_tokenizer(model: Model) -> bool:
    """Whether SiglipTokenizer, which always deletes punctuation, is equivalent to ours."""
    config = model.config.tokenizer
    exact = config.kind == "sentencepiece" and config.eos and not config.mend
    return exact and config.canonicalize and config.underscore == "delete"


def _siglip(model: Model, ours: Tokenizer, settings: dict[str, Any]) -> TokenizerFiles:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.tokenizer)
    settings |= {
        "tokenizer_class": "SiglipTokenizer",
        "do_lower_case": model.config.tokenizer.lower,
        "eos_token": pieces.id_to_piece(ours.eos_id),
        "pad_token": pieces.id_to_piece(ours.pad_id),
        "unk_token": pieces.id_to_piece(pieces.unk_id()),
    }
    return TokenizerFiles({"spiece.model": model.tokenizer}, settings, ours.eos_id, ours.pad_id)


def _fast(model: Model, ours: Tokenizer, settings: dict[str, Any], unread: int) -> TokenizerFiles:
    config, text = model.config.tokenizer, model.config.text
    fast = tokenizer_build.build(config, model.tokenizer)
    notes = []
    if config.mend or config.kind == "clip_bpe":
        notes.append(
            "transformers does not use ftfy: the written tokenizer mends quotes, ligatures, "
            "full-width letters, control characters and common HTML entities, but no broken "
            "encodings"
        )
    eos = None if ours.eos_id is None else fast.id_to_token(ours.eos_id)
    pad_id, pad_like = ours.pad_id, None
    pad = fast.id_to_token(pad_id)
    special = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
    if pad != eos and pad not in special and not _SPECIAL.fullmatch(pad or ""):
        if text.causal and text.pool == "eot" and eos is not None:
            pad, pad_id = eos, ours.eos_id  # tokens after the end of text have no effect
        else:
            fast.add_special_tokens([_PAD])
            pad, pad_like, pad_id = _PAD, pad_id, fast.token_to_id(_PAD)
            notes.append(
                f"padding is the new token {pad_id}, {_PAD}, with a copy of the row of token "
                f"{pad_like}, because that token is also a word"
            )
    if config.eos:
        tokenizer_build.end_texts(fast, ours.eos_id, pad_id=pad_id, unread=unread)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
    if eos is not None:
        settings["eos_token"] = eos
    start = fast.encode("").ids[:1]
    if start and start[0] != ours.eos_id:
        settings["bos_token"] = fast.id_to_token(start[0])
    content = json.dumps(json.loads(fast.to_str()), ensure_ascii=False).encode()
    return TokenizerFiles(
        {"tokenizer.json": content}, settings, ours.eos_id, pad_id, pad_like, tuple(notes)
    )

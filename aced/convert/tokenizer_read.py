"""Reads the tokenizer of a folder in transformers' layout, as our settings and one file."""

import dataclasses
import json
import pathlib
from typing import Any

import sentencepiece
import tokenizers

from aced.convert import tokenizer_build
from aced.data.tokenizers import TokenizerConfig
from aced.models import tensors
from aced.models.saved import TOKENIZER_FILES, InteropError

_MAX_BYTES = 1 << 28
_LEFT = ("Siglip2Tokenizer", "GemmaTokenizer")  # pad on the left by default


@dataclasses.dataclass(frozen=True)
class _Names:
    """The names of special tokens and the rest of tokenizer_config.json."""

    settings: dict[str, Any]
    kind: str  # class, without "Fast"
    length: int  # ids per caption
    lowered: str = ""  # why texts are lower-cased although the class does not; empty: they are not

    def token(self, name: str, default: str | None) -> str | None:
        """The text of the special token called `name`, such as "pad_token"."""
        value = self.settings.get(name, default)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, str):
            raise InteropError(f"tokenizer_config.json: {name} must be a text, found {value!r}.")
        return value


def read(
    folder: pathlib.Path, positions: int, model_type: str
) -> tuple[TokenizerConfig, bytes, tuple[str, ...]]:
    """Returns the tokenizer's settings, the content of its file, and notes on differences.

    Args:
        folder: has tokenizer_config.json and one of tokenizer.json, spiece.model, or vocab.json
            with merges.txt.
        positions: positions of the text tower; longer texts are cut.
        model_type: "siglip" or "clip", for defaults of tokenizer_config.json.

    Raises:
        InteropError: a file is missing or broken, or our tokenizers cannot express it.
    """
    names = _names(folder, positions, model_type)
    if (folder / "spiece.model").is_file() and names.kind == "SiglipTokenizer":
        return *_siglip(_bytes(folder / "spiece.model"), names), ()
    if (folder / "tokenizer.json").is_file():
        content = _bytes(folder / "tokenizer.json")
        try:
            model = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises a bare Exception for a malformed file
            raise InteropError(f"{folder / 'tokenizer.json'} is broken: {error}") from error
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        content, model = b"", _clip_from_parts(folder)
    else:
        raise InteropError(
            f"{folder} has no tokenizer that can be read (spiece.model of a SiglipTokenizer, "
            "tokenizer.json, or vocab.json with merges.txt). Save the processor beside the model: "
            'AutoProcessor.from_pretrained(NAME).save_pretrained("FOLDER").'
        )
    notes = (names.lowered,) if names.lowered else ()
    return *_fast(model, content, names, folder), notes


def _names(folder: pathlib.Path, positions: int, model_type: str) -> _Names:
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the latter has precedence
        if (folder / file).is_file():
            settings |= tensors.read_json(folder / file)
    default = {"clip": "CLIPTokenizer", "siglip": "SiglipTokenizer"}.get(model_type, "")
    kind = str(settings.get("tokenizer_class") or default).removesuffix("Fast")
    side = settings.get("padding_side", "left" if kind in _LEFT else "right")
    if side != "right" or settings.get("truncation_side", "right") != "right":
        raise InteropError(
            f"{folder}: padding_side = {side!r}, but our tokenizers pad and cut on the right. If "
            "the model was trained that way, set padding_side and truncation_side to 'right' in "
            "tokenizer_config.json."
        )
    longest = settings.get("model_max_length", positions)
    length = min(positions, int(longest)) if isinstance(longest, int | float) else positions
    lowered = ""
    # The published SigLIP 2 of fixed resolution; their own class came later.
    if (model_type, kind) == ("siglip", "GemmaTokenizer") and settings.get("do_lower_case", True):
        lowered = (
            "texts are lower-cased, as SigLIP 2 was trained and Siglip2Tokenizer does; the folder "
            "names GemmaTokenizer, which keeps capitals"
        )
    return _Names(settings, kind, length, lowered)


def _siglip(content: bytes, names: _Names) -> tuple[TokenizerConfig, bytes]:
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError) as error:
        raise InteropError(f"spiece.model is not a sentencepiece model: {error}") from error
    eos = pieces.piece_to_id(names.token("eos_token", "</s>") or "</s>")
    pad = pieces.piece_to_id(names.token("pad_token", "</s>") or "</s>")
    config = TokenizerConfig(
        kind="sentencepiece",
        path=TOKENIZER_FILES["sentencepiece"],
        length=names.length,
        lower=bool(names.settings.get("do_lower_case", True)),
        canonicalize=True,
        eos_id=eos,
        pad_id=pad,
    )
    return config, content


def _fast(
    model: tokenizers.Tokenizer, content: bytes, names: _Names, folder: pathlib.Path
) -> tuple[TokenizerConfig, bytes]:
    defaults = {"CLIPTokenizer": ("<|endoftext|>",) * 2, "GemmaTokenizer": ("<eos>", "<pad>")}
    eos_name, pad_name = defaults.get(names.kind, ("</s>", None))
    if model.padding:
        pad_name = model.padding["pad_token"]
    eos = model.token_to_id(names.token("eos_token", eos_name) or "")
    pad = model.token_to_id(names.token("pad_token", pad_name) or "")
    if pad is None:
        raise InteropError(
            f"{folder}: the tokenizer has no padding token; name it in tokenizer_config.json."
        )
    changed = _apply_flags(model, names, eos)
    ids = model.encode("").ids
    ends = bool(ids) and ids[-1] == eos
    if changed or not content:
        model.no_padding()
        model.no_truncation()
        content = json.dumps(json.loads(model.to_str()), ensure_ascii=False).encode()
    config = TokenizerConfig(
        kind="hf",
        path=TOKENIZER_FILES["hf"],
        length=names.length,
        # Other classes leave it to the normalizer in the file.
        lower=names.kind == "Siglip2Tokenizer" or bool(names.lowered),
        eos=ends,
        eos_id=eos,
        pad_id=pad,
    )
    return config, content


def _apply_flags(model: tokenizers.Tokenizer, names: _Names, eos: int | None) -> bool:
    """Adds BOS and EOS as transformers does if the settings request it; returns whether they do."""
    flags = {key: names.settings.get(f"add_{key}_token") for key in ("bos", "eos")}
    if flags == {"bos": None, "eos": None}:
        return False
    bos_name = names.token("bos_token", "<bos>") if flags["bos"] else None
    eos_name = model.id_to_token(eos) if flags["eos"] and eos is not None else None
    special = [(name, model.token_to_id(name)) for name in (bos_name, eos_name) if name]
    if any(i is None for _, i in special):
        raise InteropError(
            f"tokenizer_config.json asks for the tokens {special}, one of which is not in the "
            "vocabulary."
        )
    single = [x for x in (bos_name, "$A", eos_name) if x]
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=special
    )
    return True


def _clip_from_parts(folder: pathlib.Path) -> tokenizers.Tokenizer:
    vocabulary = tensors.read_json(folder / "vocab.json")
    if not all(type(i) is int and i >= 0 for i in vocabulary.values()):
        raise InteropError(f"{folder / 'vocab.json'} must map tokens to ids.")
    lines = _bytes(folder / "merges.txt").decode().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    wrong = [
        pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= set(vocabulary)
    ]
    if wrong:
        raise InteropError(f"{folder / 'merges.txt'} has a line that is not a merge: {wrong[0]}.")
    return tokenizer_build.clip(vocabulary, pairs)


def _bytes(file: pathlib.Path) -> bytes:
    if file.stat().st_size > _MAX_BYTES:
        raise InteropError(f"{file} has more than {_MAX_BYTES:,} bytes; is it a tokenizer?")
    return file.read_bytes()

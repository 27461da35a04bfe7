"""Pairs in memory, in the form that the towers of the comparison read, kept in a folder."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from aced.data import records
from aced.data.images import decode
from aced.data.shapes.scenes import ShapesConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from benchmarks.device.pool import scenes
from benchmarks.icons import AGREED
from configs.smoke import CONCEPTS

LENGTH = 20  # words of a caption
OFTEN = 3  # a word of icons' names has a row of its own if it occurs so often
SIDES = {"shapes": (32, 8), "icons": (64, 16)}  # px of a picture, as drawn and as read


@dataclasses.dataclass(frozen=True)
class Pool:
    """N pairs."""

    pixels: Float[np.ndarray, "N p"]
    tokens: Int[np.ndarray, "N l"]
    is_noisy: Bool[np.ndarray, " N"]
    concepts: Int[np.ndarray, "N l"]  # distinct words that are concepts, and -1
    words: int  # of the vocabulary
    places: int  # see towers.init

    def __len__(self) -> int:
        return len(self.pixels)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a batch takes rows of."""
        names = ("pixels", "tokens", "is_noisy", "concepts")
        return {name: getattr(self, name) for name in names}


def shapes(folder: pathlib.Path, *, size: int, wrong: float, seed: int, split: str) -> Pool:
    """The first `size` embedded scenes, with this share of wrong captions."""
    file, (drawn, read) = folder / f"shapes-{split}-{size}-{wrong}-{seed}.npz", SIDES["shapes"]
    tokenizer = TokenizerConfig(kind="shapes", length=LENGTH)
    if not file.exists():
        config = ShapesConfig(size=size, seed=seed, split=split, resolution=drawn, wrong=wrong)
        found = scenes(config, tokenizer, range(size))
        pixels = np.stack([reduced(image, read) for image in found.image])
        _keep(file, pixels=pixels, tokens=found.text, is_noisy=found.is_noisy)
    encode = get_tokenizer(tokenizer)
    named = encode(pathlib.Path(CONCEPTS).read_text("utf-8").split())[:, 0]
    return _load(file, named, words=encode.vocab_size, places=LENGTH)


def icons(folder: pathlib.Path, data: pathlib.Path, split: str) -> Pool:
    """Icons that benchmarks/icons.py wrote.

    Args:
        folder: where the pools are kept.
        data: the data sets.
        split: "train", all; "clean", whose names three training families share; "val", those held
            out, the first of each name; "zeroshot", also held out, of names that eight families
            have.
    """
    names = {"train": "all", "clean": "clean", "val": "all", "zeroshot": "zeroshot"}
    file, side = folder / f"icons-{split}.npz", SIDES["icons"][1]
    vocabulary = _vocabulary(folder, data)
    if not file.exists():
        of = "train" if split in ("train", "clean") else "val"
        source = records.open_dataset(data / names[split], of)
        found = [source[i] for i in range(len(source))]
        if split == "val":
            found = list({record["texts"][0]: record for record in reversed(found)}.values())
            found = found[::-1][:1000]
        texts = [record["texts"][0] for record in found]
        _keep(
            file,
            pixels=np.stack([reduced(decode.decode(record["image"]), side) for record in found]),
            tokens=_numbered(texts, vocabulary),
            is_noisy=np.array([_is_rare(record.get("extra", {})) for record in found]),
        )
    # Names have hardly any order, and their words are many: one row for a word, in any place.
    return _load(file, range(2, len(vocabulary) + 2), words=len(vocabulary) + 2, places=1)


def _is_rare(about: Mapping[str, Any]) -> bool:
    """Whether fewer families than the reference's data need have an icon of this subject."""
    return about.get("agreed", AGREED) < AGREED


def _vocabulary(folder: pathlib.Path, data: pathlib.Path) -> list[str]:
    """The words of the names trained on that occur often, sorted."""
    file = folder / "icons-words.txt"
    if not file.exists():
        source = records.open_dataset(data / "all", "train")
        texts = (source[i]["texts"][0] for i in range(len(source)))
        counts = collections.Counter(word for text in texts for word in text.split())
        file.write_text("\n".join(sorted(w for w, n in counts.items() if n >= OFTEN)), "utf-8")
    return file.read_text("utf-8").split("\n")


def _numbered(texts: Sequence[str], vocabulary: Iterable[str]) -> Int[np.ndarray, "N l"]:
    """Words by number: 0 is no word, 1 a rare one."""
    number = {word: i for i, word in enumerate(vocabulary, 2)}
    tokens = np.zeros((len(texts), LENGTH), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        found = [number.get(word, 1) for word in text.split()][:LENGTH]
        row[: len(found)] = found
    return tokens


def reduced(image: UInt8[np.ndarray, "h w 3"], side: int) -> Float[np.ndarray, " p"]:
    """A smaller picture, means over cells, as numbers from -1 to 1."""
    cell = image.shape[0] // side
    means = image.reshape(side, cell, side, cell, 3).mean((1, 3), np.float32)
    return means.reshape(-1) / np.float32(127.5) - 1


def _keep(file: pathlib.Path, **arrays: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.rename(file)


def _load(file: pathlib.Path, named: Sequence[int], **about: int) -> Pool:
    with np.load(file, allow_pickle=False) as found:
        pixels, tokens, is_noisy = (found[name] for name in ("pixels", "tokens", "is_noisy"))
    return Pool(pixels, tokens, is_noisy, _concepts(tokens, named), **about)


def _concepts(tokens: Int[np.ndarray, "N l"], named: Sequence[int]) -> Int[np.ndarray, "N l"]:
    """The distinct words of each caption that are among those `named`, and -1."""
    found = np.sort(np.where(np.isin(tokens, named), tokens, -1), axis=1)[:, ::-1].copy()
    found[:, 1:][found[:, 1:] == found[:, :-1]] = -1
    return found

"""Pairs in memory, in the form that the towers of the comparison read, kept in a folder.

A picture may have several stored augmentations or several captions. Then an example has that many
rows, one after another.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from aced.data import records
from aced.data.images import augment, decode, transforms
from aced.data.shapes.scenes import CLASS_NAMES, Shapes, ShapesConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from benchmarks.icons import AGREED
from configs.smoke import CONCEPTS

LENGTH = 20  # words of a caption
OFTEN = 3  # a word of icons' names has a row of its own if it occurs so often
SIDES = {"shapes": (32, 8), "icons": (64, 16)}  # px of a picture, as drawn and as read
AUGMENT = augment.AugmentConfig(crop_area=(0.4, 1.0))
_BACKGROUND = re.compile(r" on an? \w+ background")
_SQUASH = transforms.ResizeConfig(mode="squash")


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """Which pairs, and what of them."""

    data: str = "shapes"  # or icons
    split: str = "train"
    wrong: float = 0.0  # share of wrong captions, of scenes
    pairs: int = 0  # drawn from the data; 0: all
    augmentations: int = 0  # stored, of each picture; 0: whole pictures
    # Kinds, joined by "+". Of scenes: "given", which may be wrong; "short", the main object and its
    # place, and "class", its colour and shape, which are right. Of icons: "given", the first name,
    # and "alias", the second one, if there is one.
    captions: str = "given"

    @property
    def copies(self) -> int:
        """Rows of an example."""
        return max(self.augmentations, len(self.captions.split("+")))

    def file(self, name: str) -> str:
        """The name of the file in which the pool is kept, given that of its pairs."""
        crops = f"-{self.augmentations}-crops" if self.augmentations else ""
        captions = f"-{self.captions}" if self.captions != "given" else ""
        return f"{name}{crops}{captions}.npz"


@dataclasses.dataclass(frozen=True)
class Pool:
    """N rows, `copies` of each example."""

    pixels: Float[np.ndarray, "N p"]
    tokens: Int[np.ndarray, "N l"]
    is_noisy: Bool[np.ndarray, " N"]
    concepts: Int[np.ndarray, "N l"]  # distinct words that are concepts, and -1
    words: int  # of the vocabulary
    places: int  # see towers.init
    copies: int = 1

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.pixels) // self.copies

    def arrays(self) -> dict[str, np.ndarray]:
        """What a batch takes rows of."""
        names = ("pixels", "tokens", "is_noisy", "concepts")
        return {name: getattr(self, name) for name in names}


def shapes(folder: pathlib.Path, config: PoolConfig, *, size: int, seed: int) -> Pool:
    """The first `config.pairs` embedded scenes, by default `size`."""
    size, (drawn, read) = config.pairs or size, SIDES["shapes"]
    split = "val" if config.split == "val" else "train"
    file = folder / config.file(f"shapes-{split}-{size}-{config.wrong}-{seed}")
    tokenizer = TokenizerConfig(kind="shapes", length=LENGTH)
    encode = get_tokenizer(tokenizer)
    if not file.exists():
        drawing = ShapesConfig(size=size, seed=seed, split=split, resolution=drawn)
        source, right = Shapes(dataclasses.replace(drawing, wrong=config.wrong)), Shapes(drawing)

        def found() -> Iterator[Row]:
            for i in range(size):
                record = source[i]
                texts = {"given": (record["texts"][0], bool(record["is_noisy"]))}
                texts["class"] = (f"a picture of a {CLASS_NAMES[record['label']]}", False)
                if "short" in config.captions:
                    texts["short"] = (_BACKGROUND.split(right[i]["texts"][0])[0], False)
                chosen = [texts[kind] for kind in config.captions.split("+")]
                yield from _rows(i, record["image"], chosen, config)

        images, texts, is_noisy = zip(*found(), strict=True)
        pixels = np.stack([reduced(image, read) for image in images])
        _keep(file, pixels=pixels, tokens=encode(list(texts)), is_noisy=np.array(is_noisy))
    named = encode(pathlib.Path(CONCEPTS).read_text("utf-8").split())[:, 0]
    about = {"words": encode.vocab_size, "places": LENGTH, "copies": config.copies}
    return _load(file, named, **about)


def icons(folder: pathlib.Path, data: pathlib.Path, config: PoolConfig) -> Pool:
    """Icons that benchmarks/icons.py wrote.

    Args:
        folder: where the pools are kept.
        data: the data sets.
        config: the split is "train", all; "clean", whose names three training families share;
            "val", those held out, the first of each name; or "zeroshot", also held out, of names
            that eight families have.
    """
    names = {"train": "all", "clean": "clean", "val": "all", "zeroshot": "zeroshot"}
    split, side = config.split, SIDES["icons"][1]
    pairs = f"-{config.pairs}" if config.pairs else ""
    file, vocabulary = folder / config.file(f"icons-{split}{pairs}"), _vocabulary(folder, data)
    if not file.exists():
        of = "train" if split in ("train", "clean") else "val"
        source = records.open_dataset(data / names[split], of)
        chosen = range(len(source))
        if config.pairs:  # of all families
            chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: config.pairs])
        found = {int(i): source[i] for i in chosen}
        if split == "val":
            firsts = {record["texts"][0]: i for i, record in reversed(found.items())}
            found = {i: found[i] for i in list(firsts.values())[::-1][:1000]}

        def rows() -> Iterator[Row]:
            for i, record in found.items():
                rare = _is_rare(record.get("extra", {}))
                names = {"given": record["texts"][0], "alias": record["texts"][:2][-1]}
                texts = [(names[kind], rare) for kind in config.captions.split("+")]
                yield from _rows(i, decode.decode(record["image"]), texts, config)

        images, texts, is_noisy = zip(*rows(), strict=True)
        _keep(
            file,
            pixels=np.stack([reduced(image, side) for image in images]),
            tokens=_numbered(texts, vocabulary),
            is_noisy=np.array(is_noisy),
        )
    # Names have hardly any order, and their words are many: one row for a word, in any place.
    about = {"words": len(vocabulary) + 2, "places": 1, "copies": config.copies}
    return _load(file, range(2, len(vocabulary) + 2), **about)


Row = tuple[UInt8[np.ndarray, "h w 3"], str, bool]  # a picture, a caption, whether it is noisy


def _rows(
    index: int,
    image: UInt8[np.ndarray, "h w 3"],
    texts: Sequence[tuple[str, bool]],
    config: PoolConfig,
) -> Iterator[Row]:
    """The rows of an example; each has the next augmentation and the next caption."""
    for number in range(config.copies):
        seen = image
        if config.augmentations:
            part = augment.stored(image, AUGMENT, index, number)
            seen = transforms.resize(np.ascontiguousarray(part), image.shape[0], _SQUASH)
        yield (seen, *texts[number % len(texts)])


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

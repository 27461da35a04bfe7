"""A small labelled data set in memory, and a tiny CoCa that can read it."""

import dataclasses

import numpy as np

from aced.data.records import RecordError
from aced.data.shapes import scenes
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from tests.models import tiny_coca

TOKENIZER = TokenizerConfig(kind="shapes", length=8)
WORDS = get_tokenizer(TOKENIZER).vocab_size
SIDE = tiny_coca.TINY.image.resolution


def model(**changes):
    """The tiny CoCa with a vocabulary for the texts of `Records`, a multiple of two."""
    text = dataclasses.replace(
        tiny_coca.TINY.text, vocab_size=WORDS + WORDS % 2, length=8, eos_id=1
    )
    return dataclasses.replace(tiny_coca.TINY, text=text, tokenizer=TOKENIZER, **changes)


class Records:
    """n examples of noise with two pictures, one to three texts and a label.

    Args:
        n: how many.
        classes: labels are below it.
        broken: examples that cannot be read.
        unknown: examples whose label is -1.
        silent: examples without texts.
        given: people's answers by example.
    """

    name = "some records"
    fingerprint = "records"

    def __init__(self, n=19, classes=5, broken=(3,), unknown=(4, 10), silent=(6,), given=()):
        rng = np.random.default_rng(n)
        self._broken = broken
        self._all = []
        for i in range(n):
            image, second = rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
            texts = [
                " ".join(rng.choice(scenes.WORDS, rng.integers(1, 8)))
                for _ in range(rng.integers(1, 4))
            ]
            label = -1 if i in unknown else int(rng.integers(classes))
            self._all.append(
                {
                    "image": image,
                    "second": second,
                    "texts": () if i in silent else tuple(texts),
                    "label": label,
                    "id": i,
                }
                | ({"answers": given[i]} if given else {})
            )

    def __len__(self):
        return len(self._all)

    def __getitem__(self, index):
        if index in self._broken:
            raise RecordError(f"record {index} is broken")
        return self._all[index]

    def kept(self):
        """The examples that can be read, one by one."""
        return [r for r in self._all if r["id"] not in self._broken]

"""Concepts of captions: the entries of a list that a caption contains.

A list is a text file with one concept in each line, a word or several: "dog", "fire engine". A
caption has a concept if it contains the concept's words side by side. Case and punctuation do not
count; forms of a word do, so "dogs" is not "dog".
"""

import functools
import hashlib
import re

import numpy as np
from jaxtyping import Int

from aced.config import ConfigError, expand
from aced.files import storage

MOST = 32  # concepts of a caption, the first ones

_WORD = re.compile(r"\w+")


class ConceptList:
    """Finds the concepts of a list in captions."""

    def __init__(self, path: str):
        """Reads the list; entries with the same words are one concept, and empty lines are none.

        Raises:
            ConfigError: the file does not exist, is not UTF-8, is empty, or has a line without a
                word.
            StorageError: the file cannot be read.
        """
        self._numbers: dict[str, int] = {}
        self._longest = 1  # words of a concept
        file = storage.stat(expand(path))
        if file is None:
            raise ConfigError(
                f"The list of concepts {path} does not exist; set selection.concepts to a text "
                "file with one concept in each line."
            )
        try:
            lines = storage.read(file.path, 0, file.size).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"The list of concepts {path} is not UTF-8 ({error}); save it as UTF-8."
            ) from error
        for number, line in enumerate(lines, 1):
            words = _words(line)
            if line.strip() and not words:
                raise ConfigError(
                    f"Line {number} of the list of concepts {path} has no word: {line!r:.100}; "
                    "remove it."
                )
            if words:
                self._numbers.setdefault(" ".join(words), len(self._numbers))
                self._longest = max(self._longest, len(words))
        if not self._numbers:
            raise ConfigError(f"The list of concepts {path} is empty; give it a concept a line.")

    def __len__(self) -> int:
        """The number of concepts."""
        return len(self._numbers)

    @property
    def digest(self) -> str:
        """The sha256 of the concepts in their order; equal for files with the same concepts."""
        return hashlib.sha256("\n".join(self._numbers).encode()).hexdigest()

    def __call__(self, text: str) -> Int[np.ndarray, " MOST"]:
        """The distinct concepts of a caption in the order of the list; -1 where there are no more.

        A caption with more than `MOST` concepts has those that begin first.
        """
        words, found = _words(text), dict[int, None]()
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                number = self._numbers.get(" ".join(words[start:end]))
                if number is not None and len(found) < MOST:
                    found[number] = None
        row = np.full(MOST, -1, np.int32)
        row[: len(found)] = sorted(found)
        return row


@functools.lru_cache(maxsize=8)
def concept_list(path: str) -> ConceptList:
    """The list in a file, read once per process."""
    return ConceptList(path)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())

"""Lists of concepts, and the concepts of captions."""

import hashlib

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data import concepts
from aced.data.batch_spec import View
from aced.data.concepts import ConceptList
from aced.data.pipeline import train_batches
from aced.data.shapes.scenes import COLOURS
from aced.data.sources import DataConfig, open_source
from aced.data.streams import Stream
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from configs import smoke


def written(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def found(listed: ConceptList, text: str) -> list[int]:
    row = listed(text)
    assert row.shape == (concepts.MOST,)
    return [int(number) for number in row if number >= 0]


def test_whole_words_side_by_side(tmp_path):
    text = "Dog\nfire engine\n\nengine\nfire-engine\nÉcole\nnew york city\n"
    listed = ConceptList(written(tmp_path / "a", text))
    assert len(listed) == 5  # "fire-engine" has the words of "fire engine"
    assert found(listed, "A DOG, a dog and dogs") == [0]
    assert found(listed, "the fire engine of new york") == [1, 2]
    assert found(listed, "engine fire; école in New York City!") == [2, 3, 4]
    assert found(listed, "") == []


def test_the_digest_is_of_the_concepts_in_their_order(tmp_path):
    def digest(text):
        return ConceptList(written(tmp_path / "a", text)).digest

    assert digest("dog\nfire engine\n") == hashlib.sha256(b"dog\nfire engine").hexdigest()
    assert digest("Dog\n\nfire-engine\ndog") == digest("dog\nfire engine\n")
    texts = ("fire engine\ndog", "dog\nfire\nengine", "dog\nfire engine\ncat", "dog")
    assert len({digest(text) for text in ("dog\nfire engine", *texts)}) == 5


def test_the_first_concepts_of_a_long_caption(tmp_path):
    words = [f"w{i}" for i in range(40)]
    listed = ConceptList(written(tmp_path / "a", "\n".join(words)))
    assert found(listed, " ".join(reversed(words))) == list(range(8, 40))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"dog\n***\n", "Line 2 of the list of concepts .* has no word"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_unusable_lists(tmp_path, data, message):
    path = tmp_path / "list.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        ConceptList(str(path))


def test_a_batch_has_the_concepts_of_its_captions():
    tokenizer = TokenizerConfig(kind="shapes", length=64)
    view = View(resolution=16, tokenizer=tokenizer)
    data = DataConfig(source="shapes", num_threads=0)
    source, listed = open_source(data), ConceptList(smoke.CONCEPTS)
    with train_batches(
        source, data, {"": view}, batch_size=4, seed=0, concepts=smoke.CONCEPTS
    ) as batches:
        batch = next(batches)
    captions = get_tokenizer(tokenizer).decode(batch["text"])
    assert any(colour in captions[0] for colour in COLOURS)
    np.testing.assert_array_equal(batch["concepts"], [listed(text) for text in captions])
    shapes = Stream(data, 4, {"": view}, {}, concepts=smoke.CONCEPTS).shapes()
    assert {name: (rows.shape[1:], rows.dtype) for name, rows in batch.items()} == {
        name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()
    } | {"is_noisy": ((), np.bool_), "label": ((), np.int32)}

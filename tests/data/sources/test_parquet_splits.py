"""The splits of a folder of parquet files: by name, by folder, by README.md."""

import logging

import pyarrow.parquet as pq
import pytest

from aced.config import ConfigError
from aced.data.sources import parquet_splits
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.files import storage
from tests.data import many

SIZES = {"train": 5, "validation": 3, "test": 2}


def write(folder, names):
    """Files of these names; each has as many rows as its number, and no two the same row."""
    first = 0
    for name, rows in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(many.parquet_table(range(first, first + rows), True), folder / name)
        first += rows


def read(path, **settings):
    """The pictures' numbers, in order."""
    source = ParquetSource(ParquetConfig(path=str(path), **settings))
    numbers = {many.jpeg(i): i for i in range(20)}
    return [numbers[source[i]["image"]] for i in range(len(source))]


@pytest.mark.parametrize(
    "form",
    [
        "{}-00000-of-00001.parquet",
        "{}-0000.parquet",
        "{}.parquet",
        "set_{}_1.parquet",
        "data/{}-00000-of-00001-0123456789abcdef.parquet",
        "{}/0000.parquet",
        "data/{}/0000.parquet",
    ],
)
def test_the_split_asked_for_is_read(tmp_path, form, caplog):
    write(tmp_path, {form.format(split): rows for split, rows in SIZES.items()})
    caplog.set_level(logging.INFO)
    assert read(tmp_path) == list(range(5))
    assert "the split 'train' is read, 1 files" in caplog.text
    assert "Left out are the files of: " in caplog.text
    assert read(tmp_path, split="validation") == read(tmp_path, split="val") == [5, 6, 7]
    assert read(tmp_path, split="test") == [8, 9]
    with pytest.raises(ConfigError, match=r"no split 'extra'. Its splits are: .*test.*--split"):
        read(tmp_path, split="extra")
    if "/" not in form:  # files and patterns are what they name
        assert read(f"{tmp_path}/*.parquet") == [8, 9, *range(5), 5, 6, 7]
        with pytest.raises(ConfigError, match="names files"):
            read(f"{tmp_path}/*.parquet", split="test")


def test_names_that_no_other_tool_has_made_up(tmp_path):
    """Names of shards are splits as they are; a word inside of another word is none."""
    names = {"train-00000-of-00001": 1, "train_full-00000-of-00001": 2, "val-00000-of-00001": 3}
    write(
        tmp_path / "a", {f"{name}.parquet": rows for name, rows in (names | {"latest": 1}).items()}
    )
    assert read(tmp_path / "a") == [0]
    assert read(tmp_path / "a", split="train_full") == [1, 2]
    assert read(tmp_path / "a", split="validation") == [3, 4, 5]
    write(tmp_path / "b", {"00000.parquet": 2, "latest.parquet": 1, "contest.parquet": 1})
    assert sorted(read(tmp_path / "b")) == [0, 1, 2, 3]
    assert parquet_splits.names(str(tmp_path / "b")) == []
    with pytest.raises(ConfigError, match=r"no split 'test'. Its splits are: none"):
        read(tmp_path / "b", split="test")
    write(tmp_path / "test", {"00000.parquet": 2})
    assert read(tmp_path / "test") == [0, 1]
    write(tmp_path / "c", {"val-00000-of-00001.parquet": 1, "dev-00000-of-00001.parquet": 1})
    with pytest.raises(ConfigError, match=r"no split 'validation'. Its splits are: dev, val"):
        read(tmp_path / "c", split="validation")
    write(tmp_path / "d", {"en/train-0.parquet": 1, "fr/train-0.parquet": 1})
    with pytest.raises(storage.StorageError, match=r"some in .*/d/en, .*/d/fr; give one"):
        read(tmp_path / "d")


README = """\ufeff---
license: mit
configs:
- config_name: {first}
  data_files:
  - split: train
    path: data/a-*.parquet
  - split: held.out
    path: [data/b-0.parquet, data/b-1.parquet]
{more}---
A data set.
"""


def test_readme_lists_the_files_of_a_split(tmp_path):
    write(tmp_path, {"data/a-0.parquet": 2, "data/b-0.parquet": 1, "data/b-1.parquet": 2})
    readme = tmp_path / "README.md"
    readme.write_text(README.format(first="default", more=""))
    assert read(tmp_path) == [0, 1]
    assert read(tmp_path, split="held.out") == [2, 3, 4]
    more = "- config_name: other\n  data_files: data/b-*.parquet\n"
    readme.write_text(README.format(first="default", more=more))
    assert read(tmp_path) == [0, 1]
    readme.write_text(README.format(first="one", more=f"{more}  default: true\n"))
    assert read(tmp_path) == [2, 3, 4]
    readme.write_text(README.format(first="one", more=more))
    with pytest.raises(ConfigError, match=r"README.md names several sets of files.*one, other"):
        read(tmp_path)
    readme.write_text(README.format(first="one", more="").replace("data/a-*", "../a-*"))
    with pytest.raises(ConfigError, match=r"README.md names ../a-\*.parquet, which is not in"):
        read(tmp_path)
    for text in ("---\nconfigs: [1]\n---\n", "---\na: [\n---\n", "no front matter", "---\n"):
        readme.write_text(text)
        assert read(tmp_path) == [0, 1, 2, 3, 4]
    readme.write_bytes(b"---\n\xff\n---\n")
    assert read(tmp_path) == [0, 1, 2, 3, 4]


def test_a_store_has_splits_like_a_disk(tmp_path):
    names = {f"data/{split}-00000-of-00001.parquet": rows for split, rows in SIZES.items()}
    write(tmp_path, names)
    for name in names:
        storage.write(f"memory://splits/{name}", (tmp_path / name).read_bytes())
    assert read("memory://splits") == read("memory://splits/") == list(range(5))
    assert read("memory://splits", split="validation") == [5, 6, 7]
    assert read("memory://splits/data") == list(range(5))

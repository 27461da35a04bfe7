import collections
import gzip
import json

import pytest

from aced.config import ConfigError
from aced.data import records
from aced.files.storage import StorageError
from aced.select_text import corpus as corpora
from aced.select_text.corpus import Corpus, CorpusConfig


def squeeze(text):
    return " ".join(text.split())


def open_corpus(*paths, **changes):
    return Corpus(CorpusConfig(paths=tuple(map(str, paths)), **changes), squeeze)


def read(corpus):
    counts = collections.Counter()
    numbers = range(len(corpus.parts))
    texts = [sentence.text for n in numbers for sentence in corpus.read(n, 0, counts)]
    return texts, dict(counts)


def read_on_behind_every_sentence(corpus):
    """Every sentence read by a reader that begins just before it, and all counts."""
    texts, counts = [], collections.Counter()
    for number in range(len(corpus.parts)):
        position = 0
        while True:
            counted = collections.Counter()
            sentence = next(corpus.read(number, position, counted), None)
            counts += counted
            if sentence is None:
                break
            texts.append(sentence.text)
            position = sentence.position
    return texts, dict(counts)


LINES = [
    b"\xef\xbb\xbffirst line",  # with a byte order mark
    b"",
    b"  spaces\t here ",
    b"x",
    b"y" * 41,
    b"z" * 200,
    b"not \xff UTF-8",
    "\u6c34 \u0440\u0443\u0441\u0441\u043a\u0438\u0439".encode(),
    b"\r",
    b"last line, without a line feed",
]
TEXTS = ["first line", "spaces here", "\u6c34 \u0440\u0443\u0441\u0441\u043a\u0438\u0439"]
TEXTS += ["last line, without a line feed"]
COUNTS = {"sentences": 4, "blank": 2, "too_short": 1, "too_long": 2, "not_utf8": 1}
LIMITS = {"max_characters": 40, "max_line_bytes": 100, "min_characters": 2}


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_lines(tmp_path, suffix):
    data = b"\n".join(LINES)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    corpus = open_corpus(path, **LIMITS)
    assert read(corpus) == (TEXTS, COUNTS)
    assert read_on_behind_every_sentence(corpus) == (TEXTS, COUNTS)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_a_file_in_parts_has_every_line_once(tmp_path, monkeypatch, size):
    (tmp_path / "a.txt").write_bytes(b"\n".join(LINES))
    monkeypatch.setattr(corpora, "_PART_BYTES", size)
    corpus = open_corpus(tmp_path / "a.txt", **LIMITS)
    length = len(b"\n".join(LINES))
    assert sum(part.size for part in corpus.parts) == length
    assert len(corpus.parts) == -(-length // size)
    assert read(corpus) == (TEXTS, COUNTS)
    assert read_on_behind_every_sentence(corpus) == (TEXTS, COUNTS)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines(tmp_path, suffix):
    lines = [
        json.dumps({"text": "a sentence", "id": 1}),
        "",
        "{not json",
        json.dumps(["text"]),
        json.dumps({"id": 1}),
        json.dumps({"text": None}),
        json.dumps({"text": "half a pair \ud800"}),
        json.dumps({"text": "line\nfeed"}),
        json.dumps({"text": " "}),
        "[" * 60,
    ]
    data = "\n".join(lines).encode()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    corpus = open_corpus(path, **LIMITS)
    counts = {"sentences": 2, "blank": 2, "not_json": 2, "no_text": 3, "not_utf8": 1}
    assert read(corpus) == (["a sentence", "line feed"], counts)
    assert read_on_behind_every_sentence(corpus) == (["a sentence", "line feed"], counts)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = ["one two", None, "", "x", "three", "y" * 41, "z" * 200, "four"] * 5
    table = pyarrow.table({"text": values, "n": list(range(40))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    corpus = open_corpus(tmp_path / "a.parquet", **LIMITS)
    texts = ["one two", "three", "four"] * 5
    counts = {"sentences": 15, "blank": 5, "no_text": 5, "too_short": 5, "too_long": 10}
    assert read(corpus) == (texts, counts)
    assert read_on_behind_every_sentence(corpus) == (texts, counts)
    with pytest.raises(ConfigError, match=r"--column=n must be .* is int64. There are: text"):
        read(open_corpus(tmp_path / "a.parquet", column="n"))

    # Cut off.
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-20])
    assert read(open_corpus(tmp_path / "a.parquet")) == ([], {"damaged_files": 1})


def write_data_set(folder, texts):
    folder.mkdir()
    examples = [records.Example(b"", tuple(t), f"{i}") for i, t in enumerate(texts)]
    split = records.write_split(folder, "train", examples, len(examples), 1)
    records.write_description(folder, {"train": split}, statistics={}, settings={})


def test_captions_of_a_data_set(tmp_path, monkeypatch):
    write_data_set(tmp_path / "d", [("a cat", "two cats"), ("x",), ("", "a dog"), ("a cat",)])
    monkeypatch.setattr(corpora, "_PART_EXAMPLES", 3)
    corpus = open_corpus(tmp_path / "d")
    expected = ["a cat", "two cats", "a dog", "a cat"], {"sentences": 4, "too_short": 1, "blank": 1}
    assert len(corpus.parts) == 2
    assert read(corpus) == expected
    assert read_on_behind_every_sentence(corpus) == expected


def test_damaged_records_are_counted(tmp_path):
    write_data_set(tmp_path / "d", [(f"the caption number {i}",) for i in range(5)])
    file = tmp_path / "d" / "train-00000-of-00001.array_record"
    data = bytearray(file.read_bytes())
    where = data.index(b"the caption number 2")
    data[where - 3 : where + 3] = bytes(6)
    file.write_bytes(data)
    texts, counts = read(open_corpus(tmp_path / "d"))
    assert texts == [f"the caption number {i}" for i in (0, 1, 3, 4)]
    assert counts == {"sentences": 4, "damaged_records": 1}


def test_a_packed_file_that_is_cut_off_is_counted(tmp_path):
    lines = b"".join(b"the line number %d of many\n" % i for i in range(2000))
    data = gzip.compress(lines)
    (tmp_path / "a.txt.gz").write_bytes(data[: len(data) // 2])
    texts, counts = read(open_corpus(tmp_path / "a.txt.gz"))
    assert counts == {"sentences": len(texts), "damaged_files": 1}
    assert 100 < len(texts) < 1900
    assert texts == [line.decode() for line in lines.splitlines()][: len(texts)]
    (tmp_path / "a.txt.gz").write_bytes(b"this is not packed at all")
    assert read(open_corpus(tmp_path / "a.txt.gz")) == ([], {"damaged_files": 1})


def test_several_paths_stores_and_fingerprints(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"local {i}\n")
        store.pipe(f"/corpus/{i}.txt", f"remote {i}\n".encode())
    corpus = open_corpus(f"{tmp_path}/*.txt", "memory://corpus/{1..2}.txt")
    assert read(corpus)[0] == ["local 0", "local 1", "local 2", "remote 1", "remote 2"]
    same = open_corpus(f"{tmp_path}/{{0..2}}.txt", "memory://corpus/[12].txt")
    assert same.fingerprint == corpus.fingerprint
    others = [
        open_corpus(f"{tmp_path}/*.txt"),
        open_corpus(f"{tmp_path}/*.txt", "memory://corpus/{1..2}.txt", min_characters=3),
    ]
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_mistakes_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"a\.csv: a corpus is made of files that end in \.txt"):
        open_corpus(tmp_path / "a.csv")
    with pytest.raises(StorageError, match="does not exist"):
        open_corpus(tmp_path / "none.txt")
    with pytest.raises(StorageError, match=r"a folder without dataset\.json and without"):
        open_corpus(tmp_path)


def test_files_of_other_encodings_are_named_and_byte_order_marks_are_no_text(tmp_path):
    path = tmp_path / "a.txt"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        path.write_bytes("a red square\na blue circle\n".encode(encoding))
        with pytest.raises(ConfigError, match=r"a.txt cannot be read: it is UTF-(16|32).*iconv"):
            read(open_corpus(path))
    path.write_bytes(gzip.compress(b"a red square\n"))
    with pytest.raises(ConfigError, match=r"a.txt cannot be read: it is compressed by gzip"):
        read(open_corpus(path))
    mark = "\ufeff"
    path.write_text(f"{mark}a red square\n{mark}a blue circle\n", encoding="utf-8")
    assert read(open_corpus(path))[0] == ["a red square", "a blue circle"]
    path = tmp_path / "a.jsonl"
    path.write_text(f'{mark}{{"text": "{mark}a red square"}}\n', encoding="utf-8")
    assert read(open_corpus(path)) == (["a red square"], {"sentences": 1})

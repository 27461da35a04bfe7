"""Kinds of captions in tables, tars and parquet, and in what is made of them."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aced.config import ConfigError
from aced.data import records
from aced.prepare.command import PrepareConfig, prepare
from tests.data import many
from tests.prepare.small import encoded, picture, read, rejected, run

SYNTHETIC = ("given", "synthetic", "synthetic")


def captions(example):
    return list(zip(example["texts"], example.get("kinds", ()), strict=False))


def test_a_column_names_the_kind_of_each_line(tmp_path, folder):
    """Lines of one picture become one example; empty kinds are given; the first of two kinds of
    one caption is kept.
    """
    lines = [
        {"image": "sub/0.png", "caption": "a", "kind": None},
        {"image": "sub/0.png", "caption": ["b", "c"], "kind": "synthetic"},
        {"image": "sub/0.png", "caption": "a", "kind": "alt"},
        {"image": "sub/1.png", "caption": "d", "kind": "given"},
        {"image": "sub/2.png", "caption": "e", "kind": "a b"},
    ]
    statistics = run(tmp_path, folder, lines, kind_column="kind")
    found = read(tmp_path)
    assert captions(found["sub/0.png"]) == list(zip("abc", SYNTHETIC, strict=True))
    assert found["sub/1.png"]["texts"] == ("d",)
    assert "kinds" not in found["sub/1.png"]
    assert statistics["rejected"] == {"malformed_line": 1, "repeated_caption": 1}
    assert statistics["captions_by_kind"] == {"given": 2, "synthetic": 2}
    (wrong,) = [x for x in rejected(tmp_path) if x["reason"] == "malformed_line"]
    assert (wrong["line"], wrong["detail"]) == (
        5,
        "the kind 'a b'; it must be of letters, digits, _ and -",
    )


def test_a_list_of_captions_in_csv_is_json(tmp_path, folder):
    """Any other list, as pandas writes one, would become a single caption with brackets."""
    rows = [
        ("sub/0.png", "page", '["one", "it\'s two", null]'),
        ("sub/1.png", "[a] dog [sitting]", "[]"),
        ("sub/2.png", "page", "['one', 'two']"),
        ("sub/3.png", "[1, 2]", "plain"),
    ]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "syn"), *rows])
    settings = {"images": str(folder), "captions": f"{tmp_path}/t.csv", "out": f"{tmp_path}/out"}
    prepare(PrepareConfig(more_captions="synthetic=syn", **settings))
    found = read(tmp_path)
    assert found["sub/0.png"]["texts"] == ("page", "one", "it's two")
    assert found["sub/0.png"]["kinds"] == SYNTHETIC
    assert found["sub/1.png"]["texts"] == ("[a] dog [sitting]",)
    assert found["sub/3.png"]["texts"] == ("[1, 2]", "plain")
    (wrong,) = rejected(tmp_path)
    assert (wrong["reason"], wrong["line"]) == ("malformed_line", 4)
    assert 'must be JSON, as ["one", "two"]' in wrong["detail"]


def write_table(path):
    (path / "images").mkdir()
    (path / "images" / "0.png").write_bytes(encoded(picture(0)))
    (path / "images" / "1.png").write_bytes(encoded(picture(1)))
    lines = [
        {"image": "0.png", "caption": "page", "syn": ["one", "two"]},
        {"image": "1.png", "caption": "alone", "syn": []},
    ]
    (path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"images": f"{path}/images", "captions": f"{path}/t.jsonl"}


def write_tars(path):
    members = [
        ("0.png", encoded(picture(0))), ("0.txt", b"page"), ("0.json", b'{"syn": ["one", "two"]}'),
        ("1.png", encoded(picture(1))), ("1.txt", b"alone"), ("1.json", b'{"syn": []}'),
    ]  # fmt: skip
    (path / "0.tar").write_bytes(many.tar_bytes(members))
    return {"tars": str(path)}


def write_parquet(path):
    images = [encoded(picture(i)) for i in range(2)]
    table = {"image": images, "caption": ["page", "alone"], "syn": [["one", "two"], []]}
    pq.write_table(pa.table(table), path / "0.parquet")
    return {"parquet": str(path)}


@pytest.mark.parametrize("write", [write_table, write_tars, write_parquet])
def test_further_columns_have_a_kind_each(tmp_path, write):
    settings = write(tmp_path) | {"more_captions": "synthetic=syn", "threads": 1}
    prepare(PrepareConfig(out=str(tmp_path / "out"), **settings))
    source = records.open_dataset(tmp_path / "out", "train")
    found = {x["texts"]: x.get("kinds") for x in (source[0], source[1])}
    assert found == {("page", "one", "two"): SYNTHETIC, ("alone",): None}


def test_equal_pictures_keep_the_kinds_of_all_captions(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "images" / name).write_bytes(encoded(picture(0)))
    lines = [
        {"image": "0.png", "caption": "a", "kind": "given"},
        {"image": "1.png", "caption": "b", "kind": "alt"},
    ]
    run(tmp_path, tmp_path / "images", lines, kind_column="kind")
    (example,) = read(tmp_path).values()
    assert captions(example) == [("a", "given"), ("b", "alt")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"more_captions": "synthetic"}, "must be KIND=COLUMN, such as synthetic=syn_text"),
        ({"more_captions": "a b=syn"}, "--more_captions has a kind 'a b'"),
        ({"kind_column": "kind", "captions": "", "images": "", "tars": "x"}, "need a table"),
    ],
)
def test_flags_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**{"images": "i", "captions": "t.csv", "out": "o"} | settings)

"""Tars, parquet and a folder with a table give the same pairs; what is wrong in them is listed."""

import io
import json
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.data import records
from aced.data.images.decode import decode
from aced.prepare import inputs
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare
from aced.prepare.images import make_thumbnail


def jpeg(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


PAIRS = [(jpeg(i), [f"Caption {i}", "shared"], i % 4) for i in range(20)]
PAIRS[3] = (PAIRS[3][0][:300], ["cut off"], 0)
PAIRS[5] = (PAIRS[2][0], ["the same picture"], 2)
PAIRS[6] = (PAIRS[6][0], ["", " "], 1)
GOOD = {
    data: ((*texts, "the same picture") if i == 2 else tuple(texts), label)
    for i, (data, texts, label) in enumerate(PAIRS)
    if i not in (3, 5, 6)
}


def write_folder(path):
    (path / "images").mkdir()
    lines = []
    for i, (data, texts, label) in enumerate(PAIRS):
        (path / "images" / f"{i}.jpg").write_bytes(data)
        lines.append(json.dumps({"image": f"{i}.jpg", "caption": texts, "class": label}))
    (path / "captions.jsonl").write_text("\n".join(lines))
    return {"images": f"{path}/images", "captions": f"{path}/captions.jsonl"}


def write_tars(path):
    for number in range(2):
        with tarfile.open(path / f"{number}.tar", "w") as tar:
            for i, (data, texts, label) in enumerate(PAIRS[10 * number : 10 * number + 10]):
                fields = json.dumps({"captions": texts, "class": label}).encode()
                for kind, content in (("jpg", data), ("json", fields), ("txt", b"unused")):
                    member = tarfile.TarInfo(f"{i:04d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {"tars": f"{path}/{{0..1}}.tar", "caption_column": "captions"}


def write_parquet(path):
    images, texts, labels = zip(*PAIRS, strict=True)
    table = pa.table({"jpg": images, "caption": texts, "class": labels})
    pq.write_table(table, path / "0.parquet", row_group_size=6)
    return {"parquet": str(path), "image_column": "jpg"}


def rejected(path):
    return [json.loads(line) for line in (path / "out" / "rejected.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("write", [write_folder, write_tars, write_parquet])
def test_every_input_gives_the_same_pairs(tmp_path, monkeypatch, write):
    monkeypatch.setattr(inputs, "BLOCK", 7)
    settings = write(tmp_path) | {"label_column": "class", "shards": 2, "thumbnails": 16}
    config = PrepareConfig(out=str(tmp_path / "out"), threads=2, **settings)
    statistics = prepare(config)
    source = records.open_dataset(tmp_path / "out", "train")
    found = [source[i] for i in range(len(source))]
    assert {e["image"]: (e["texts"], e["label"]) for e in found} == GOOD
    assert len(found) == len(GOOD) == statistics["thumbnails"]
    for example in found:
        assert example["thumbnail"] == make_thumbnail(decode(example["image"]), 16)
    assert statistics["rejected"] == {"duplicate_image": 1, "empty_caption": 1, "undecodable": 1}
    lines = rejected(tmp_path)
    place, first = ("line", 1) if config.captions else ("record", 0)
    reasons = {entry[place] - first: entry["reason"] for entry in lines}
    assert reasons == {3: "undecodable", 5: "duplicate_image", 6: "empty_caption"}
    assert prepare(config) == statistics  # nothing to do


def test_second_pictures_in_a_column_of_parquet(tmp_path):
    """Rows of one picture, each with its own second one and label; one has none."""
    left, *right = list(GOOD)[:4]
    table = pa.table(
        {"image": [left] * 4, "b": [*right, None], "caption": ["same"] * 4, "label": [1, 0, 0, 1]}
    )
    pq.write_table(table, tmp_path / "0.parquet")
    settings = {"parquet": str(tmp_path), "second_column": "b", "label_column": "label"}
    for name, separate in (("apart", True), ("together", False)):
        out = str(tmp_path / name)
        prepare(PrepareConfig(out=out, threads=2, separate=separate, **settings))
        source = records.open_dataset(out, "train")
        found = [source[i] for i in range(len(source))]
        assert {(e["image"], e["second"], e["label"]) for e in found} == {
            (left, data, label) for data, label in zip(right, (1, 0, 0), strict=True)
        }
        (entry,) = map(json.loads, (tmp_path / name / "rejected.jsonl").read_text().splitlines())
        assert (entry["record"], entry["reason"]) == (3, "unreadable_record")


def test_the_split_of_a_folder_of_parquet(tmp_path, capsys):
    for split, rows in (("train", PAIRS[7:10]), ("validation", PAIRS[10:12])):
        images, texts, _ = zip(*rows, strict=True)
        table = pa.table({"image": images, "caption": texts})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    prepare(PrepareConfig(parquet=str(tmp_path), split="validation", out=str(tmp_path / "out")))
    assert f"{tmp_path}, split 'validation' is read, 2 records." in capsys.readouterr().out
    source = records.open_dataset(tmp_path / "out", "train")
    assert {source[i]["image"] for i in range(len(source))} == {data for data, *_ in PAIRS[10:12]}
    with pytest.raises(PrepareError, match=r"no split 'test'. Its splits are: train, validation"):
        prepare(PrepareConfig(parquet=str(tmp_path), split="test", out=str(tmp_path / "out2")))


def test_damaged_records_are_listed_by_their_place(tmp_path):
    write_tars(tmp_path)
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[: len(data) // 2])
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        for name, content in (("../up.jpg", PAIRS[0][0]), ("../up.txt", b"c"), ("none.jpg", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    statistics = prepare(
        PrepareConfig(tars=str(tmp_path), out=str(tmp_path / "out"), caption_column="captions")
    )
    entries = rejected(tmp_path)
    details = " ".join(e["detail"] for e in entries if e["reason"] == "unreadable_record")
    assert "1.tar" in details
    assert "leads upwards" in details
    keys = {e.get("image") for e in entries}
    assert "0.tar/none" in keys
    source = records.open_dataset(tmp_path / "out", "train")
    kept = {source[i]["image"] for i in range(len(source))}
    assert kept < GOOD.keys()
    assert len(kept) == statistics["images"] >= 10


@pytest.mark.slow
def test_stores_are_read_and_written(tmp_path):
    memory = fsspec.filesystem("memory")
    settings = write_folder(tmp_path)
    for name in (tmp_path / "images").iterdir():
        memory.pipe_file(f"/prepare/images/{name.name}", name.read_bytes())
    memory.pipe_file("/prepare/captions.jsonl", (tmp_path / "captions.jsonl").read_bytes())
    shared = {"val": 4, "near_duplicates": 0, "threads": 2}
    prepare(PrepareConfig(out=str(tmp_path / "out"), **shared, **settings))
    remote = {
        "images": "memory://prepare/images",
        "captions": "memory://prepare/captions.jsonl",
        "out": "memory://prepare/out",
    }
    try:
        prepare(PrepareConfig(**remote, **shared))
        assert sorted(memory.ls("/prepare", detail=False)) == [
            "/prepare/captions.jsonl",
            "/prepare/images",
            "/prepare/out",
        ]
        for path in (tmp_path / "out").iterdir():
            found = memory.cat_file(f"/prepare/out/{path.name}")
            if path.name != "dataset.json":  # which names the input
                assert found == path.read_bytes(), path.name
        with pytest.raises(PrepareError, match="--overwrite"):
            prepare(PrepareConfig(**remote, **shared, seed=1))
        prepare(PrepareConfig(**remote, **shared | {"val": 0}, overwrite=True))
        names = {name.rpartition("/")[2] for name in memory.ls("/prepare/out", detail=False)}
        assert "val-00000-of-00001.array_record" not in names
        assert {"dataset.json", "train-00000-of-00001.array_record"} < names
    finally:
        memory.rm("/prepare", recursive=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tars": "t", "parquet": "p"}, ConfigError, "--tars and --parquet are two inputs"),
        ({"tars": "t", "images": "i"}, ConfigError, "--images is for --captions"),
        ({"tars": "t", "split": "val"}, ConfigError, "--split needs a folder of parquet files"),
        ({"tars": "t", "noisy_column": "n"}, ConfigError, "--noisy_column"),
        ({"tars": "t", "second_column": "n"}, ConfigError, "not --tars"),
        ({"tars": "t", "near_duplicates": 8}, ConfigError, "--near_duplicates must be"),
        ({"tars": "t", "near_duplicate_captions": True}, ConfigError, "which is off"),
        ({"tars": "t", "max_side": 9, "thumbnails": 9}, ConfigError, "--thumbnails=9"),
        ({"tars": "/t", "runner": "FlinkRunner", "out": "o"}, ConfigError, "--out=o must be abs"),
        ({"tars": "t", "runner": "FlinkRunner"}, ConfigError, "--tars=t must be absolute with"),
        ({"images": "i", "captions": "/c.csv", "runner": "DaskRunner"}, ConfigError, "--images=i"),
        ({"tars": "/none/0.tar"}, PrepareError, "/none/0.tar does not exist"),
    ],
)
def test_contradictory_settings_and_missing_inputs(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        prepare(PrepareConfig(**{"out": str(tmp_path / "out")} | settings))
    assert list(tmp_path.iterdir()) == []

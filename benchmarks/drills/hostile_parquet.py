"""Parquet files with rows that are none, and files that are none."""

import io
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Columns = dict[str, Any]  # of the rows: image and caption
ROW = 5  # that is changed


def written(columns: Columns | pa.Table, **settings) -> bytes:
    """A parquet file of these columns."""
    out = io.BytesIO()
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, out, **({"row_group_size": 16} | settings))
    return out.getvalue()


def _changed(columns: Columns, name: str, value: Any) -> Columns:
    return columns | {name: [*columns[name][:ROW], value, *columns[name][ROW + 1 :]]}


# One row is unusable: all others are to be kept.
ROWS: dict[str, Callable[[Columns], bytes]] = {
    "no caption": lambda c: written(_changed(c, "caption", None)),
    "an empty caption": lambda c: written(_changed(c, "caption", "")),
    "no picture": lambda c: written(_changed(c, "image", None)),
    "an empty picture": lambda c: written(_changed(c, "image", b"")),
    "a picture of HTML": lambda c: written(_changed(c, "image", b"<html>")),
    "a caption that is no UTF-8": lambda c: written(
        {"image": c["image"], "caption": _not_utf8(c["caption"])}
    ),
    "a picture by its path alone": lambda c: written(
        c
        | {
            "image": [
                {"bytes": None if i == ROW else data, "path": "x.png"}
                for i, data in enumerate(c["image"])
            ]
        }
    ),
    "no list of captions": lambda c: written(
        c | {"caption": [None if i == ROW else [text] for i, text in enumerate(c["caption"])]}
    ),
}


def _not_utf8(texts: list[str]) -> pa.Array:
    data = [text.encode() for text in texts]
    data[ROW] = b"caf\xe9\xff"
    return pa.array(data, pa.binary()).view(pa.string())


# Of the whole file: all rows are kept, or it is an error.
FORMS: dict[str, Callable[[Columns, random.Random], bytes]] = {
    "cut off": lambda c, rng: written(c)[: rng.randrange(1, len(written(c)))],
    "without a beginning": lambda c, rng: written(c)[rng.randrange(1, 500) :],
    "a footer of random bytes": lambda c, rng: (
        written(c)[:-308] + rng.randbytes(300) + b"\1\1\0\0PAR1"
    ),
    "a footer of 2 GB": lambda c, rng: written(c)[:-8] + b"\xff\xff\xff\x7fPAR1",
    "no bytes": lambda c, rng: b"",
    "random bytes": lambda c, rng: rng.randbytes(5000),
    "without rows": lambda c, rng: written(pa.table(c).slice(0, 0)),
    "pictures that are numbers": lambda c, rng: written(
        c | {"image": list(range(len(c["image"])))}
    ),
    "pictures that are texts": lambda c, rng: written(c | {"image": c["caption"]}),
    "captions that are numbers": lambda c, rng: written(
        c | {"caption": list(range(len(c["caption"])))}
    ),
    "captions that are structs": lambda c, rng: written(
        c | {"caption": [{"en": text} for text in c["caption"]]}
    ),
    "another name of the pictures": lambda c, rng: written(
        {"picture": c["image"], "caption": c["caption"]}
    ),
    "another name of the captions": lambda c, rng: written(
        {"image": c["image"], "text": c["caption"]}
    ),
    "a column twice": lambda c, rng: written(
        pa.Table.from_arrays(
            [pa.array(c["image"]), pa.array(c["caption"]), pa.array(c["caption"])],
            names=["image", "caption", "caption"],
        )
    ),
    "large strings": lambda c, rng: written(
        pa.table(c).cast(pa.schema([("image", pa.large_binary()), ("caption", pa.large_string())]))
    ),
    "dictionaries": lambda c, rng: written(
        pa.table({"image": c["image"], "caption": pa.array(c["caption"]).dictionary_encode()})
    ),
    "lists of captions": lambda c, rng: written(c | {"caption": [[text] for text in c["caption"]]}),
    "zstd": lambda c, rng: written(c, compression="zstd"),
    "pages of version 2": lambda c, rng: written(c, data_page_version="2.0"),
}

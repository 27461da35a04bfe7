"""Tiny data sets in every layout, made in the test, from the same pictures and captions."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image

from aced.data import records

CAPTIONS = ("red", "green", "blue", "yellow")


def jpeg(i, side=16):
    """Picture i, recognisable by its grey value."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (i, i, i)).save(out, "JPEG", quality=95)
    return out.getvalue()


def caption(i):
    return f"{CAPTIONS[i % 4]} circle"


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_700_000_000
    tar.addfile(info, io.BytesIO(data))


def tar_bytes(members):
    """A tar of (name, bytes), as a file's content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            add(tar, name, data)
    return out.getvalue()


def sample(i, key=None):
    """Example i as img2dataset writes it."""
    key = key or f"{i:09d}"
    fields = {"caption": caption(i), "alt": [caption(i), f"blue {CAPTIONS[i % 4]}"], "class": i % 3}
    return [
        (f"{key}.jpg", jpeg(i)),
        (f"{key}.txt", caption(i).encode()),
        (f"{key}.json", json.dumps(fields).encode()),
    ]


def write_tars(folder, sizes):
    """Tars 00000.tar, ... with `sizes` examples each, numbered consecutively."""
    first = 0
    for number, size in enumerate(sizes):
        members = [m for i in range(first, first + size) for m in sample(i)]
        (pathlib.Path(folder) / f"{number:05d}.tar").write_bytes(tar_bytes(members))
        first += size


def parquet_table(indices, nested=True):
    """Rows of these examples: a picture as `datasets` stores it, captions, a class."""
    import pyarrow as pa

    pictures = [jpeg(i) for i in indices]
    return pa.table(
        {
            "image": [{"bytes": p, "path": None} for p in pictures] if nested else pictures,
            "caption": [caption(i) for i in indices],
            "captions": [[caption(i), "a star"] for i in indices],
            "class": [i % 3 for i in indices],
        }
    )


def write_parquet(folder, sizes, group):
    """Files with `sizes` rows each, in row groups of `group`."""
    import pyarrow.parquet as pq

    first = 0
    for number, size in enumerate(sizes):
        path = pathlib.Path(folder) / f"train-{number:05d}.parquet"
        pq.write_table(parquet_table(range(first, first + size)), path, row_group_size=group)
        first += size


def write_records(folder, size):
    examples = (
        records.Example(image=jpeg(i), texts=(caption(i),), key=str(i)) for i in range(size)
    )
    shards = records.write_split(folder, "train", examples, size, 2)
    records.write_description(folder, {"train": shards}, statistics={}, settings={})


def write_tfds(folder, size):
    """A TFDS data set in ArrayRecord; its builder's folder."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # several tests make it

        class Drawings(tfds.core.GeneratorBasedBuilder):
            __module__ = "drawings"  # TFDS looks for the files of a class in a package
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                texts = tfds.features.Sequence({"text": tfds.features.Text(), "by": np.int64})
                features = {
                    "image": tfds.features.Image(),
                    "title": tfds.features.Text(),
                    "captions": texts,
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    "shown": tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y"])),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(size):
                    yield (
                        i,
                        {
                            "image": io.BytesIO(jpeg(i)),
                            "title": caption(i),
                            "captions": [
                                {"text": caption(i), "by": 1},
                                {"text": "a star", "by": 2},
                            ],
                            "label": i % 3,
                            "shown": [["x"], ["y"], ["x", "y"], []][i % 4],
                        },
                    )

    builder = Drawings(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)

"""Resident memory while 10^5 records are read at random: tars, parquet and a mixture of both.

    python -m benchmarks.sources_memory --out benchmarks/results/sources_memory.csv

The records are tiny (a JPEG of 8 x 8 pixels), so that what is counted is the input's own memory:
index, order, row groups, queues. `records_per_s` is here the cost of everything but decoding.
"""

import argparse
import csv
import io
import json
import pathlib
import resource
import tarfile
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from aced.data.batch_spec import View
from aced.data.pipeline import train_batches
from aced.data.sources import DataConfig, MemberConfig, open_source
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.data.tokenizers import TokenizerConfig

RECORDS, SHARDS, BATCH, EVERY = 100_000, 10, 1000, 10
COLUMNS = ("source", "records", "rss_mb", "records_per_s")


def picture(i: int) -> bytes:
    """A tiny JPEG."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (i % 256, i // 256 % 256, 0)).save(out, "JPEG")
    return out.getvalue()


def write(folder: pathlib.Path, records: int) -> None:
    """The same records as tars and as parquet."""
    for shard, rows in enumerate(np.array_split(np.arange(records), SHARDS)):
        pictures = [picture(int(i)) for i in rows]
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i, data in zip(rows, pictures, strict=True):
                fields = json.dumps({"caption": "red circle"}).encode()
                for ending, part in (("jpg", data), ("txt", b"red circle"), ("json", fields)):
                    info = tarfile.TarInfo(f"{i:09d}.{ending}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
        table = pa.table({"image": pictures, "caption": ["red circle"] * len(rows)})
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=1000)


def rss_mb() -> float:
    """Resident memory of this process now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def configs(folder: pathlib.Path) -> dict[str, DataConfig]:
    """What is read: by name."""
    tars = {"source": "webdataset", "webdataset": WebDatasetConfig(str(folder))}
    rows = {"source": "parquet", "parquet": ParquetConfig(str(folder), window_mib=8)}
    mixture = {"tars": MemberConfig(**tars, weight=3.0), "rows": MemberConfig(**rows)}
    threads = {"num_threads": 4, "prefetch": 2}
    return {
        "webdataset": DataConfig(**tars, **threads),
        "parquet": DataConfig(**rows, **threads),
        "mixture": DataConfig(source="mixture", mixture=mixture, **threads),
    }


def main() -> None:
    """Writes the data, reads them, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="benchmarks/results/sources_memory.csv")
    parser.add_argument("--records", type=int, default=RECORDS)
    options = parser.parse_args()
    view = View(8, TokenizerConfig(kind="shapes", length=8))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write(folder, options.records)
        for source, config in configs(folder).items():
            opened = open_source(config)
            start = time.perf_counter()
            with train_batches(opened, config, {"": view}, batch_size=BATCH, seed=0) as batches:
                for step in range(1, options.records // BATCH + 1):
                    next(batches)
                    if step % EVERY == 0:
                        rate = step * BATCH / (time.perf_counter() - start)
                        rows.append((source, step * BATCH, round(rss_mb(), 1), round(rate)))
                        print(*rows[-1])
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()

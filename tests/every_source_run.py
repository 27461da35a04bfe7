"""A tiny IID run on a mixture of every kind of files, as a config file for the command.

`--config=tests/every_source_run.py:data=FOLDER`, where `write` has put them.
"""

import pathlib
import warnings

import ml_collections

from aced.config import parse_arg, to_config
from aced.data.sources import ArrayRecordConfig, MemberConfig
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.data.sources.tfds import TfdsConfig
from configs import smoke
from tests.data import many

COUNT, BATCH, STEPS = 40, 16, 30  # three epochs of every source


def write(folder: pathlib.Path) -> None:
    """The same 40 examples in every layout, in several files or row groups each."""
    for name in ("records", "tars", "rows"):
        (folder / name).mkdir()
    many.write_records(folder / "records", COUNT)
    many.write_tars(folder / "tars", [15, 0, 25])
    many.write_parquet(folder / "rows", [22, 18], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFDS's own
        (folder / "builder_dir").write_text(many.write_tfds(str(folder / "tfds"), COUNT))


def get_config(arg: str) -> ml_collections.ConfigDict:
    arg = parse_arg(arg, data="")
    config = smoke.get_config("method=iid,tiny")
    config.batch_size = BATCH
    config.total_steps = STEPS
    config.picks_steps = 1
    config.checkpoint.every_steps = 3
    config.evals = {}
    data = config.data
    data.source = "mixture"
    data.num_threads = 2
    builder = (pathlib.Path(arg.data) / "builder_dir").read_text()
    data.mixture = {
        source: to_config(MemberConfig(source=source, **{source: settings}))
        for source, settings in {
            "array_record": ArrayRecordConfig(f"{arg.data}/records"),
            "webdataset": WebDatasetConfig(f"{arg.data}/tars"),
            "parquet": ParquetConfig(f"{arg.data}/rows"),
            "tfds": TfdsConfig(builder_dir=builder, captions=("title",)),
        }.items()
    }
    return config

"""The run of the drills, as a config file: nine steps, and a checkpoint after every third.

`--config=benchmarks/drills/run_config.py:source=SOURCE,data=FOLDER`; with `reference=` or `cache=`
it is ACED, else IID.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.data.sources import ArrayRecordConfig, MemberConfig
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from configs import smoke

STEPS, SAVED = 9, 3


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The run on the embedded scenes, or on the files of `data`; `mixture` is all of them."""
    arg = parse_arg(arg, source="shapes", data="", reference="", cache="", evals=False)
    method = "aced,online" if arg.reference or arg.cache else "iid"
    config = smoke.get_config(f"method={method},tiny")
    config.before = {}
    config.batch_size = 8
    config.total_steps = STEPS
    config.checkpoint.every_steps = SAVED
    config.checkpoint.keep_last = 3
    config.method.selection.chunks = 2
    if not arg.evals:
        config.evals = {}
    if method != "iid":
        config.method.reference.checkpoint = arg.reference
        config.method.reference.cache = arg.cache
    data = config.data
    data.num_threads = 2
    data.source = arg.source
    if arg.source == "mixture":
        for name, member in (
            (
                "prepared",
                MemberConfig(
                    "array_record", array_record=ArrayRecordConfig(f"{arg.data}/prepared")
                ),
            ),
            ("tars", MemberConfig("webdataset", webdataset=WebDatasetConfig(f"{arg.data}/tars"))),
            ("rows", MemberConfig("parquet", parquet=ParquetConfig(f"{arg.data}/rows"))),
        ):
            data.mixture[name] = to_config(member)
    elif arg.source != "shapes":
        data[arg.source].path = arg.data
    return config

"""Preparation on a Dask cluster of two worker processes."""

import contextlib
import hashlib
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aced.config import ConfigError
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare
from aced.prepare.config import DASK, EMBEDDED
from aced.prepare.runner import pipeline_on, run
from tests.prepare.small import encoded, table

distributed = pytest.importorskip("distributed")  # the extra "dask"
dask = pytest.importorskip("dask")
dask_runner = pytest.importorskip("aced.prepare.dask_runner")

PICTURES, GROUP = 48, 4


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes of one thread each; workers that die are started again."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        yield cluster


def pictures(side):
    """Encoded pictures; the last ones are near-duplicates, and one is broken."""
    for i in range(PICTURES):
        coarse = np.random.default_rng(i % 42).integers(0, 256, (7, 9, 3), np.uint8)
        size = side if i < 42 else side + 16
        yield b"broken" if i == 7 else encoded(Image.fromarray(coarse).resize((size, size)))


def as_table(tmp_path):
    (tmp_path / "images").mkdir()
    for i, data in enumerate(pictures(64)):
        (tmp_path / "images" / f"{i}.png").write_bytes(data)
    lines = [
        {"image": f"{i}.png", "caption": [f"c {i}", "shared"], "label": f"class {i % 3}"}
        for i in range(PICTURES)
    ]
    captions = table(tmp_path, lines)
    return {"images": str(tmp_path / "images"), "captions": captions}


def as_parquet(tmp_path, side=64):
    """A file with `GROUP` pictures in each of its groups of rows, which are the blocks."""
    columns = {
        "image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures(side))],
        "caption": [[f"c {i}", "shared"] for i in range(PICTURES)],
        "label": [i % 3 for i in range(PICTURES)],
    }
    pq.write_table(pa.table(columns), tmp_path / "pictures.parquet", row_group_size=GROUP)
    return {"parquet": str(tmp_path / "pictures.parquet")}


def contents(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def differing(folder, other):
    first, second = contents(folder), contents(other)
    return {name for name in first | second if first.get(name) != second.get(name)}


SETTINGS = {"label_column": "label", "near_duplicates": 3, "val": 5, "shards": 3, "threads": 1}


@pytest.mark.slow
@pytest.mark.parametrize("make", [as_table, as_parquet])
def test_two_processes_give_the_bytes_of_one(cluster, tmp_path, capfd, make):
    settings = SETTINGS | make(tmp_path) | {"thumbnails": 16, "near_duplicate_captions": True}
    expected = prepare(PrepareConfig(out=str(tmp_path / "one"), **settings))
    assert expected["images"] == 41
    assert expected["rejected"]["near_duplicate"] == 6
    options = [f"--dask_client_address={cluster.scheduler_address}", "--dask_npartitions=4"]
    capfd.readouterr()
    found = prepare(PrepareConfig(out=str(tmp_path / "two"), runner=DASK, **settings), options)
    assert found == expected
    assert differing(tmp_path / "one", tmp_path / "two") == set()
    assert not (tmp_path / ".two.partial").exists()
    shown = capfd.readouterr().err
    assert "2/3 Examining, then finding copies: 100%" in shown
    assert f"{PICTURES}/{PICTURES}" in shown
    assert "3/3 Writing: 100%" in shown


@pytest.mark.slow
def test_worker_killed_in_the_middle(cluster, tmp_path):
    # Large pictures that are encoded again, so that the work takes seconds.
    settings = SETTINGS | as_parquet(tmp_path, side=400) | {"max_side": 380}
    prepare(PrepareConfig(out=str(tmp_path / "one"), **settings))
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += [f"--out={tmp_path}/two", f"--runner={DASK}", "--dask_npartitions=6"]
    flags.append(f"--dask_client_address={cluster.scheduler_address}")
    command = subprocess.Popen(
        [sys.executable, "-m", "aced.prepare", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    blocks = tmp_path / ".two.partial" / "blocks"
    with distributed.Client(cluster.scheduler_address) as client:
        while command.poll() is None and len(list(blocks.glob("*.facts"))) < 2:
            time.sleep(0.02)
        busy = next(address for address, tasks in client.processing().items() if tasks)
    nanny = next(n for n in cluster.workers.values() if n.worker_address == busy)
    killed = nanny.pid
    os.kill(killed, signal.SIGKILL)
    unfinished = PICTURES // GROUP - len(list(blocks.glob("*.facts")))
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert unfinished > 2
    assert nanny.pid != killed
    assert differing(tmp_path / "one", tmp_path / "two") == set()


@pytest.mark.slow
def test_error_of_a_worker_names_the_problem_of_the_input(cluster, tmp_path):
    settings = SETTINGS | as_table(tmp_path) | {"val": 45, "out": str(tmp_path / "out")}
    address = f"--dask_client_address={cluster.scheduler_address}"
    with pytest.raises(PrepareError, match="--val=45 is too large"):
        prepare(PrepareConfig(runner=DASK, **settings), [address, "--dask_npartitions=2"])
    assert not (tmp_path / ".out.partial").exists()


def add_steps(pipeline, folder):
    """Steps of all kinds that the preparation has; each writes what it gets to a file."""

    def tell(element, name):
        text = repr(sorted(element) if isinstance(element, list) else element)
        (folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()}").write_text(text)

    def divide(x, odd="odd"):
        yield beam.pvalue.TaggedOutput(odd, -x) if x % 2 else x

    numbers = pipeline | beam.Create(range(40)) | beam.Reshuffle()
    divided = numbers | "divide" >> beam.FlatMap(divide).with_outputs("odd", main="even")
    pairs = divided.even | "pairs" >> beam.Map(lambda x: ((str(x % 3), x % 5), x))
    sums = pairs | beam.CombinePerKey(sum)
    others = divided.odd | "others" >> beam.Map(lambda x: ((str(x % 3), x % 5), x))
    joined = (pairs, others) | beam.CoGroupByKey()
    total = numbers | beam.CombineGlobally(max)
    none = numbers | beam.Filter(lambda x: x < 0)
    nothing = none | "most of none" >> beam.combiners.Top.Of(3)
    dealt = () | "no inputs" >> beam.Flatten(pipeline=pipeline) | "deal none" >> beam.Reshuffle()
    seen = {
        "odd": divided.odd,
        "even": divided.even,
        "sums": sums,
        "groups": pairs | beam.GroupByKey() | "sort" >> beam.MapTuple(lambda k, v: (k, sorted(v))),
        "joined": joined | "sort both" >> beam.MapTuple(lambda k, both: (k, *map(sorted, both))),
        "both": (divided.odd, divided.even, total) | beam.Flatten() | beam.Distinct(),
        "counts": divided.odd | beam.Map(lambda x: x % 4) | beam.combiners.Count.PerElement(),
        "smallest": numbers | beam.combiners.Top.Smallest(3),
        "largest": numbers | beam.combiners.Top.Of(3, key=lambda x: x % 7 * 100 + x),
        "nothing": nothing,
        "no partitions": dealt | "most of no partitions" >> beam.combiners.Top.Of(3),
        "sides": pipeline
        | "one" >> beam.Create([None])
        | "sides"
        >> beam.Map(
            lambda _, one, every, by_key, *, iterable: (
                [one, *sorted(every), *sorted(by_key.items()), *sorted(iterable)]
            ),
            beam.pvalue.AsSingleton(total),
            beam.pvalue.AsList(divided.odd),
            beam.pvalue.AsDict(sums),
            iterable=beam.pvalue.AsIter(divided.even),
        )
        | beam.Map(repr),
    }
    for name, elements in seen.items():
        _ = elements | f"tell {name}" >> beam.Map(tell, name)


@pytest.mark.slow
def test_every_kind_of_step_gives_what_it_gives_on_the_runner_of_beam(tmp_path):
    found = {}
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as threads:
        for runner in (EMBEDDED, DASK):
            options = [f"--dask_client_address={threads.scheduler_address}", "--dask_npartitions=3"]
            pipeline = pipeline_on(runner, options if runner == DASK else [], str(tmp_path / "out"))
            folder = tmp_path / runner
            folder.mkdir()
            add_steps(pipeline, folder)
            run(pipeline, runner)
            found[runner] = contents(folder)
    assert len(found[EMBEDDED]) > 100
    assert found[DASK] == found[EMBEDDED]


@pytest.mark.slow
def test_task_that_kills_each_worker_ends_with_advice(tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, dashboard_address=":0") as fragile,
    ):
        options = [f"--dask_client_address={fragile.scheduler_address}"]
        pipeline = pipeline_on(DASK, options, str(tmp_path / "out"))
        _ = pipeline | beam.Create([1]) | beam.Map(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(PrepareError, match="Dask gave up: "):
            pipeline.run()


@pytest.fixture
def pieces(tmp_path):
    """The pieces that a task of an exchange has written, and their file."""
    found = dask_runner._write(str(tmp_path / "out"), lambda x: [x[:2], [], x[2:]], [1, 2, 3])
    (file,) = (tmp_path / ".out.partial" / "exchange").iterdir()
    return found, file


def joined(tmp_path, pieces):
    return dask_runner._read(str(tmp_path / "out"), dask_runner._chain, pieces)


def test_index_of_an_exchange_lists_the_pieces_of_each_reader(tmp_path, pieces):
    found, _ = pieces
    index = dask_runner._index(3, found, found)
    assert list(map(len, index)) == [2, 0, 2]
    assert [joined(tmp_path, listed) for listed in index] == [[1, 2, 1, 2], [], [3, 3]]
    assert dask_runner._index(3) == [[], [], []]


def test_dependencies_of_an_exchange_are_proportional_to_partitions(tmp_path):
    def count(partitions):
        pipeline = beam.Pipeline()
        _ = pipeline | beam.Create(range(9)) | beam.Reshuffle() | "again" >> beam.Reshuffle()
        tasks = dask_runner._Tasks(str(tmp_path / "out"), partitions, "topic")
        pipeline.visit(tasks)
        graph = dict(tasks.end().dask)
        return len(graph), sum(len(task.dependencies) for task in graph.values())

    (some, edges), (more, more_edges) = count(10), count(100)
    assert more < 10 * some
    assert more_edges < 10 * edges


class Trap:
    """Its pickle makes a folder where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("change", ["flipped", "cut", "other"])
def test_changed_piece_is_refused_before_it_is_loaded(tmp_path, pieces, change):
    ((name, _, _, digest), *_), file = pieces
    data = file.read_bytes()
    trap = pickle.dumps([Trap(tmp_path / "trap")])
    changed = {"flipped": data[:5] + b"?" + data[6:], "cut": data[:5], "other": trap}[change]
    file.write_bytes(changed)
    with pytest.raises(PrepareError, match=f"{file} is damaged; start the same command again"):
        joined(tmp_path, [(name, 0, len(changed), digest)])
    assert not (tmp_path / "trap").exists()


@pytest.mark.slow
def test_no_task_of_a_stopped_run_is_begun(tmp_path):
    def work(number):
        (tmp_path / f"begun-{number}").touch()
        with contextlib.suppress(FileExistsError):  # two tasks may begin at once
            (tmp_path / "interrupted").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C; the tasks run in threads of this process
        time.sleep(0.5)

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as threads:
        options = [f"--dask_client_address={threads.scheduler_address}", "--dask_npartitions=20"]
        pipeline = pipeline_on(DASK, options, str(tmp_path / "out"))
        _ = pipeline | beam.Create(range(20)) | beam.Reshuffle() | beam.Map(work)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run()
        time.sleep(1.5)
        assert 1 <= len(list(tmp_path.glob("begun-*"))) <= 4


def test_no_scheduler_at_the_address(tmp_path):
    options = ["--dask_client_address=tcp://127.0.0.1:1", "--dask_connection_timeout=1"]
    pipeline = pipeline_on(DASK, options, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="No Dask scheduler answers at tcp://"):
        pipeline.run()


@pytest.mark.parametrize("address", ["nonsense", "tcp://host", "tcp://host:x", "http://host:8786"])
def test_malformed_address(tmp_path, address):
    pipeline = pipeline_on(DASK, [f"--dask_client_address={address}"], str(tmp_path / "out"))
    wanted = f"--dask_client_address={address} is no address .*; give it as tcp://HOST:8786"
    with pytest.raises(ConfigError, match=wanted):
        pipeline.run()


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"address": '])
def test_file_without_a_scheduler(tmp_path, content):
    file = tmp_path / "dask.json"
    if content is not None:
        file.write_text(content)
    pipeline = pipeline_on(DASK, [f"--dask_scheduler_file={file}"], str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=f"{file} has no address .* Start it first, with `dask"):
        pipeline.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dask_npartitions=0"], "--dask_npartitions=0 must be at least 1"),
        (["--dask_npartitions=-3"], "--dask_npartitions=-3 must be at least 1"),
        (["--dask_partition_size=9"], "set --dask_npartitions"),
        (
            ["--dask_scheduler_file=a.json", "--dask_client_address=tcp://host:1"],
            "--dask_scheduler_file and --dask_client_address both name a scheduler",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    pipeline = pipeline_on(DASK, options, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=message):
        pipeline.run()


def test_cluster_of_a_scheduler_file(tmp_path, capsys):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as threads:
        file = tmp_path / "dask.json"
        file.write_text(json.dumps(threads.scheduler.identity()))
        pipeline = pipeline_on(DASK, [f"--dask_scheduler_file={file}"], str(tmp_path / "out"))
        _ = (
            pipeline
            | beam.Create([3])
            | beam.Map(lambda x: (tmp_path / "found").write_text(str(x)))
        )
        pipeline.run()
    assert (tmp_path / "found").read_text() == "3"
    assert "8 partitions on 2 threads." in capsys.readouterr().out


def test_step_without_a_translation():
    pipeline = beam.Pipeline()
    _ = pipeline | beam.Impulse()
    with pytest.raises(NotImplementedError, match="Impulse has no tasks of Dask"):
        pipeline.visit(dask_runner._Tasks("out", 2, "topic"))

"""The preparation's pipeline as tasks of a Dask cluster: --runner=DaskRunner.

Beam has a runner of this name, with the same flags, that cannot run this pipeline (Beam 2.77): each
reader of a step with tagged outputs gets all of its outputs mixed, and side inputs are computed
again in each task that reads them. This one translates what the preparation uses: bounded
collections in the global window, without timers or state.

A collection is a list of partitions, and each step is a task per partition. To group by key, each
task divides its partition by a checksum of the key, and writes the pieces to one file of the
workspace, where the tasks that join them read theirs. One task between them lists where the pieces
are, so the numbers of tasks and of their dependencies are proportional to that of partitions; only
this list grows with its square. A worker that dies takes no pieces along. Dask repeats its tasks on
other workers; blocks and shards that are complete in the workspace are not made again.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import operator
import pathlib
import pickle
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

import apache_beam as beam
import distributed
import msgpack
from apache_beam.internal import pickler, util
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.dask.dask_runner import DaskOptions
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.utils.windowed_value import WindowedValue
from dask.delayed import Delayed, delayed

from aced.config import ConfigError
from aced.files import storage
from aced.prepare import progress
from aced.prepare.blocks import ahead
from aced.prepare.captions import PrepareError
from aced.prepare.workspace import Workspace

_PARTITIONS_PER_THREAD = 4  # so that threads that are done first take over work of the others
_SECONDS = 0.5  # between reports of a task
_READERS = 16  # threads of a task that read pieces, which may be in an object store
_FOLDER = "exchange"  # of pieces, in the workspace

Piece = tuple[str, int, int, bytes]  # file of the workspace, begin, size, SHA-256


class DaskRunner(PipelineRunner):
    """Runs a pipeline on the cluster of `--dask_client_address`, or on one of this machine."""

    def __init__(self, out: str):
        """Sets the data set whose workspace the workers exchange data through."""
        self._out = out

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        """Runs `pipeline` to its end, and shows its progress.

        Raises:
            ConfigError: no cluster is at the address, or an option is wrong or not supported.
            PrepareError: several workers died in the same task, or the scheduler did.
        """
        settings = options.view_as(DaskOptions).get_all_options(
            drop_default=True, current_only=True
        )
        partitions = settings.pop("npartitions", None)
        if "partition_size" in settings:
            raise ConfigError("--dask_partition_size is not used; set --dask_npartitions.")
        if partitions is not None and partitions < 1:
            raise ConfigError(
                f"--dask_npartitions={partitions} must be at least 1; without it there are "
                f"{_PARTITIONS_PER_THREAD} for each thread of the cluster."
            )
        if path := settings.pop("scheduler_file", None):
            if settings.get("address"):
                raise ConfigError(
                    "--dask_scheduler_file and --dask_client_address both name a scheduler; give "
                    "one of them."
                )
            settings["address"] = _address_in(path)
        with _connected(settings) as client, progress.shown() as bars:
            if not client.nthreads():
                print("Waiting for a worker of Dask ...", flush=True)
            client.wait_for_workers(1)
            threads = sum(client.nthreads().values())
            Workspace(self._out).remove(_FOLDER)  # left by a killed run
            partitions = partitions or _PARTITIONS_PER_THREAD * threads
            print(f"{partitions} partitions on {threads} threads.", flush=True)
            tasks = _Tasks(self._out, partitions, topic=f"aced.prepare-{uuid.uuid4()}")
            pipeline.visit(tasks)
            client.subscribe_topic(tasks.topic, lambda event: bars.put(*event[1]))
            future = client.compute(tasks.end())
            try:
                future.result()
            except (distributed.KilledWorker, futures.CancelledError) as error:
                raise PrepareError(
                    f"Dask gave up: {error} If workers ran out of memory, give them more of it or "
                    "fewer threads. What is complete is kept, and the same command goes on."
                ) from error
            except BaseException:
                future.cancel()  # so that the cluster begins no further task
                raise
        return PipelineResult(PipelineState.DONE)


def _address_in(path: str) -> str:
    """The address in the file that `dask scheduler --scheduler-file` writes.

    Dask itself would wait for the file without end.

    Raises:
        ConfigError: the file is missing, or is no such file.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes())["address"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--dask_scheduler_file={path} has no address of a scheduler "
            f"({type(error).__name__}: {error}). Start it first, with "
            f"`dask scheduler --scheduler-file={path}`, or correct the path."
        ) from error


def _connected(settings: Mapping[str, Any]) -> distributed.Client:
    """The client of a cluster.

    Raises:
        ConfigError: the address is malformed, or the cluster does not answer.
    """
    if not (address := settings.get("address")):
        return distributed.Client(**settings)  # and worker processes on this machine
    try:
        distributed.comm.get_address_host(address)  # a client would fail, but not close
    except ValueError as error:
        raise ConfigError(
            f"--dask_client_address={address} is no address ({error}); give it as tcp://HOST:8786."
        ) from error
    try:
        return distributed.Client(**settings)
    except OSError as error:
        raise ConfigError(
            f"No Dask scheduler answers at {address}: {error}. Start it first."
        ) from error


class _Tasks(PipelineVisitor):
    """The tasks that compute each collection of a pipeline, one per partition.

    `topic` is that of the events by which tasks report their progress; it is unique to the run.
    """

    def __init__(self, out: str, partitions: int, topic: str):
        self.topic = topic
        self._out = out
        self._partitions = partitions
        self._of: dict[beam.pvalue.PValue, list[Delayed]] = {}
        self._read: set[beam.pvalue.PValue] = set()
        self._numbers = itertools.count()
        self._translated: AppliedPTransform | None = None  # whose parts are skipped

    def end(self) -> Delayed:
        """A task that depends on all collections that no other step reads."""
        ends = [tasks for output, tasks in self._of.items() if output not in self._read]
        return self._task("end", _nothing, *itertools.chain(*ends))

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        """Translates the steps that are tasks as a whole."""
        if self._translated is None and self._translate(transform_node):
            self._translated = transform_node

    def leave_composite_transform(self, transform_node: AppliedPTransform) -> None:
        """Goes on translating behind the steps that were tasks as a whole."""
        if self._translated is transform_node:
            self._translated = None

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        """Translates a step without parts.

        Raises:
            NotImplementedError: the step has no translation.
        """
        if self._translated is None and not self._translate(transform_node):
            kind = type(transform_node.transform).__name__
            raise NotImplementedError(f"{transform_node.full_label}: {kind} has no tasks of Dask.")

    def _translate(self, step: AppliedPTransform) -> bool:
        """Adds the tasks of `step`; returns whether it has any."""
        transform, name = step.transform, step.full_label
        if isinstance(transform, beam.ParDo):
            self._process(step)
            return True
        if isinstance(transform, beam.Create):
            tasks = [self._task(name, functools.partial(list, transform.values))]
        elif isinstance(transform, beam.Flatten):
            inputs = list(itertools.chain(*map(self._tasks_of, step.inputs)))
            n = self._partitions
            chains = [inputs[i::n] for i in range(min(n, len(inputs)))]
            tasks = [self._task(name, _chain_all, *chain) for chain in chains]
        elif isinstance(transform, beam.Reshuffle):
            tasks = self._exchange(name, self._tasks_of(*step.inputs), _deal, _chain)
        elif isinstance(transform, beam.GroupByKey):
            tasks = self._exchange(name, self._tasks_of(*step.inputs), _divide, _group)
        elif isinstance(transform, beam.CombinePerKey):
            packed = pickler.dumps(transform.fn)
            parts = [
                self._task(name, functools.partial(_accumulate, packed), task)
                for task in self._tasks_of(*step.inputs)
            ]
            tasks = [
                self._task(name, functools.partial(_combine, packed), task)
                for task in self._exchange(name, parts, _divide, _group)
            ]
        else:
            return False
        (output,) = step.outputs.values()
        self._of[output] = tasks
        return True

    def _process(self, step: AppliedPTransform) -> None:
        transform, name = step.transform, step.full_label
        views = []
        for side in step.side_inputs:
            view = functools.partial(_view, pickler.dumps(side._side_input_data().view_fn))
            views.append(self._task(f"{name}, side input", view, *self._tasks_of(side.pvalue)))
        packed = pickler.dumps((transform.fn, transform.args, transform.kwargs))
        run = functools.partial(_process, packed, self.topic)
        results = [self._task(name, run, task, *views) for task in self._tasks_of(*step.inputs)]
        for tag, output in step.outputs.items():
            take = operator.methodcaller("get", tag, [])
            self._of[output] = [self._task(f"{name}, output", take, result) for result in results]

    def _exchange(
        self,
        name: str,
        tasks: Iterable[Delayed],
        divide: Callable[[int, list[Any]], list[list[Any]]],
        join: Callable[[Iterable[list[Any]]], list[Any]],
    ) -> list[Delayed]:
        """Each partition divided by `divide`, and the pieces of equal index joined by `join`."""
        write = functools.partial(_write, self._out, functools.partial(divide, self._partitions))
        divided = [self._task(f"{name}, divide", write, task) for task in tasks]
        index = self._task(f"{name}, index", functools.partial(_index, self._partitions), *divided)
        pieces = [
            self._task(f"{name}, pieces", operator.itemgetter(i), index)
            for i in range(self._partitions)
        ]
        read = functools.partial(_read, self._out, join)
        return [self._task(name, read, task) for task in pieces]

    def _tasks_of(self, collection: beam.pvalue.PValue) -> list[Delayed]:
        self._read.add(collection)
        return self._of[collection]

    def _task(self, name: str, function: Callable[..., Any], *inputs: Delayed) -> Delayed:
        """A call of `function`; `name` is shown by Dask."""
        key = f"{name}-{self.topic}-{next(self._numbers)}"
        return delayed(function, pure=False, traverse=False)(*inputs, dask_key_name=key)


def _process(packed: bytes, topic: str, elements: list[Any], *views: Any) -> dict[Any, list[Any]]:
    """The outputs of a function of Beam's by tag; None is the tag of the main output."""
    fn, args, kwargs = pickler.loads(packed)
    args, kwargs = util.insert_values_in_args(args, kwargs, views)
    outputs = collections.defaultdict(list)

    def add(results: Iterable[Any] | None) -> None:
        for result in results or ():
            tag = None
            if isinstance(result, beam.pvalue.TaggedOutput):
                tag, result = result.tag, result.value
            outputs[tag].append(result.value if isinstance(result, WindowedValue) else result)

    with _reported(topic):
        fn.setup()
        fn.start_bundle()
        for element in elements:
            add(fn.process(element, *args, **kwargs))
        add(fn.finish_bundle())
        fn.teardown()
    return dict(outputs)


def _accumulate(packed: bytes, pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The accumulators of a `beam.CombineFn` for the pairs of a partition."""
    fn, accumulators = pickler.loads(packed), {}
    for key, value in pairs:
        if key not in accumulators:
            accumulators[key] = fn.create_accumulator()
        accumulators[key] = fn.add_input(accumulators[key], value)
    return [(key, fn.compact(accumulator)) for key, accumulator in accumulators.items()]


def _combine(packed: bytes, groups: list[tuple[Any, list[Any]]]) -> list[tuple[Any, Any]]:
    fn = pickler.loads(packed)
    return [(key, fn.extract_output(fn.merge_accumulators(group))) for key, group in groups]


def _view(packed: bytes, *partitions: list[Any]) -> Any:
    """A side input in the form in which a function reads it, such as a dict."""
    return pickler.loads(packed)(_chain(partitions))


def _write(
    out: str, divide: Callable[[list[Any]], list[list[Any]]], elements: list[Any]
) -> list[Piece]:
    """Writes the pieces of a partition to one file, of a name of its own: tasks may be repeated."""
    data = [pickle.dumps(part) if part else b"" for part in divide(elements)]
    name = f"{_FOLDER}/{uuid.uuid4()}"
    Workspace(out).write(name, b"".join(data))
    begins = itertools.accumulate(map(len, data), initial=0)
    return [
        (name, begin, len(part), hashlib.sha256(part).digest())
        for begin, part in zip(begins, data, strict=False)
    ]


def _index(number: int, *partitions: list[Piece]) -> list[list[Piece]]:
    """The pieces of each of `number` indices, without empty ones."""
    return [[pieces[i] for pieces in partitions if pieces[i][2]] for i in range(number)]


def _read(
    out: str, join: Callable[[Iterable[list[Any]]], list[Any]], pieces: list[Piece]
) -> list[Any]:
    """Joins pieces of equal index.

    Raises:
        PrepareError: a piece is not what was written.
    """

    def load(piece: Piece) -> list[Any]:
        name, begin, size, digest = piece
        path = Workspace(out).path(name)
        data = storage.read(path, begin, size)
        # Before it is loaded, because a pickle can run any code; the digest came through Dask.
        if hashlib.sha256(data).digest() != digest:
            raise PrepareError(f"{path} is damaged; start the same command again.")
        return pickle.loads(data)

    return join(ahead(load, pieces, _READERS))


def _divide(number: int, pairs: list[tuple[Any, Any]]) -> list[list[tuple[Any, Any]]]:
    """The pairs by key; not by Python's hash, which differs between processes."""
    parts = [[] for _ in range(number)]
    for key, value in pairs:
        parts[zlib.crc32(msgpack.packb(key)) % number].append((key, value))
    return parts


def _group(parts: Iterable[list[tuple[Any, Any]]]) -> list[tuple[Any, list[Any]]]:
    groups = collections.defaultdict(list)
    for key, value in itertools.chain.from_iterable(parts):
        groups[key].append(value)
    return list(groups.items())


def _deal(number: int, elements: list[Any]) -> list[list[Any]]:
    return [elements[i::number] for i in range(number)]


def _chain(parts: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def _chain_all(*partitions: list[Any]) -> list[Any]:
    return _chain(partitions)


def _nothing(*_: Any) -> None:
    """Waits for its arguments."""


class _Report:
    """What a task has counted, for the client."""

    def __init__(self, topic: str):
        self._worker, self._topic = distributed.get_worker(), topic
        self._task = self._worker.get_current_task()
        self._counts: dict[str, tuple[int, int]] = {}
        self._sent = time.monotonic()

    def add(self, step: str, done: int, expected: int) -> None:
        """Adds to the counts of `step`, and sends them now and then."""
        before = self._counts.get(step, (0, 0))
        self._counts[step] = before[0] + done, before[1] + expected
        if time.monotonic() - self._sent > _SECONDS:
            self.send()

    def send(self) -> None:
        """Sends all counts, which replace those sent before, also by a worker that died."""
        for step, (done, expected) in self._counts.items():
            self._worker.log_event(self._topic, (self._task, step, done, expected))
        self._sent = time.monotonic()


_reports = threading.local()  # `of_task`: the `_Report` of the task in this thread


def _count(step: str, done: int, expected: int) -> None:
    _reports.of_task.add(step, done, expected)


@contextlib.contextmanager
def _reported(topic: str) -> Iterator[None]:
    """Reports the progress of the task that runs in the block."""
    _reports.of_task = _Report(topic)
    progress.send_to(_count)
    yield
    _reports.of_task.send()

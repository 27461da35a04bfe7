"""Small inputs, every command as a job on them, and what each job makes undisturbed."""

import csv
import dataclasses
import hashlib
import io
import json
import pathlib
import pickle
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.drills import processes

COUNT = 40  # pictures
CONFIG = "benchmarks/drills/run_config.py"
OUT = "out"  # the name of every output
Contents = Any  # comparable by ==


@dataclasses.dataclass(frozen=True)
class Job:
    """A command with its arguments, and how its output is read."""

    name: str  # COMMAND or COMMAND/WHAT
    arguments: Callable[[pathlib.Path, pathlib.Path], list[str]]  # of inputs and output
    contents: Callable[[pathlib.Path], Contents]

    @property
    def command(self) -> str:
        """Of `python -m aced.COMMAND`."""
        return self.name.partition("/")[0]

    def line(self, inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
        """The command line behind `python -m aced.`."""
        return [self.command, *self.arguments(inputs, out)]


def files(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 by name of all files in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def prepared(folder: pathlib.Path) -> Contents:
    """All bytes of a prepared data set, but for the places of its input."""
    found = json.loads((folder / "dataset.json").read_text())
    for name in ("images", "captions", "tars", "parquet"):
        found["settings"].pop(name)
    return files(folder) | {"dataset.json": found}


def run(folder: pathlib.Path) -> Contents:
    """Numbers of a run but for the clock's, its picks, and the newest checkpoint, bit for bit."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from aced.metrics import history

    lines = [
        {key: value for key, value in line.items() if not key.startswith("wall/")}
        for line in history.read(folder)
    ]
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    found = ocp.checkpointables_metadata(newest).metadata["state"]
    shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found)
    state = ocp.load(newest, shapes, checkpointable_name="state")
    digests = [hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in jax.tree.leaves(state)]
    return lines, history.read_picks(folder), newest.name, digests


def model(folder: pathlib.Path) -> Contents:
    """The settings and parameters of a model folder."""
    from aced.models import model_folder
    from aced.models.saved import flat

    found = model_folder.read(str(folder))
    digests = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in flat(found.params).items()}
    return repr(found.config), digests, found.tokenizer


def dataset(folder: pathlib.Path) -> dict[str, tuple]:
    """The examples of a prepared data set: SHA-256 of the picture, and captions, by key."""
    from aced.data import records

    source = records.open_dataset(folder, "train")
    examples = [source[i] for i in range(len(source))]
    return {
        example["key"]: (hashlib.sha256(example["image"]).hexdigest(), example["texts"])
        for example in examples
    }


def embeddings(folder: pathlib.Path) -> dict[int, Any]:
    """The embeddings of a cache by example; of those that are missing None."""
    import numpy as np

    from aced.cache import Cache

    cache, found = Cache(folder), {}
    for i in range(cache.description.plan.examples):
        found[i] = None
        if i not in cache.missing:
            read = cache.read(np.array([i]), np.array([0]))
            found[i] = {name: value.tobytes() for name, value in read.items()}
    return found


def _main(source: str, more: str = "") -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
    def arguments(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
        data = inputs / {"webdataset": "tars", "array_record": "prepared"}.get(source, "")
        behind = f":source={source}" + ("" if source == "shapes" else f",data={data}")
        return [f"--config={CONFIG}{behind}{more.format(inputs=inputs)}", f"--workdir={out}"]

    return arguments


def _cache(source: str, *more: str) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
    main = _main(source, ",reference={inputs}/model")

    def arguments(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
        sizes = ["--shard_size=8", "--batch_size=8", "--calibration_pairs=16"]
        return [main(inputs, out)[0], f"--out={out}", *sizes, *more]

    return arguments


def _prepare(*names: str) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
    flags = [name.partition("=")[::2] for name in names]

    def arguments(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
        return [
            *(f"--{flag}={inputs / name}" for flag, name in flags),
            f"--out={out}",
            "--shards=2",
        ]

    return arguments


def _select(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    read = [f"--corpus={inputs}/corpus/*.txt", f"--teacher={inputs}/model"]
    sizes = ["--budget=60", "--k=3", "--block=48", "--tile=16", "--save_minutes=0.00001"]
    return [*read, f"--features={inputs}/features", f"--out={out}", *sizes]


def _convert(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"--source={inputs}/run", f"--out={out}", "--to=aced"]


def _convert_model(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"--source={inputs}/model", f"--out={out}", "--to=aced"]


def _convert_hf(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"--source={inputs}/transformers", f"--out={out}", "--to=aced"]


def _convert_to_hf(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"--source={inputs}/model", f"--out={out}", "--to=huggingface"]


def _evaluate(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"--config={CONFIG}:evals", f"--workdir={out}", f"--model={inputs}/run", "--json"]


def _report(inputs: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"{inputs}/run", f"--out={out}"]


def _nothing(out: pathlib.Path) -> None:
    del out


JOBS = {
    job.name: job
    for job in (
        Job("main/scenes", _main("shapes"), run),
        Job("main/mixture", _main("mixture"), run),
        Job("main/cached", _main("array_record", ",cache={inputs}/cache"), run),
        Job("cache/prepared", _cache("array_record"), embeddings),
        Job("cache/tars", _cache("webdataset"), embeddings),
        Job("cache/features", _cache("array_record", "--towers=image"), embeddings),
        Job("prepare/table", _prepare("images=images", "captions=captions.jsonl"), prepared),
        Job("prepare/tars", _prepare("tars=tars"), prepared),
        Job("prepare/parquet", _prepare("parquet=rows"), prepared),
        Job("select_text", _select, files),
        Job("convert/run", _convert, model),
        Job("convert/model", _convert_model, model),
        Job("convert/huggingface", _convert_to_hf, files),
        Job("convert/transformers", _convert_hf, model),
        Job("evaluate", _evaluate, _nothing),
        Job("report", _report, _nothing),
    )
}


# In this order: the jobs whose outputs a job reads, and what its own is called as an input.
_MADE: dict[str, tuple[tuple[str, ...], str]] = {
    "prepare/table": ((), "prepared"),
    "main/scenes": ((), "run"),
    "convert/run": (("main/scenes",), "model"),
    "convert/model": (("convert/run",), ""),
    "convert/huggingface": (("convert/run",), "transformers"),
    "convert/transformers": (("convert/huggingface",), ""),
    "cache/features": (("convert/run", "prepare/table"), "features"),
    "cache/prepared": (("convert/run", "prepare/table"), "cache"),
    "cache/tars": (("convert/run",), ""),
    "main/cached": (("cache/prepared",), ""),
    "main/mixture": (("prepare/table",), ""),
    "prepare/tars": ((), ""),
    "prepare/parquet": ((), ""),
    "select_text": (("cache/features",), ""),
    "evaluate": (("main/scenes",), ""),
    "report": (("main/scenes",), ""),
}
# What is there of a job that was killed in the middle.
_MIDWAY = {
    "prepare/table": ".out.partial/blocks/*.facts",
    "cache/prepared": "out/embeddings*.json",
    "select_text": ".out.selecting/state.json",
}


class Bench:
    """Inputs, and every job's output and contents, made once in a folder.

    Attributes:
        inputs: the folder that jobs read.
        seconds: what each job took, by name.
        pairs: what `dataset` gives of each preparation, by name.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.inputs = folder, folder / "inputs"
        self.seconds: dict[str, float] = {}
        self.pairs: dict[str, dict[str, tuple]] = {}
        self._expected: dict[str, Contents] = {}

    def make(self, jobs: Iterable[str]) -> None:
        """Makes what these jobs need and is missing; a killed start goes on."""
        state = self.folder / "bench.pickle"
        if state.exists():
            self.seconds, self.pairs, self._expected = pickle.loads(state.read_bytes())
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            processes.in_fork(_write_inputs, self.inputs)
        wanted = set(jobs)
        for name in reversed(_MADE):
            wanted |= set(_MADE[name][0]) if name in wanted else set()
        for name, (_, becomes) in _MADE.items():
            if name in wanted and name not in self._expected:
                self._make(JOBS[name], becomes)
                state.write_bytes(pickle.dumps((self.seconds, self.pairs, self._expected)))
        for name, pattern in _MIDWAY.items():
            if name in wanted:
                self._stop_midway(name, pattern)

    def made(self, job: str) -> pathlib.Path:
        """The folder in which the job's output is."""
        return self.folder / "made" / job.replace("/", "_")

    def partial(self, job: str) -> pathlib.Path:
        """The folder in which is what the job left when it was killed."""
        return self.folder / "partial" / job.replace("/", "_")

    def expected(self, job: str) -> Contents:
        """What the job makes undisturbed; of those without an output, what they print."""
        return self._expected[job]

    def _make(self, job: Job, becomes: str) -> None:
        folder = self.made(job.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        took = []
        for _ in range(2):  # the first one may compile
            shutil.rmtree(folder / OUT, ignore_errors=True)
            since = time.monotonic()
            done = processes.call(job.line(self.inputs, folder / OUT), folder / "log")
            took.append(time.monotonic() - since)
            if done.code != 0:
                raise RuntimeError(f"{job.name} failed undisturbed:\n{done.text}")
        self.seconds[job.name] = took[-1]
        self._expected[job.name] = self.read(job, folder / OUT, done)
        if job.command == "prepare":
            self.pairs[job.name] = processes.in_fork(dataset, folder / OUT)
        if becomes:
            shutil.copytree(folder / OUT, self.inputs / becomes)
        print(f"{job.name}: {took[-1]:.1f} s", flush=True)

    def read(self, job: Job, out: pathlib.Path, done: processes.Done) -> Contents:
        """What the job made."""
        if job.contents is not _nothing:
            return processes.in_fork(job.contents, out)
        if job.command == "evaluate":
            return json.loads(done.text[done.text.index("{\n") :])
        return out.read_bytes()

    def _stop_midway(self, name: str, pattern: str) -> None:
        folder, job = self.partial(name), JOBS[name]
        if folder.exists() and any(folder.glob(pattern)):
            return
        for attempt in range(30):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            started = processes.start(job.line(self.inputs, folder / OUT), folder / "log")
            while not any(folder.glob(pattern)) and time.monotonic() < started.began + 60:
                time.sleep(0.001)
            time.sleep(0.003 * attempt)
            started.kill()
            started.wait()
            if any(folder.glob(pattern)) and not (folder / OUT / "cache.json").exists():
                return
        raise RuntimeError(f"{name} could not be stopped midway.")


def picture(i: int) -> tuple[bytes, str]:
    """Scene i as a PNG, and its caption."""
    from PIL import Image

    from aced.data.shapes.scenes import Shapes, ShapesConfig

    scene = Shapes(ShapesConfig(size=10 * COUNT, resolution=32))[i]
    out = io.BytesIO()
    Image.fromarray(scene["image"]).save(out, "PNG")
    return out.getvalue(), scene["texts"][0]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Appends a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_700_000_000
    tar.addfile(info, io.BytesIO(data))


def _write_inputs(folder: pathlib.Path) -> None:
    """The same pairs as a table, tars and parquet, and a corpus."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("images", "tars", "rows", "corpus"):
        (folder / name).mkdir(parents=True)
    pairs = [picture(i) for i in range(COUNT)]
    for i, (data, _) in enumerate(pairs):
        (folder / "images" / f"{i}.png").write_bytes(data)
    rows = [{"image": f"{i}.png", "caption": text} for i, (_, text) in enumerate(pairs)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    for number in range(2):
        with tarfile.open(folder / "tars" / f"{number:05d}.tar", "w") as tar:
            for i, (data, text) in list(enumerate(pairs))[number::2]:
                add(tar, f"{i:05d}.png", data)
                add(tar, f"{i:05d}.txt", text.encode())
    columns = {"image": [data for data, _ in pairs], "caption": [text for _, text in pairs]}
    pq.write_table(pa.table(columns), folder / "rows" / "train-0.parquet", row_group_size=16)
    words = sorted({word for _, text in pairs for word in text.split()})
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(400)]
    for number in range(3):
        (folder / "corpus" / f"{number}.txt").write_text("\n".join(lines[number::3]) + "\n")

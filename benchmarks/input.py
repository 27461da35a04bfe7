"""How many pictures one core reads a second, in which ways; threads; memory.

    python -m benchmarks.input --out=benchmarks/results/input.csv

The pictures are drawn here: noise with the spectrum of photographs, JPEG of quality 90, colours at
half resolution. The ways take turns, and CPU time is counted, so that other work on the machine
does little. `part` is what is measured:

"decode": from the bytes to the pixels that a model sees, in this thread. The ways (`way`):
    "pillow crop": random resized crop (open_clip's scale 0.9 to 1), bicubic: PyTorch's usual path.
    "opencv cubic": OpenCV alone; its cubic filter aliases.
    "simplejpeg area": libjpeg-turbo with its fast approximations, scaled, then OpenCV's INTER_AREA:
        the fastest of other loaders' ways, and wrong where saturated colours meet.
    "accurate area": the same without the approximations.
    "exact", "fast": `data.decode` of this project. "thumbnail": "fast" from a stored thumbnail of
    `resolution` pixels.
"pipeline": `train_batches` of a prepared set with `data.decode` = `way`: reading, checking,
    decoding, tokenizing, stacking; in one process, and in two at once, which share nothing but the
    machine: two threads cannot do better.
"memory": the same with small pictures, for many records.

Columns: `pixels`, the picture's side; `bytes`, its mean size encoded; `resolution`, the model's
side; `processes`, and `threads` in each; `per_cpu_second`, pictures for each second of CPU time;
`per_second`, of wall time, of all processes together (the best of the rounds, both); `ratio`, how
many times as fast as "simplejpeg area", or as one thread of the pipeline, in the same round (the
median of the rounds, which other work on the machine moves least); `records`, read so far, and
`rss_mib`, the resident memory then. What does not apply is empty.
"""

import io
import multiprocessing
import os
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import simplejpeg
from absl import app, flags
from PIL import Image

from aced.data import pipeline, records
from aced.data.batch_spec import View
from aced.data.images.decode import MAX_PIXELS, decode
from aced.data.images.pictures import Look, Viewer
from aced.data.images.transforms import ResizeConfig
from aced.data.sources import ArrayRecordConfig, DataConfig, open_source
from aced.data.tokenizers import TokenizerConfig
from aced.prepare.images import make_thumbnail
from benchmarks import table
from benchmarks.photographs import draw

_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of every way.")
_RECORDS = flags.DEFINE_integer("records", 100_000, "Records read for the memory's curve.")

SIZES = ((512, 256), (256, 224), (512, 224), (768, 224), (512, 128))  # picture, model
COLUMNS = ("part", "way", "pixels", "bytes", "resolution", "processes", "threads")
COLUMNS += ("per_cpu_second", "per_second", "ratio", "records", "rss_mib")
PICTURES = 12  # of each size
SMALL = 96, 64  # picture and model of the memory's curve
_PATIENCE = 300  # seconds, for a process that may have ended


# --- Ways to decode ------------------------------------------------------------------------------


def pillow_crop(data: bytes, resolution: int) -> np.ndarray:
    """A random resized crop; the place is the middle's, which costs the same."""
    with Image.open(io.BytesIO(data)) as picture:
        picture = picture.convert("RGB")
    area = picture.width * picture.height * random.uniform(0.9, 1.0)
    aspect = random.uniform(3 / 4, 4 / 3)
    width = min(picture.width, round((area * aspect) ** 0.5))
    height = min(picture.height, round((area / aspect) ** 0.5))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture.resize((resolution, resolution), Image.Resampling.BICUBIC))


def opencv_cubic(data: bytes, resolution: int) -> np.ndarray:
    """Decoded in full, sampled by the cubic filter."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(pixels, (resolution, resolution), interpolation=cv2.INTER_CUBIC)


def simplejpeg_area(data: bytes, resolution: int, fast: bool) -> np.ndarray:
    """Decoded at the smallest of all k/8 that does."""
    sides = {"min_height": resolution, "min_width": resolution}
    pixels = simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast, **sides)
    return cv2.resize(pixels, (resolution, resolution), interpolation=cv2.INTER_AREA)


def ours(resolution: int, decoder: str) -> Callable[[bytes], np.ndarray]:
    """As a reader of `train_batches` does."""
    view = Viewer([Look(resolution, ResizeConfig())], decoder, MAX_PIXELS)
    return lambda data: view({"image": data})[0]


def ways(resolution: int) -> dict[str, Callable[[bytes], np.ndarray]]:
    """By name, from the bytes to the pixels."""
    return {
        "pillow crop": lambda data: pillow_crop(data, resolution),
        "opencv cubic": lambda data: opencv_cubic(data, resolution),
        "simplejpeg area": lambda data: simplejpeg_area(data, resolution, fast=True),
        "accurate area": lambda data: simplejpeg_area(data, resolution, fast=False),
        "exact": ours(resolution, "exact"),
        "fast": ours(resolution, "fast"),
    }


def decoding(rounds: int) -> list[dict]:
    """The part "decode"."""
    rows = []
    for side, resolution in SIZES:
        pictures = [draw(side, seed) for seed in range(PICTURES)]
        work = {name: (way, pictures) for name, way in ways(resolution).items()}
        if 2 * resolution < side:
            small = [make_thumbnail(decode(picture), resolution) for picture in pictures]
            work["thumbnail"] = ours(resolution, "fast"), small
        times = {name: [] for name in work}
        for _ in range(rounds):
            for name, (way, inputs) in work.items():
                start = time.thread_time()
                for data in inputs:
                    way(data)
                times[name].append(time.thread_time() - start)
        base = np.array(times["simplejpeg area"])
        for name, (_, inputs) in work.items():
            rows.append(
                {"part": "decode", "way": name, "pixels": side, "resolution": resolution}
                | {"bytes": round(statistics.mean(map(len, inputs))), "processes": 1, "threads": 1}
                | {"per_cpu_second": round(PICTURES / min(times[name]))}
                | {"ratio": round(float(np.median(base / times[name])), 3)}
            )
    return rows


# --- The pipeline --------------------------------------------------------------------------------


def prepare(folder: pathlib.Path, pictures: Sequence[bytes], count: int) -> None:
    """Writes a data set of `count` records, which repeat `pictures`."""
    examples = [
        records.Example(pictures[i % len(pictures)], (f"picture number {i}",), f"{i}.jpg")
        for i in range(count)
    ]
    split = records.write_split(folder, "train", examples, count, 1)
    records.write_description(folder, {"train": split}, statistics={}, settings={})


def batches(folder: pathlib.Path, resolution: int, decoder: str, threads: int) -> pipeline.Batches:
    """Super-batches of 64 of a prepared data set."""
    source = ArrayRecordConfig(path=str(folder))
    config = DataConfig("array_record", array_record=source, decode=decoder, num_threads=threads)
    view = View(resolution, TokenizerConfig(kind="shapes", length=16))
    return pipeline.train_batches(open_source(config), config, {"": view}, batch_size=64, seed=0)


def rates(folder, resolution, decoder, threads, count, barrier=None) -> np.ndarray:
    """Pictures per second of CPU and of wall time, over `count` super-batches."""
    with batches(folder, resolution, decoder, threads) as stream:
        next(stream)
        if barrier is not None:
            barrier.wait()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            next(stream)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 64 * count / np.array([cpu, wall])


def _answer(questions, answers, barrier) -> None:
    """A process beside another one: `rates` of each question."""
    for question in iter(questions.get, None):
        answers.put(rates(*question, barrier))


class Two:
    """Two processes that read at the same time."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._questions, self._answers = context.Queue(), context.Queue()
        barrier = context.Barrier(2, timeout=_PATIENCE)
        self._arguments = self._questions, self._answers, barrier  # kept: they are named
        self._processes = [context.Process(target=_answer, args=self._arguments) for _ in range(2)]

    def __enter__(self):
        for process in self._processes:
            process.start()
        return self

    def rates(self, *question) -> np.ndarray:
        """As `rates`: the mean of both per second of CPU, the sum per second of wall time."""
        for _ in self._processes:
            self._questions.put(question)
        cpu, wall = np.transpose(
            [self._answers.get(timeout=2 * _PATIENCE) for _ in self._processes]
        )
        return np.array([cpu.mean(), wall.sum()])

    def __exit__(self, *error):
        for _ in self._processes:
            self._questions.put(None)
        for process in self._processes:
            process.join()


def piping(folder: pathlib.Path, rounds: int, count: int = 12) -> list[dict]:
    """The part "pipeline"."""
    side, resolution = SIZES[0]
    pictures = [draw(side, seed) for seed in range(PICTURES)]
    prepare(folder, pictures, 6144)
    found: dict[tuple[str, int, int], list[np.ndarray]] = {}
    with Two() as two:
        for _ in range(max(1, rounds // 2)):
            for decoder in ("exact", "fast"):
                for processes, threads in ((1, 1), (1, 2), (2, 1)):
                    measure = rates if processes == 1 else two.rates
                    new = measure(folder, resolution, decoder, threads, count)
                    found.setdefault((decoder, processes, threads), []).append(new)
    size, rows = round(statistics.mean(map(len, pictures))), []
    for (decoder, processes, threads), values in found.items():
        cpu, wall = np.max(values, axis=0)
        ratios = np.array(values) / found[decoder, 1, 1]
        rows.append(
            {"part": "pipeline", "way": decoder, "pixels": side, "bytes": size}
            | {"resolution": resolution, "processes": processes, "threads": threads}
            | {"per_cpu_second": round(cpu), "per_second": round(wall)}
            | {"ratio": round(float(np.median(ratios[:, 1])), 3)}
        )
    return rows


def memory(folder: pathlib.Path, count: int) -> list[dict]:
    """The part "memory"."""
    side, resolution = SMALL
    pictures = [draw(side, seed) for seed in range(100)]
    prepare(folder, pictures, 10_000)
    rows, step = [], max(64, count // 10)
    size = round(statistics.mean(map(len, pictures)))
    with batches(folder, resolution, "fast", 2) as stream:
        for done in range(64, count + 64, 64):
            next(stream)
            if done // step > (done - 64) // step:
                pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
                rows.append(
                    {"part": "memory", "way": "fast", "pixels": side, "bytes": size}
                    | {"resolution": resolution, "processes": 1, "threads": 2, "records": done}
                    | {"rss_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)}
                )
    return rows


def main(_: Sequence[str]) -> None:
    """Measures and writes the CSV."""
    random.seed(0)
    rows = decoding(_ROUNDS.value)
    with tempfile.TemporaryDirectory() as folder:
        large, small = pathlib.Path(folder, "large"), pathlib.Path(folder, "small")
        large.mkdir(), small.mkdir()
        rows += piping(large, _ROUNDS.value)
        rows += memory(small, _RECORDS.value)
    table.write(_OUT.value, rows, COLUMNS)


if __name__ == "__main__":
    app.run(main)

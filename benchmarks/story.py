"""A user's story, from tars to a model in transformers: every command of it, run as it stands.

    python -m benchmarks.openclipart --out=data/openclipart
    python -m benchmarks.story --data=data/openclipart --out=/tmp/story

needs the extras `beam` and `hf`, and torch. 5,000 pairs of Open Clip Art, two thirds of them
noisy, are packed into tars as img2dataset writes them. They are prepared; a teacher, which here is
a model of ours that was trained on clean pairs and went to transformers' format, is converted; its
embeddings are cached; ACED trains a small model from them; that is converted to transformers'
format, loaded there, and classifies a picture. The time of each command is in OUT/story.csv.
"""

import csv
import io
import pathlib
import shlex
import subprocess
import sys
import tarfile
import time

from absl import app, flags

from aced.data import records

_DATA = flags.DEFINE_string("data", None, "What benchmarks/openclipart.py made.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for everything.", required=True)
_PAIRS = flags.DEFINE_integer("pairs", 5000, "Pairs in the tars, 1,000 each.", 1)
_STEPS = flags.DEFINE_integer("steps", 600, "Steps of ACED; the teacher takes 1,000.", 1)

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = "picture.png"
LABELS = ("a vegetable", "a fish", "a flower", "the flag of a country", "a musical instrument")

ZERO_SHOT = """
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = (kind.from_pretrained("{model}") for kind in (AutoModel, AutoProcessor))
labels = {labels}
inputs = processor(
    text=labels, images=Image.open("{picture}").convert("RGB"), padding="max_length",
    truncation=True, return_tensors="pt",
)
logits = model.eval()(**inputs).logits_per_image[0]
for probability, label in sorted(zip(logits.softmax(-1).tolist(), labels), reverse=True):
    print(f"{{probability:6.1%}}  {{label}}")
"""


def write_tars(source: records.Source, folder: pathlib.Path, pairs: int) -> None:
    """The first `pairs` records as KEY.png, KEY.txt, 1,000 a tar."""
    folder.mkdir(parents=True)
    for shard in range(-(-pairs // 1000)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(1000 * shard, min(1000 * (shard + 1), pairs)):
                record = source[i]
                for suffix, data in (
                    ("png", record["image"]),
                    ("txt", record["texts"][0].encode()),
                ):
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def commands(data: str, out: pathlib.Path, steps: int) -> list[tuple[str, list[str]]]:
    """The story: what each step is called, and its command."""
    aced = [sys.executable, "-m"]
    last = len(list((out / "tars").glob("*.tar"))) - 1
    recipe = f"configs/small.py:data={out}/data,method=aced,steps={steps}"
    return [
        (
            "prepare",
            [
                *aced,
                "aced.prepare",
                f"--tars={out}/tars/{{00000..{last:05d}}}.tar",
                f"--out={out}/data",
                "--val=500",
                "--near_duplicates=2",
            ],
        ),
        (
            "train the teacher on clean pairs",
            [
                *aced,
                "aced.main",
                f"--config=configs/small.py:data={data}/clean,method=iid,steps=1000",
                f"--workdir={out}/teacher_run",
                "--config.method.model.image.depth=4",
                "--config.method.model.text.depth=4",
            ],
        ),
        (
            "the teacher as one finds it",
            [
                *aced,
                "aced.convert",
                f"--source={out}/teacher_run",
                f"--out={out}/teacher_hf",
                "--to=huggingface",
            ],
        ),
        (
            "convert the teacher",
            [
                *aced,
                "aced.convert",
                f"--source={out}/teacher_hf",
                f"--out={out}/teacher",
                "--to=aced",
            ],
        ),
        (
            "cache its embeddings",
            [
                *aced,
                "aced.cache",
                f"--config={recipe},reference={out}/teacher",
                f"--out={out}/cache",
                "--precision=int8",
            ],
        ),
        (
            "ACED",
            [*aced, "aced.main", f"--config={recipe},cache={out}/cache", f"--workdir={out}/aced"],
        ),
        (
            "convert to Hugging Face",
            [
                *aced,
                "aced.convert",
                f"--source={out}/aced",
                f"--out={out}/aced_hf",
                "--to=huggingface",
            ],
        ),
        (
            "zero-shot in transformers",
            [
                sys.executable,
                "-c",
                ZERO_SHOT.format(model=out / "aced_hf", picture=out / PICTURE, labels=list(LABELS)),
            ],
        ),
    ]


def main(argv: list[str]) -> None:
    """Packs the tars, runs the commands, and writes down how long they took."""
    del argv
    out = pathlib.Path(_OUT.value).resolve()
    source = records.open_dataset(f"{_DATA.value}/all", "train")
    if not (out / "tars").exists():
        write_tars(source, out / "tars", min(_PAIRS.value, len(source)))
    held_out = records.open_dataset(f"{_DATA.value}/clean", "val")
    (out / PICTURE).write_bytes(held_out[0]["image"])
    print(f"The picture, which no model has seen: {held_out[0]['texts'][0]}")
    rows = []
    for name, command in commands(str(pathlib.Path(_DATA.value).resolve()), out, _STEPS.value):
        print(f"\n== {name}\n{shlex.join(command)}", flush=True)
        start = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT)
        rows.append((name, f"{time.monotonic() - start:.0f}"))
    with (out / "story.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("step", "seconds"), *rows])


if __name__ == "__main__":
    app.run(main)

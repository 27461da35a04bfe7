"""Small inputs of prepare, and what comes out of them."""

import io
import json

import numpy as np
from PIL import Image

from aced.data import records
from aced.prepare.command import PrepareConfig, prepare


def encoded(image, form="PNG", **kwargs):
    out = io.BytesIO()
    image.save(out, form, **kwargs)
    return out.getvalue()


def picture(seed, size=(12, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def table(tmp_path, rows, name="captions.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def rows(n=10, **columns):
    return [{"image": f"sub/{i}.png", "caption": f"Caption {i}", **columns} for i in range(n)]


def run(tmp_path, folder, lines, out="out", **settings):
    captions = lines if isinstance(lines, str) else table(tmp_path, lines)
    config = PrepareConfig(
        images=str(folder), captions=captions, out=str(tmp_path / out), threads=2, **settings
    )
    return prepare(config)


def read(tmp_path, split="train", out="out"):
    source = records.open_dataset(tmp_path / out, split)
    return {source[i]["key"]: source[i] for i in range(len(source))}


def rejected(tmp_path, out="out"):
    lines = (tmp_path / out / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]

"""Packs icons as pixels and token ids, for where they cannot be prepared.

    python -m benchmarks.icons --out=data/icons_wrong --wrong=0.5
    python -m benchmarks.device.pack --icons=data/icons_wrong --pairs=50000

Writes benchmarks/device/wheels/icons.npz, beside the wheels: `pairs` of the split train of
ICONS/all, drawn at random, with the first caption of each; its split val; and which of the pairs
are in ICONS/clean, with their captions there, which a reference is trained on. Scenes are not
packed: they are drawn where they are needed, in seconds.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from aced.data import records
from aced.data.images import decode, transforms
from aced.data.tokenizers import get_tokenizer
from benchmarks.device import pools
from benchmarks.device.pool import Pool

FOLDER = pathlib.Path(__file__).parent / "wheels"
MOST_MIB = 60  # of all that is in the folder


def read(source: records.RecordSource, places: Sequence[int]) -> tuple[Pool, list[str]]:
    """These examples as the model reads them, and their keys."""
    found = [source[place] for place in places]
    pixels = (decode.decode(example["image"]) for example in found)
    resized = [transforms.resize(x, pools.RESOLUTION, transforms.ResizeConfig()) for x in pixels]
    tokenize = get_tokenizer(pools.TOKENIZERS["icons"])
    pool = Pool(
        image=np.stack(resized),
        text=tokenize([example["texts"][0] for example in found]),
        is_noisy=np.array([example.get("is_noisy", False) for example in found]),
    )
    return pool, [example["key"] for example in found]


def pack(folder: pathlib.Path, pairs: int, file: pathlib.Path, seed: int = 0) -> dict[str, int]:
    """Writes `file`; returns how many pairs there are of each kind."""
    source = records.open_dataset(folder / "all", "train")
    order = np.random.default_rng(seed).permutation(len(source))[:pairs]
    train, keys = read(source, sorted(order.tolist()))
    source = records.open_dataset(folder / "all", "val")
    val, _ = read(source, range(len(source)))
    source = records.open_dataset(folder / "clean", "train")
    captions = {e["key"]: e["texts"][0] for e in (source[i] for i in range(len(source)))}
    rows = [row for row, key in enumerate(keys) if key in captions]
    text = get_tokenizer(pools.TOKENIZERS["icons"])([captions[keys[row]] for row in rows])
    file.parent.mkdir(exist_ok=True)
    pools.write_icons(file, train, val, np.array(rows, np.int32), text)
    return {"train": len(train), "val": len(val), "clean": len(rows)}


def main() -> None:
    """Packs, and prints the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--icons", required=True, type=pathlib.Path, help="what icons.py made")
    parser.add_argument("--pairs", type=int, default=50_000, help="to train on")
    args = parser.parse_args()
    file = FOLDER / "icons.npz"
    print(pack(args.icons, args.pairs, file), f"{file.stat().st_size / 2**20:.1f} MiB")
    together = sum(path.stat().st_size for path in FOLDER.iterdir()) / 2**20
    print(f"{FOLDER}: {together:.1f} MiB of {MOST_MIB}")
    if together > MOST_MIB:
        sys.exit("That is too much to be carried; pack fewer --pairs.")


if __name__ == "__main__":
    main()

"""Data sets in the layout of CLIP_benchmark and DataComp, with drawn pictures."""

import io

import numpy as np
from PIL import Image

from tests.data import many

NAMES = ("red", "green", "blue", "yellow", "white", "black", "cyan")
TEMPLATES = ("a photo of a {c}.", "{c}, drawn", "a picture with much {c} and more {c}")


def png(i):
    """A picture of its own for each i; squares, tall and wide ones in turn."""
    pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
    size = ((48, 48), (37, 61), (75, 40))[i % 3]
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def npy(values):
    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


def write(folder, members, *, names=NAMES, templates=TEMPLATES, kind="", split="test", tars=2):
    """A data set with the `members` of each picture: (ending, bytes), besides the picture."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for tar in range(tars):
        parts = []
        for i in range(tar, len(members), tars):
            parts += [(f"s{i:05d}.{ending}", data) for ending, data in members[i]]
            parts += [(f"s{i:05d}.png", png(i))]
        (folder / split / f"{tar}.tar").write_bytes(many.tar_bytes(parts))
    (folder / split / "nshards.txt").write_text(f"{tars}\n")
    if names:
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    if kind:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    return folder


def classes(folder, count, **how):
    """Pictures with a class each."""
    labels = np.random.default_rng(1).integers(0, len(NAMES), count)
    return write(folder, [[("cls", str(label).encode())] for label in labels], **how)


def several_classes(folder, count, **how):
    """Pictures with several classes each."""
    shown = np.random.default_rng(2).integers(0, 2, (count, len(NAMES)))
    shown[:, 0] |= ~shown.any(axis=1)
    how = {"kind": "multilabel"} | how
    return write(folder, [[("npy", npy(row))] for row in shown], **how)


def captions(folder, count, **how):
    """Pictures with three captions each, for retrieval."""
    texts = [
        f"{NAMES[i % 7]} {i}\na drawing of {i}\nnumber {i}, {NAMES[i % 5]}" for i in range(count)
    ]
    how = {"kind": "retrieval", "names": ()} | how
    return write(folder, [[("txt", text.encode())] for text in texts], **how)


def groups(folder, count, **how):
    """Pictures with a class and a vector whose first entry is their group, as DataComp has them."""
    rng = np.random.default_rng(3)
    labels, of = rng.integers(0, len(NAMES), count), rng.integers(0, 3, count)
    members = [
        [("cls", str(label).encode()), ("npy", npy([group, 2016, label]))]
        for label, group in zip(labels, of, strict=True)
    ]
    return write(folder, members, **how)


def three_sets(folder):
    """One data set of each form: of classes, of captions and of groups."""
    classes(folder / "wds_imagenet-a", 20)
    captions(folder / "wds_flickr30k", 8)
    groups(folder / "wds_wilds-fmow_test", 20)

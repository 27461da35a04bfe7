"""What `aced.prepare --near_duplicates` finds of real copies, and what it takes for copies.

    python -m benchmarks.near_duplicates --out=benchmarks/results/near_duplicates.csv

needs the extras `beam` and `icons`, and npm (see `benchmarks.icons`). `part` is what is measured:

"copies": 60 pictures of each kind, `COPIES` copies of each: scaled by 0.25 to 2 with one of
    four filters, then stored as PNG, JPEG of quality 30 to 95, or WebP. Kinds: "emoji 64", "emoji
    256" and "icons 256", drawings with this many pixels a side, on white; "scenes", the embedded
    data set's, of 160 px; "photographs", noise with the spectrum of photographs, 300 to 512 px.
    `of` is the change; `found` the number of copies within `bits` whose miniatures are within the
    bounds.
"families": all drawings of a family, on white, in black where they have no colours, 64 px: those
    that are near an earlier one which is not equal to it, pixel by pixel. Those are false: some
    other thing, or the same drawing under another name with other pixels at its edges.
"cases": pairs that have to stay; `found` is 1 where they are taken for copies.

`bits` is the flag's value. `mean` and `largest` are the bounds of the miniatures' distances (empty:
the hash alone decides); the rows with those of aced/prepare/miniatures.py are what the command
does. `share` is `found` of `count`.
"""

import io
import pathlib
import random
from collections.abc import Iterator

import numpy as np
from absl import app, flags
from PIL import Image

from aced.data.shapes.scenes import ShapesConfig
from aced.data.shapes.tasks import open_shapes
from aced.prepare.duplicates import SIGHT, are_shaped_alike, distances
from aced.prepare.miniatures import LARGEST, MEAN, miniature
from aced.prepare.perceptual_hash import perceptual_hash
from benchmarks import icons, photographs, table
from benchmarks.icon_drawing import render

_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_WORK = flags.DEFINE_string("work", "data/icons/packages", "Folder of the icons' packages.")
_PICTURES = flags.DEFINE_integer("pictures", 60, "Pictures of each kind that are copied.", 1)

EMOJI = ("noto", "twemoji", "openmoji", "fluent-emoji")
ICONS = ("mdi", "logos", "flat-color-icons")
COPIES = 24
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
FILTERS = ("BOX", "BILINEAR", "BICUBIC", "LANCZOS")
ENCODINGS = (
    ("PNG", 0),
    ("JPEG", 30),
    ("JPEG", 50),
    ("JPEG", 75),
    ("JPEG", 95),
    ("WEBP", 50),
    ("WEBP", 80),
)
BITS = (0, 2, 4)
# Mean and largest distance; None: the hash alone.
BOUNDS = (
    (None, None),
    (0.01, 0.02),
    (0.015, 0.03),
    (0.015, 0.04),
    (0.015, 0.05),
    (0.02, 0.06),
    (0.03, 0.1),
    (0.015, None),
    (None, 0.04),
)
CASES = (
    ("noto", "yellow-heart", "blue-heart"),
    ("openmoji", "yellow-heart", "blue-heart"),
    ("twemoji", "flag-ukraine", "flag-mauritius"),
    ("openmoji", "flag-ukraine", "flag-mauritius"),
    ("noto", "inbox-tray", "outbox-tray"),
    ("twemoji", "inbox-tray", "outbox-tray"),
    ("openmoji", "inbox-tray", "outbox-tray"),
)
COLUMNS = ("part", "kind", "of", "bits", "mean", "largest", "count", "found", "share")


def sight(pixels: np.ndarray) -> np.ndarray:
    """What is compared of a picture, one `SIGHT`."""
    height, width = pixels.shape[:2]
    colours = np.frombuffer(miniature(pixels), np.uint8)
    look = np.frombuffer(perceptual_hash(pixels), np.uint64)[0]
    return np.array([(look, colours, width, height)], SIGHT)


def decoded(data: bytes) -> np.ndarray:
    """The pixels of an encoded picture."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def drawn(collection: dict, name: str, resolution: int) -> np.ndarray | None:
    """An icon on white, in black if it has one colour; None where it can't be drawn."""
    icon = collection["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(k, collection.get(k, 16)) for k in ("width", "height"))
    body = icon["body"].replace("currentColor", "#000000")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )
    try:
        return decoded(render(svg, "#ffffff", resolution))
    except ValueError:
        return None


def kinds(packages: dict[str, dict], count: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The pictures that are copied, by kind."""
    for kind, families, side in (
        ("emoji 64", EMOJI, 64),
        ("emoji 256", EMOJI, 256),
        ("icons 256", ICONS, 256),
    ):
        names = [(family, name) for family in families for name in packages[family]["icons"]]
        chosen = random.Random(0).sample(sorted(names), count)
        pictures = [drawn(packages[family], name, side) for family, name in chosen]
        yield kind, [pixels for pixels in pictures if pixels is not None]
    scenes = open_shapes(ShapesConfig(resolution=160, size=count))
    yield "scenes", [scenes[i]["image"] for i in range(count)]
    rng = random.Random(0)
    drawings = [decoded(photographs.draw(512, seed)) for seed in range(count)]
    yield "photographs", [p[: rng.randint(300, 512), : rng.randint(300, 512)] for p in drawings]


def copies(pixels: np.ndarray, rng: random.Random) -> Iterator[tuple[str, str, np.ndarray]]:
    """`COPIES` copies: how each is scaled, how it is stored, and its pixels."""
    for _ in range(COPIES):
        scale, filter_name = rng.choice(SCALES), rng.choice(FILTERS)
        form, quality = rng.choice(ENCODINGS if scale != 1 else ENCODINGS[1:])
        image, out = Image.fromarray(pixels), io.BytesIO()
        if scale != 1:
            size = [max(1, round(side * scale)) for side in image.size]
            image = image.resize(size, Image.Resampling[filter_name])
        image.save(out, form, **({} if form == "PNG" else {"quality": quality}))
        scaling = f"x {scale}" + ("" if scale == 1 else f" {filter_name.lower()}")
        yield scaling, f"{form} {quality or ''}".strip(), decoded(out.getvalue())


class Pairs:
    """Pairs of `SIGHT`s, how far they are apart, and what is found of them."""

    def __init__(self, some: np.ndarray, others: np.ndarray):
        self.bits, self.mean, self.largest = distances(some, others)
        self._shaped = are_shaped_alike(some, others)

    def are_found(self, bits: int, mean: float | None, largest: float | None) -> np.ndarray:
        """Which of them are taken for copies."""
        near = self.bits <= bits
        if mean is not None or largest is not None:
            near &= self._shaped
        for value, bound in ((self.mean, mean), (self.largest, largest)):
            if bound is not None:
                near &= value <= bound
        return near


def row(part: str, kind: str, of: str, rule: tuple, count: int, found: int) -> dict:
    """A row of the table."""
    bits, mean, largest = rule
    share = round(found / count, 4)
    numbers = {"bits": bits, "mean": mean, "largest": largest, "count": count, "found": found}
    return {"part": part, "kind": kind, "of": of, **numbers, "share": share}


RULES = [(bits, *bounds) for bits in BITS for bounds in BOUNDS]
OURS = 2, MEAN, LARGEST


def of_copies(packages: dict[str, dict], count: int) -> list[dict]:
    """The part "copies"."""
    rows = []
    for kind, pictures in kinds(packages, count):
        rng, ways, some, others = random.Random(kind), [], [], []
        for pixels in pictures:
            original = sight(pixels)
            for *way, copy in copies(pixels, rng):
                ways.append(way)
                some.append(original)
                others.append(sight(copy))
        pairs = Pairs(np.concatenate(some), np.concatenate(others))
        for rule in RULES:
            found = pairs.are_found(*rule)
            rows.append(row("copies", kind, "all", rule, len(found), int(found.sum())))
        for rule in ((2, None, None), OURS):
            found = pairs.are_found(*rule)
            for i in (0, 1):
                names = [way[i].split(" ")[1] if i == 0 else way[i] for way in ways]
                for name in sorted(set(names)):
                    of = found[np.array(names) == name]
                    what = f"x {name}" if i == 0 else name
                    rows.append(row("copies", kind, what, rule, len(of), int(of.sum())))
        print(f"{kind}: {len(some)} copies", flush=True)
    return rows


def of_family(family: str, collection: dict) -> list[dict]:
    """The parts "families" and "cases"."""
    found, names = {}, {}
    for name in sorted(collection["icons"]):
        if (pixels := drawn(collection, name, 64)) is not None:
            names[name] = found.setdefault(pixels.tobytes(), sight(pixels))
    sights = np.concatenate(list(found.values()))
    print(f"{family}: {len(sights)} different pictures", flush=True)
    looks = sights["look"]
    near = [
        np.flatnonzero(np.bitwise_count(look ^ looks[:i]) <= BITS[-1])
        for i, look in enumerate(looks)
    ]
    some = np.repeat(np.arange(len(sights)), [len(of) for of in near])
    pairs = Pairs(sights[some], sights[np.concatenate(near)])
    rows = []
    for rule in RULES:
        count = len(np.unique(some[pairs.are_found(*rule)]))
        rows.append(row("families", family, "all", rule, len(sights), count))
    for one, other in (pair for of, *pair in CASES if of == family):
        case = Pairs(names[one], names[other])
        for rule in ((2, None, None), OURS):
            is_found = int(case.are_found(*rule).sum())
            rows.append(row("cases", family, f"{one}, {other}", rule, 1, is_found))
    return rows


def main(argv: list[str]) -> None:
    """Measures and writes the table."""
    del argv
    files = icons.fetch(pathlib.Path(_WORK.value), (*EMOJI, *ICONS))
    packages = {family: icons.read(file, "icons") for family, file in files.items()}
    rows = of_copies(packages, _PICTURES.value)
    for family, collection in packages.items():
        rows += of_family(family, collection)
    table.write(_OUT.value, rows, COLUMNS)


if __name__ == "__main__":
    app.run(main)

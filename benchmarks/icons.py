"""Open icon families as a bench of real noise: 110,727 drawings in 21 hands, and their names.

    python -m benchmarks.icons --out=data/icons
    python -m benchmarks.icons --out=data/icons_wrong --wrong=0.5

needs the extras `beam` and `icons`, and npm to fetch the packages @iconify-json/FAMILY (37 MB, of
fixed versions; nothing of them is run or installed). It draws each icon once, and prepares

    OUT/pictures_64/FAMILY/NAME.png  a function of family and name; what is there is kept
    OUT/all       split train: the families that train; split val: retrieval in families held out
    OUT/clean     split train: of these, what three training families agree on; split val: the same
    OUT/zeroshot  split val: classes, the names that eight families have; pictures held out

A caption is the icon's name in words ("account arrow left outline") or an alias of it. Icons of one
colour get one of `COLOURS` on another one, by a hash of family and name; others a light ground.
Tabler, Lucide, MingCute and Noto are held out, to test on drawing styles that were not trained on.

Nothing is cleaned. Names hold sizes and styles ("book 48 filled"), numbers of variants ("nav 3"),
brands, misspellings and names that were withdrawn, and one thing has many names. A measure of the
quality of a name is the number of families that agree on it: `subject` removes the marks of a
family's style, and in the data sets `agreed` is the number of training families that have the
subject. `clean` has the names with `AGREED` or more. With --wrong a known share of the pairs
trained on, chosen by a hash, has its names exchanged. `is_noisy` marks these pairs, unless they got
the same subject by chance. `clean` then has the agreed pairs of `all` that keep their own names.

benchmarks/results/icons_dataset.txt has the counts, with the licence and the author of each family.
Those that are not MIT, ISC, Apache or CC0 ask for attribution; openmoji is CC BY-SA.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from typing import Any

from absl import app, flags
from PIL import Image, ImageDraw, ImageFont

from aced.config import ConfigError
from aced.data import picture_hashes, records
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare
from benchmarks.icon_drawing import drawing, number, render
from benchmarks.icon_families import PACKAGES, subject

HELD_OUT = ("tabler", "lucide", "mingcute", "noto")
AGREED = 3  # training families that have a name of `clean`
SHARED = 8  # families that have the name of a class


@dataclasses.dataclass(frozen=True)
class Icon:
    """An icon, with those aliases that name another subject than the names before them."""

    family: str
    name: str
    aliases: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        """The path of the picture in the folder of pictures."""
        return f"{self.family}/{self.name}.png"

    @property
    def names(self) -> tuple[str, ...]:
        """All its names; the first is its own."""
        return self.name, *self.aliases

    @property
    def subject(self) -> str:
        """What it shows, going by its own name."""
        return subject(self.family, self.name)


def fetch(work: pathlib.Path, families: Iterable[str]) -> dict[str, pathlib.Path]:
    """Downloads the packages of `families` into `work` unless they are there; returns the files.

    They are read where they lie, and never unpacked.
    """
    specs = {spec.partition("@")[0]: spec for spec in PACKAGES}
    files = {name: work / f"iconify-json-{specs[name].replace('@', '-')}.tgz" for name in families}
    if missing := [f"@iconify-json/{specs[name]}" for name in files if not files[name].is_file()]:
        if not shutil.which("npm"):
            sys.exit(
                f"error: npm is missing, which fetches {', '.join(missing)}. Install Node.js, or "
                f"run `npm pack` with these names elsewhere and put the files into {work}."
            )
        work.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--ignore-scripts", "--loglevel=error", *missing]
        if subprocess.run(command, cwd=work, check=False).returncode:
            sys.exit(f"error: `{' '.join(command)}` failed in {work}; see above.")
    for name, file in files.items():
        if not file.is_file():
            sys.exit(f"error: npm wrote no {file}.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != PACKAGES[specs[name]]:
            sys.exit(f"error: {file} is not the package that was pinned (sha256); remove it.")
    return files


def read(file: pathlib.Path, member: str) -> dict[str, Any]:
    """The JSON `member` (icons or info) of a package."""
    with tarfile.open(file, "r:gz") as tar:
        return json.load(tar.extractfile(f"package/{member}.json"))


def icons_of(family: str, collection: dict[str, Any]) -> list[Icon]:
    """The icons of a family, by name. Aliases that turn or mirror an icon are left out."""
    aliases = collection.get("aliases", {})
    for name in itertools.chain(collection["icons"], aliases):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            sys.exit(f"error: {family} has an icon called {name!r}, which is no file name here.")
    names = collections.defaultdict(list)
    for alias in sorted(aliases):
        parent, seen = alias, set()
        while parent in aliases and parent not in seen and aliases[parent].keys() == {"parent"}:
            seen.add(parent)
            parent = aliases[parent]["parent"]
        if parent in collection["icons"]:
            names[parent].append(alias)
    icons = []
    for name in sorted(collection["icons"]):
        subjects, others = {subject(family, name)}, []
        for alias in names[name]:
            if (of := subject(family, alias)) not in subjects:
                subjects.add(of)
                others.append(alias)
        icons.append(Icon(family, name, tuple(others)))
    return icons


def words(name: str) -> str:
    """A name as a caption."""
    return name.replace("-", " ")


def _draw(task: tuple[str, str, int, pathlib.Path]) -> str | None:
    """Draws one picture, all of it or nothing; returns what went wrong."""
    *what, path = task
    try:
        data = render(*what)
    except ValueError as error:
        return f"{path} is not drawn: {error}"
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(path)
    return None


def draw(
    files: dict[str, pathlib.Path],
    icons: list[Icon],
    folder: pathlib.Path,
    *,
    resolution: int,
    workers: int,
) -> None:
    """Draws those icons whose pictures are not yet in `folder`."""
    for family, group in itertools.groupby(icons, lambda icon: icon.family):
        missing = [icon for icon in group if not (folder / icon.image).is_file()]
        if not missing:
            continue
        (folder / family).mkdir(parents=True, exist_ok=True)
        collection = read(files[family], "icons")
        tasks = (
            (*drawing(family, icon.name, collection), resolution, folder / icon.image)
            for icon in missing
        )
        if workers == 1:
            failed = list(filter(None, map(_draw, tasks)))
        else:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
                failed = list(filter(None, pool.map(_draw, tasks, chunksize=64)))
        print(f"{family}: {len(missing) - len(failed)} icons drawn", *failed, sep="\n", flush=True)


def carriers(icons: Iterable[Icon]) -> dict[str, set[str]]:
    """The families that have each subject, aliases included."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for icon in icons:
        for name in icon.names:
            found[subject(icon.family, name)].add(icon.family)
    return found


class Tables:
    """The lines of captions.jsonl of each split.

    Args:
        icons: those that are used.
        known: the families that have each subject: `carriers` of all icons.
        held_out: families that train nothing.
        seed: of all that is chosen.
    """

    def __init__(
        self,
        icons: list[Icon],
        known: dict[str, set[str]],
        held_out: Iterable[str],
        seed: int = 0,
    ):
        self._known, self._held_out, self._seed = known, set(held_out), seed
        self._training = [icon for icon in icons if icon.family not in self._held_out]
        self._others = [icon for icon in icons if icon.family in self._held_out]

    def agreed(self, family: str, name: str) -> int:
        """The number of training families that have the subject of a name."""
        return len(self._known[subject(family, name)] - self._held_out)

    def train(self, wrong: float = 0.0) -> list[dict[str, Any]]:
        """All of the training families; a share of `wrong` with the names of others."""
        lines = [self._line(icon) for icon in self._training]
        if not wrong:
            return lines
        for line in lines:
            line["is_noisy"] = False
        order = self._hashed(self._training)
        chosen = order[: round(wrong * len(order))]
        place = {icon: i for i, icon in enumerate(self._training)}
        for icon, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
            subjects = [{subject(i.family, n) for n in i.names} for i in (icon, other)]
            line = lines[place[icon]]
            line["caption"] = [words(name) for name in other.names]
            line["is_noisy"] = subjects[0].isdisjoint(subjects[1])
        return lines

    def clean(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of the lines that `train` gave, those with names that are agreed on, and these names."""
        found = []
        for icon, line in zip(self._training, lines, strict=True):
            kept = [name for name in icon.names if self.agreed(icon.family, name) >= AGREED]
            own = line["caption"] == [words(name) for name in icon.names]
            if own and line["agreed"] >= AGREED:
                found.append(line | {"caption": [words(name) for name in kept]})
        return found

    def val(self, count: int, wrong: float = 0.0) -> list[dict[str, Any]]:
        """Held-out icons with names that are agreed on: `count`, or as many as there are.

        Each subject occurs once, and the families take turns as long as they have any.
        """
        queues = {family: collections.deque() for family in sorted(self._held_out)}
        for icon in self._hashed(self._others):
            if self.agreed(icon.family, icon.name) >= AGREED:
                queues[icon.family].append(icon)
        found: dict[str, Icon] = {}
        while any(queues.values()) and len(found) < count:
            for queue in queues.values():
                while queue and queue[0].subject in found:
                    queue.popleft()
                if queue and len(found) < count:
                    icon = queue.popleft()
                    found[icon.subject] = icon
        known = {"is_noisy": False} if wrong else {}
        lines = [self._line(icon) | {"caption": words(icon.name)} for icon in found.values()]
        return sorted((line | known for line in lines), key=lambda line: line["image"])

    def zeroshot(self) -> list[dict[str, Any]]:
        """Held-out icons whose own name is a class, `label`."""
        return [
            self._line(icon) | {"caption": words(icon.name), "label": words(icon.subject)}
            for icon in self._others
            if len(self._known[icon.subject]) >= SHARED
        ]

    def _line(self, icon: Icon) -> dict[str, Any]:
        return {
            "image": icon.image,
            "caption": [words(name) for name in icon.names],
            "family": icon.family,
            "agreed": self.agreed(icon.family, icon.name),
        }

    def _hashed(self, icons: list[Icon]) -> list[Icon]:
        return sorted(icons, key=lambda icon: number(f"{self._seed}:{icon.image}"))


def write_lines(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    """Writes `lines` as JSON lines."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def join(parts: dict[str, pathlib.Path], out: pathlib.Path) -> None:
    """Makes the data set `out` of one prepared data set for each split, which has no other split.

    `prepare` holds out by a hash of its own; here whole families are.
    """
    if out.exists() and not (out / records.DESCRIPTION).is_file():
        sys.exit(f"error: {out} exists and is not a data set; remove it or choose another --out.")
    partial = out.with_name(f".{out.name}.joined")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    found = {split: records.read_description(part) for split, part in parts.items()}
    for split, part in parts.items():
        count = len(found[split]["splits"]["train"]["shards"])
        names = {
            records.shard_name("train", i, count): records.shard_name(split, i, count)
            for i in range(count)
        }
        names |= {name: f"{split}-{name}" for name in ("rejected.jsonl", "statistics.html")}
        names[picture_hashes.file_name("train")] = picture_hashes.file_name(split)
        for old, new in names.items():
            shutil.copy(part / old, partial / new)
    statistics = [description["statistics"] for description in found.values()]
    rejected = sum((collections.Counter(s["rejected"]) for s in statistics), collections.Counter())
    records.write_description(
        partial,
        {split: of["splits"]["train"]["shards"] for split, of in found.items()},
        statistics={
            **{name: sum(s[name] for s in statistics) for name in ("images", "captions")},
            "rejected": dict(sorted(rejected.items())),
            "splits": {split: of["statistics"]["splits"]["train"] for split, of in found.items()},
        },
        settings={split: of["settings"] for split, of in found.items()},
        class_names=next((of["class_names"] for of in found.values() if of["class_names"]), None),
    )
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def build(
    tables: Tables, pictures: pathlib.Path, out: pathlib.Path, *, val: int, wrong: float, seed: int
) -> None:
    """Makes the data sets `all`, `clean` and `zeroshot` in `out` of the drawn `pictures`."""
    lines = {"all": tables.train(wrong), "val": tables.val(val, wrong)}
    lines |= {"clean": tables.clean(lines["all"]), "zeroshot": tables.zeroshot()}
    parts, made = out / "parts", {}
    parts.mkdir(parents=True, exist_ok=True)
    for name, of in lines.items():
        if not of:
            print(f"No icon is left for {name}, which is not made: too few families agree.")
            continue
        captions = out / f"captions_{name}.jsonl"
        write_lines(captions, of)
        made[name] = parts / name
        config = PrepareConfig(
            images=str(pictures),
            captions=str(captions),
            out=str(made[name]),
            label_column="label" if name == "zeroshot" else "",
            noisy_column="is_noisy" if "is_noisy" in of[0] else "",
            extra_columns="family,agreed",
            seed=seed,
            overwrite=True,
        )
        prepare(config)
    for name in ("all", "clean"):
        splits = {"train": name, "val": "val"}
        if name in made:
            join({s: made[of] for s, of in splits.items() if of in made}, out / name)
    if "zeroshot" in made:
        join({"val": made["zeroshot"]}, out / "zeroshot")
    shutil.rmtree(parts)


def check(
    files: dict[str, pathlib.Path], icons: list[Icon], held_out: set[str], out: pathlib.Path
) -> None:
    """Prints what the families hold, how noisy the names are, and what the data sets hold."""
    print("family             version  icons aliases withdrawn one colour  licence, author")
    total = collections.Counter()
    for family, file in files.items():
        collection, info = read(file, "icons"), read(file, "info")
        found = collection["icons"].values()
        counts = {
            "icons": len(found),
            "aliases": len(collection.get("aliases", {})),
            "withdrawn": sum(bool(icon.get("hidden")) for icon in found),
            "one colour": sum("currentColor" in icon["body"] for icon in found),
        }
        total.update(counts)
        version = next(spec for spec in PACKAGES if spec.startswith(f"{family}@"))
        print(
            f"{family:18} {version.partition('@')[2]:7} {_columns(counts)}  "
            f"{info['license']['spdx']}, {info['author']['name']} <{info['author']['url']}>"
            f"{', held out' if family in held_out else ''}"
        )
    print(f"{'together':18} {'':7} {_columns(total)}")
    names = collections.Counter(words(icon.name) for icon in icons)
    known = carriers(icons)
    own = {icon.subject for icon in icons}
    training = [icon for icon in icons if icon.family not in held_out]
    agreed = collections.Counter(len(known[icon.subject] - held_out) for icon in training)
    digits = sum(bool(re.search(r"\d", icon.name)) for icon in icons)
    alone = sum(names[words(icon.name)] == 1 for icon in icons)
    print(f"different names                        {len(names):6}")
    print(f"icons whose name has a digit           {digits:6} {digits / len(icons):6.1%}")
    print(f"icons whose name no other has          {alone:6} {alone / len(icons):6.1%}")
    print(f"different subjects (without style)     {len(own):6}, {len(known)} with aliases")
    for least in (2, AGREED, SHARED, 16):
        count = sum(len(families) >= least for families in known.values())
        print(f"  that {least:2} families or more have       {count:6}")
    print(f"icons that train                       {len(training):6}")
    for most, text in ((1, "no other training family"), (2, "only one other")):
        print(f"  whose subject {text:24} {agreed[most]:6} {agreed[most] / len(training):6.1%}")
    for name in ("all", "clean", "zeroshot"):
        if (out / name / records.DESCRIPTION).is_file():
            description = records.read_description(out / name)
            print(f"OUT/{name}: {description['statistics']}")
            if description["class_names"]:
                print(f"  {len(description['class_names'])} classes")


def _columns(counts: dict[str, int]) -> str:
    widths = {"icons": 6, "aliases": 7, "withdrawn": 9, "one colour": 10}
    return " ".join(f"{counts[name]:{width}}" for name, width in widths.items())


def sheet(
    files: dict[str, pathlib.Path], icons: list[Icon], pictures: pathlib.Path, path: pathlib.Path
) -> None:
    """Draws short names that most families have, and six icons by hash, a family a row."""
    known = carriers(icons)
    short = [name for name in known if len(name) <= 6]
    shared = sorted(short, key=lambda name: (-len(known[name]), name))[:12]
    cell, left, top = 40, 190, 20
    size = left + (len(shared) + 6) * cell + 16, top + len(files) * cell
    image, font = Image.new("RGB", size, "white"), ImageFont.load_default(size=11)
    write = ImageDraw.Draw(image).text
    for column, name in enumerate(shared):
        write((left + (column + 0.5) * cell, 10), name, "black", font, anchor="mm")
    write((left + 16 + (len(shared) + 3) * cell, 10), "any six", "black", font, anchor="mm")
    for row, (family, file) in enumerate(files.items()):
        y = top + row * cell
        write((4, y + 12), family, "black", font, anchor="lm")
        info = read(file, "info")
        text = f"{info['license']['spdx']}, {info['author']['name']}"
        text = text.replace("ł", "l")  # Pillow's font has none
        write((4, y + 26), text, "#5f6368", font, anchor="lm")
        of = [icon for icon in icons if icon.family == family]
        of.sort(key=lambda icon: number(f"sheet:{icon.image}"))
        first = {icon.subject: icon for icon in reversed(of)}
        places = [(i * cell, first.get(name)) for i, name in enumerate(shared)]
        places += [((len(shared) + i) * cell + 16, icon) for i, icon in enumerate(of[:6])]
        for x, icon in places:
            if icon and (pictures / icon.image).is_file():
                picture = Image.open(pictures / icon.image).resize((cell - 4, cell - 4))
                image.paste(picture, (left + x + 2, y + 2))
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: list[str]) -> None:
    """Fetches, draws, prepares and checks."""
    del argv
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    known = [spec.partition("@")[0] for spec in PACKAGES]
    families = values.families or known
    held_out = {family for family in values.held_out if family in families}
    if unknown := sorted({*families, *values.held_out} - set(known)):
        sys.exit(f"error: there is no family {unknown[0]}; there are {', '.join(known)}.")
    if not held_out or len(held_out) == len(families):
        sys.exit("error: of --families at least one must be in --held_out, and one not.")
    files = fetch(pathlib.Path(values.work or out / "packages"), families)
    icons = [icon for name in files for icon in icons_of(name, read(files[name], "icons"))]
    subjects, used = carriers(icons), icons
    if values.limit:  # by the subject's hash, so that families still have some in common
        used = []
        for family in families:
            of = [icon for icon in icons if icon.family == family]
            used += sorted(of, key=lambda icon: number(icon.subject))[: values.limit]
    pictures = out / f"pictures_{values.resolution}"
    try:
        if not values.check:
            draw(files, used, pictures, resolution=values.resolution, workers=values.workers)
            tables = Tables(used, subjects, held_out, values.seed)
            build(tables, pictures, out, val=values.val, wrong=values.wrong, seed=values.seed)
            sheet(files, used, pictures, out / "icons.png")
        check(files, icons, held_out, out)
    except ImportError as error:
        sys.exit(f"error: {error}; install the extra: `pip install '.[icons]'`.")
    except (PrepareError, ConfigError, records.DatasetError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "data/icons", "Folder to make.")
    flags.DEFINE_string("work", "", "Folder of the packages; default: OUT/packages.")
    flags.DEFINE_list("families", [], "Families to use; default: all.")
    flags.DEFINE_list("held_out", list(HELD_OUT), "Families that train nothing.")
    flags.DEFINE_integer("limit", 0, "Icons of each family, for a try; 0: all.", 0)
    flags.DEFINE_integer("resolution", 64, "Side of the pictures.", 1)
    flags.DEFINE_integer("workers", 1, "Processes that draw.", 1)
    flags.DEFINE_float("wrong", 0.0, "Share of the training pairs whose names are exchanged.", 0, 1)
    flags.DEFINE_integer("val", 2000, "Held-out pairs for retrieval.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the order, of what is held out and what is wrong.")
    flags.DEFINE_bool("check", False, "Only print the statistics of what was made before.")
    app.run(main)

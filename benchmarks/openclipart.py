"""Open Clip Art as a bench of real noise: 8,121 drawings with what their makers wrote about them.

    python -m benchmarks.openclipart --out=data/openclipart

Fetches Debian's packages `openclipart-png` and `openclipart-svg` (156 MB, public domain; nothing is
installed), pairs each picture with the metadata of the drawing of the same name, and prepares

    OUT/captions.jsonl    one line a picture file: image, caption, title, keywords, is_noisy
    OUT/all               split train: all that is not held out, `is_noisy` known; split val
    OUT/clean             split train: its clean part; split val: the same 800 clean pairs

A caption is title, description and keywords. It is called noisy (`is_noisy`) if
  - the title is missing or names a theme: `THEME_PICTURES` or more different pictures carry it
    ("gramastar", "Lemon SVG theme", "card"), or
  - the title is "Clipart by Nicu Buculei - X" and the file is not called X: these files were
    uploaded in batches, and all of a batch got the name of one of them, or
  - the caption is that of an earlier picture already (in the order of paths, case ignored).
By this rule 55 % of the files have no title of their own, 61 % the caption of an earlier one, and
3,036 different captions are left. As 1,221 files are links to others and some pictures are equal
once shrunk, that makes 2,751 clean pictures of 6,815. The rule reads texts and file names only: it
does not find a wrong title that occurs once, takes the first of several equal captions for right,
and calls the others noisy even where they are right (a second "Hummer").
"""

import collections
import hashlib
import html
import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

from absl import app, flags

from aced.config import ConfigError
from aced.data import records
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare

PACKAGES = ("openclipart-png", "openclipart-svg")
PICTURES = "usr/share/openclipart"  # inside the packages: png/ and svg/, with the same names
THEME_PICTURES = 10
BATCH = "clipart by nicu buculei - "
# Larger ones are left out: 3 files of up to 623 million pixels. This is Pillow's own limit.
MAX_PIXELS = 178_956_970

_DC = "{http://purl.org/dc/elements/1.1/}"
_CC = "{http://web.resource.org/cc/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_METADATA = re.compile(rb"<metadata\b.*?</metadata>", re.DOTALL)
# Written by a program: a Perl reference that was printed, and the category of what has none.
_NO_KEYWORD = re.compile(r"hash(\(0x[0-9a-f]+\))?|unsorted", re.IGNORECASE)
_NO_DESCRIPTION = re.compile(r"\S+@\S+|https?://\S+|hash\(0x[0-9a-f]+\)", re.IGNORECASE)


def fetch(work: pathlib.Path) -> pathlib.Path:
    """Downloads and unpacks the packages in `work` unless they are there; returns their folder."""
    unpacked = work / "unpacked"
    if unpacked.is_dir():
        return unpacked / PICTURES
    work.mkdir(parents=True, exist_ok=True)
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            sys.exit(f"error: {program} is missing: run this on Debian or Ubuntu.")
    files = []
    for package in PACKAGES:
        if not list(work.glob(f"{package}_*.deb")) and not _download(package, work):
            subprocess.run(["apt-get", "update"], check=False)  # the list of packages may be old
            if not _download(package, work):
                sys.exit(
                    f"error: `apt-get download {package}` failed; see above. Or fetch the file "
                    f"from https://packages.debian.org/{package} and put it into {work}."
                )
        files += sorted(work.glob(f"{package}_*.deb"))[-1:]
    partial = work / "unpacked.partial"
    for file in files:
        subprocess.run(["dpkg-deb", "-x", str(file), str(partial)], check=True)
    partial.rename(unpacked)
    return unpacked / PICTURES


def _download(package: str, work: pathlib.Path) -> bool:
    return subprocess.run(["apt-get", "download", package], cwd=work, check=False).returncode == 0


def metadata(svg: bytes) -> tuple[str, str, list[str]]:
    """Returns title, description and keywords of a drawing; "" or [] for what it lacks.

    Only the metadata element is parsed, without the file's document type: no entity of the file
    is ever defined, so none can be expanded.
    """
    found = _METADATA.search(svg)
    work = ET.fromstring(found[0]).find(f".//{_CC}Work") if found else None
    if work is None:
        return "", "", []
    keywords = [_clean(item.text) for item in work.findall(f"{_DC}subject//{_RDF}li")]
    title, description = (_clean(work.findtext(_DC + name)) for name in ("title", "description"))
    return title, description, keywords


def _clean(text: str | None) -> str:
    return " ".join(html.unescape(text or "").split())  # some were escaped twice


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of captions.jsonl, in the order of paths."""
    lines, pictures = [], []
    for png in sorted((folder / "png").rglob("*.png")):
        image = png.relative_to(folder / "png")
        title, description, keywords = metadata(
            (folder / "svg" / image.with_suffix(".svg")).read_bytes()
        )
        keywords = [word for word in keywords if word and not _NO_KEYWORD.fullmatch(word)]
        if _NO_DESCRIPTION.fullmatch(description) or description.lower() == title.lower():
            description = ""
        parts = (title, description, ", ".join(keywords))
        lines.append(
            {
                "image": image.as_posix(),
                "caption": ". ".join(part for part in parts if part),
                "title": title,
                "keywords": ", ".join(keywords),
            }
        )
        pictures.append(hashlib.sha256(png.read_bytes()).digest())
    noisy = noisy_pictures(lines, pictures)
    for line, picture in zip(lines, pictures, strict=True):
        line["is_noisy"] = picture in noisy
    return lines


def is_theme(line: dict[str, Any], carriers: dict[str, set[bytes]]) -> bool:
    """Whether a line's title is none, a theme's, or another picture's of the same batch."""
    title = line["title"].lower()
    if title.startswith(BATCH):
        return title.removeprefix(BATCH) != pathlib.PurePosixPath(line["image"]).stem.lower()
    return not title or len(carriers[title]) >= THEME_PICTURES


def carriers_of_titles(lines: list[dict[str, Any]], pictures: list[bytes]) -> dict[str, set[bytes]]:
    """The different pictures that carry each title."""
    carriers: dict[str, set[bytes]] = collections.defaultdict(set)
    for line, picture in zip(lines, pictures, strict=True):
        carriers[line["title"].lower()].add(picture)
    return carriers


def noisy_pictures(lines: list[dict[str, Any]], pictures: list[bytes]) -> set[bytes]:
    """The pictures (by hash) that the module's rule calls noisy, by any of their lines.

    A picture may have several files, in the folders of several themes: 1,221 are links.
    """
    carriers = carriers_of_titles(lines, pictures)
    noisy, first = set(), {}
    for line, picture in zip(lines, pictures, strict=True):
        holder = first.setdefault(line["caption"].lower(), picture)
        if is_theme(line, carriers) or holder != picture:
            noisy.add(picture)
    return noisy


def write_lines(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    """Writes `lines` as JSON lines."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def build(folder: pathlib.Path, out: pathlib.Path, *, max_side: int, val: int, seed: int) -> None:
    """Makes captions.jsonl and the data sets `all` and `clean` in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "images": str(folder / "png"),
        "noisy_column": "is_noisy",
        "extra_columns": "title,keywords",
        "val": val,
        "val_clean": True,
        "seed": seed,
        "max_side": max_side,
        "max_pixels": MAX_PIXELS,
        "overwrite": True,
    }
    captions = out / "captions.jsonl"
    write_lines(captions, read(folder))
    prepare(PrepareConfig(captions=str(captions), out=str(out / "all"), **settings))
    # The clean part of what came through, so that the same hashes hold out the same pairs.
    clean = []
    for split in ("train", "val"):
        source = records.open_dataset(out / "all", split)
        for example in (source[i] for i in range(len(source))):
            if not example["is_noisy"]:
                line = {"image": example["key"], "is_noisy": False, **example["extra"]}
                clean.append(line | {"caption": list(example["texts"])})
    captions = out / "captions_clean.jsonl"
    write_lines(captions, sorted(clean, key=lambda line: line["image"]))
    prepare(PrepareConfig(captions=str(captions), out=str(out / "clean"), **settings))
    prints = [records.open_dataset(out / name, "val").fingerprint for name in ("all", "clean")]
    if prints[0] != prints[1]:
        sys.exit("error: the held-out pairs of `all` and `clean` differ; remove the folder.")


def check(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Prints how noisy the captions are, and what the data sets hold."""
    if not (captions := out / "captions.jsonl").is_file():
        sys.exit(f"error: {captions} does not exist; run this without --check first.")
    lines = [json.loads(line) for line in captions.open(encoding="utf-8")]
    pictures = [
        hashlib.sha256((folder / "png" / line["image"]).read_bytes()).digest() for line in lines
    ]
    carriers = carriers_of_titles(lines, pictures)
    theme = sum(is_theme(line, carriers) for line in lines)
    distinct = {line["caption"].lower() for line in lines}
    good = {line["caption"].lower() for line in lines if not is_theme(line, carriers)}
    noisy = {picture for line, picture in zip(lines, pictures, strict=True) if line["is_noisy"]}
    print(f"files                               {len(lines):6}")
    print(f"  with a title of a theme or batch  {theme:6} {theme / len(lines):6.1%}")
    print(
        f"  with the caption of an earlier one{len(lines) - len(distinct):6} "
        f"{1 - len(distinct) / len(lines):6.1%}"
    )
    print(f"  different captions, less themes   {len(good):6}")
    print(f"different pictures                  {len(set(pictures)):6}")
    print(f"  of these clean                    {len(set(pictures) - noisy):6}")
    titles = sorted(carriers.items(), key=lambda item: -len(item[1]))
    for title, carried in titles[:12]:
        print(f"    {len(carried):5} pictures are called {title!r:.60}")
    for name in ("all", "clean"):
        description = records.read_description(out / name)
        print(f"{out / name}: {description['statistics']}")


def main(argv: list[str]) -> None:
    """Fetches, prepares and checks."""
    del argv
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    folder = fetch(pathlib.Path(values.work or out / "packages"))
    try:
        if not values.check:
            build(folder, out, max_side=values.max_side, val=values.val, seed=values.seed)
        check(folder, out)
    except (PrepareError, ConfigError, records.DatasetError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("out", "data/openclipart", "Folder to make.")
    flags.DEFINE_string("work", "", "Folder of the packages; default: OUT/packages.")
    flags.DEFINE_integer("max_side", 96, "Longer side of the stored pictures; some have 29,700.")
    flags.DEFINE_integer("val", 800, "Clean pairs that are held out.")
    flags.DEFINE_integer("seed", 0, "Seed of the order and of what is held out.")
    flags.DEFINE_bool("check", False, "Only print the statistics of what was made before.")
    app.run(main)

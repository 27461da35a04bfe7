"""benchmarks/icons.py on a few made-up families: nothing is fetched."""

import hashlib
import io
import json
import sys
import tarfile
from types import SimpleNamespace

import pytest
from PIL import Image

from aced.data import records
from benchmarks import icon_drawing, icons
from benchmarks.icons import Icon, Tables

SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
DISC = '<circle cx="12" cy="12" r="8" fill="#f00"/>'
TRAINING = ("mdi", "bi", "ph", "carbon", "twemoji")
HELD_OUT = ("tabler", "noto")


def collection(*names, body=SQUARE, **aliases):
    return {
        "width": 24,
        "height": 24,
        "icons": {name: {"body": body} for name in names},
        "aliases": {name.replace("_", "-"): alias for name, alias in aliases.items()},
    }


def some_icons(things=12):
    """Each family with the same things, in its own style, and one that no other has."""
    style = {"mdi": "-outline", "bi": "-fill", "ph": "-duotone", "tabler": "-filled"}
    return [
        Icon(family, f"{thing}{style.get(family, '')}")
        for family in (*TRAINING, *HELD_OUT)
        for thing in (*(f"thing{i}" for i in range(things)), f"of-{family}")
    ]


def tables(found=None, **arguments):
    found = found or some_icons()
    return Tables(found, icons.carriers(found), HELD_OUT, **arguments)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Pins packages that lie in tmp_path/packages already."""

    def write(**collections):
        folder, pinned = tmp_path / "packages", {}
        folder.mkdir()
        for family, of in collections.items():
            file = folder / f"iconify-json-{family}-1.0.0.tgz"
            info = {"license": {"spdx": "MIT"}, "author": {"name": "A", "url": "u"}}
            with tarfile.open(file, "w:gz") as tar:
                members = (("../escaped", {}), ("icons.json", of), ("info.json", info))
                for name, value in members:
                    data = json.dumps(value).encode()
                    member = tarfile.TarInfo(f"package/{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            pinned[f"{family}@1.0.0"] = hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setattr(icons, "PACKAGES", pinned)
        return folder

    return write


def fake_render(svg, ground, resolution):
    picture = Image.new("RGB", (resolution, resolution), ground)
    picture.putpixel((0, 0), tuple(icons.number(svg).to_bytes(8)[:3]))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("family", "name", "what"),
    [
        ("fluent", "book-48-filled", "book"),
        ("fluent", "text-bold-20-regular", "text-bold"),
        ("material-symbols", "sticky-note-2-outline-sharp", "sticky-note"),
        ("mdi", "home-variant-outline", "home"),
        ("mdi", "text-bold", "text-bold"),
        ("ph", "github-logo-bold", "github"),
        ("solar", "cart-5-line-duotone", "cart"),
        ("tabler", "brand-github-filled", "github"),
        ("tabler", "number-2", "number"),
        ("noto", "kiss-man-man-light-skin-tone-medium-dark-skin-tone", "kiss-man-man"),
        ("noto", "man-light-skin-tone-bald", "man-bald"),
        ("fluent-emoji", "man-cook-medium-light", "man-cook"),
        ("fluent-emoji", "vertical-traffic-light", "vertical-traffic-light"),
        ("healthicons", "6", "6"),
        ("streamline-emojis", "-2", "-2"),  # nothing would be left
        ("logos", "github-icon", "github"),
        ("game-icons", "heavy-timer", "heavy-timer"),
    ],
)
def test_a_subject_is_a_name_without_its_familys_style(family, name, what):
    assert icons.subject(family, name) == what


def test_aliases_follow_their_parents_and_must_name_something_else():
    found = icons.icons_of(
        "mdi",
        collection(
            "user",
            "arrow",
            account={"parent": "user"},
            person={"parent": "account"},
            user_outline={"parent": "user"},  # the same subject
            back={"parent": "arrow", "hFlip": True},  # another picture
            endless={"parent": "endless"},
        ),
    )
    assert found == [Icon("mdi", "arrow"), Icon("mdi", "user", ("account", "person"))]


@pytest.mark.parametrize("name", ["../user", "a/b", "", "a--b", "A"])
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(SystemExit, match="no file name"):
        icons.icons_of("mdi", collection(name))


def test_every_pair_of_colours_can_be_told_apart():
    assert icon_drawing.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert len(icon_drawing.PAIRS) > 50
    assert {ink for ink, _ in icon_drawing.PAIRS} == set(icon_drawing.COLOURS)
    assert min(icon_drawing.contrast(*pair) for pair in icon_drawing.PAIRS) >= 3


def test_a_drawing_depends_on_family_and_name_alone():
    names = [f"name-{i}" for i in range(40)]
    drawn = [icons.drawing("mdi", name, collection(*names)) for name in names]
    assert drawn == [icons.drawing("mdi", name, collection(name)) for name in names]
    assert drawn[0] != icons.drawing("bi", names[0], collection(*names))
    assert all("currentColor" not in svg for svg, _ in drawn)
    assert len(set(drawn)) > 20
    assert 'viewBox="-1.5 -1.5 27 27"' in drawn[0][0]


def test_icons_of_several_colours_keep_them_and_get_a_light_ground():
    names = [f"name-{i}" for i in range(40)]
    drawn = [icons.drawing("noto", name, collection(*names, body=DISC)) for name in names]
    assert {ground for _, ground in drawn} == set(icon_drawing.LIGHT)
    assert len({svg for svg, _ in drawn}) == 1
    wide = {"icons": {"a": {"body": DISC, "width": 32, "left": 8, "top": -2}}}
    assert 'viewBox="6 -12 36 36"' in icons.drawing("logos", "a", wide)[0]


def test_resvg_draws_the_icon_in_the_middle():
    pytest.importorskip("resvg_py")
    svg, ground = icons.drawing("noto", "a", collection("a", body=DISC))
    picture = Image.open(io.BytesIO(icons.render(svg, ground, 32)))
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert picture.getpixel((16, 16)) == (255, 0, 0)
    corners = {picture.getpixel((x, y)) for x in (0, 31) for y in (0, 31)}
    assert corners == {tuple(bytes.fromhex(ground[1:]))}
    with pytest.raises(ValueError, match=r"document|SVG"):
        icons.render("<svg", "#ffffff", 32)


def test_where_resvg_panics_a_larger_picture_is_shrunk(monkeypatch):
    class PanicException(BaseException):
        pass

    def svg_to_bytes(*, width, background, **_):
        if width in panics:
            raise PanicException("index out of bounds")
        return fake_render("", background, width)

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))
    panics = []
    for side in (8, 9):
        panics.append(side)
        picture = Image.open(io.BytesIO(icons.render("<svg/>", "#ff0000", 8)))
        assert picture.size == (8, 8)
        assert picture.getpixel((4, 4)) == (255, 0, 0)
    panics.append(10)
    with pytest.raises(ValueError, match="resvg panics"):
        icons.render("<svg/>", "#ff0000", 8)


def test_packages_that_are_there_are_read_and_never_unpacked(packages, monkeypatch, tmp_path):
    folder = packages(mdi=collection("user"))
    monkeypatch.setattr(icons.shutil, "which", lambda _: None)
    files = icons.fetch(folder, ["mdi"])
    assert icons.read(files["mdi"], "icons")["icons"].keys() == {"user"}
    assert [path.name for path in folder.iterdir()] == ["iconify-json-mdi-1.0.0.tgz"]
    assert [path.name for path in tmp_path.iterdir()] == ["packages"]
    files["mdi"].write_bytes(files["mdi"].read_bytes() + b"\0")
    with pytest.raises(SystemExit, match="not the package that was pinned"):
        icons.fetch(folder, ["mdi"])
    files["mdi"].unlink()
    with pytest.raises(SystemExit, match=r"npm is missing.*@iconify-json/mdi@1\.0\.0"):
        icons.fetch(folder, ["mdi"])


def test_what_is_drawn_is_kept_and_what_fails_is_told(packages, monkeypatch, tmp_path, capsys):
    def render(svg, ground, resolution):
        if "broken" in svg:
            raise ValueError("no SVG")
        return fake_render(svg, ground, resolution)

    of = collection("one", "two")
    of["icons"]["three"] = {"body": "broken"}
    files = icons.fetch(packages(mdi=of), ["mdi"])
    monkeypatch.setattr(icons, "render", render)
    folder = tmp_path / "pictures"
    (folder / "mdi").mkdir(parents=True)
    (folder / "mdi/one.png").write_bytes(b"kept")
    icons.draw(files, icons.icons_of("mdi", of), folder, resolution=8, workers=1)
    assert sorted(path.name for path in (folder / "mdi").iterdir()) == ["one.png", "two.png"]
    assert (folder / "mdi/one.png").read_bytes() == b"kept"
    with Image.open(folder / "mdi/two.png") as picture:
        assert picture.size == (8, 8)
    assert "three.png is not drawn: no SVG" in capsys.readouterr().out


def test_families_are_held_out_whole():
    of = tables()
    assert {line["family"] for line in of.train()} == set(TRAINING)
    for lines in (of.val(100), of.zeroshot()):
        assert {line["family"] for line in lines} <= set(HELD_OUT)
    assert len(of.train()) == 13 * len(TRAINING)
    assert "is_noisy" not in of.train()[0]


def test_val_has_each_subject_once_and_of_all_families_alike():
    lines = tables().val(100)
    assert len(lines) == len({line["caption"] for line in lines}) == 12
    assert sum(line["family"] == "noto" for line in lines) == 6
    assert all(line["agreed"] == 5 for line in lines)  # so "of noto" is none of them
    fewer = tables().val(5, wrong=0.5)
    assert len(fewer) == 5
    assert not any(line.pop("is_noisy") for line in fewer)
    assert all(line in lines for line in fewer)
    assert tables(seed=1).val(5) != fewer


def test_clean_has_what_three_training_families_agree_on():
    found = [
        *(Icon(family, "heart", ("love",)) for family in ("mdi", "bi")),
        *(Icon("ph", name, ("love", "ace")) for name in ("heart-thin", "heart-bold")),
        Icon("twemoji", "house"),
        Icon("bi", "house-fill"),
        Icon("noto", "house"),
    ]
    of = tables(found)
    lines = of.clean(of.train())
    assert [line["image"] for line in lines] == [
        "mdi/heart.png",
        "bi/heart.png",
        "ph/heart-thin.png",
        "ph/heart-bold.png",
    ]
    assert lines[2]["caption"] == ["heart thin", "love"]
    assert lines[2]["agreed"] == 3


def test_classes_are_names_that_eight_families_have():
    families = ("mdi", "bi", "ph", "ri", "carbon", "solar", "noto", "tabler")
    found = [Icon(family, "red-heart") for family in families]
    found += [Icon("tabler", "red-heart-filled"), Icon("tabler", "other"), Icon("noto", "other")]
    lines = tables(found).zeroshot()
    assert {line["image"] for line in lines} == {
        "noto/red-heart.png",
        "tabler/red-heart.png",
        "tabler/red-heart-filled.png",
    }
    assert {line["label"] for line in lines} == {"red heart"}


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_known_share_of_names_is_exchanged(share):
    of, right = tables(), tables().train()
    lines = of.train(share)
    moved = [a["caption"] != b["caption"] for a, b in zip(lines, right, strict=True)]
    assert sum(moved) == pytest.approx(share * len(lines), abs=1)  # equal ones may meet
    captions = [sorted(str(line["caption"]) for line in part) for part in (lines, right)]
    assert captions[0] == captions[1]
    for line, before, other in zip(lines, right, moved, strict=True):
        same = line["caption"][0].split()[0] == before["caption"][0].split()[0]
        same &= not before["caption"][0].startswith("of")
        assert line["is_noisy"] == (other and not same)
    clean = of.clean(lines)
    assert not any(line["is_noisy"] for line in clean)
    assert all(line in lines for line in clean)
    assert of.train(share) == lines


def prepared(folder, split, count, labels=None):
    folder.mkdir()
    examples = [
        records.Example(bytes([i]), (split,), f"{split}/{i}", label=0 if labels else None)
        for i in range(count)
    ]
    shards = {"train": records.write_split(folder, "train", examples, count, 2)}
    of = {"images": count, "captions": count}
    statistics = of | {"rejected": {"too_large": 1}, "splits": {"train": of}}
    records.write_description(
        folder, shards, statistics=statistics, settings={}, class_names=labels
    )
    for name in ("rejected.jsonl", "statistics.html"):
        (folder / name).write_text(split)
    return folder


def test_data_sets_of_one_split_become_one_of_several(tmp_path):
    parts = {"train": prepared(tmp_path / "a", "train", 5), "val": prepared(tmp_path / "b", "b", 3)}
    for _ in range(2):  # replaces what it made before
        icons.join(parts, tmp_path / "out")
    for split, count in (("train", 5), ("val", 3)):
        source = records.open_dataset(tmp_path / "out", split)
        assert len(source) == count
        assert source[1]["texts"] == (("train" if split == "train" else "b"),)
        assert (tmp_path / f"out/{split}-rejected.jsonl").is_file()
    description = records.read_description(tmp_path / "out")
    assert description["statistics"]["images"] == 8
    assert description["statistics"]["rejected"] == {"too_large": 2}
    assert description["class_names"] is None
    icons.join({"val": prepared(tmp_path / "c", "c", 4, ["x"])}, tmp_path / "zeroshot")
    assert records.open_dataset(tmp_path / "zeroshot", "val").class_names == ["x"]
    with pytest.raises(SystemExit, match="is not a data set"):
        icons.join(parts, tmp_path)


@pytest.mark.slow
def test_from_packages_to_data_sets(packages, monkeypatch, tmp_path, capsys):
    """All but npm and resvg."""
    of = {family: collection("cat", "dog", family) for family in (*TRAINING, *HELD_OUT)}
    files = icons.fetch(packages(**of), of)
    monkeypatch.setattr(icons, "render", fake_render)
    monkeypatch.setattr(icons, "SHARED", 7)
    found = [icon for family in of for icon in icons.icons_of(family, of[family])]
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    icons.draw(files, found, pictures, resolution=16, workers=1)
    icons.build(tables(found), pictures, out, val=2, wrong=0.5, seed=0)
    icons.sheet(files, found, pictures, out / "icons.png")
    icons.check(files, found, set(HELD_OUT), out)
    train, val = (records.open_dataset(out / "all", split) for split in ("train", "val"))
    assert {train[i]["extra"]["family"] for i in range(len(train))} == set(TRAINING)
    assert train[0]["is_noisy"] in (True, False)
    assert {val[i]["texts"] for i in range(2)} == {("cat",), ("dog",)}
    assert records.open_dataset(out / "clean", "val").fingerprint == val.fingerprint
    zeroshot = records.open_dataset(out / "zeroshot", "val")
    assert zeroshot.class_names == ["cat", "dog"]
    assert len(zeroshot) == 4
    assert not (out / "parts").exists()
    with Image.open(out / "icons.png") as picture:
        assert picture.width > 500
    assert "2 classes" in capsys.readouterr().out

"""prepare: what comes out is what was put in; what is left out is counted, listed and named."""

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from aced.config import ConfigError
from aced.data import records
from aced.files import own_files, ownership
from aced.prepare.captions import PrepareError
from aced.prepare.command import PrepareConfig, prepare
from tests import commands
from tests.prepare.small import encoded, picture, read, rejected, rows, run, table


def test_bytes_captions_and_splits(tmp_path, folder):
    lines = [*rows(), {"image": "./sub/3.png", "caption": " Another é "}]
    statistics = run(tmp_path, folder, lines, val=3, shards=2)
    train, val = read(tmp_path), read(tmp_path, "val")
    assert (len(train), len(val)) == (7, 3)
    both = train | val
    assert sorted(both) == [f"sub/{i}.png" for i in range(10)]
    for key, example in both.items():
        assert example["image"] == (folder / key).read_bytes()
    assert both["sub/3.png"]["texts"] == ("Caption 3", "Another é")
    assert statistics["images"] == 10
    assert statistics["captions"] == 11
    assert statistics["rejected"] == {}
    # The documented order: sha256 of "seed:key"; the first are held out.
    order = sorted(both, key=lambda key: hashlib.sha256(f"0:{key}".encode()).digest())
    assert list(val) == order[:3]
    assert list(train) == order[3:]


@pytest.mark.slow
def test_same_input_same_bytes_and_another_seed_another_order(tmp_path, folder):
    for out, seed, threads in (("a", 0, 2), ("b", 0, 5), ("c", 1, 2)):
        config = PrepareConfig(
            images=str(folder),
            captions=table(tmp_path, [*rows(), "no json", {"image": "x", "caption": "y"}]),
            out=str(tmp_path / out),
            val=2,
            max_side=6,
            seed=seed,
            threads=threads,
        )
        prepare(config)
    files = {out: sorted((tmp_path / out).iterdir()) for out in "abc"}
    names = ["dataset.json", "rejected.jsonl", "statistics.html"]
    for split in ("train", "val"):
        names += [f"{split}-00000-of-00001.array_record", f"{split}.hashes"]
    assert [file.name for file in files["a"]] == names
    assert [f.read_bytes() for f in files["a"]] == [f.read_bytes() for f in files["b"]]
    assert list(read(tmp_path, out="a")) != list(read(tmp_path, out="c"))


def test_everything_left_out_is_listed_with_its_reason(tmp_path, folder):
    (folder / "same.png").write_bytes((folder / "sub/0.png").read_bytes())
    good = encoded(picture(20, (64, 64)), "JPEG")
    (folder / "cut.jpg").write_bytes(good[: len(good) * 2 // 3])  # opens, but does not decode
    (folder / "text.png").write_bytes(b"hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "wide.png").write_bytes(encoded(Image.new("L", (2000, 1000))))
    (folder / "wider.png").write_bytes(encoded(Image.new("L", (2000, 2500))))
    (tmp_path / "secret.png").write_bytes(encoded(picture(30)))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inner.png").symlink_to(folder / "sub/1.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    expected = [
        ("same.png", "another caption", "duplicate_image"),
        ("inner.png", "Caption 1", "duplicate_image"),  # and a repeated caption
        ("cut.jpg", "c", "undecodable"),
        ("text.png", "c", "undecodable"),
        ("empty.png", "c", "undecodable"),
        ("wide.png", "c", "too_large"),
        ("wider.png", "c", "too_large"),
        ("link.png", "c", "outside_link"),
        ("../secret.png", "c", "outside_folder"),
        (str(tmp_path / "secret.png"), "c", "outside_folder"),
        ("sub/../../secret.png", "c", "outside_folder"),
        ("loop.png", "c", "missing_file"),
        ("none.png", "c", "missing_file"),
        ("sub", "c", "missing_file"),
        ("n" * 300, "c", "missing_file"),
        ("sub/2.png", " \t", "empty_caption"),
        ("sub/2.png", None, "empty_caption"),
        ("sub/2.png", "\ud800", "malformed_line"),
        ("sub/2.png", 5, "malformed_line"),
        (None, "c", "malformed_line"),
        ("", "c", "malformed_line"),
        ("a\0b", "c", "malformed_line"),
        ("sub/2.png", "Caption 2", "repeated_caption"),
    ]
    lines = [{"image": image, "caption": caption} for image, caption, _ in expected]
    broken = ["{", "[1]", "[" * 100_000]
    statistics = run(tmp_path, folder, [*rows(), *lines, *broken], max_pixels=1_500_000)
    listed = {(entry["line"], entry["reason"]) for entry in rejected(tmp_path)}
    wanted = {(11 + i, reason) for i, (_, _, reason) in enumerate(expected)}
    end = 11 + len(expected)
    wanted |= {(end + i, "malformed_line") for i in range(3)} | {(12, "repeated_caption")}
    assert listed == wanted
    assert sum(statistics["rejected"].values()) == len(wanted)
    train = read(tmp_path)
    assert len(train) == 10
    assert train["sub/0.png"]["texts"] == ("Caption 0", "another caption")
    assert train["sub/1.png"]["texts"] == ("Caption 1",)


def test_csv_labels_noise_and_extra(tmp_path, folder):
    path = tmp_path / "captions.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "text", "kind", "bad", "who"])
        writer.writerow(["sub/0.png", 'two\nlines, "quoted"', "zebra", "0", "me"])
        writer.writerow(["sub/1.png", "One", "ant", "True", ""])
        writer.writerow(["sub/2.png", "Two", "", "", "you"])
        writer.writerow(["sub/2.png", "Two again", "", "1", "you"])
        writer.writerow(["sub/3.png"])
        writer.writerow(["sub/4.png", "Four", "ant", "perhaps", ""])
    run(
        tmp_path,
        folder,
        str(path),
        image_column="file",
        caption_column="text",
        label_column="kind",
        noisy_column="bad",
        extra_columns="who",
        lower=True,
    )
    train = read(tmp_path)
    assert records.open_dataset(tmp_path / "out", "train").class_names == ["ant", "zebra"]
    got = {
        key[4]: (e["texts"], e.get("label"), e.get("is_noisy"), e["extra"])
        for key, e in train.items()
    }
    assert got == {
        "0": (('two\nlines, "quoted"',), 1, False, {"who": "me"}),
        "1": (("one",), 0, True, {"who": ""}),
        "2": (("two", "two again"), None, True, {"who": "you"}),
    }
    assert [entry["reason"] for entry in rejected(tmp_path)] == ["malformed_line"] * 2


def test_integer_labels_and_lists_of_captions(tmp_path, folder):
    lines = rows(3)
    for i, row in enumerate(lines):
        row |= {"caption": ["a", "b"], "label": 7 * i}
    run(tmp_path, folder, lines, label_column="label")
    train = read(tmp_path)
    assert {key: e["label"] for key, e in train.items()} == {
        f"sub/{i}.png": 7 * i for i in range(3)
    }
    assert {e["texts"] for e in train.values()} == {("a", "b")}
    assert records.open_dataset(tmp_path / "out", "train").class_names is None


def test_a_column_of_numbers_with_gaps_has_numbers(tmp_path, folder):
    """As pandas writes it: 2.0, and nothing where there is none."""
    lines = rows(5)
    for row, label in zip(lines, (10.0, 2.0, None, "3.", 0.5), strict=True):
        row["label"] = label
    run(tmp_path, folder, lines, label_column="label")
    found = {key: e.get("label") for key, e in read(tmp_path).items()}
    assert found == {"sub/0.png": 10, "sub/1.png": 2, "sub/2.png": None, "sub/3.png": 3}
    (entry,) = rejected(tmp_path)
    assert "label 0.5 is neither whole nor a name" in entry["detail"]


@pytest.mark.slow
def test_second_pictures_and_answers_about_them(tmp_path, folder):
    """Two statements about one pair, and one about another pair with the same first picture."""
    (folder / "broken.png").write_bytes(b"no picture")
    lines = [
        {"image": "sub/0.png", "right": "sub/1.png", "caption": "a", "label": "false"},
        {"image": "sub/0.png", "right": "sub/1.png", "caption": "b", "label": "true"},
        {"image": "sub/0.png", "right": "sub/2.png", "caption": "a", "label": "true"},
        {"image": "sub/3.png", "right": "sub/9999.png", "caption": "a", "label": "true"},
        {"image": "sub/4.png", "right": "broken.png", "caption": "a", "label": "true"},
        {"image": "sub/4.png", "right": "../x.png", "caption": "a", "label": "true"},
    ]
    columns = {"second_column": "right", "label_column": "label"}
    statistics = run(tmp_path, folder, lines, separate=True, thumbnails=4, **columns)
    source = records.open_dataset(tmp_path / "out", "train")
    assert source.class_names == ["false", "true"]
    files = {i: (folder / "sub" / f"{i}.png").read_bytes() for i in range(3)}
    found = [
        (e["image"], e["second"], *e["texts"], e["label"])
        for e in map(source.__getitem__, range(3))
    ]
    assert sorted(found) == sorted(
        [
            (files[0], files[1], "a", 0),
            (files[0], files[1], "b", 1),
            (files[0], files[2], "a", 1),
        ]
    )
    assert all(len(source[i]["thumbnail"]) > 0 for i in range(3))
    assert (statistics["images"], statistics["second_pictures"]) == (3, 3)
    assert [(e["line"], e["reason"]) for e in rejected(tmp_path)] == [
        (4, "missing_file"),
        (5, "undecodable"),
        (6, "outside_folder"),
    ]
    details = [e["detail"] for e in rejected(tmp_path)]
    assert details[0].startswith("the second picture, sub/9999.png: ")
    assert details[1].startswith("the second picture: ")
    # Put together instead: what is said of one pair is one example, and its labels differ.
    run(tmp_path, folder, lines[:3], out="together", **columns)
    source = records.open_dataset(tmp_path / "together", "train")
    found = {(e["second"], e["texts"], e["label"]) for e in map(source.__getitem__, range(2))}
    assert found == {(files[1], ("a", "b"), 0), (files[2], ("a",), 1)}
    (entry,) = rejected(tmp_path, "together")
    assert (entry["line"], entry["reason"]) == (2, "other_label")
    assert "see --separate" in entry["detail"]


def test_equal_pairs_of_files_are_one_example(tmp_path, folder):
    (folder / "copy.png").write_bytes((folder / "sub" / "0.png").read_bytes())
    lines = [
        {"image": "sub/0.png", "right": "sub/1.png", "caption": "a"},
        {"image": "copy.png", "right": "sub/1.png", "caption": "b"},
        {"image": "copy.png", "right": "sub/2.png", "caption": "c"},
    ]
    run(tmp_path, folder, lines, second_column="right")
    assert {(e["texts"]) for e in read(tmp_path).values()} == {("a", "b"), ("c",)}
    assert [e["reason"] for e in rejected(tmp_path)] == ["duplicate_image"]


def test_large_second_pictures_are_shrunk_too(tmp_path, folder):
    for name, seed in (("left", 1), ("right", 2)):
        (folder / f"{name}.png").write_bytes(encoded(picture(seed, (64, 32))))
    lines = [{"image": "left.png", "right": "right.png", "caption": "a"}]
    assert run(tmp_path, folder, lines, second_column="right", max_side=16)["stored_anew"] == 1
    (example,) = read(tmp_path).values()
    for name in ("image", "second"):
        with Image.open(io.BytesIO(example[name])) as image:
            assert image.size == (16, 8)
    assert example["image"] != example["second"]


def test_questions_about_one_picture_stay_separate(tmp_path, folder):
    lines = [
        {"image": "sub/0.png", "caption": "what color", "label": 5},
        {"image": "sub/0.png", "caption": "how many", "label": 2},
        {"image": "sub/0.png", "caption": "how many", "label": 2},
    ]
    run(tmp_path, folder, lines, label_column="label", separate=True)
    source = records.open_dataset(tmp_path / "out", "train")
    found = [(*e["texts"], e["label"]) for e in map(source.__getitem__, range(3))]
    assert sorted(found) == [("how many", 2), ("how many", 2), ("what color", 5)]


def test_val_clean_holds_out_clean_examples_only(tmp_path, folder):
    lines = [row | {"noisy": i % 2 == 0} for i, row in enumerate(rows())]
    statistics = run(tmp_path, folder, lines, val=4, val_clean=True, noisy_column="noisy")
    assert sorted(e["is_noisy"] for e in read(tmp_path).values()) == [False] + [True] * 5
    assert [e["is_noisy"] for e in read(tmp_path, "val").values()] == [False] * 4
    assert statistics["splits"]["train"]["noisy"] == 5


def test_max_side_shrinks_large_keeps_small_and_flattens_transparent_images(tmp_path, folder):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    (folder / "photo.jpg").write_bytes(encoded(Image.fromarray(ramp), "JPEG"))
    (folder / "thin.png").write_bytes(encoded(Image.new("L", (500, 1), 7)))
    alpha = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    alpha.paste((255, 0, 0, 255), (0, 0, 20, 40))
    (folder / "alpha.png").write_bytes(encoded(alpha))
    alpha.paste((0, 0, 255, 255), (0, 0, 20, 40))
    (folder / "palette.png").write_bytes(encoded(alpha.quantize(4)))
    deep = (np.tile(np.arange(64), (64, 1)) * 1024).astype(np.uint16)
    (folder / "deep.png").write_bytes(encoded(Image.fromarray(deep)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    (folder / "turned.jpg").write_bytes(encoded(Image.new("L", (64, 16)), "JPEG", exif=exif))
    names = ("photo.jpg", "thin.png", "alpha.png", "palette.png", "deep.png", "turned.jpg")
    lines = rows(1) + [{"image": name, "caption": "c"} for name in names]
    statistics = run(tmp_path, folder, lines, max_side=32)
    train = read(tmp_path)
    got = {key: Image.open(io.BytesIO(e["image"])) for key, e in train.items()}
    assert train["sub/0.png"]["image"] == (folder / "sub/0.png").read_bytes()
    assert statistics["stored_anew"] == len(names)
    assert got["photo.jpg"].format == "JPEG"
    sizes = {name: got[name].size for name in names}
    assert sizes == {
        "photo.jpg": (32, 8),
        "thin.png": (32, 1),
        "alpha.png": (32, 32),
        "palette.png": (32, 32),
        "deep.png": (32, 32),
        "turned.jpg": (8, 32),
    }
    # Oracle of the averaging: a ramp of 256 greys in 32 columns has the columns' means.
    means = ramp.reshape(64, 32, 8).mean((0, 2))
    np.testing.assert_allclose(np.asarray(got["photo.jpg"].convert("L"))[4], means, atol=4)
    for name, colour in (("alpha.png", (255, 0, 0)), ("palette.png", (0, 0, 255))):
        pixels = np.asarray(got[name])
        assert pixels.shape == (32, 32, 3)
        assert tuple(pixels[16, 4]) == colour
        assert tuple(pixels[16, 28]) == (255, 255, 255)
    grey = np.asarray(got["deep.png"])[16, :, 0]
    np.testing.assert_allclose(grey, np.arange(32) * 8 + 2, atol=3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"images": "none"}, PrepareError, "none does not exist"),
        ({"val": 10}, PrepareError, "at least one must remain to train on"),
        ({"val": 11}, PrepareError, "10 of 10 examples can be held out"),
        ({"val": -1}, ConfigError, "--val must be at least 0, got -1"),
        ({"val_clean": True}, ConfigError, "--noisy_column"),
        ({"images": ""}, ConfigError, "--images is empty"),
        ({"captions": "x.parquet"}, ConfigError, r"\.jsonl or \.csv"),
        ({"max_pixels": 0}, ConfigError, "--max_pixels"),
        ({"second_column": "b"}, PrepareError, r"line 1: .*no column 'b'.*--second_column"),
        ({"second_column": "b", "near_duplicates": 2}, ConfigError, "leave it at -1"),
        ({"separate": True, "near_duplicates": 2}, ConfigError, "leave it at -1"),
        (
            {"caption_column": "text"},
            PrepareError,
            r"captions\.jsonl, line 1: .*no column 'text'.*columns are: image, caption",
        ),
    ],
)
def test_errors_give_the_next_step_and_leave_no_files(tmp_path, folder, settings, error, message):
    captions = table(tmp_path, rows())
    before = sorted(os.listdir(tmp_path))
    settings = {"images": str(folder), "captions": captions, "out": f"{tmp_path}/out"} | settings
    with pytest.raises(error, match=message):
        prepare(PrepareConfig(**settings))
    assert sorted(os.listdir(tmp_path)) == before


def test_too_long_field_rejects_only_its_line(tmp_path, folder):
    text = f"image,caption\nsub/0.png,{'x' * 2_000_000}\nsub/1.png,a dog\n"
    (tmp_path / "t.csv").write_text(text)
    run(tmp_path, folder, str(tmp_path / "t.csv"))
    assert list(read(tmp_path)) == ["sub/1.png"]
    (entry,) = rejected(tmp_path)
    assert (entry["reason"], entry["line"]) == ("malformed_line", 2)


def test_second_run_reports_pictures_missing_in_the_first(tmp_path, folder, capsys):
    lines = [*rows(2), {"image": "late.png", "caption": "c"}]
    run(tmp_path, folder, lines)
    capsys.readouterr()
    run(tmp_path, folder, lines)
    output = capsys.readouterr().out
    assert "nothing to do" in output
    assert "The files of 1 images were missing then; --overwrite looks again." in output


def test_nothing_left_is_an_error(tmp_path, folder):
    lines = [{"image": f"{i}.png", "caption": "c"} for i in range(3)]
    lines += [{"image": "sub/0.png", "caption": ""}]
    with pytest.raises(PrepareError, match="No image is left") as error:
        run(tmp_path, folder, lines)
    said = str(error.value)
    assert "captions.jsonl. Left out:" in said
    assert 'missing_file 3, the first: {"reason": "missing_file", "image": "0.png", ' in said
    assert 'empty_caption 1, the first: {"reason": "empty_caption", "image": "sub/0.png", ' in said
    assert "relative to the same folder?" in said


@pytest.mark.slow
def test_only_existing_data_sets_are_overwritten_and_only_on_request(tmp_path, folder):
    run(tmp_path, folder, rows(4))
    with pytest.raises(PrepareError, match="--overwrite"):
        run(tmp_path, folder, rows(5))
    with pytest.raises(PrepareError, match=r"No image is left: .*captions.jsonl has no lines"):
        run(tmp_path, folder, [], overwrite=True)
    assert len(read(tmp_path)) == 4
    run(tmp_path, folder, rows(5), overwrite=True)
    assert len(read(tmp_path)) == 5
    for name in ("images", "captions.jsonl"):
        with pytest.raises(PrepareError, match="is not a data set"):
            run(tmp_path, folder, rows(5), out=name, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["captions.jsonl", "images", "out"]


def test_second_process_is_refused_or_finds_nothing_to_do(tmp_path, folder):
    owner = ownership.beside(str(tmp_path / "out"))
    with ownership.owned(owner):
        with pytest.raises(ownership.OwnedError, match=f"process {os.getpid()} on"):
            run(tmp_path, folder, rows())
        assert [str(path) for path in tmp_path.glob("*out*")] == [owner]
    # An owner elsewhere that is known to be dead.
    far = dataclasses.replace(ownership.Owner.this(), boot="other", host="far")
    pathlib.Path(owner).write_bytes(far.bytes())
    config = PrepareConfig(
        images=str(folder), captions=table(tmp_path, rows()), out=str(tmp_path / "out"), threads=2
    )
    assert prepare(config, force=True)["images"] == 10
    assert not pathlib.Path(owner).exists()
    with ownership.owned(owner):
        assert prepare(config)["images"] == 10  # it is there, and only read


def test_command(tmp_path, folder):
    captions = table(tmp_path, rows())
    flags = [f"--images={folder}", f"--captions={captions}"]
    done = subprocess.run(
        [sys.executable, "-m", "aced.prepare", *flags, f"--out={tmp_path}/out", "--val=2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{tmp_path}/out has 10 images with 10 captions:" in done.stdout
    lines = done.stderr.splitlines()
    for step in ("1/3 Reading the table: 10 images", "2/3 Examining", "3/3 Writing: 100%"):
        assert any(line.startswith(step) for line in lines)
    assert "Next: python -m aced.main" in done.stdout
    again = commands.call("prepare", *flags, f"--out={tmp_path}/out")
    assert again.returncode == 1
    assert again.stderr.strip().startswith("error:")
    assert "--overwrite" in again.stderr
    nowhere = commands.call("prepare", *flags, f"--out={captions}/out")
    assert nowhere.returncode == 1
    assert nowhere.stderr.strip().startswith(f"error: {captions}/")
    assert "Not a directory" in nowhere.stderr


def test_data_set_from_before_there_was_a_setting_is_still_the_same(tmp_path, folder, capsys):
    statistics = run(tmp_path, folder, rows())
    path = tmp_path / "out" / records.DESCRIPTION
    content = own_files.loads(path.read_bytes())
    del content["settings"]["near_duplicate_captions"]
    path.write_bytes(own_files.dumps(content))
    assert run(tmp_path, folder, rows()) == statistics
    assert "already made with these settings" in capsys.readouterr().out
    content["settings"]["seed"] = 7
    path.write_bytes(own_files.dumps(content))
    with pytest.raises(PrepareError, match="with other settings"):
        run(tmp_path, folder, rows())


def test_copies_are_dropped_but_similar_images_kept(tmp_path, folder):
    def drawing(colour, size=(120, 90)):
        image = Image.new("RGB", size, "white")
        box = [round(share * side) for share in (0.2, 0.7) for side in size]
        ImageDraw.Draw(image).ellipse(box, colour)
        return image

    files = {
        "yellow.png": encoded(drawing("gold")),
        "blue.png": encoded(drawing("royalblue")),
        "small.jpg": encoded(drawing("gold").resize((60, 45)), "JPEG", quality=60),
        "wide.png": encoded(drawing("gold", (120, 60))),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    lines = [{"image": name, "caption": f"<{name}> drawn"} for name in files]
    statistics = run(tmp_path, folder, lines, near_duplicates=7)
    assert sorted(read(tmp_path)) == ["blue.png", "wide.png", "yellow.png"]
    assert statistics["rejected"] == {"near_duplicate": 1}
    (entry,) = rejected(tmp_path)
    assert (entry["image"], entry["line"]) == ("small.jpg", 3)
    assert re.fullmatch(
        r"\d bits and 0\.\d{4} \(at most 0\.\d{4}\) of colour from yellow\.png", entry["detail"]
    )
    page = (tmp_path / "out" / "statistics.html").read_text()
    pair = page[page.index('<div class="pair">') :]
    first, second = re.findall("<figcaption>(.*?)</figcaption>", pair)
    assert first == "the earlier one: yellow.png: &lt;yellow.png&gt; drawn"
    bits = entry["detail"].removesuffix(" from yellow.png")
    assert second == f"left out, {bits}: small.jpg: &lt;small.jpg&gt; drawn"

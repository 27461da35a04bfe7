"""Tars read at random, against tarfile; damage of every kind."""

import collections
import io
import json
import os
import tarfile

import pytest

from aced.config import ConfigError
from aced.data.reader import InputCounters, Reader
from aced.data.records import DatasetError, RecordError
from aced.data.sources import DataConfig, tar_format
from aced.data.sources.tars import TarSource, WebDatasetConfig
from tests.data import many


def source(path, **settings):
    return TarSource(WebDatasetConfig(path=str(path), **settings))


def by_tarfile(path):
    """What tarfile finds: bytes by member, in order."""
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}


def test_examples_match_tarfile(tmp_path):
    many.write_tars(tmp_path, [3, 0, 5])
    read = source(tmp_path)
    expected = []
    for number in (0, 1, 2):
        members = by_tarfile(tmp_path / f"{number:05d}.tar")
        keys = dict.fromkeys(name.partition(".")[0] for name in members)
        expected += [
            (f"{number:05d}.tar/{k}", members[f"{k}.jpg"], (members[f"{k}.txt"].decode(),))
            for k in keys
        ]
    found = [read[i] for i in range(len(read))]
    assert [(x["key"], x["image"], x["texts"]) for x in found] == expected
    assert [x["id"] for x in found] == list(range(8))
    with pytest.raises(IndexError):
        read[8]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_names_long_foreign_and_hostile_are_only_names(tmp_path, tar_format):
    names = ["a" * 90 + "/" + "b" * 80, "../../up", "/etc/absolute", "d.ots/k", "plain"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + "/k", "żółw/カメ"]
    with tarfile.open(tmp_path / "0.tar", "w", format=tar_format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd" + "y" * 200 * (tar_format != 0)
        tar.addfile(link)
        for i, name in enumerate(names):
            many.add(tar, f"{name}.jpg", many.jpeg(i))
            many.add(tar, f"{name}.txt", b"c")
    read = source(tmp_path / "0.tar")
    expected = by_tarfile(tmp_path / "0.tar")
    assert [read[i]["key"] for i in range(len(read))] == [f"0.tar/{name}" for name in names]
    assert [read[i]["image"] for i in range(len(read))] == [
        data for name, data in expected.items() if name.endswith(".jpg")
    ]
    assert sorted(os.listdir(tmp_path))[0] == "0.tar"
    assert len(os.listdir(tmp_path)) == 2


def test_captions_and_labels_come_from_the_json(tmp_path):
    many.write_tars(tmp_path, [4])
    read = source(tmp_path, captions=("caption", "alt"), label="class")
    assert read[2]["texts"] == ("blue circle", "blue circle", "blue blue")
    assert [read[i]["label"] for i in range(4)] == [0, 1, 2, 0]
    with pytest.raises(ConfigError, match=r"no field 'title'.*KEY.json has: alt, caption, class"):
        source(tmp_path, captions=("title",))
    with pytest.raises(ConfigError, match="no field 'nope'"):
        source(tmp_path, label="nope")


def test_a_missing_txt_everywhere_is_refused_and_the_fields_are_listed(tmp_path):
    members = [m for i in range(3) for m in many.sample(i) if not m[0].endswith(".txt")]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    with pytest.raises(ConfigError, match=r"no KEY.txt .*set data.webdataset.captions.*caption"):
        source(tmp_path)
    assert source(tmp_path, captions=("caption",))[1]["texts"] == ("green circle",)


def test_a_missing_caption_is_an_example_without_texts(tmp_path):
    members = [m for m in many.sample(0) + many.sample(1) if m[0] != "000000000.txt"]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    assert [read[i]["texts"] for i in range(2)] == [(), ("green circle",)]


def damaged(tmp_path, change, count=4):
    """Four examples in a tar whose bytes `change(data, tar members by name)` has changed."""
    data = bytearray(many.tar_bytes([m for i in range(count) for m in many.sample(i)]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {m.name: m for m in tar}
    data = change(data, members)
    (tmp_path / "0.tar").write_bytes(data)
    read = source(tmp_path / "0.tar")
    good, bad = {}, []
    for i in range(len(read)):
        try:
            good[read[i]["key"]] = read[i]
        except RecordError as error:
            bad.append(str(error))
    return good, bad


@pytest.mark.parametrize("ending", ["jpg", "txt", "json"])
def test_damaged_header_loses_one_example(tmp_path, ending):
    def change(data, members):
        data[members[f"000000001.{ending}"].offset] ^= 0xFF
        return data

    good, bad = damaged(tmp_path, change)
    assert len(bad) == 1
    assert "0.tar, byte " in bad[0]
    assert "damaged header" in bad[0]
    whole = [key for key in good if good[key]["texts"]]
    kept = [0, 2, 3] if ending != "json" else [0, 1, 2, 3]
    assert whole == [f"0.tar/{i:09d}" for i in kept]
    for i in kept:
        assert good[f"0.tar/{i:09d}"]["image"] == many.jpeg(i)


@pytest.mark.parametrize("length", [512, 4096, 1 << 17])
@pytest.mark.parametrize("where", ["000000003.jpg", "000000003.json", "000000000.jpg"])
def test_zeros_in_the_middle_lose_the_covered_examples(tmp_path, where, length):
    """Of a file that was preallocated and written in part, or after a crash."""
    covered = set()

    def change(data, members):
        start = members[where].offset
        data[start : start + length] = bytes(len(data[start : start + length]))
        for name, member in members.items():
            if start <= member.offset < start + length or member.offset == start:
                covered.add(f"0.tar/{name.partition('.')[0]}")
        return data

    good, bad = damaged(tmp_path, change, count=40)
    assert len(bad) == 1
    first = "byte 0" if where == "000000000.jpg" else "byte"
    assert first in bad[0]
    assert "bytes of zeros" in bad[0]
    whole = {key for key in good if good[key]["texts"]}
    assert whole >= {f"0.tar/{i:09d}" for i in range(40)} - covered
    assert len(whole) < 40 or where.endswith("json")


def test_tar_of_zeros_is_damaged(tmp_path):
    (tmp_path / "0.tar").write_bytes(bytes(3 << 20))
    with pytest.raises(DatasetError, match="byte 0: 3145728 bytes of zeros"):
        source(tmp_path)


def test_concatenated_tars_are_read_on(tmp_path):
    tars = [many.tar_bytes(many.sample(i)) for i in range(3)]
    (tmp_path / "0.tar").write_bytes(b"".join(tars))
    read = source(tmp_path)
    assert [read[i]["image"] for i in (0, 2, 4)] == [many.jpeg(i) for i in range(3)]
    for i in (1, 3):
        with pytest.raises(RecordError, match="bytes of zeros"):
            read[i]


def test_damage_leaves_the_next_example_its_captions(tmp_path):
    """Where endings are sorted, a WebP comes behind its captions."""

    def members(i):
        picture, text, fields = many.sample(i)
        return [fields, text, (picture[0].replace("jpg", "webp"), picture[1])]

    data = bytearray(many.tar_bytes([m for i in range(4) for m in members(i)]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        data[tar.getmember("000000001.webp").offset] ^= 0xFF
    (tmp_path / "0.tar").write_bytes(data)
    read = source(tmp_path, captions=("caption",))
    found = [read[i]["texts"] for i in (0, 2, 3)]
    assert found == [(many.caption(i),) for i in (0, 2, 3)]
    with pytest.raises(RecordError, match="damaged header"):
        read[1]


def test_pictures_with_two_dots_are_damaged_or_ignored(tmp_path):
    members = [("IMG.06.3.jpg", many.jpeg(0)), ("IMG.06.3.txt", b"a"), ("IMG.06.4.png", b"x")]
    members += [("1.depth.png", b"x"), *many.sample(1, key="1"), ("1.seg.PNG", b"x")]
    members += [("2.gif", many.jpeg(2)), ("2.txt", b"c"), ("3.tiff", many.jpeg(3)), ("3.txt", b"d")]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    assert len(read) == 5
    for i, name in enumerate(("IMG.06.3.jpg", "IMG.06.4.png")):
        with pytest.raises(RecordError, match=rf"0.tar, {name}: .*ends at the first dot"):
            read[i]
    assert [read[i]["image"] for i in (2, 3, 4)] == [many.jpeg(i) for i in (1, 2, 3)]
    assert [read[i]["texts"] for i in (2, 3, 4)] == [(many.caption(1),), ("c",), ("d",)]


def test_a_tar_cut_off_in_a_picture(tmp_path):
    def change(data, members):
        return data[: members["000000002.jpg"].offset_data + 100]

    good, bad = damaged(tmp_path, change)
    assert list(good) == ["0.tar/000000000", "0.tar/000000001"]
    assert any("000000002.jpg: cut off" in reason for reason in bad)
    assert all("cut off" in reason for reason in bad)


def test_a_tar_cut_off_between_members_is_noticed(tmp_path):
    def change(data, members):
        return data[: members["000000002.jpg"].offset]

    good, bad = damaged(tmp_path, change)
    assert len(good) == 2
    assert len(bad) == 1
    assert "without its end mark" in bad[0]


def test_captions_without_a_picture_are_named(tmp_path):
    members = many.sample(0) + many.sample(1)[1:] + many.sample(2)
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    assert len(read) == 3
    with pytest.raises(RecordError, match=r"0.tar, 000000001: it has no picture"):
        read[1]
    assert read[2]["image"] == many.jpeg(2)


def test_files_that_are_not_tars_are_refused(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DatasetError, match=r"0.tar cannot be used: it is compressed"):
        source(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DatasetError, match="it is not a tar file"):
        source(tmp_path)
    (tmp_path / "0.tar").write_bytes(many.tar_bytes([("a.npy", b"1"), ("a.txt", b"c")]))
    with pytest.raises(DatasetError, match="a: it has no picture"):
        source(tmp_path)


def test_bad_json_and_texts_are_the_records_alone(tmp_path):
    deep = b"[" * 100_000
    members = [
        *many.sample(0),
        ("1.jpg", many.jpeg(1)),
        ("1.txt", b"\xff\xfe"),
        ("1.json", deep),
        ("2.jpg", many.jpeg(2)),
        ("2.txt", b"x" * 2_000_000),
        ("2.json", b"[1]"),
        ("3.jpg", many.jpeg(3)),
        ("3.json", b'{"caption": "cut off in an emoji \\ud83d"}'),
        ("4.jpg", many.jpeg(4)),
        ("4.txt", "café".encode("latin-1")),
    ]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    with pytest.raises(RecordError, match=r"0.tar, 1: it is UTF-16, and must be UTF-8"):
        read[1]
    with pytest.raises(RecordError, match=r"0.tar, 2: text of 2000000 bytes"):
        read[2]
    with pytest.raises(RecordError, match=r"0.tar, 4: it is not UTF-8 \(byte 0xe9\).*LATIN1"):
        read[4]
    read = source(tmp_path, captions=("caption",))
    assert read[0]["texts"] == ("red circle",)
    for i, reason in ((1, "recursion"), (2, "JSON is a list"), (3, "3: .*surrogates not allowed")):
        with pytest.raises(RecordError, match=reason):
            read[i]


def test_shadow_files_of_macos_are_no_pictures_and_part_no_examples(tmp_path):
    """Its tar writes one before every file that has attributes; its zip has a folder of them."""
    members = []
    for i in range(3):
        for name, data in many.sample(i):
            members += [(f"./._{name}", b"\0\5\x16\7\0\2"), (f"./{name}", data)]
            members += [(f"__MACOSX/{name}", b"\0\5\x16\7\0\2")]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    (tmp_path / "._0.tar").write_bytes(b"\0\5\x16\7\0\2")
    read = source(tmp_path)
    found = [read[i] for i in range(len(read))]
    assert [x["key"] for x in found] == [f"0.tar/./{i:09d}" for i in range(3)]
    assert [x["image"] for x in found] == [many.jpeg(i) for i in range(3)]
    assert [x["texts"] for x in found] == [(many.caption(i),) for i in range(3)]


def test_byte_order_mark_is_removed_from_captions(tmp_path):
    mark = b"\xef\xbb\xbf"
    fields = json.dumps({"caption": "a cat", "alt": ["\ufeffa dog"]}).encode()
    members = [("0.jpg", many.jpeg(0)), ("0.txt", mark + b"a cat\r\n"), ("0.json", mark + fields)]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    assert source(tmp_path)[0]["texts"] == ("a cat",)
    assert source(tmp_path, captions=("caption", "alt"))[0]["texts"] == ("a cat", "a dog")


def test_separated_members_are_joined(tmp_path, caplog):
    """As `tar cf 0.tar *.jpg *.json *.txt` writes them."""
    samples = [m for i in range(20) for m in many.sample(i)]
    apart = sorted(samples, key=lambda member: member[0].rpartition(".")[2])
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(apart))
    read = source(tmp_path)
    assert "the members of 20 examples are not adjacent" in caplog.text
    found = [read[i] for i in range(len(read))]
    assert [x["image"] for x in found] == [many.jpeg(i) for i in range(20)]
    assert [x["texts"] for x in found] == [(many.caption(i),) for i in range(20)]
    labels = source(tmp_path, label="class")
    assert [labels[i]["label"] for i in range(20)] == [i % 3 for i in range(20)]


def test_ambiguous_members_are_not_joined(tmp_path, caplog):
    again = [
        (name, many.jpeg(9)) if name.endswith("jpg") else (name, b"9") for name, _ in many.sample(0)
    ]
    members = [*many.sample(0)[:1], *many.sample(1), *again[:1], *many.sample(2), *again[1:2]]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    assert "Of the first 5 examples" in caplog.text
    assert [read[i]["texts"] for i in (0, 2)] == [(), ()]
    with pytest.raises(RecordError, match=r"0.tar, 000000000: other members of the same name"):
        read[4]


@pytest.mark.parametrize("count", [79, 1200])  # more than are looked at when the tars are opened
@pytest.mark.parametrize("reason", ["other members of the same name", "it has no picture in this"])
def test_captions_without_a_picture_are_counted(tmp_path, count, reason):
    pictures = [(f"{i}.jpg", many.jpeg(i % 250)) for i in range(count)]
    texts = [(f"{i}.txt", b"c") for i in range(count)]
    members = [pictures, texts]
    if "other" in reason:  # in one tar, each name twice
        members = [[*pictures, *pictures, *texts, *texts]]
        count *= 2
    for number, part in enumerate(members):
        (tmp_path / f"{number}.tar").write_bytes(many.tar_bytes(part))
    text = rf"no KEY.txt that belongs.*Of the first {2 * count} examples of \S*, {count} can"
    with pytest.raises(ConfigError, match=rf"{text}.* 0: {reason}"):
        source(tmp_path)


def test_repeated_names_are_counted_with_their_captions(tmp_path, caplog):
    """79 pictures and then 79 captions, all of the same name: one pair stands together."""
    members = [("img.jpg", many.jpeg(i)) for i in range(79)] + [("img.txt", b"c")] * 79
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    assert "Of the first 157 examples" in caplog.text
    assert "78 cannot be used; " in caplog.text
    assert "78 are pictures without KEY.txt, such as " in caplog.text
    counters = InputCounters()
    reader = Reader(read, DataConfig(), counters, looks=[])
    for i in range(len(read)):
        reader.read(i, need_caption=True)
    assert counters.skipped == 156
    reasons = collections.Counter(reason.partition(": ")[2] for _, _, reason in counters.recent)
    assert reasons.pop("") == 78  # "it has no caption"
    ((reason, times),) = reasons.items()
    assert times == 78
    assert "write the tar again, with a unique name" in reason


def with_pax(name, data, record):
    """A member with a pax header of this content before it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        header = tarfile.TarInfo("PaxHeaders/x")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        tar.addfile(header, io.BytesIO(record))
        many.add(tar, name, data)
        end = tar.offset
    return out.getvalue()[:end]


@pytest.mark.parametrize(
    "record",
    [
        b"1" * 5000 + b" path=x.jpg\n",
        b"5016 size=" + b"9" * 5005 + b"\n",
        b"20 size=-1000000000\n",
        b"no length path=x\n",
        b"99 path=short.jpg\n",
    ],
)
def test_damaged_pax_header_loses_its_member(tmp_path, record):
    hostile = with_pax("000000001.jpg", many.jpeg(1), record)
    rest = many.tar_bytes([m for i in (1, 2) for m in many.sample(i)][1:])
    first = many.tar_bytes(many.sample(0))
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        end = [m for m in tar][-1].offset_data + 512
    (tmp_path / "0.tar").write_bytes(first[:end] + hostile + rest)
    read = source(tmp_path)
    assert len(read) == 3
    assert [read[i]["image"] for i in (0, 2)] == [many.jpeg(0), many.jpeg(2)]
    assert [read[i]["texts"] for i in (0, 2)] == [(many.caption(0),), (many.caption(2),)]
    with pytest.raises(RecordError, match=r"0.tar, 000000001.jpg: .*is damaged"):
        read[1]


def test_an_unexpected_error_of_the_parser_names_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("something new")

    many.write_tars(tmp_path, [1])
    monkeypatch.setattr(tar_format, "_name", fail)
    with pytest.raises(DatasetError, match=r"00000.tar cannot be used: ZeroDivisionError.*new"):
        source(tmp_path)

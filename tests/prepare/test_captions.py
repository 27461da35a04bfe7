"""Tables of captions: what does not fit is named, and nothing is trimmed or guessed."""

import json

import pytest

from aced.prepare.captions import Columns, PrepareError, Rejects, read_captions


def from_table(tmp_path, data, name):
    """What a table gives: texts by key, and what is left out."""
    (tmp_path / name).write_bytes(data)
    rejects = Rejects()
    found = {x.key: x.texts for x in read_captions(str(tmp_path / name), Columns(), rejects)}
    return found, [json.loads(text) for _, _, text in rejects.take()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('image,caption\n"a"b,c\n', "t.csv, line 2: not CSV"),
        ("image\tcaption\na.png\tc\n", r"t.csv, line 1: .*by tabs.*read_csv.*sep='\\t'"),
        ("image;caption\n", r"t.csv, line 1: .*by semicolons"),
        ("image,caption,caption\n", r"t.csv, line 1: two columns are called 'caption'"),
        ("image,Caption\n", r"t.csv, line 1: .*no column 'caption'.*image, Caption"),
        ("image,légende\n".encode("latin-1"), r"l\\udce9gende: it is not UTF-8.*0xe9.*LATIN1"),
        ("image,caption\na,b\n".encode("utf-16"), "t.csv cannot be read: it is UTF-16.*iconv"),
        ("image,caption\na,b\n".encode("utf-16-be"), "it is UTF-16, and must be UTF-8"),
        ("image,caption\na,b\n".encode("utf-32"), "it is UTF-32, and must be UTF-8"),
        (b"PK\x03\x04 and so on", "it is a zip file, or a spreadsheet"),
    ],
)
def test_a_table_that_is_not_csv(tmp_path, text, message):
    with pytest.raises(PrepareError, match=message):
        from_table(tmp_path, text if isinstance(text, bytes) else text.encode(), "t.csv")


def test_csv_row_with_wrong_number_of_fields_is_rejected(tmp_path):
    text = (
        "image,caption\n0.jpg,a red square, number 0, on a table\n1.jpg\n\n"
        '2.jpg,"a red square, number 2"\n3.jpg,trailing,\n4.jpg,\n'
    )
    found, left_out = from_table(tmp_path, text.encode(), "t.csv")
    assert found == {"2.jpg": ["a red square, number 2"]}
    assert [(x["line"], x["reason"]) for x in left_out] == [
        (2, "malformed_line"), (3, "malformed_line"), (6, "malformed_line"), (7, "empty_caption"),
    ]  # fmt: skip
    assert left_out[0]["detail"] == (
        "4 fields, and the header has 2; a text with a comma in it must be in quotes: "
        "'0.jpg,a red square, number 0, on a table'"
    )
    assert left_out[1]["detail"].startswith("1 fields, and the header has 2")


def test_json_line_without_a_column_is_rejected(tmp_path):
    lines = [{"image": "0"}, {"image": "1", "caption": "a"}, {"caption": "b"}, {"image": "2"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    found, left_out = from_table(tmp_path, text.encode(), "t.jsonl")
    assert found == {"1": ["a"]}
    assert [(x["line"], x["reason"], x["detail"]) for x in left_out] == [
        (1, "malformed_line", "there is no column 'caption'"),
        (3, "malformed_line", "there is no column 'image'"),
        (4, "malformed_line", "there is no column 'caption'"),
    ]


def test_column_missing_in_all_json_lines_is_an_error(tmp_path):
    text = "not JSON\n" + '{"image": "0", "text": "a"}\n' * 3
    with pytest.raises(PrepareError, match=r"line 2: .*no column 'caption'.*image, text"):
        from_table(tmp_path, text.encode(), "t.jsonl")
    # A table that long is not read to its end.
    text = '{"image": "0", "text": "a"}\n' * 10_001 + '{"image": "0", "caption": "a"}\n'
    with pytest.raises(PrepareError, match=r"line 1: .*no column 'caption'"):
        from_table(tmp_path, text.encode(), "t.jsonl")


def test_json_line_with_a_repeated_field_is_rejected(tmp_path):
    lines = b'{"image": "0", "caption": "a", "caption": "b"}\n{"image": "1", "caption": "c"}\n'
    found, (left_out,) = from_table(tmp_path, lines, "t.jsonl")
    assert found == {"1": ["c"]}
    assert left_out["detail"] == "not JSON: the field 'caption' occurs twice"


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_byte_order_marks_and_other_encodings_in_a_table(tmp_path, name):
    mark = b"\xef\xbb\xbf"
    if name.endswith("csv"):
        lines = ["image,caption", "0,\ufeffa cat", "1,caf\u00e9"]
    else:
        lines = [json.dumps({"image": "0", "caption": "\ufeffa cat"})]
        lines.append('{"image": "1", "caption": "caf\u00e9"}')
    data = mark + "\n".join(lines).encode()
    assert from_table(tmp_path, data, name) == ({"0": ["a cat"], "1": ["caf\u00e9"]}, [])
    data = data.replace("caf\u00e9".encode(), b"caf\xe9")
    found, (left_out,) = from_table(tmp_path, data, name)
    assert found == {"0": ["a cat"]}
    assert left_out["detail"].startswith("the caption: it is not UTF-8 (byte 0xe9)")
    if name.endswith("jsonl"):  # of files that were joined
        found, _ = from_table(tmp_path, lines[0].encode() + b"\n" + mark + lines[1].encode(), name)
        assert found == {"0": ["a cat"], "1": ["caf\u00e9"]}
    with pytest.raises(PrepareError, match=f"{name} cannot be read: it is UTF-16"):
        from_table(tmp_path, "\n".join(lines).encode("utf-16"), name)

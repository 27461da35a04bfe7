"""The page shows the counts and pictures, and no text of the data set is part of its language."""

import base64
import html.parser
import io

from PIL import Image

from aced.prepare.page import page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=y>&amp;"


class Reader(html.parser.HTMLParser):
    """Tags, their attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def summary():
    picture = [EVIL, 0, 0, 9]
    return {
        "statistics": {
            "images": 1234567,
            "captions": 2,
            "captions_by_kind": {"given": 314_159},
            "stored_anew": 1,
            "thumbnails": 0,
            "rejected": {"near_duplicate": 77},
            "splits": {"train": {"images": 1234567, "captions": 2, "noisy": 0, "image_bytes": 999}},
            "histograms": {
                "longer_side": {"64 to 127": 40, "128 to 255": 20},
                "aspect": {"1:2": 60},
            },
        },
        "captions": [[5, EVIL], [2, "x" * 1000]],
        "samples": [[picture, [EVIL, "second"]]],
        "pairs": [[[picture, [EVIL]], [["b.png", 0, 9, 9], ["a cat"]], "3 bits and 0.01"]],
    }


def test_page():
    out = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 10, 10)).save(out, "PNG")
    asked = []

    def read(picture):
        asked.append(picture)
        return out.getvalue()

    text = page(summary(), read, 10**6)
    read_back = Reader(text)
    names = {tag for tag, _ in read_back.tags}
    assert "script" not in names
    assert not any(name.startswith("on") for _, a in read_back.tags for name in a)
    pictures = [a["src"] for tag, a in read_back.tags if tag == "img"]
    assert len(pictures) == len(asked) == 3
    for source in pictures:
        code = source.removeprefix("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(code))) as small:
            assert small.size == (128, 64)
            red, green, _ = small.getpixel((60, 30))
            assert (abs(red - 200) < 6, abs(green - 10) < 6) == (True, True)
    for shown in (
        "1,234,567",
        "images encoded again, since they were large (--max_side) or transparent",
        "images labelled noisy",
        "314,159",
        "near_duplicate",
        "a rescaled or recompressed copy of an earlier picture",
        "77",
        EVIL,
        "the earlier one: b.png: a cat",
        "left out, 3 bits and 0.01: ",
        "64 to 127",
    ):
        assert shown in read_back.text
    assert "x" * 300 not in read_back.text
    widths = [int(a["width"]) for tag, a in read_back.tags if tag == "rect"]
    assert widths[0] == 2 * widths[1] == widths[2]


def test_noisy_pairs_have_no_column_where_the_input_does_not_label_them():
    unlabelled = summary()
    del unlabelled["statistics"]["splits"]["train"]["noisy"]
    assert "noisy" not in page(unlabelled, lambda picture: b"", 10**6)


def test_undecodable_picture_is_marked():
    text = page(summary(), lambda picture: b"no picture", 10**6)
    assert "not a readable picture" in text

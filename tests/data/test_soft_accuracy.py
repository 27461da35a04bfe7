"""Soft accuracy by the official evaluation's rules, and targets of training."""

import json

import numpy as np
import pytest

from aced.data import answers, pipeline, records
from aced.data.answers import Targets, soft_accuracy
from aced.data.batch_spec import View
from aced.data.reader import InputCounters, Reader, known_fields
from aced.data.shapes.scenes import Shapes, ShapesConfig
from aced.data.sources import DataConfig
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from tests.commands import call
from tests.data import many

# An answer, ten answers with their counts, and what the official code (GT-Vision-Lab/VQA, commit
# a013f00) returns for them.
GOLDEN = [
    ("yes", {"yes": 10}, 1.0),
    ("Yes", {"yes": 10}, 0.0),  # nothing is normalised where all agree
    (" yes\n", {"yes": 10}, 1.0),
    ("Yes.", {"yes": 9, "no": 1}, 1.0),
    ("no", {"yes": 9, "no": 1}, 0.3),
    ("2", {"two": 2, "3": 8}, 0.6),
    ("the two dogs", {"2 dogs": 3, "dogs": 7}, 0.9),
    ("dont", {"don't": 3, "do not": 7}, 0.9),
    ("T-shirt", {"t shirt": 4, "shirt": 6}, 1.0),
    ("right/left", {"right / left": 2, "right left": 3, "left": 5}, 1.0),
    ("1,000 people", {"1000 people": 5, "many": 5}, 1.0),
    ("3.5.", {"3.5": 2, "3": 8}, 0.6),
    ("u.s.", {"us": 1, "usa": 9}, 0.3),
    ("none", {"0": 2, "none": 2, "zero": 2, "1": 4}, 1.0),
    ("somebody'd", {"somebodyd": 3, "x": 7}, 0.9),
    ("a", {"the": 3, "cat": 7}, 0.9),
    ("cat", {"cat": 3}, 2 / 3),
    ("dog", {"cat": 1}, 0.0),
]


def spread(counts):
    return [text for text, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(("answer", "counts", "expected"), GOLDEN)
def test_soft_accuracy_equals_the_official_code(answer, counts, expected):
    assert soft_accuracy(answer, spread(counts)) == pytest.approx(expected)


def test_soft_accuracy_leaves_out_each_person_in_turn():
    rng = np.random.default_rng(0)
    for people in (1, 2, 7, 10):
        given = [str(x) for x in rng.integers(2, 5, people)]
        for answer in ("2", "3", "4", "5"):
            others = [given[:i] + given[i + 1 :] for i in range(people)]
            expected = np.mean([min(rest.count(answer) / 3, 1) for rest in others])
            assert soft_accuracy(answer, given) == pytest.approx(expected)


def test_targets_are_the_classes_among_the_answers():
    targets = Targets(["red", "blue", "two", "don't"])
    found = targets(["2"] * 3 + ["Blue"] * 6 + ["green"])
    assert found["answer_ids"].tolist() == [1, 2] + [-1] * 8
    assert found["answer_scores"][:3] == pytest.approx([1.0, 0.9, 0.0])
    assert targets(["green"] * 10)["answer_scores"].sum() == 0
    many_classes = Targets([str(i) for i in range(12)])
    found = many_classes([str(i) for i in range(12)] + ["11"])
    assert found["answer_ids"][0] == 11  # the degrees of the others are equal
    assert len(found["answer_ids"]) == answers.MOST


GIVEN = [["red"] * 6 + ["Blue!"] * 4, ["green"] * 10, ["blue"] * 10]


def test_a_table_of_answers_is_prepared_and_read(tmp_path):
    """And read as ids and degrees by the names of the labels."""
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(many.jpeg(i, side=24))
    lines = [
        {"image": f"{i}.jpg", "caption": "what colour?", "label": label, "answers": given}
        for i, (label, given) in enumerate(zip(["red", "", "blue"], GIVEN, strict=True))
    ]
    lines.append({"image": "0.jpg", "caption": "and?", "label": "red", "answers": "none"})
    table = tmp_path / "captions.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = call(
        "prepare",
        f"--images={tmp_path}",
        f"--captions={table}",
        "--label_column=label",
        "--answers_column=answers",
        "--separate",
        f"--out={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "the answers 'none' are not a list of texts" in rejected
    source = records.RecordSource(tmp_path / "out", "train")
    assert len(source) == 3
    found = {record["key"]: record for record in (source[i] for i in range(3))}
    assert [found[f"{i}.jpg"]["answers"] for i in range(3)] == [tuple(x) for x in GIVEN]
    known = known_fields(source, DataConfig())
    assert {"answer_ids", "answer_scores"} <= set(known)
    reader = Reader(source, DataConfig(), InputCounters(), [])
    row = reader.read([source[i]["key"] for i in range(3)].index("0.jpg"), True).fields(known)
    assert source.class_names == ["blue", "red"]
    assert row["answer_ids"].tolist()[:3] == [1, 0, -1]
    assert row["answer_scores"][:2] == pytest.approx([1, 1])


def test_a_question_is_read_with_one_of_its_answers():
    """Another one in another epoch; without people's answers it is the label's name."""
    view = View(16, TokenizerConfig(kind="shapes", length=8), answers=True)
    source = Shapes(ShapesConfig(resolution=16, size=4))
    tokenizer = get_tokenizer(view.tokenizer)

    class Asked:
        name, fingerprint, class_names = "asked", "asked", ("red star",)

        def __len__(self):
            return 3

        def __getitem__(self, i):
            answer = [{"answers": ("blue", "large")}, {"label": 0}, {"label": -1}][i]
            return {"image": source[0]["image"], "texts": ("a small square",), "id": i} | answer

    config, seen = DataConfig(num_threads=0), set()
    with pipeline.train_batches(Asked(), config, {"": view}, batch_size=2, seed=0) as batches:
        for _ in range(12):
            batch = next(batches)
            assert batch["given"].tolist() == [3, 3]
            seen |= set(zip(batch["id"].tolist(), tokenizer.decode(batch["text"]), strict=True))
    assert seen == {
        (0, "a small square blue"),
        (0, "a small square large"),
        (1, "a small square red star"),
    }


def test_the_answer_does_not_depend_on_the_draw_of_a_replacement():
    given = ("blue", "large", "star", "square")
    picture = Shapes(ShapesConfig(resolution=16, size=1))[0]["image"]
    view = View(16, TokenizerConfig(kind="shapes", length=4), answers=True)

    class Asked:
        """The first half is unusable."""

        name, fingerprint = "asked", "asked"

        def __len__(self):
            return 40

        def __getitem__(self, i):
            return {"image": picture, "texts": ("a",), "id": i, "answers": given if i > 19 else ()}

    config, alike = DataConfig(num_threads=0, shuffle=False), []
    with pipeline.train_batches(Asked(), config, {"": view}, batch_size=40, seed=0) as batches:
        for _ in range(20):
            batch = next(batches)
            answers = [
                text.split()[1] for text in get_tokenizer(view.tokenizer).decode(batch["text"])
            ]
            alike += [given[i % 4] == a for i, a in zip(batch["id"][:20], answers, strict=False)]
    assert np.mean(alike) == pytest.approx(0.25, abs=0.09)  # four standard deviations


def test_only_answers_that_fit_after_the_question_are_trained_on():
    """A question that leaves no room for any of its answers is skipped and counted."""
    view = View(16, TokenizerConfig(kind="shapes", length=6), answers=True)
    picture = Shapes(ShapesConfig(resolution=16, size=1))[0]["image"]
    questions = [
        ("a small red square", ("blue", "large blue", "star")),  # room for one word
        ("a small red square on", ("blue",)),  # fills all positions with the end of text
        ("a small red square on a large blue circle", ("blue",)),
    ]

    class Asked:
        name, fingerprint = "asked", "asked"

        def __len__(self):
            return len(questions)

        def __getitem__(self, i):
            question, given = questions[i]
            return {"image": picture, "texts": (question,), "id": i, "answers": given}

    counters, seen = InputCounters(), set()
    with pipeline.train_batches(
        Asked(), DataConfig(num_threads=0), {"": view}, batch_size=3, seed=0, counters=counters
    ) as batches:
        for _ in range(8):
            batch = next(batches)
            assert batch["given"].tolist() == [4, 4, 4]
            seen |= set(get_tokenizer(view.tokenizer).decode(batch["text"]))
    assert seen == {"a small red square blue", "a small red square star"}
    assert counters.skipped == 16
    assert {(index, reason) for _, index, reason in counters.recent} == {
        (i, "its question leaves no room for an answer in the model's text of 6 ids")
        for i in (1, 2)
    }


@pytest.mark.parametrize("structs", [False, True])
def test_answers_in_parquet(tmp_path, structs):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    column = [[{"answer": x, "answer_id": 1} if structs else x for x in given] for given in GIVEN]
    rows = {"image": [many.jpeg(i, side=24) for i in range(3)], "question": ["what?"] * 3}
    pq.write_table(pa.table(rows | {"answers": column}), tmp_path / "train-0.parquet")
    config = ParquetConfig(
        str(tmp_path / "train-0.parquet"), captions=("question",), answers="answers"
    )
    source = ParquetSource(config)
    assert [source[i]["answers"] for i in range(3)] == [tuple(x) for x in GIVEN]


def test_a_record_keeps_its_answers():
    example = records.Example(b"x", ("what?",), "key", answers=("a", "b", "b"))
    assert records.decode(records.encode(example)) == example

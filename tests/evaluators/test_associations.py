"""WinoGAViL: cues with candidate pictures, and the Jaccard index of those that are chosen."""

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.records import RecordError
from aced.data.sources import open_source
from aced.data.sources.candidates import CandidatesConfig, CandidatesSource, prompt
from aced.evaluators import folders
from aced.evaluators.associations import jaccard
from aced.evaluators.benchmarks import DataSet
from aced.evaluators.folders import Choices
from tests.evaluators import wds_tree

CUES = ("apple", "Car", "tree", "ear")


def write(folder, sizes=(5, 6, 10, 12), group=2, **columns):
    """A row for each of `sizes`, the number of its candidates, in row groups of two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [[f"{row}-{i}" for i in range(size)] for row, size in enumerate(sizes)]
    pictures = [
        [{"bytes": wds_tree.png(100 * row + i), "path": None} for i in range(size)]
        for row, size in enumerate(sizes)
    ]
    table = {
        "cue": CUES[: len(sizes)],
        "candidates": names,
        "candidate_images": pictures,
        "associations": [[each[1], each[3]] for each in names],
    } | columns
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "test-0.parquet", row_group_size=group)
    return folder


def test_each_candidate_is_an_example(tmp_path):
    read = CandidatesSource(CandidatesConfig(path=str(write(tmp_path))))
    assert len(read) == 33
    examples = [read[i] for i in range(33)]
    assert [x["group"] for x in examples] == [0] * 5 + [1] * 6 + [2] * 10 + [3] * 12
    assert [x["label"] for x in examples[:6]] == [0, 1, 0, 1, 0, 0]
    assert examples[0]["texts"] == ("An apple",)
    assert examples[5]["texts"] == ("A car",)
    assert examples[13]["image"] == wds_tree.png(202)
    assert read[4]["image"] == wds_tree.png(4)  # of a row group that is no longer kept
    assert len({x["key"] for x in examples}) == 33
    assert prompt("Ear") == "An ear"


def test_a_missing_picture_and_a_missing_column(tmp_path):
    pictures = [[{"bytes": wds_tree.png(0), "path": None}, {"bytes": b"", "path": None}]]
    folder = write(tmp_path / "a", sizes=(4,), candidate_images=pictures)
    read = CandidatesSource(CandidatesConfig(path=str(folder)))
    assert read[0]["image"] == wds_tree.png(0)
    for index in (1, 2):
        with pytest.raises(RecordError, match=r"test-0.parquet, row group 0, row 0"):
            read[index]
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"cue": ["a"]}), tmp_path / "b" / "test-0.parquet")
    with pytest.raises(ConfigError, match="no column 'candidate_images' as WinoGAViL has"):
        CandidatesSource(CandidatesConfig(path=f"{tmp_path}/b"))


def test_the_folder_is_recognised(tmp_path):
    made = folders.evaluation(str(write(tmp_path)), DataSet(), Choices())
    assert made.kind == "associations"
    assert len(open_source(made.data)) == 33


def test_jaccard_equals_that_of_sets():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), rng.choice([5, 6, 10, 12], 40))
    scores, label = rng.normal(size=len(group)), rng.integers(0, 2, len(group))
    found = jaccard(scores, label, group)
    values = []
    for g in range(40):
        own = np.flatnonzero(group == g)
        belongs = {i for i in own if label[i]}
        chosen = set(sorted(own, key=lambda i: -scores[i])[: len(belongs)])
        values.append((len(own), len(belongs & chosen) / max(len(belongs | chosen), 1)))
    assert found["jaccard"] == pytest.approx(np.mean([x for _, x in values]))
    assert found["jaccard_5_6"] == pytest.approx(np.mean([x for n, x in values if n <= 6]))
    assert found["jaccard_10_12"] == pytest.approx(np.mean([x for n, x in values if n >= 10]))
    assert found["cues"] == 40
    assert "jaccard_10_12" not in jaccard(scores[:5], label[:5], group[:5])

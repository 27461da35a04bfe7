import dataclasses
import gzip
import json
import os
import signal

import jax
import numpy as np
import pytest

from aced.config import ConfigError
from aced.data import records
from aced.data.records import DatasetError
from aced.files import ownership
from aced.select_text import command
from aced.select_text import images as images_module
from aced.select_text.config import SelectTextConfig
from tests import many_processes
from tests.select_text import small_teacher
from tests.signals import signal_at

IMAGES, SENTENCES, K = 37, 300, 3
MISSING = (5, 20)


@dataclasses.dataclass
class Bench:
    folder: object
    z: np.ndarray
    texts: list[str]
    ztxt: np.ndarray

    def config(self, out, **changes):
        settings = {
            "corpus": (str(self.folder / "corpus" / "*.txt"),),
            "out": str(out),
            "budget": 60,
            "k": K,
            "teacher": str(self.folder / "teacher"),
            "features": str(self.folder / "features"),
            "block": 48,
            "tile": 16,
        }
        return SelectTextConfig(**settings | changes)

    def expected(self, budget=60, k=K):
        return small_teacher.choose_by_sorting(self.z, self.texts, self.ztxt, k, budget)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Images, and a corpus in three files with every sentence twice, spaced otherwise."""
    folder = tmp_path_factory.mktemp("bench")
    small_teacher.write(folder / "teacher")
    z = small_teacher.features(IMAGES)
    small_teacher.write_features(folder / "features", folder / "teacher", z, MISSING)
    texts = small_teacher.sentences(SENTENCES)
    lines = texts + [f"  {text.replace(' ', chr(9))}\u00a0" for text in texts]
    lines = np.random.default_rng(3).permutation(lines).tolist()
    write_corpus(folder / "corpus", lines)
    ztxt = small_teacher.embed(folder / "teacher", texts)
    return Bench(folder, np.delete(z, MISSING, axis=0), texts, ztxt)


def write_corpus(folder, lines, files=3):
    folder.mkdir()
    for i in range(files):
        (folder / f"{i}.txt").write_text("".join(f"{line}\n" for line in lines[i::files]))


def chosen(out):
    source = records.open_dataset(out, "train")
    examples = [source[i] for i in range(len(source))]
    assert all(example["image"] == b"" for example in examples)
    assert [int(example["key"], 16) for example in examples] == [
        small_teacher.number_of(example["texts"][0]) for example in examples
    ]
    return [example["texts"][0] for example in examples]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_nearest_sentences_as_by_full_sorts(bench, tmp_path, devices):
    expected, scores = bench.expected()
    found = command.run(bench.config(tmp_path / "out"), jax.devices()[:devices])
    assert chosen(tmp_path / "out") == expected
    assert found["sentences"] == 60
    assert found["images"] == IMAGES - len(MISSING)
    assert found["corpus"] == {"sentences": 2 * SENTENCES}

    # The statistics, by hand.
    columns = [bench.texts.index(text) for text in expected]
    nearest = np.argsort(-scores, axis=1)[:, :K]
    is_kept = np.isin(nearest, columns)
    assert found["first_neighbour_kept"] == pytest.approx(is_kept[:, 0].mean())
    kept = np.take_along_axis(scores, nearest, axis=1)[is_kept]
    assert found["neighbour_similarity"] == pytest.approx(kept.mean(), rel=1e-5)
    best = -np.sort(-scores[:, columns], axis=1)
    similarity = found["similarity"]
    assert similarity["chosen"]["nearest"] == pytest.approx(best[:, 0].mean(), rel=1e-5)
    assert similarity["chosen"]["k_nearest"] == pytest.approx(best[:, :K].mean(), rel=1e-5)
    assert similarity["random"]["nearest"] < similarity["chosen"]["nearest"]
    assert similarity["random"]["k_nearest"] < similarity["chosen"]["k_nearest"]


@pytest.mark.slow
def test_the_random_sample_that_is_compared_is_that_of_the_method_random(bench, tmp_path):
    found = command.run(bench.config(tmp_path / "nearest"), jax.devices()[:2])
    other = command.run(bench.config(tmp_path / "random", method="random"), jax.devices()[:2])
    assert other["similarity"] == {"chosen": pytest.approx(found["similarity"]["random"])}
    assert len(chosen(tmp_path / "random")) == 60


@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_first_neighbours_come_before_second_ones(bench, tmp_path, budget):
    config = bench.config(tmp_path / "out", budget=budget, compare=False)
    command.run(config, jax.devices()[:2])
    assert chosen(tmp_path / "out") == bench.expected(budget)[0]


def test_a_smaller_corpus_than_k(bench, tmp_path):
    write_corpus(tmp_path / "corpus", bench.texts[:5], 2)
    config = bench.config(tmp_path / "out", corpus=(f"{tmp_path}/corpus/*.txt",), k=8)
    found = command.run(config, jax.devices()[:8])
    assert sorted(chosen(tmp_path / "out")) == sorted(bench.texts[:5])
    assert found["first_neighbour_kept"] == 1.0


def test_prompts_come_first_and_once(bench, tmp_path):
    (tmp_path / "names").write_text("circle\n\nsquare\n")
    (tmp_path / "templates").write_text("a {}\nred {}\n")
    config = bench.config(
        tmp_path / "out",
        class_names=str(tmp_path / "names"),
        templates=str(tmp_path / "templates"),
    )
    found = command.run(config, jax.devices()[:2])
    prompts = {"a circle", "red circle", "a square", "red square"}
    texts = chosen(tmp_path / "out")
    assert set(texts[:4]) == prompts
    assert found["prompts"] == 4
    assert texts[4:] == [text for text in bench.expected()[0] if text not in prompts][:56]


def test_random_and_captions_need_no_teacher(bench, tmp_path):
    plain = {"teacher": "", "features": "", "budget": 50}
    config = bench.config(tmp_path / "random", method="random", **plain)
    found = command.run(config)
    texts = chosen(tmp_path / "random")
    assert len(set(texts)) == 50
    assert set(texts) <= set(bench.texts)
    assert found == {"sentences": 50, "prompts": 0, "corpus": {"sentences": 2 * SENTENCES}}

    # The captions of a data set: here, of the one that was just made.
    config = bench.config(
        tmp_path / "captions", method="captions", corpus=(str(tmp_path / "random"),), **plain
    )
    command.run(config)
    assert sorted(chosen(tmp_path / "captions")) == sorted(texts)
    with pytest.raises(ConfigError, match=r"--method=captions takes the captions of data sets"):
        command.run(bench.config(tmp_path / "no", method="captions"))


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture
def kill_after(monkeypatch):
    """Makes the search raise after some blocks, as if the process were killed there."""
    see = images_module.Images.see

    def after(blocks):
        count = 0

        def counting(self, *arguments):
            nonlocal count
            count += 1
            if count > blocks:
                raise Killed
            return see(self, *arguments)

        monkeypatch.setattr(images_module.Images, "see", counting)

    yield after
    monkeypatch.undo()


@pytest.mark.slow
def test_killed_selection_resumes_on_other_devices_with_the_same_result(
    bench, tmp_path, kill_after
):
    config = bench.config(tmp_path / "out", save_minutes=1e-9)
    reference = command.run(bench.config(tmp_path / "reference"), jax.devices()[:4])
    for devices, blocks in ((2, 3), (8, 2), (1, 4)):
        kill_after(blocks)
        with pytest.raises(Killed):
            command.run(config, jax.devices()[:devices])
        assert not (tmp_path / "out").exists()
    state = json.loads((tmp_path / ".out.selecting" / "state.json").read_text())
    assert state["blocks"] == 9
    kill_after(10**9)
    found = command.run(config, jax.devices()[:4])
    assert chosen(tmp_path / "out") == chosen(tmp_path / "reference") == bench.expected()[0]
    assert found["corpus"] == reference["corpus"]
    assert not (tmp_path / ".out.selecting").exists()

    # A second call logs that the selection is finished, and reads nothing.
    kill_after(0)
    assert command.run(config, jax.devices()[:2]) == found


@pytest.mark.slow
def test_two_at_a_time_are_refused(tmp_path):
    write_corpus(tmp_path / "corpus", [f"sentence number {i}" for i in range(90)])
    config = SelectTextConfig(
        corpus=(f"{tmp_path}/corpus/*.txt",), out=str(tmp_path / "out"), budget=9, method="random"
    )
    with ownership.owned(ownership.beside(config.out)):
        for force in (False, True):
            with pytest.raises(ownership.OwnedError, match=f"process {os.getpid()} on"):
                command.run(config, jax.devices()[:1], force=force)
    assert command.run(config, jax.devices()[:1])["sentences"] == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


@pytest.mark.parametrize("place", [0, 2])  # in the second pass, and in the first
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_own_code(number, code, place, tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus", [f"sentence number {i}" for i in range(90)])
    config = SelectTextConfig(
        corpus=(f"{tmp_path}/corpus/*.txt",),
        out=str(tmp_path / "out"),
        budget=9,
        method="random",
        block=16,
    )
    signal_at(monkeypatch, number, place)
    with pytest.raises(SystemExit) as stop:
        command.run(config, jax.devices()[:1])
    assert stop.value.code == code
    monkeypatch.undo()
    assert command.run(config, jax.devices()[:1])["sentences"] == 9


@pytest.mark.slow
def test_a_selection_with_other_settings_is_refused(bench, tmp_path, kill_after):
    kill_after(2)
    with pytest.raises(Killed):
        command.run(bench.config(tmp_path / "out"), jax.devices()[:2])
    for changes, name in (({"k": 4}, "k: there 3, now 4"), ({"min_characters": 9}, "corpus: ")):
        with pytest.raises(ConfigError, match=name):
            command.run(bench.config(tmp_path / "out", **changes), jax.devices()[:2])
    kill_after(10**9)
    command.run(bench.config(tmp_path / "out"), jax.devices()[:2])
    with pytest.raises(ConfigError, match=r"budget: there 60, now 61"):
        command.run(bench.config(tmp_path / "out", budget=61), jax.devices()[:2])
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match=r"is not a data set"):
        command.run(bench.config(tmp_path / "other"), jax.devices()[:2])


def test_features_of_another_teacher_are_refused(bench, tmp_path):
    folder = tmp_path / "features"
    small_teacher.write_features(folder, bench.folder / "teacher", bench.z)
    file = folder / "cache.json"
    content = json.loads(file.read_text())
    content["plan"]["fingerprint"]["weights"] = "0" * 64
    del content["sha256"]  # as a cache has it that was made before there were checksums
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"another model than --teacher: weights: "):
        command.run(bench.config(tmp_path / "out", features=str(folder)))


def test_a_corpus_that_changes_in_between_is_an_error(bench, tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus", bench.texts)
    choose = command.choose

    def change(selection):
        for file in (tmp_path / "corpus").iterdir():
            file.write_text(file.read_text()[::-1])
        return choose(selection)

    monkeypatch.setattr(command, "choose", change)
    config = bench.config(tmp_path / "out", corpus=(f"{tmp_path}/corpus/*.txt",))
    with pytest.raises(DatasetError, match=r"is missing in the second one"):
        command.run(config, jax.devices()[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, "belong together"),
        ({"teacher": "", "features": ""}, "--method=nearest needs --teacher"),
        ({"budget": 0}, "--budget must be at least 1"),
        ({"corpus": ()}, "--corpus is empty"),
        ({"min_characters": 2000}, "min_characters = 2000"),
        ({"templates": "x"}, "never read without --class_names"),
        ({"out": "gs://bucket/x"}, "Mount the store"),
    ],
)
def test_contradictory_settings_are_refused(bench, changes, message):
    with pytest.raises(ConfigError, match=message):
        bench.config(**{"out": "out"} | changes)


def test_no_sentence_is_an_error_with_reasons(bench, tmp_path):
    write_corpus(tmp_path / "corpus", ["", "a", " "])
    config = bench.config(tmp_path / "out", corpus=(f"{tmp_path}/corpus/*.txt",))
    with pytest.raises(DatasetError, match=r"'blank': 2.*'too_short': 1|'too_short': 1.*'blank'"):
        command.run(config, jax.devices()[:1])


def command_line(config, *more):
    flags = [f"--{f.name}={getattr(config, f.name)}" for f in dataclasses.fields(config)]
    skip = ("--corpus=", "--compare=")
    flags = [flag for flag in flags if not flag.startswith(skip)]
    return ["-m", "aced.select_text", *flags, f"--corpus={config.corpus[0]}", *more]


@pytest.mark.slow
def test_two_processes_choose_the_same_as_one_and_survive_signals(bench, tmp_path):
    config = bench.config(tmp_path / "out", save_minutes=1e-9, block=16)
    state = tmp_path / ".out.selecting" / "state.json"

    # SIGTERM to one process of two: both save the same block, and end with code 42.
    arguments = command_line(config, "--distributed")
    with many_processes.start(2, 2, arguments, tmp_path / "logs") as started:
        started.wait_for(state.is_file)
        started.processes[1].send_signal(signal.SIGTERM)
        assert started.exit_codes() == [42, 42], started.output(0) + started.output(1)
    assert json.loads(state.read_text())["processes"] == 2

    # One process goes on where the two were, and is killed; two finish.
    before = state.read_text()
    with many_processes.start(1, 2, command_line(config), tmp_path / "logs") as started:
        started.wait_for(lambda: state.read_text() != before)
        started.processes[0].kill()
        started.exit_codes()
    with many_processes.start(2, 2, arguments, tmp_path / "logs") as started:
        assert started.exit_codes() == [0, 0], started.output(0) + started.output(1)
        assert "60 sentences, of 0 prompts" in started.output(0)
    assert chosen(tmp_path / "out") == bench.expected()[0]
    found = small_teacher.statistics(tmp_path / "out")
    assert found["corpus"] == {"sentences": 2 * SENTENCES}
    assert not list(tmp_path.glob(".out*"))

    # And as one process gives them, without any disturbance.
    reference = command.run(bench.config(tmp_path / "reference"), jax.devices()[:4])
    assert found["similarity"] == {
        name: pytest.approx(values, rel=1e-6) for name, values in reference["similarity"].items()
    }


@pytest.mark.slow
def test_kinds_of_files_hold_the_same_sentences(bench, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = bench.expected()[0]
    lines = bench.texts
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("\n".join(lines))
    objects = [json.dumps({"t": line, "n": i}) for i, line in enumerate(lines)]
    (tmp_path / "b.jsonl").write_text("\n".join(objects) + "\n")
    table = pyarrow.table({"t": lines, "n": list(range(len(lines)))})
    parquet.write_table(table, tmp_path / "c.parquet", row_group_size=70)
    for name in ("a.txt.gz", "b.jsonl", "c.parquet"):
        config = bench.config(
            tmp_path / "out" / name, corpus=(str(tmp_path / name),), column="t", compare=False
        )
        command.run(config, jax.devices()[:2])
        assert chosen(tmp_path / "out" / name) == expected

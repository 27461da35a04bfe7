"""What disks and copies do to checkpoints: flipped bits, lost and cut files, no room for more."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from aced.checkpoints import checksums
from aced.checkpoints.checkpointer import (
    CheckpointConfig,
    Checkpointer,
    CheckpointError,
    load_params,
)
from tests import bucket, disks, many_processes
from tests.checkpoints.test_checkpoint import (
    abstract,
    assert_identical,
    folders,
    make_state,
    run_python,
)

STEPS = (1, 2, 3)
METADATA = "_CHECKPOINT_METADATA"
# Files that mark a save as complete; their content is not read.
UNREAD = "commit_success.txt"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The checkpoints of three steps, with metrics by which the second one is the best."""
    folder = tmp_path_factory.mktemp("written")
    config = CheckpointConfig(every_steps=1, keep_last=3, best_metric="accuracy")
    with Checkpointer(folder, config) as checkpointer:
        for step in STEPS:
            checkpointer.save(step, make_state(step), {"accuracy": 0.5 - 0.1 * abs(step - 2)})
    return folder


@pytest.fixture
def workdir(written, tmp_path):
    shutil.copytree(written / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


def files_of(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def one_of(workdir, step, part):
    """The largest file whose path has `part` in it."""
    found = [path for path in files_of(workdir, step) if part in str(path)]
    return max(found, key=lambda path: path.stat().st_size)


def flip(path, seed=0):
    rng, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"flip": flip, "cut": cut, "remove": pathlib.Path.unlink}


def damage_of(folder, files=slice(None)):
    return checksums.damage(epath.Path(folder), files)


def set_aside(workdir):
    return sorted(path.parent.name for path in workdir.glob("checkpoints_damaged/*/state"))


def restored(workdir):
    with Checkpointer(workdir) as checkpointer:
        return checkpointer.restore_or(abstract(make_state()))


def test_checksums_cover_all_files(written):
    about = json.loads((written / "checkpoints/3" / checksums.FILE).read_text())
    names = {str(path.relative_to(written / "checkpoints/3")) for path in files_of(written, 3)}
    assert names - set(about["files"]) == {METADATA, UNREAD, checksums.FILE}
    assert set(about["files"]) <= names
    assert about["custom_metadata"]["metrics"] == {"accuracy": pytest.approx(0.4)}
    for folder in map(str, STEPS):
        path = written / "checkpoints" / folder
        assert damage_of(path) is None


@pytest.mark.slow
def test_every_flipped_bit_is_found_or_changes_nothing(workdir):
    """In the file's own checksums, too; several processes find together what one finds."""
    folder = workdir / "checkpoints" / "3"
    was = json.loads((folder / METADATA).read_text())
    recorded = json.loads((folder / checksums.FILE).read_text())
    for path in files_of(workdir, 3):
        data = path.read_bytes()
        for seed in range(20):
            flip(path, seed)
            found = damage_of(folder)
            assert bool(found) == any(damage_of(folder, slice(i, None, 2)) for i in range(2))
            if path.name == METADATA and found is None:  # times, and the names of Orbax's classes
                now = json.loads(path.read_text())
                assert now["custom_metadata"] == was["custom_metadata"]
            elif path.name == checksums.FILE and found is None:  # a space, or "state"
                assert json.loads(path.read_text()) == recorded
            elif path != folder / UNREAD:
                assert found is not None, path
            if found and path.name != checksums.FILE:
                assert str(path.relative_to(folder)) in found
            path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_file_is_damaged_the_state_is_right(workdir, written, damage):
    for path in files_of(workdir, 3):
        damage(path)
        state, step = restored(workdir)
        assert_identical(state, make_state(step))
        harmless = path.name == UNREAD or (
            path.name == checksums.FILE and damage is pathlib.Path.unlink
        )
        assert step == 3 if harmless and path.parent.name == "3" else step == 2, path
        shutil.rmtree(workdir)
        shutil.copytree(written / "checkpoints", workdir / "checkpoints")


@pytest.mark.slow
def test_bit_flips_in_orbax_metadata_change_nothing(workdir, written):
    path = workdir / "checkpoints" / "3" / METADATA
    for seed in range(40):
        flip(path, seed)
        state, step = restored(workdir)
        assert_identical(state, make_state(step))
        shutil.rmtree(workdir)
        shutil.copytree(written / "checkpoints", workdir / "checkpoints")


def test_damaged_checkpoint_is_moved_and_the_newest_intact_one_restored(workdir, caplog):
    weights = one_of(workdir, 3, "ocdbt.process_0/d/")
    flip(weights)
    one_of(workdir, 2, "_METADATA").unlink()
    held = weights.read_bytes()
    with Checkpointer(workdir, CheckpointConfig(every_steps=1, keep_last=9)) as checkpointer:
        state, step = checkpointer.restore_or(abstract(make_state()))
        assert step == 1
        assert_identical(state, make_state(1))
        name = weights.relative_to(workdir / "checkpoints" / "3")
        assert f"checkpoints/3 is damaged: {name} has other content" in caplog.text
        assert "checkpoints/2 is damaged: state/_METADATA is missing" in caplog.text
        assert "resumes from its newest intact checkpoint, step 1" in caplog.text
        assert checkpointer.steps() == [1]
        for again in (2, 3):  # as the run gets there once more
            assert checkpointer.save(again, make_state(again))
    aside = workdir / "checkpoints_damaged"
    assert set_aside(workdir) == ["2", "3"]
    assert (aside / "3" / name).read_bytes() == held
    assert_identical(restored(workdir)[0], make_state(3))

    cut(one_of(workdir, 3, "ocdbt.process_0/d/"))  # the same step again
    assert restored(workdir)[1] == 2
    assert set_aside(workdir) == ["2", "3", "3.2"]
    assert (aside / "3" / name).read_bytes() == held


def test_run_ends_and_moves_nothing_if_all_checkpoints_are_damaged(workdir):
    for step in STEPS:
        flip(one_of(workdir, step, "ocdbt.process_0/d/"))
    for _ in range(2):  # a second start does not begin anew either
        with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole:\n.*/3 is") as e:
            restored(workdir)
        assert "checkpoints/1 is damaged: state/ocdbt.process_0/d/" in str(e.value)
        assert "Restore one from a copy" in str(e.value)
        assert folders(workdir) == [1, 2, 3]


def test_older_damaged_checkpoint_that_blocks_orbax_is_moved(workdir):
    cut(one_of(workdir, 1, "metrics/metrics"))
    with Checkpointer(workdir, CheckpointConfig(every_steps=1, keep_last=9)) as checkpointer:
        assert checkpointer.restore_or(abstract(make_state()))[1] == 3
        checkpointer.save(4, make_state(4))
    assert folders(workdir) == [2, 3, 4]
    assert_identical(restored(workdir)[0], make_state(4))


def test_wrong_shape_does_not_count_as_damage(workdir):
    with (
        Checkpointer(workdir) as checkpointer,
        pytest.raises(CheckpointError, match="3 does not fit"),
    ):
        checkpointer.restore_or(abstract(make_state(width=6)))
    assert folders(workdir) == [1, 2, 3]


def test_read_error_does_not_count_as_damage(workdir, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checksums, "_size_and_crc", fail)
    with pytest.raises(CheckpointError, match=r"3 cannot be read .*Input/output error"):
        restored(workdir)
    assert folders(workdir) == [1, 2, 3]


def test_damaged_checkpoint_that_cannot_be_moved(workdir):
    flip(one_of(workdir, 3, "ocdbt.process_0/d/"))
    (workdir / "checkpoints_damaged").write_text("a file")
    with pytest.raises(CheckpointError, match=r"\[3\] could not be moved .*resumes from step 2"):
        restored(workdir)
    assert folders(workdir) == [1, 2, 3]


def test_older_checkpoints_without_checksums(tmp_path, caplog):
    def state(step):
        return {"params": jax.random.normal(jax.random.key(step), (100, 100))}

    with Checkpointer(tmp_path, CheckpointConfig(every_steps=1, keep_last=3)) as checkpointer:
        for step in STEPS:
            checkpointer.save(step, state(step))
    for step in STEPS:
        (tmp_path / "checkpoints" / str(step) / checksums.FILE).unlink()
    with Checkpointer(tmp_path) as checkpointer:
        assert_identical(checkpointer.restore_or(abstract(state(0)))[0], state(3))
    # What Orbax itself cannot read is damage here, too: a description, and the arrays.
    one_of(tmp_path, 3, "state/_METADATA").unlink()
    cut(one_of(tmp_path, 2, "ocdbt.process_0/d/"))
    with pytest.raises(CheckpointError, match="3 is damaged: the description of its 'state'"):
        load_params(tmp_path)
    with pytest.raises(CheckpointError, match=r"2 is damaged: .*local file "):
        load_params(tmp_path, which=2)
    with Checkpointer(tmp_path) as checkpointer:
        assert_identical(checkpointer.restore_or(abstract(state(0)))[0], state(1))
    assert "the description of its 'state' is missing or not readable" in caplog.text
    assert set_aside(tmp_path) == ["2", "3"]


def test_a_start_compares_each_file_once(workdir, monkeypatch):
    """Of the checkpoint that it loads; of a damaged one it stops at the first that is wrong."""
    read, compared = checksums._size_and_crc, []
    monkeypatch.setattr(
        checksums, "_size_and_crc", lambda path: compared.append(path) or read(path)
    )
    _, step = restored(workdir)
    assert step == 3
    of_it = [path for path in compared if path.parts[-2] == "3" or "/checkpoints/3/" in str(path)]
    assert len(of_it) == len(set(of_it)) > 5
    about = json.loads((workdir / "checkpoints/3" / checksums.FILE).read_text())
    assert len(of_it) == len(about["files"])


def test_older_metrics_without_checksums(workdir):
    """Orbax opens no folder in which one checkpoint's are not readable, whichever it is."""
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / checksums.FILE).unlink()
    for step in (1, 3):
        cut(one_of(workdir, step, "metrics/metrics"))
    state, step = restored(workdir)
    assert step == 2
    assert_identical(state, make_state(2))
    assert folders(workdir) == [2]


def test_load_params_detects_damage(workdir):
    assert_identical(load_params(workdir, which="best"), load_params(workdir, which=2))
    flip(one_of(workdir, 3, "ocdbt.process_0/d/"))
    for which in ("last", 3):
        with pytest.raises(CheckpointError, match=r"3 is damaged: state/.*other steps: \[1, 2\]"):
            load_params(workdir, which=which)
    expected = jax.tree.map(np.asarray, make_state(2).params)
    assert_identical(load_params(workdir, which="best"), expected)  # it is not that one
    # Of the metrics a digit: another one would be the best.
    path = workdir / "checkpoints" / "1" / METADATA
    path.write_text(path.read_text().replace("0.4", "0.9"))
    with pytest.raises(CheckpointError, match=f"1 is damaged: {METADATA}"):
        load_params(workdir, which="best")
    assert folders(workdir) == [1, 2, 3]  # another one's run is left as it is


def test_lost_metrics_without_checksums(workdir):
    for step in STEPS:
        (workdir / "checkpoints" / str(step) / checksums.FILE).unlink()
    (workdir / "checkpoints" / "2" / METADATA).unlink()
    with pytest.raises(CheckpointError, match="2 is damaged: its metrics"):
        load_params(workdir, which="best")


def test_a_disk_that_stays_full(tmp_path):
    """The limit on failed saves comes, with its message; nothing of what there was is lost."""
    done = run_python(
        """
        import resource, sys
        import jax
        from aced.checkpoints.checkpointer import CheckpointConfig, Checkpointer

        def state(seed):
            return {"params": jax.random.normal(jax.random.key(seed), (256, 256))}

        config = CheckpointConfig(every_steps=1, max_failed_saves=3)
        with Checkpointer(sys.argv[1], config) as checkpointer:
            checkpointer.save(1, state(1))
            checkpointer.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            for step in range(2, 12):
                checkpointer.save(step, state(step))
        """,
        tmp_path,
    )
    assert done.returncode == 1, done.stderr
    # Orbax's threads may still print after the error.
    errors = [line for line in done.stderr.splitlines() if "CheckpointError: Checkpoint" in line]
    assert errors, done.stderr
    last = errors[-1]
    assert "failure 3 in a row" in last
    assert "Existing checkpoints: [1]. Make room" in last
    assert folders(tmp_path) == [1]
    state = {"params": jax.random.normal(jax.random.key(1), (256, 256))}
    with Checkpointer(tmp_path) as checkpointer:
        assert_identical(checkpointer.restore_or(abstract(state))[0], state)


@pytest.fixture
def small_disk(tmp_path):
    with disks.mounted(tmp_path / "disk", "size=4m") as folder:
        yield folder


@pytest.mark.slow
# Executors that Orbax leaves behind after a failed save warn when they end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_at_any_byte(small_disk):
    """Little room fails the first files of a checkpoint, more room its last ones."""
    ended = []
    for room in (0, *range(4096, 60_000, 16_384), *range(240_000, 440_000, 16_384)):
        for path in small_disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        config = CheckpointConfig(every_steps=1, max_failed_saves=3, keep_last=1)
        checkpointer = Checkpointer(small_disk, config)
        checkpointer.save(1, make_state(1, width=500))
        checkpointer.wait()
        free = shutil.disk_usage(small_disk).free
        (small_disk / "other").write_bytes(bytes(max(free - room, 0)))
        error = None
        try:
            for step in range(2, 8):
                checkpointer.save(step, make_state(step, width=500))
            checkpointer.close()
        except CheckpointError as failed:
            error = failed
        ended.append(error is None)
        assert error is None or "Make room" in str(error), error
        assert checkpointer.failed_saves in ((0,) if error is None else (1, 3))
        (small_disk / "other").unlink()
        with Checkpointer(small_disk) as again:
            state, step = again.restore_or(abstract(make_state(0, width=500)))
        assert step == 7 if error is None else step < 7
        assert_identical(state, make_state(step, width=500))
    assert not ended[0]
    assert ended[-1]


PROCESSES = """
import os
import numpy as np
from aced.parallel import distributed
from aced.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from tests.sharded_state import abstract, state

with distributed.ending_together():
    distributed.initialize()
    with Checkpointer(os.environ["FOLDER"], CheckpointConfig(every_steps=1)) as checkpointer:
        if (found := checkpointer.restore_or(abstract())) is None:
            checkpointer.save(1, state(1))
            checkpointer.save(2, state(2))
        else:
            got, step = found
            for shard, wanted in zip(
                got["params"].addressable_shards, state(step)["params"].addressable_shards
            ):
                np.testing.assert_array_equal(shard.data, wanted.data)
            print("restored", step, checkpointer.steps(), flush=True)
            checkpointer.save(3, state(3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_two_processes_agree_on_damage(tmp_path, process):
    def run():
        settings = {"FOLDER": tmp_path / "run"}
        with many_processes.start(2, 2, ["-c", PROCESSES], tmp_path, **settings) as started:
            codes = started.exit_codes(120)
        outputs = [started.output(i) for i in range(2)]
        assert codes == [0, 0], outputs[0] + outputs[1]
        return outputs

    run()
    flip(one_of(tmp_path / "run", 2, f"ocdbt.process_{process}/d/"))
    outputs = run()
    for output in outputs:
        assert "restored 1 [1]" in output
        assert "checkpoints/2 is damaged: " in output
    assert sum(f"ocdbt.process_{process}" in output for output in outputs) == 1
    assert folders(tmp_path / "run") == [1, 3]
    assert set_aside(tmp_path / "run") == ["2"]
    rows = np.random.default_rng(3).normal(size=(4, 256, 256)).astype(np.float32)
    np.testing.assert_array_equal(load_params(tmp_path / "run"), jnp.asarray(rows))


IN_A_STORE = """
import fsspec, jax
from aced.checkpoints.checkpointer import CheckpointConfig, Checkpointer

def state(seed):
    return {"params": jax.random.normal(jax.random.key(seed), (50, 50))}

shapes = jax.eval_shape(lambda: state(0))
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
run, config = "gs://bucket/run", CheckpointConfig(every_steps=1, keep_last=3)
with Checkpointer(run, config) as checkpointer:
    for step in (1, 2, 3):
        checkpointer.save(step, state(step), {"accuracy": 0.5})
store = fsspec.filesystem("gs")
names = store.find("bucket/run/checkpoints")
(weights,) = [name for name in names if "/3/state/ocdbt.process_0/d/" in name]
data = bytearray(store.cat_file(weights))
data[len(data) // 2] ^= 4
store.pipe_file(weights, bytes(data))
store.rm_file("bucket/run/checkpoints/2/state/_METADATA")
for steps in ([1], [1, 2]):
    with Checkpointer(run, config) as checkpointer:
        got, step = checkpointer.restore_or(like)
        assert checkpointer.steps() == steps, checkpointer.steps()
        assert (got["params"] == state(step)["params"]).all()
        print("restored", step)
        checkpointer.save(2, state(2))
store.invalidate_cache()
moved = store.find("bucket/run/checkpoints_damaged")
print("moved", sorted({name.split("/")[3] for name in moved if "/state/" in name}))
"""


@pytest.mark.slow
def test_damaged_checkpoints_in_a_store_are_moved(monkeypatch):
    with bucket.serve_gs() as (_, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = run_python(IN_A_STORE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["restored 1", "restored 2", "moved ['2', '3']"]
    assert "3 is damaged: state/ocdbt.process_0/d/" in done.stderr
    assert "2 is damaged: state/_METADATA is missing" in done.stderr

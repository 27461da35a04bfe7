"""Two processes in one folder, and owners that died, on a disk and in a store."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import uuid

import fsspec
import pytest

from aced.config import ConfigError
from aced.files import ownership, storage
from aced.files.ownership import OwnedError, Owner, owned
from tests.train.test_train import config, run

OWNS = """
import sys, time
from aced.files.ownership import owned
with owned(sys.argv[1]):
    print("owns", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """A second of the rule is a hundredth of one here; what ends the process raises nothing."""
    for name in ("STALE", "_BEAT", "_WATCHED", "_DYING", "_POLL"):
        name = f"{name}_SECONDS"
        monkeypatch.setattr(ownership, name, getattr(ownership, name) / 100)


@pytest.fixture(params=["disk", "store", "disk without locks"])
def path(request, tmp_path, monkeypatch):
    if request.param == "store":
        return f"memory://{uuid.uuid4().hex}/run/owner.json"
    if request.param == "disk without locks":

        def refused(file, operation):
            raise OSError(ownership.errno.ENOSYS, "no locks")

        monkeypatch.setattr(ownership.fcntl, "flock", refused)
    return str(tmp_path / "run" / "owner.json")


def read(path):
    with fsspec.open(path, "rb") as file:
        return json.loads(file.read())


def write(path, owner):
    if "://" not in path:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with fsspec.open(path, "wb") as file:
        file.write(owner.bytes())


def exists(path):
    store, inner = fsspec.url_to_fs(path)
    return store.exists(inner)


def elsewhere(seen):
    """An owner on another machine."""
    return dataclasses.replace(Owner.this(), host="far", boot="other", seen=seen, process=77)


def test_the_second_is_refused_with_the_name_of_the_first(path):
    with owned(path):
        mine = read(path)
        assert (mine["host"], mine["process"]) == (os.uname().nodename, os.getpid())
        for force in (False, True):  # an owner that is certainly alive is not replaced
            with pytest.raises(OwnedError) as error, owned(path, force):
                pass
            assert f"process {os.getpid()} on {os.uname().nodename}, started 2" in str(error.value)
            assert path in str(error.value)
            assert f"kill {os.getpid()}" in str(error.value)
        assert read(path)["token"] == mine["token"]
    assert not exists(path)
    with owned(path):
        pass


def test_an_error_gives_the_folder_free(path):
    with pytest.raises(ZeroDivisionError), owned(path):
        _ = 1 / 0
    assert not exists(path)


def test_signs_of_life(path):
    with owned(path):
        first = read(path)["seen"]
        deadline = time.monotonic() + 20
        while read(path)["seen"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_owner_of_this_machine_that_has_ended_is_replaced_at_once(path, monkeypatch):
    monkeypatch.setattr(ownership, "STALE_SECONDS", 1e9)
    ended = subprocess.Popen(["true"])
    ended.wait()
    write(path, dataclasses.replace(Owner.this(), process=ended.pid, birth="1"))
    with owned(path):
        assert read(path)["process"] == os.getpid()
    # Another process that has its number by now.
    write(path, dataclasses.replace(Owner.this(), birth="1"))
    with owned(path):
        assert read(path)["birth"] != "1"


def test_owners_are_dead_or_alive_without_waiting(path):
    assert ownership.owner_in(path) is None
    with owned(path):
        owner = ownership.owner_in(path)
        assert (owner.process, owner.is_dead) == (os.getpid(), False)
    ended = dataclasses.replace(Owner.this(), birth="1")
    for owner, is_dead in (
        (ended, True),
        (elsewhere(time.time() - 3000), False),  # the clock there may differ
        (elsewhere(time.time() - 7200), True),
        (Owner(), False),  # being written
    ):
        write(path, owner)
        assert ownership.owner_in(path).is_dead == is_dead


def test_an_owner_elsewhere_is_dead_without_a_sign_of_life(path):
    write(path, elsewhere(time.time()))
    start = time.monotonic()
    with owned(path):
        assert time.monotonic() - start > 0.9 * ownership.STALE_SECONDS
    write(path, elsewhere(time.time() - 7200))  # of long ago
    start = time.monotonic()
    with owned(path):
        assert time.monotonic() - start < ownership._WATCHED_SECONDS
    # With any clock on that machine.
    for seen in (time.time() + 3000, time.time() - 3000):
        write(path, elsewhere(seen))
        start = time.monotonic()
        with owned(path):
            waited = time.monotonic() - start
        assert 0.9 * ownership._WATCHED_SECONDS < waited < 5 * ownership.STALE_SECONDS


def test_live_owner_on_another_host_is_respected_unless_forced(path, caplog):
    there = elsewhere(time.time())
    write(path, there)
    done = threading.Event()

    def live():
        seen = there.seen
        while not done.wait(0.05):
            seen += 1
            write(path, dataclasses.replace(there, seen=seen))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(OwnedError, match=r"process 77 on far.*--force"), owned(path):
            pass
        assert "is taken over in" in caplog.text
    finally:
        done.set()
        thread.join()
    with owned(path, force=True):
        assert read(path)["process"] == os.getpid()


@pytest.mark.parametrize("path", ["store", "disk without locks"], indirect=True)
def test_an_owner_that_writes_its_file_is_named_when_it_is_complete(path):
    there = elsewhere(time.time())
    write(path, there)

    def live():
        time.sleep(0.3)
        with fsspec.open(path, "wb"):
            pass
        time.sleep(0.3)
        write(path, dataclasses.replace(there, seen=there.seen + 1))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(OwnedError, match=r"process 77 on far.*--force"), owned(path):
        pass
    thread.join()


def test_process_ends_after_its_folder_was_taken_over(path, monkeypatch):
    ended = threading.Event()

    def end(message):
        assert "process 77 on far" in message
        ended.set()
        raise RuntimeError(message)

    monkeypatch.setattr(ownership, "_end", end)
    with owned(path):
        write(path, elsewhere(time.time()))
        assert ended.wait(20)
    assert read(path)["process"] == 77  # what is another's is not removed


@pytest.mark.parametrize("data", [b"", b"{", b"\0" * 300, b"[1]"])
def test_a_damaged_file_stops_no_start(data, tmp_path):
    (tmp_path / "owner.json").write_bytes(data)
    start = time.monotonic()
    with owned(str(tmp_path / "owner.json")):
        assert time.monotonic() - start < 0.4
        assert read(str(tmp_path / "owner.json"))["process"] == os.getpid()


def test_killed_owner_is_replaced_and_live_owner_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "STALE_SECONDS", 1e9)
    file = str(tmp_path / "owner.json")
    command = [sys.executable, "-c", OWNS, file]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(first.kill)
        assert first.stdout.readline() == b"owns\n"
        with pytest.raises(OwnedError, match=f"process {first.pid} "), owned(file):
            pass
        with pytest.raises(OwnedError), owned(file, force=True):
            pass
        first.kill()
        with owned(file):
            assert read(file)["process"] == os.getpid()


def test_one_of_many_concurrent_starts_becomes_owner(path):
    inside, refused, most = [], [], []
    barrier = threading.Barrier(6)

    def start():
        barrier.wait()
        try:
            with owned(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.2)
                inside.pop()
        except OwnedError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 6


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, why in (("file/owner.json", "Not a directory"), ("n" * 300, "too long")):
        with (
            pytest.raises(storage.StorageError, match=f"{tmp_path}/.* cannot be written.*{why}"),
            owned(str(tmp_path / path)),
        ):
            pass


def test_owner_file_is_beside_an_output_that_is_moved_at_the_end():
    assert ownership.beside("/data/set/") == "/data/.set.owner.json"
    assert ownership.beside("gs://b/data/set") == "gs://b/data/.set.owner.json"
    assert ownership.beside("set") == ".set.owner.json"


def test_two_runs_in_one_workdir_are_refused(tmp_path):
    settings = config("iid", steps=2)
    owner = tmp_path / "run" / ownership.FILE
    with ownership.owned(str(owner)):
        said = rf"{owner} is in use: process {os.getpid()} on .*, started 2"
        with pytest.raises(ConfigError, match=said):
            run(settings, tmp_path / "run")
        assert [path.name for path in owner.parent.iterdir()] == [ownership.FILE]
    # So is one in the folder of a run that comes first.
    settings.before = {"reference": config("iid", steps=2)}
    settings.before.reference.before = {}
    with (
        ownership.owned(str(tmp_path / "run" / "reference" / ownership.FILE)),
        pytest.raises(ownership.OwnedError, match=r"run/reference/owner\.json"),
    ):
        run(settings, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("name", ["owner.json", "."])
def test_broken_link(tmp_path, name):
    link = tmp_path / "run" if name == "." else tmp_path / "run" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "gone" / "away")
    with (
        pytest.raises(storage.StorageError, match=r"owner.json cannot be written: .*No such file"),
        owned(str(tmp_path / "run" / "owner.json")),
    ):
        pass
    assert link.is_symlink()

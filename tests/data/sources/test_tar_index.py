"""The index of tars: kept, shared, gone on with after a kill, and not believed."""

import json
import multiprocessing
import os
import struct

import numpy as np
import pytest

from aced.data.records import RecordError
from aced.data.sources import tar_index
from aced.data.sources.tar_scan import ENTRY
from aced.data.sources.tars import TarSource, WebDatasetConfig
from aced.files import storage
from tests.data import many


def source(path, **settings):
    return TarSource(WebDatasetConfig(path=str(path), **settings))


def test_index_is_kept_until_a_tar_changes(tmp_path, monkeypatch):
    many.write_tars(tmp_path, [2, 2])
    first = source(tmp_path)
    (index,) = tmp_path.glob("INDEX-*")
    builds = []
    build = tar_index._build
    monkeypatch.setattr(tar_index, "_build", lambda *a: builds.append(1) or build(*a))
    assert source(tmp_path).fingerprint == first.fingerprint
    assert not builds
    # Written again with other content of the same length.
    data = bytearray((tmp_path / "00001.tar").read_bytes())
    tar = tmp_path / "00001.tar"
    tar.write_bytes(many.tar_bytes([m for i in (7, 3) for m in many.sample(i)]))
    assert tar.stat().st_size == len(data)
    os.utime(tar, ns=(1, 1))
    again = source(tmp_path)
    assert len(builds) == 1
    assert again.fingerprint != first.fingerprint
    assert again[2]["image"] == many.jpeg(7)
    for cut in (5, 100, len(index.read_bytes()) - 1):
        index.write_bytes(index.read_bytes()[:cut])
        assert source(tmp_path).fingerprint == again.fingerprint
    assert len(builds) == 4


def test_tars_that_are_cut_into_examples_otherwise_are_other_data(tmp_path, monkeypatch):
    many.write_tars(tmp_path, [2])
    before = source(tmp_path).fingerprint
    monkeypatch.setattr(tar_index, "EXAMPLES", "aced-tar-index-0")
    assert source(tmp_path).fingerprint != before


def test_every_flipped_bit_of_an_index_is_found(tmp_path):
    """So that no picture gets another caption."""
    many.write_tars(tmp_path, [2, 1])
    source(tmp_path)
    (path,) = tmp_path.glob("INDEX-*")
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack_from("<Q", data, 24)
    table = json.loads(data[32 : 32 + size])["tars"]
    assert tar_index._parse(memoryview(data), table).entries["image_size"].min() > 0
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"it is not an index of this version|its checksum"):
            tar_index._parse(memoryview(data), table)
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("copied", [False, True])
def test_damaged_index_is_built_again_with_a_warning(tmp_path, caplog, copied):
    many.write_tars(tmp_path, [2, 1])
    path = str(tmp_path)
    if copied:
        for tar in tmp_path.glob("*.tar"):
            storage.write(f"memory://damaged/{tar.name}", tar.read_bytes())
        path = "memory://damaged"
    first = source(path, cache_folder=str(tmp_path / "cache"))
    (index,) = (tmp_path / "cache" if copied else tmp_path).glob("INDEX-*")
    good = index.read_bytes()
    for place in range(0, len(good), 97):
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        index.unlink()  # it is mapped
        index.write_bytes(data)
        caplog.clear()
        again = source(path, cache_folder=str(tmp_path / "cache"))
        assert f"The index {index} is not used, and is built again" in caplog.text
        assert [again[i] for i in range(3)] == [first[i] for i in range(3)]
        assert index.read_bytes() == good


def test_index_without_checksum_is_built_again_and_the_run_resumes(tmp_path):
    """A run compares the fingerprint of its data, which does not change with the index's form."""
    many.write_tars(tmp_path, [2])
    before = source(tmp_path)
    (index,) = tmp_path.glob("INDEX-*")
    data = index.read_bytes()
    index.unlink()
    index.write_bytes(b"aced-tar-index-3" + data[24:])
    assert source(tmp_path).fingerprint == before.fingerprint
    assert before.fingerprint.startswith("aced-tar-index-3 ")
    assert index.read_bytes() == data


def test_copies_have_the_same_fingerprint(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        many.write_tars(tmp_path / name, [2, 2])
        for tar in (tmp_path / name).glob("*.tar"):
            os.utime(tar, ns=(ord(name), ord(name)))
    prints = {source(tmp_path / name).fingerprint for name in "ab"}
    assert len(prints) == 1
    assert source(tmp_path / "a" / "00000.tar").fingerprint not in prints
    assert source(tmp_path / "a", captions=("caption",)).fingerprint not in prints


def test_index_is_in_the_cache_folder_if_the_tars_are_read_only(tmp_path, monkeypatch):
    many.write_tars(tmp_path, [3])
    write = storage.write

    def refuse(path, data):
        if os.path.dirname(path) == str(tmp_path):
            raise PermissionError(path)
        write(path, data)

    monkeypatch.setattr(storage, "write", refuse)
    cache = tmp_path / "cache"
    assert len(source(tmp_path, cache_folder=str(cache))) == 3
    assert len(list(cache.iterdir())) == 1
    assert not list(tmp_path.glob("INDEX*"))
    monkeypatch.setattr(tar_index, "_build", None)
    assert source(tmp_path, cache_folder=str(cache))[1]["texts"] == ("green circle",)


def test_wrong_index_reads_no_bytes_outside_the_tar(tmp_path):
    many.write_tars(tmp_path, [2])
    source(tmp_path)
    (path,) = tmp_path.glob("INDEX-*")
    data = bytearray(path.read_bytes())
    count = 2 * ENTRY.itemsize
    size = int.from_bytes(data[24:32], "little")
    entries = np.frombuffer(data, ENTRY, 2, 32 + size)
    entries["image_size"] = [1 << 40, 4096]
    entries["text"][1] = 1 << 40
    assert len(data) > count
    path.write_bytes(tar_index._checked(data))
    read = source(tmp_path)
    with pytest.raises(RecordError, match="image of 1099511627776 bytes"):
        read[0]
    with pytest.raises(RecordError, match="the tar ends before"):
        read[1]


def test_tars_in_a_store_are_read_in_parts(tmp_path):
    many.write_tars(tmp_path, [3, 2])
    for tar in tmp_path.glob("*.tar"):
        storage.write(f"memory://tars/{tar.name}", tar.read_bytes())
    remote = source("memory://tars/{00000..00001}.tar", cache_folder=str(tmp_path / "cache"))
    local = source(tmp_path)
    assert [remote[i] for i in range(5)] == [local[i] for i in range(5)]
    assert remote.fingerprint == local.fingerprint
    # Beside the tars for all machines, and a copy here.
    assert len(storage.find("memory://tars/INDEX-*", "")) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_index_in_a_store_is_fetched(tmp_path, monkeypatch):
    many.write_tars(tmp_path, [3])
    storage.write("memory://fetched/00000.tar", (tmp_path / "00000.tar").read_bytes())
    first = source("memory://fetched", cache_folder=str(tmp_path / "one"))
    monkeypatch.setattr(tar_index, "_build", None)
    second = source("memory://fetched", cache_folder=str(tmp_path / "two"))
    assert second[2] == first[2]
    assert json.dumps(second.fingerprint) == json.dumps(first.fingerprint)


def counted(monkeypatch, limit=None):
    """The tars that are read from front to back; after `limit` of them, no more."""
    scanned, scan = [], tar_index.scan

    def counting(file):
        if len(scanned) == limit:
            raise KeyboardInterrupt
        scanned.append(os.path.basename(file.path))
        return scan(file)

    monkeypatch.setattr(tar_index, "scan", counting)
    monkeypatch.setattr(tar_index, "_THREADS", 1)
    return scanned


def test_an_index_that_was_interrupted_is_gone_on_with(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        many.write_tars(tmp_path / name, [2, 0, 3, 1, 2])
    expected = source(tmp_path / "whole")
    with monkeypatch.context() as patch:
        first = counted(patch, limit=3)
        with pytest.raises(KeyboardInterrupt):
            source(tmp_path / "killed")
    (parts,) = (tmp_path / "killed").glob("INDEX-*.parts")
    assert len(list(parts.iterdir())) == 3
    next(parts.iterdir()).write_bytes(b"damaged")  # is made again
    second = counted(monkeypatch)
    read = source(tmp_path / "killed")
    assert len(second) == 3
    assert set(first) | set(second) == {f"{i:05d}.tar" for i in range(5)}
    assert [read[i] for i in range(8)] == [expected[i] for i in range(8)]
    assert read.fingerprint == expected.fingerprint
    assert not parts.exists()


def test_a_tar_that_changed_in_between_is_read_again(tmp_path, monkeypatch):
    many.write_tars(tmp_path, [2, 2])
    with monkeypatch.context() as patch:
        done = counted(patch, limit=1)
        with pytest.raises(KeyboardInterrupt):
            source(tmp_path)
    tar = tmp_path / done[0]
    tar.write_bytes(many.tar_bytes([m for i in (7, 3) for m in many.sample(i)]))
    os.utime(tar, ns=(1, 1))
    again = counted(monkeypatch)
    read = source(tmp_path)
    assert len(again) == 2
    assert read[2 * int(tar.stem)]["image"] == many.jpeg(7)


def test_index_finished_by_another_host_is_used(tmp_path, monkeypatch):
    many.write_tars(tmp_path, [2, 2, 2])
    scan, scanned = tar_index.scan, []

    def overtaken(file):
        scanned.append(file)
        if len(scanned) == 1:  # meanwhile, elsewhere
            monkeypatch.setattr(tar_index, "scan", scan)
            source(tmp_path)
            monkeypatch.setattr(tar_index, "scan", overtaken)
        return scan(file)

    monkeypatch.setattr(tar_index, "scan", overtaken)
    monkeypatch.setattr(tar_index, "_THREADS", 1)
    read = source(tmp_path)
    assert len(scanned) == 1
    assert not list(tmp_path.glob("*.parts"))  # what was written after the other one's end, too
    assert [read[i]["image"] for i in range(6)] == [many.jpeg(i) for i in range(6)]


def test_temporary_error_keeps_the_parts_of_other_hosts(tmp_path, monkeypatch):
    """A store raises an error of its own once, while an old index is compared."""
    many.write_tars(tmp_path, [2, 2, 2, 2])
    source(tmp_path)
    tar = tmp_path / "00003.tar"
    tar.write_bytes(many.tar_bytes([m for i in (7, 3) for m in many.sample(i)]))
    os.utime(tar, ns=(1, 1))
    stat, asked = storage.stat, []

    def failing(path):
        if path.endswith(".parts") or ".parts/" in path:
            return stat(path)
        asked.append(path)
        if len(asked) == 2:
            raise RuntimeError("too many requests")
        return stat(path)

    monkeypatch.setattr(storage, "stat", failing)
    scanned = counted(monkeypatch)
    assert source(tmp_path)[6]["image"] == many.jpeg(7)
    assert len(scanned) == 4
    assert len(asked) > 2


def test_a_host_that_comes_late_reads_no_tar(tmp_path, monkeypatch):
    """Another one finishes just before this one begins to build."""
    many.write_tars(tmp_path, [2, 2])
    scanned, build = counted(monkeypatch), tar_index._build

    def late(*arguments):
        monkeypatch.setattr(tar_index, "_build", build)
        source(tmp_path)
        return build(*arguments)

    monkeypatch.setattr(tar_index, "_build", late)
    assert len(source(tmp_path)) == 4
    assert len(scanned) == 2


def _host(folder, barrier, out):
    scan, count = tar_index.scan, 0

    def counting(file):
        nonlocal count
        count += 1
        return scan(file)

    tar_index.scan, tar_index._THREADS = counting, 1
    barrier.wait()
    read = source(folder)
    out.put((count, [read[i]["key"] for i in range(len(read))], str(read.fingerprint)))


def test_hosts_that_start_at_once_share_the_tars(tmp_path):
    tars, hosts = 24, 3
    many.write_tars(tmp_path, [2] * tars)
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(hosts), context.Queue()
    processes = [context.Process(target=_host, args=(tmp_path, barrier, out)) for _ in range(hosts)]
    for process in processes:
        process.start()
    found = [out.get(timeout=240) for _ in processes]
    for process in processes:
        process.join()
    assert sum(count for count, _, _ in found) < 2 * tars  # each alone would have read all
    assert len({fingerprint for _, _, fingerprint in found}) == 1
    assert all(keys == found[0][1] and len(keys) == 2 * tars for _, keys, _ in found)
    assert len(list(tmp_path.iterdir())) == tars + 1

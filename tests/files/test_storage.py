"""Paths, patterns and parts of files, on disk and in fsspec's store in memory."""

import concurrent.futures
import glob
import os
import subprocess

import pytest

from aced.config import ConfigError
from aced.files import storage
from aced.files.storage import StorageError


@pytest.mark.parametrize(
    "pattern",
    ["a", "a{0..2}b", "{08..11}.tar", "{8..11}", "{x,y}/{0..1}.tar", "{00..01}{a,b,}z", "a{b}c"],
)
def test_braces_are_the_shells(pattern):
    bash = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True)
    assert storage.expand(pattern) == bash.stdout.split()


def test_ranges_that_cannot_be_meant():
    for pattern in ("{5..3}", "{0..99999999}"):
        with pytest.raises(ConfigError, match="must ascend"):
            storage.expand(pattern)


def test_files_of_folders_globs_and_braces(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", "sub/d.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def found(pattern):
        return [os.path.relpath(f.path, tmp_path) for f in storage.find(pattern, ".tar")]

    assert found(str(tmp_path)) == ["a.tar", "b.tar"]
    assert found(f"{tmp_path}/") == ["a.tar", "b.tar"]
    assert found(f"{tmp_path}/*.tar") == [
        os.path.basename(p) for p in sorted(glob.glob(f"{tmp_path}/*.tar"))
    ]
    assert found(f"{tmp_path}/**/*.tar") == ["a.tar", "b.tar", "sub/d.tar"]
    assert found(f"{tmp_path}/{{b,a}}.tar") == ["b.tar", "a.tar"]
    assert found(f"{tmp_path}/{{a.tar,*.tar}}") == ["a.tar", "b.tar"]
    (file,) = storage.find(f"{tmp_path}/c.txt", ".tar")
    assert file.size == 5
    with pytest.raises(StorageError, match=r"d.tar does not exist"):
        found(f"{tmp_path}/{{a,d}}.tar")
    with pytest.raises(StorageError, match=r"No file matches .*\*.zip"):
        found(f"{tmp_path}/*.zip")


def test_shadow_files_of_macos_are_in_no_folder(tmp_path):
    for name in ("a.tar", "._a.tar", "__MACOSX/a.tar", "sub/b.tar", "sub/._b.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for pattern, expected in ((tmp_path, ["a.tar"]), (f"{tmp_path}/*/*.tar", ["sub/b.tar"])):
        found = storage.find(str(pattern), ".tar")
        assert [os.path.relpath(file.path, tmp_path) for file in found] == expected
    assert storage.is_folder(str(tmp_path))
    for path in (f"{tmp_path}/a.tar", f"{tmp_path}/s*", f"{tmp_path}/{{sub,sub}}", "/none"):
        assert not storage.is_folder(path)
    assert storage.matching(f"{tmp_path}/*.txt") == []


def test_links_are_followed(tmp_path):
    """As in the cache of the Hugging Face hub."""
    for name in ("blobs", "snapshot", "more"):
        (tmp_path / name).mkdir()
    (tmp_path / "blobs" / "0a").write_bytes(b"abc")
    (tmp_path / "more" / "b.tar").write_bytes(b"de")
    (tmp_path / "snapshot" / "a.tar").symlink_to("../blobs/0a")
    (tmp_path / "snapshot" / "more").symlink_to("../more")
    snapshot = tmp_path / "snapshot"
    for pattern in (snapshot, snapshot / "a.tar", snapshot / "*.tar"):
        (file,) = storage.find(str(pattern), ".tar")
        assert (file.path, file.size) == (f"{snapshot}/a.tar", 3)
        assert file == storage.stat(file.path)
        os.utime(tmp_path / "blobs" / "0a", (len(str(pattern)), len(str(pattern))))
        assert storage.find(str(pattern), ".tar")[0].stamp == f"{len(str(pattern))}.0"
    assert [file.size for file in storage.find(f"{snapshot}/more", ".tar")] == [2]
    (snapshot / "c.tar").symlink_to("../blobs/0c")
    for find in (
        lambda: storage.find(str(snapshot), ".tar"),
        lambda: storage.matching(f"{snapshot}/*.tar"),
    ):
        with pytest.raises(
            storage.StorageError, match=r"c.tar is a link to ../blobs/0c, which does not exist"
        ):
            find()
    assert storage.matching(f"{snapshot}/*.parquet") == []


def test_a_store_is_listed_and_read_like_a_disk(tmp_path):
    data = bytes(range(256))
    for place in (str(tmp_path), "memory://listed"):
        storage.write(f"{place}/x/one.bin", data)
        storage.write(f"{place}/x/two.bin", b"")
        one, two = storage.find(f"{place}/x/*.bin", ".bin")
        path = f"{place}/x/one.bin".replace("memory://", "memory:///")
        assert (one.path, one.size, two.size) == (path, 256, 0)
        assert storage.stat(one.path) == one
        assert storage.stat(f"{place}/x/none") is None
        for start, length in ((0, 256), (0, 10), (250, 100), (256, 1), (3, 0)):
            assert storage.read(one.path, start, length) == data[start : start + length]
        with storage.open_file(one.path) as file:
            file.seek(10)
            assert file.read(3) == data[10:13]
        storage.write(one.path, b"again")
        assert storage.stat(one.path) != one
        with pytest.raises(StorageError, match="none"):
            storage.read(f"{place}/x/none", 0, 1)


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    data = bytes(1 << 20)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: storage.write(str(tmp_path / "file"), data), range(40)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == data


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    storage.write(f"{tmp_path}/f", b"old")

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:1])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        storage.write(f"{tmp_path}/f", b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert storage.read(f"{tmp_path}/f", 0, 9) == b"old"


def test_names_do_not_depend_on_the_folder():
    for folder in ("/data/web", "gs://bucket/web", ""):
        paths = [f"{folder}/a/0.tar", f"{folder}/b/0.tar", f"{folder}/b/c/1.tar"]
        assert storage.names(paths) == ["a/0.tar", "b/0.tar", "b/c/1.tar"]
    assert storage.names(["/data/web1/0.tar", "/data/web2/0.tar"]) == ["web1/0.tar", "web2/0.tar"]
    assert storage.names(["/data/0.tar"]) == ["0.tar"]


def test_stores_name_the_missing_package():
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"s3:// needs `pip install '\.\[s3\]'`"):
            storage.find("s3://bucket/*.tar", ".tar")
    with pytest.raises(
        ConfigError, match=r"begins with nope://. Local paths and gs:// and s3:// can"
    ):
        storage.find("nope://bucket/*.tar", ".tar")

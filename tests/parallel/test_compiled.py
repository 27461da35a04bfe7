"""Compiled programs that are kept: whose folder, which programs, and what damage does."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache, lru_cache
from jax._src.lib import xla_client

from aced.checkpoints import checkpointer
from aced.metrics import history
from aced.parallel import compiled
from tests import many_processes
from tests.train import test_train


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """JAX's settings as in a process that has chosen no cache; restored after the test."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_enable_xla_caches",
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_a_folder_of_the_user_alone(settings, tmp_path):
    compiled.keep_programs()
    folder = pathlib.Path(settings.jax_compilation_cache_dir)
    assert folder == tmp_path / "aced" / "programs"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert settings.jax_persistent_cache_min_compile_time_secs == 0.0  # also the small ones
    cache, path = compilation_cache.get_file_cache(str(folder))
    assert path == str(folder)
    assert cache.max_size == 1 << 30


@pytest.mark.parametrize("given", ["caches", None])
def test_default_folder_is_in_the_home_folder(settings, monkeypatch, tmp_path, given):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)  # relative, so ignored
    monkeypatch.setattr(sys, "platform", "linux")
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir == f"{tmp_path}/home/.cache/aced/programs"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert compiled._user_cache() == tmp_path / "home" / "Library" / "Caches"


def test_settings_of_jax_are_left_alone(settings, tmp_path):
    settings.update("jax_compilation_cache_dir", "/elsewhere")
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir == "/elsewhere"
    settings.update("jax_compilation_cache_dir", None)
    settings.update("jax_enable_compilation_cache", False)
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("processes", "devices", "platform", "kept"),
    [
        (1, 1, "cpu", True),
        (1, 8, "cpu", False),
        (2, 2, "cpu", False),
        (2, 8, "tpu", False),
        (1, 8, "tpu", True),
        (1, 8, "gpu", True),
    ],
)
def test_programs_are_kept_only_where_that_is_safe(
    settings, monkeypatch, processes, devices, platform, kept
):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    compiled.keep_programs()
    assert (settings.jax_compilation_cache_dir is not None) == kept


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folder_that_others_can_write_to_is_not_used(settings, tmp_path, caplog, mode):
    folder = tmp_path / "aced" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert f"not kept for later starts: others can write to {folder}; remove it" in caplog.text


def test_folder_of_another_user_is_not_used(settings, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert "is not a folder of this user" in caplog.text


def test_link_is_not_followed(settings, tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "aced").mkdir()
    (tmp_path / "aced" / "programs").symlink_to(tmp_path / "elsewhere")
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert "is not a folder of this user" in caplog.text


def test_start_goes_on_where_the_folder_cannot_be_made(settings, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled.keep_programs()
    assert settings.jax_compilation_cache_dir is None
    assert "Compiled programs are not kept for later starts" in caplog.text


@pytest.fixture
def cache(tmp_path):
    return compiled._Checked(str(tmp_path), max_size=10_000)


def entry(folder):
    (found,) = folder.glob("*-cache")
    return found


def test_program_is_found_again(cache, tmp_path):
    assert cache.get("a") is None
    cache.put("a", b"program")
    assert cache.get("a") == b"program"
    assert compiled._Checked(str(tmp_path), max_size=10_000).get("a") == b"program"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: os.urandom(len(data)),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
)
def test_damaged_program_is_removed_and_kept_anew(cache, tmp_path, damage):
    cache.put("a", b"program")
    file = entry(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("a") is None
    assert not file.exists()
    cache.put("a", b"program")
    assert cache.get("a") == b"program"


def test_full_disk_or_a_held_lock_does_not_end_a_run(cache, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lru_cache.LRUCache, "put", full)
        cache.put("a", b"program")
        cache.put("b", b"program")
    assert caplog.text.count("A compiled program could not be written: [Errno 28]") == 1
    cache.lock_timeout_secs = 0.01
    with filelock.FileLock(tmp_path / ".lockfile"):
        assert cache.get("a") is None
        cache.put("a", b"program")
    cache.put("a", b"program")
    assert cache.get("a") == b"program"


def test_program_under_the_name_of_another_is_damaged(cache, tmp_path):
    cache.put("a", b"program")
    file = entry(tmp_path)
    file.rename(tmp_path / file.name.replace("a-", "b-", 1))
    assert cache.get("b") is None


def test_other_numbers_of_cores_have_programs_of_their_own(cache, monkeypatch):
    cache.put("a", b"program")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(999)), raising=False)
    assert cache.get("a") is None


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="limits the instructions of x86")
def test_key_of_jax_covers_the_instruction_set():
    """A home folder may be shared by machines with different processors."""
    program = (
        "import jax; from jax._src.lib import xla_client as xla;"
        "print(xla.get_topology_for_devices(jax.devices()).fingerprint())"
    )
    env = many_processes.environment(1, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")
    older = subprocess.check_output([sys.executable, "-c", program], env=env, text=True)
    this = xla_client.get_topology_for_devices(jax.devices()[:1]).fingerprint()
    assert int(older) != this


def test_least_recently_used_programs_are_deleted(cache, tmp_path):
    for name in "abc":
        cache.put(name, name.encode() * 3000)
    assert cache.get("a") is not None
    cache.put("d", b"d" * 3000)
    assert [name for name in "abcd" if cache.get(name) is None] == ["b"]
    assert sum(path.stat().st_size for path in tmp_path.glob("*-cache")) <= 10_000


def test_processes_that_start_together_share_the_folder(tmp_path):
    """Each opens the cache itself; no one reads half of a program."""
    programs = {f"{i}": os.urandom(100_000) for i in range(8)}
    wrong = []

    def start():
        opened = compiled._Checked(str(tmp_path), max_size=10_000_000)
        for _ in range(3):
            for name, program in programs.items():
                if opened.get(name) not in (None, program):
                    wrong.append(name)
                opened.put(name, program)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(tmp_path.glob("*-cache"))) == 8


def test_damaged_program_is_compiled_again_with_the_same_result(settings, monkeypatch, tmp_path):
    compiled.keep_programs()
    monkeypatch.setattr(compilation_cache, "_cache", None)
    monkeypatch.setattr(compilation_cache, "_cache_initialized", False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)), jnp.float32)

    def compiled_anew():
        return jax.jit(lambda x: jnp.tanh(x @ x).sum(0)).lower(x).compile()(x)

    first = compiled_anew()
    files = list((tmp_path / "aced" / "programs").glob("jit__lambda*-cache"))
    assert len(files) == 1
    np.testing.assert_array_equal(compiled_anew(), first)  # as it was kept
    files[0].write_bytes(b"garbage")
    np.testing.assert_array_equal(compiled_anew(), first)
    assert files[0].stat().st_size > 1000


RUN = ("-m", "aced.main", "--config=configs/smoke.py:method=iid,tiny", "--config.total_steps=4")


def start(workdir, home, **variables):
    """Trains four steps in a process of its own; returns what JAX compiled."""
    variables = {"XDG_CACHE_HOME": home, "JAX_EXPLAIN_CACHE_MISSES": 1} | variables
    env = many_processes.environment(1, **variables)
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, *RUN, f"--workdir={workdir}", "--config.checkpoint.every_steps=2"],
        cwd=many_processes.ROOT, env=env, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.findall(r"CACHE MISS for '(\w+)'", done.stderr)


@pytest.mark.slow
def test_resumed_run_compiles_nothing_and_has_the_same_numbers(tmp_path):
    """Compiled, from the cache, resumed from the cache, and with a damaged cache: bit for bit."""
    home = tmp_path / "home"
    assert start(tmp_path / "off", home, JAX_ENABLE_COMPILATION_CACHE=0) == []
    assert not home.exists()
    assert "jit_train_step" in start(tmp_path / "filling", home)
    assert start(tmp_path / "warm", home) == []

    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "filling", resumed)
    shutil.rmtree(resumed / checkpointer.FOLDER / "4")
    assert start(resumed, home) == []

    for file in (home / "aced" / "programs").glob("*-cache"):
        file.write_bytes(os.urandom(file.stat().st_size))
    assert "jit_train_step" in start(tmp_path / "damaged", home)
    assert start(tmp_path / "healed", home) == []

    assert history.last_values(tmp_path / "off")["step"] == 4
    for name in ("filling", "warm", "resumed", "damaged", "healed"):
        test_train.assert_same_run(tmp_path / "off", tmp_path / name)

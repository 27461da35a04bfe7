"""Keeps compiled programs between starts, in a folder of the user's cache.

JAX looks them up by the program, its own version, the compiler's flags and the kind of the devices,
which for a CPU has the instruction set. Added here are the number of cores, which XLA divides the
work for, and a digest, so that a damaged program is compiled again instead of run.
"""

import hashlib
import os
import pathlib
import stat
import sys

import jax
from absl import logging
from jax._src import compilation_cache, lru_cache

MAX_BYTES = 1 << 30  # the programs used least recently are deleted
_DIGEST_BYTES = hashlib.sha256().digest_size


def keep_programs() -> None:
    """Keeps what is compiled from now on, and takes what was kept.

    Call it after `distributed.begin` and before anything is compiled. Nothing changes where JAX's
    own settings choose a cache (JAX_COMPILATION_CACHE_DIR) or turn it off
    (JAX_ENABLE_COMPILATION_CACHE=0), nor

    - with several processes: one that finds the program would wait at the first collective for
      others that compile it, longer than these wait for messages;
    - with several CPU devices: XLA aborts when two programs from the cache run one after the other.
    """
    is_chosen = jax.config.jax_compilation_cache_dir is not None
    if is_chosen or not jax.config.jax_enable_compilation_cache:
        return
    if jax.process_count() > 1 or (jax.default_backend() == "cpu" and jax.device_count() > 1):
        return
    try:
        folder = _own_folder(_user_cache() / "aced" / "programs")
    except (OSError, RuntimeError) as error:
        logging.warning("Compiled programs are not kept for later starts: %s", error)
        return
    compilation_cache.get_file_cache = _open
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA's own caches for GPUs are without digest and limit, and the programs do without.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    logging.debug("Compiled programs are kept in %s.", folder)


def _user_cache() -> pathlib.Path:
    """The folder for caches of this user.

    Raises:
        RuntimeError: the user has no home folder.
    """
    path = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if path.is_absolute():  # others are to be ignored, by the XDG specification
        return path
    return pathlib.Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _own_folder(path: pathlib.Path) -> pathlib.Path:
    """Makes the folder `path`. Who can write there can run code in our processes.

    Raises:
        OSError: it cannot be made, or others can write to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise OSError(f"{path} is not a folder of this user.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"others can write to {path}; remove it, or chmod 700 it if you trust it.")
    return path


def _open(path: str) -> tuple["_Checked", str]:
    """Replaces JAX's function that opens the cache."""
    size = jax.config.jax_compilation_cache_max_size
    return _Checked(path, max_size=MAX_BYTES if size == -1 else size), path


class _Checked(lru_cache.LRUCache):
    """JAX's cache in a folder, with a digest behind each program.

    Processes that start together share it: JAX locks the folder while it reads or writes.
    """

    def get(self, key: str) -> bytes | None:
        """Returns a program; None: it is not kept, damaged, or cannot be read."""
        key = _with_cores(key)
        try:
            kept = super().get(key)
        except OSError as error:  # also if another process holds JAX's lock for long
            _warn("read", error)
            return None
        if kept is None:
            return None
        program, digest = kept[:-_DIGEST_BYTES], kept[-_DIGEST_BYTES:]
        if digest == _digest(key, program):
            return program
        logging.debug("The compiled program %s is damaged, and is compiled again.", key)
        (self.path / f"{key}-cache").unlink(missing_ok=True)  # JAX would not overwrite it
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, if it can be written."""
        key = _with_cores(key)
        try:
            super().put(key, value + _digest(key, value))
        except OSError as error:
            _warn("written", error)


def _warn(what: str, error: OSError) -> None:
    logging.log_first_n(
        logging.WARNING, "A compiled program could not be %s: %s. The run goes on.", 1, what, error
    )


def _with_cores(key: str) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{key}-{cores}-cores"


def _digest(key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + program).digest()

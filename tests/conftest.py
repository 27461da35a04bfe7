"""Eight CPU devices stand in for a mesh; programs of one device are compiled once."""

import os
import pathlib
import signal

from tests.many_processes import FAST_COMPILER

# In the background of a shell Ctrl-C is ignored, also by the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{FAST_COMPILER} --xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Processes that a test starts do without, unless it asks for it: they may have several devices.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # see `many_processes.environment`

import jax  # after the settings, which it reads  # noqa: E402
from jax._src import compiler  # noqa: E402

jax.config.update("jax_enable_compilation_cache", True)
_cache_key = compiler._get_cache_key


def _key_of_one_device(options, backend, computation, devices, *args, **kwargs):
    """The key of the compilation cache; None, which compiles anew, for several devices.

    See `many_processes.environment`.
    """
    if devices.size > 1:
        return None
    return _cache_key(options, backend, computation, devices, *args, **kwargs)


compiler._get_cache_key = _key_of_one_device

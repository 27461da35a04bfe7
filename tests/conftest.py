"""Eight CPU devices stand in for a mesh; processes of one device compile nothing twice."""

import os
import pathlib
import signal

from tests.many_processes import FAST_COMPILER

# In the background of a shell Ctrl-C is ignored, also by whatever the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{FAST_COMPILER} --xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # see `many_processes.environment`
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

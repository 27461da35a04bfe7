"""Multi-process runs: start-up, agreement between processes, and a joint end.

Every process runs the same command and holds its own part of every global array. Agreement on
anything else goes through the small functions at the end of this file, which all processes call at
the same place.
"""

import contextlib
import glob
import itertools
import math
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from etils import epath
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from aced.config import ConfigError

COORDINATOR = "ACED_COORDINATOR"  # host:port of process 0; the port must be free
NUM_PROCESSES = "ACED_NUM_PROCESSES"
PROCESS_ID = "ACED_PROCESS_ID"  # 0 ... NUM_PROCESSES - 1
HEARTBEAT = "ACED_HEARTBEAT_SECONDS"  # silence after which a process counts as dead
START = "ACED_START_SECONDS"  # longest wait for all processes at the start

LOST_PEER = 128 + 6  # exit code after the death of another process, as when JAX aborts (SIGABRT)

_HEARTBEAT_SECONDS, _START_SECONDS = 100, 300  # JAX's own defaults
_GRACE_SECONDS = 2.0  # for other processes to report their errors
_LEAVING_SECONDS = 0.5  # for pending calls of other processes to finish
_SHARED_SECONDS = 30.0  # delay until a new file is visible on a network file system
_MESSAGE_SECONDS = 900  # longest wait for a message of process 0
_messages = itertools.count()
_BY_HAND = (
    f"To start the processes by hand set {COORDINATOR}=host:port of the first one, "
    f"{NUM_PROCESSES}=n and {PROCESS_ID}=0 ... n - 1."
)


def begin(wanted: bool | None) -> None:
    """Calls `initialize` if `wanted`; with None, checks that this is the only process.

    Raises:
        ConfigError: as `initialize` or `refuse_to_run_alone`.
    """
    if wanted:
        initialize()
    elif wanted is None:
        refuse_to_run_alone()


def initialize() -> None:
    """Connects to the other processes. Must be called before any device is used.

    Uses the environment variables above, or JAX's detection of the cluster: on Cloud TPU VMs, in
    GKE, under SLURM and Open MPI.

    Raises:
        ConfigError: there is no cluster, or a variable is wrong.
    """
    timeout_s = _whole_number(START, default=_START_SECONDS)
    given = [os.environ.get(name) for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)]
    arguments = {}
    if any(given):
        # Every process uses all devices of its machine; SLURM detection would give it one GPU.
        coordinator, count, index = _by_hand()
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    # On a timeout JAX ends the process without advice, so this is logged in advance.
    logging.info(
        "Waiting at most %d s for all processes%s; if they do not come, see that all are started, "
        "with different ids and the same coordinator, and can reach its port.",
        timeout_s,
        " (this one: {2} of {1}, coordinator {0})".format(*given) if any(given) else "",
    )
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=_whole_number(HEARTBEAT, default=_HEARTBEAT_SECONDS),
        )
    except ValueError as error:
        raise ConfigError(
            "--distributed found no cluster here: no Cloud TPU VM, no GKE job, no SLURM or Open "
            f"MPI step ({error}) {_BY_HAND} For one process leave --distributed out."
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"--distributed: {error} {_BY_HAND}") from error
    logging.info(
        "Process %d of %d, %d local devices, %d in all.",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )
    _warn_of_idle_gpus()


def _by_hand() -> tuple[str, int, int]:
    names = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} is not set. {_BY_HAND}")
    coordinator = os.environ[COORDINATOR]
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{COORDINATOR} must be host:port, got {coordinator!r}.")
    count, index = _whole_number(NUM_PROCESSES), _whole_number(PROCESS_ID)
    if not 0 <= index < count:
        raise ConfigError(
            f"{PROCESS_ID} = {index} must be in 0 ... {NUM_PROCESSES} - 1 = {count - 1}."
        )
    return coordinator, count, index


def _whole_number(name: str, default: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise ConfigError(f"{name} must be a whole number, got {text!r}.")
    return int(text)


def _warn_of_idle_gpus() -> None:
    """Warns of GPUs that no task uses: JAX gives each SLURM task a single GPU."""
    gpus = _whole_number("SLURM_GPUS_ON_NODE")
    is_alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    if is_alone and gpus > jax.local_device_count() == 1:
        logging.warning(
            "This task uses 1 of the %d GPUs of its node. Start one task for each, with "
            "srun --ntasks-per-node=%d, or set JAX_LOCAL_DEVICE_IDS=0,1,...", gpus, gpus,
        )  # fmt: skip


def refuse_to_run_alone() -> None:
    """Raises a ConfigError if this process was started as one of several.

    Without `initialize`, the workers of a TPU slice would wait for each other forever, and each
    task of SLURM or Open MPI would run the whole training in the same workdir.
    """
    signs = {
        f"{NUM_PROCESSES} is set": bool(os.environ.get(NUM_PROCESSES)),
        "a SLURM step with several tasks": _whole_number("SLURM_STEP_NUM_TASKS") > 1,
        "an Open MPI job with several ranks": _whole_number("OMPI_COMM_WORLD_SIZE") > 1,
        "a TPU slice with several workers": _tpu_workers() > 1,
    }
    reasons = [reason for reason, is_present in signs.items() if is_present]
    if reasons:
        raise ConfigError(
            f"This is one of several processes ({reasons[0]}): add --distributed, on all of them, "
            "to train as one run. With --nodistributed this process runs alone."
        )


def _tpu_workers() -> int:
    """The number of workers of this TPU slice; 1 if there is none, or it is unknown."""
    bounds = os.environ.get("TPU_PROCESS_BOUNDS") or os.environ.get("TPU_HOST_BOUNDS")
    if os.environ.get("JAX_PLATFORMS", "tpu").find("tpu") < 0:
        return 1
    if bounds and bounds.replace(",", "").isdigit():  # part of a slice
        return math.prod(map(int, bounds.split(",")))
    names = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"):
        names = _ask_metadata_server("worker-network-endpoints")
    return len((names or "").split(","))


def _ask_metadata_server(attribute: str) -> str | None:
    """An attribute of this Google Cloud VM; None elsewhere."""
    if os.environ.get("TPU_SKIP_MDS_QUERY"):
        return None
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{attribute}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except OSError:
        return None


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends the process immediately if the block raises in a multi-process run.

    The exit code is 1, or `LOST_PEER` after the error of a collective, which means that another
    process failed first. Errors that would recur, such as out of memory, give 1.

    A normal exit would wait for the other processes, which wait for this one in some collective.
    After an immediate exit the others end within a heartbeat, or by their watchdogs. `sys.exit`
    with a number, which all processes reach, exits normally.
    """
    try:
        yield
    except BaseException as error:
        is_joint = isinstance(error, SystemExit) and not isinstance(error.code, str)
        if is_joint or not jax.distributed.is_initialized():
            raise
        try:
            _report(error)
            if jax.process_index() == 0:
                time.sleep(_GRACE_SECONDS)  # the others die with the coordinator, in this process
        finally:  # even if the report fails
            os._exit(LOST_PEER if _is_of_a_peer(error) else 1)
    finally:
        _leave()


def _leave() -> None:
    """Disconnects, and shuts the coordinator down shortly after all processes have left.

    JAX shuts it down at once; with jaxlib 0.12 a pending call of another process then aborts
    process 0, which hosts the coordinator.
    """
    if not jax.distributed.is_initialized():
        return
    coordinator = jax_distributed.global_state.service
    jax_distributed.global_state.service = None
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process died meanwhile
        jax.distributed.shutdown()
    if coordinator is not None:
        time.sleep(_LEAVING_SECONDS)
        coordinator.shutdown()


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether the error was caused by the end of another process."""
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
    return isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)


def _report(error: BaseException) -> None:
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    print(f"Process {jax.process_index()} ends, and so will the others.", file=sys.stderr)
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()


def total(count: int) -> int:
    """The sum of `count` over all processes."""
    return count if jax.process_count() == 1 else int(_all(count).sum())


def anywhere(condition: bool) -> bool:
    """Whether `condition` holds on at least one process."""
    return condition if jax.process_count() == 1 else bool(_all(condition).any())


def from_first(values: np.ndarray) -> np.ndarray:
    """Process 0's `values`, an array of the same shape and type on all processes."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def largest(number: int) -> int:
    """The maximum of `number` over all processes."""
    return number if jax.process_count() == 1 else int(_all(number).max())


def same(number: int) -> bool:
    """Whether `number` is the same on all processes."""
    return jax.process_count() == 1 or len(set(_all(number).tolist())) == 1


@contextlib.contextmanager
def entered_by_first(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Enters `context` on process 0 only; the others wait, and raise if process 0 does.

    The result is sent as a message, because entering may outlast the timeout of a collective.

    Raises:
        ConfigError: on the others, with the message of process 0's error.
    """
    with contextlib.ExitStack() as stack:
        error = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(context)
            except Exception as raised:
                error = raised
        message = _message_of_first("" if error is None else f"{error}")
        if error is not None:
            raise error
        if message:
            raise ConfigError(message)
        yield


def _message_of_first(message: str) -> str:
    """Process 0's `message`, on all processes, which must make the same calls."""
    if jax.process_count() == 1:
        return message
    client, key = jax_distributed.global_state.client, f"aced/message/{next(_messages)}"
    if jax.process_index() == 0:
        client.key_value_set(key, message or " ")
    return client.blocking_key_value_get(key, 1000 * _MESSAGE_SECONDS).strip()


def check_shared(folder: epath.PathLike) -> None:
    """Checks that all processes see the same `folder`, since all of them write checkpoints.

    Raises:
        ConfigError: a process does not see the file that process 0 writes.
    """
    if jax.process_count() == 1:
        return
    path = epath.Path(folder) / ".seen_by_all"
    mark = str(int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31))))
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mark)
    multihost_utils.sync_global_devices("aced_mark_is_written")
    seen, end = False, time.monotonic() + _SHARED_SECONDS
    while not seen and time.monotonic() < end:
        seen = path.exists() and path.read_text() == mark
        time.sleep(0.0 if seen else 0.5)
    blind = np.flatnonzero(~_all(seen)).tolist()
    if jax.process_index() == 0:
        path.unlink()
    if blind:
        raise ConfigError(
            f"Processes {blind} do not see what process 0 writes to {folder}. The workdir must be "
            "a folder that all processes share: gs://..., or one on a network file system."
        )


def _all(value: int | bool) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(np.asarray(value))).reshape(-1)

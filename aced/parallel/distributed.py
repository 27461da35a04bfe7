"""Several processes as one run: how they find each other, agree, and end together.

Every process runs the same command and holds its own part of every global array. What they must
agree on beside the arrays goes through the small functions at the end, which all processes call
at the same place.
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

COORDINATOR = "ACED_COORDINATOR"  # host:port of process 0; the port is free there
NUM_PROCESSES = "ACED_NUM_PROCESSES"
PROCESS_ID = "ACED_PROCESS_ID"  # 0 ... NUM_PROCESSES - 1
HEARTBEAT = "ACED_HEARTBEAT_SECONDS"  # a process that is silent for so long is dead
START = "ACED_START_SECONDS"  # how long processes wait for each other before the run

LOST_PEER = 128 + 6  # exit code, as of a process that JAX aborts for another's death: start again

_HEARTBEAT_SECONDS, _START_SECONDS = 100, 300  # JAX's own defaults
_GRACE_SECONDS = 2.0  # for other processes to report their errors
_LEAVING_SECONDS = 0.5  # for the calls of other processes to come to their ends
_SHARED_SECONDS = 30.0  # network file systems show a new file late
_TOLD_SECONDS = 900  # at most, for process 0 to enter what the others wait for
_told = itertools.count()
_BY_HAND = (
    f"To start the processes by hand set {COORDINATOR}=host:port of the first one, "
    f"{NUM_PROCESSES}=n and {PROCESS_ID}=0 ... n - 1."
)


def begin(wanted: bool | None) -> None:
    """Joins the other processes if that is `wanted`; None: refuses to be one of several unasked.

    Raises:
        ConfigError: as `initialize` or `refuse_to_run_alone`.
    """
    if wanted:
        initialize()
    elif wanted is None:
        refuse_to_run_alone()


def initialize() -> None:
    """Joins the other processes; before anything touches a device.

    By the environment variables above, or as JAX finds the processes itself: on Cloud TPU VMs, in
    GKE, under SLURM and Open MPI.

    Raises:
        ConfigError: there is no cluster, or a variable does not fit.
    """
    timeout_s = _whole_number(START, default=_START_SECONDS)
    given = [os.environ.get(name) for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)]
    arguments = {}
    if any(given):
        # Every process has all devices of its machine; SLURM's guess is one GPU for each.
        coordinator, count, index = _by_hand()
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
    # When they do not come JAX ends the process and says little; so this is said before.
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
    """JAX gives a SLURM task one GPU: with one task for a node the others of it do nothing."""
    there = _whole_number("SLURM_GPUS_ON_NODE")
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    if alone and there > jax.local_device_count() == 1:
        logging.warning(
            "This task uses 1 of the %d GPUs of its node. Start one task for each, with "
            "srun --ntasks-per-node=%d, or set JAX_LOCAL_DEVICE_IDS=0,1,...", there, there,
        )  # fmt: skip


def refuse_to_run_alone() -> None:
    """Raises a ConfigError where this process was started as one of several.

    Without `initialize`, the workers of a TPU slice wait for each other for ever, and the tasks of
    SLURM or Open MPI each run the whole training in the same workdir.
    """
    found = {
        f"{NUM_PROCESSES} is set": bool(os.environ.get(NUM_PROCESSES)),
        "a SLURM step with several tasks": _whole_number("SLURM_STEP_NUM_TASKS") > 1,
        "an Open MPI job with several ranks": _whole_number("OMPI_COMM_WORLD_SIZE") > 1,
        "a TPU slice with several workers": _tpu_workers() > 1,
    }
    reasons = [reason for reason, is_so in found.items() if is_so]
    if reasons:
        raise ConfigError(
            f"This is one of several processes ({reasons[0]}): add --distributed, on all of them, "
            "to train as one run. --nodistributed says that it is meant to run alone."
        )


def _tpu_workers() -> int:
    """Workers of the TPU slice of this machine; 1 where there is none, or no answer."""
    bounds = os.environ.get("TPU_PROCESS_BOUNDS") or os.environ.get("TPU_HOST_BOUNDS")
    if os.environ.get("JAX_PLATFORMS", "tpu").find("tpu") < 0:
        return 1
    if bounds and bounds.replace(",", "").isdigit():  # a part of the slice was asked for
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
    """Ends the process, at once, when the block raises and there are several.

    With code 1, or `LOST_PEER` after an error of a collective: then another process failed first.
    A start that would fail in the same way again, as out of memory does, is no such error.

    The way out through the interpreter's end waits for all other processes, which wait in some
    collective for this one. Dead, this one is missed, and the others are ended within the time of
    a heartbeat, or by their watchdogs. `sys.exit` with a number, which all processes come to, goes
    its usual way.
    """
    try:
        yield
    except BaseException as error:
        number = isinstance(error, SystemExit) and not isinstance(error.code, str)
        if number or not jax.distributed.is_initialized():
            raise
        try:
            _report(error)
            if jax.process_index() == 0:
                time.sleep(_GRACE_SECONDS)  # the others lose their coordinator with it, and die
        finally:  # also when there is no room for a report
            os._exit(LOST_PEER if _is_of_a_peer(error) else 1)
    finally:
        _leave()


def _leave() -> None:
    """Disconnects from the others, and ends the coordinator a moment after all have left it.

    JAX itself ends it at once: with jaxlib 0.12, a call of another process that is still in it
    then aborts process 0, which holds it.
    """
    if not jax.distributed.is_initialized():
        return
    coordinator = jax_distributed.global_state.service
    jax_distributed.global_state.service = None
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one died meanwhile
        jax.distributed.shutdown()
    if coordinator is not None:
        time.sleep(_LEAVING_SECONDS)
        coordinator.shutdown()


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether it is an error that a process has because another one has ended."""
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
    """The sum of every process's `count`."""
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
    """The largest of all processes' `number`."""
    return number if jax.process_count() == 1 else int(_all(number).max())


def same(number: int) -> bool:
    """Whether `number` is the same on all processes."""
    return jax.process_count() == 1 or len(set(_all(number).tolist())) == 1


@contextlib.contextmanager
def entered_by_first(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Enters `context` on process 0 alone; the others wait for that, and fail where it fails.

    By a message: a collective would not wait for long, and to enter may take minutes.

    Raises:
        ConfigError: on the others, with what process 0 raised.
    """
    with contextlib.ExitStack() as stack:
        error = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(context)
            except Exception as raised:
                error = raised
        said = _told_by_first("" if error is None else f"{error}")
        if error is not None:
            raise error
        if said:
            raise ConfigError(said)
        yield


def _told_by_first(message: str) -> str:
    """Process 0's `message`, on all processes; all make the same calls of this."""
    if jax.process_count() == 1:
        return message
    client, key = jax_distributed.global_state.client, f"aced/told/{next(_told)}"
    if jax.process_index() == 0:
        client.key_value_set(key, message or " ")
    return client.blocking_key_value_get(key, 1000 * _TOLD_SECONDS).strip()


def check_shared(folder: epath.PathLike) -> None:
    """Checks that all processes see the same `folder`: checkpoints are written by all of them.

    Raises:
        ConfigError: some process does not see what process 0 writes there.
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

import functools
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from aced.checkpoints.checkpointer import (
    CheckpointConfig,
    Checkpointer,
    CheckpointError,
    load_params,
)
from aced.config import ConfigError
from aced.optim import optimizer
from tests import many_processes


@struct.dataclass
class State:
    """The kinds of leaves that a train state has."""

    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array
    ema: dict | None
    method: dict | None


def make_state(seed=0, width=4, ema=True, **optimizer_settings):
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (3, width, 5))
    params = {"image": {"kernel": kernel}, "text": {"kernel": -kernel}, "t": jnp.float32(1.5)}
    config = optimizer.OptimizerConfig(
        lr_rules=(("text/.*", 0.0),), mu_dtype="bfloat16", **optimizer_settings
    )
    tx, _ = optimizer.build(config, params, total_steps=10, batch_size=1)
    opt_state = tx.init(params)
    _, opt_state = tx.update(params, opt_state, params)
    return State(
        step=jnp.int32(seed),
        params=params,
        opt_state=opt_state,
        key=jax.random.fold_in(key, 7),
        ema=jax.tree.map(lambda x: x / 3, params) if ema else None,
        method={"bandit": {}, "half": kernel.astype(jnp.bfloat16), "nothing": None},
    )


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_identical(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_is_bitwise(tmp_path, compress, ema):
    config = CheckpointConfig(compress=compress)
    with Checkpointer(tmp_path, config) as checkpointer:
        assert checkpointer.restore_or(abstract(make_state()), "none") == "none"
        assert checkpointer.save(7, make_state(1, ema=ema), force=True)
    with Checkpointer(tmp_path, config) as checkpointer:
        state, step = checkpointer.restore_or(abstract(make_state(2, ema=ema)))
    assert step == 7
    assert_identical(state, make_state(1, ema=ema))
    moments = optax.tree.get(state.opt_state, "mu")
    assert moments["image"]["kernel"].dtype == jnp.bfloat16


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.arange(1 << 20, dtype=jnp.float32)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, {"params": x})
        for _ in range(5):
            x = advance(x)
    np.testing.assert_array_equal(load_params(tmp_path), np.arange(1 << 20, dtype=np.float32))


def test_only_due_steps_are_saved_and_none_twice(tmp_path):
    state = {"params": jnp.zeros(2)}
    with Checkpointer(tmp_path, CheckpointConfig(every_steps=3, keep_last=9)) as checkpointer:
        saved = [step for step in range(1, 8) if checkpointer.save(step, state)]
        assert saved == [3, 6]
        assert checkpointer.save(7, state, force=True)
        assert not checkpointer.save(7, state, force=True)
        checkpointer.wait()
        assert checkpointer.steps() == [3, 6, 7]
    config = CheckpointConfig(every_steps=4, keep_every_steps=3, keep_last=1)
    with Checkpointer(tmp_path / "kept", config) as checkpointer:
        saved = [step for step in range(1, 10) if checkpointer.save(step, state)]
        checkpointer.wait()
        assert saved == [3, 4, 6, 8, 9]  # those to be kept for ever are written, too
        assert checkpointer.steps() == [3, 6, 9]


def folders(workdir):
    return sorted(int(path.name) for path in (pathlib.Path(workdir) / "checkpoints").iterdir())


ACCURACY = {1: 0.2, 2: 0.9, 3: float("nan"), 4: 0.5, 6: 0.9, 7: 0.1, 8: 0.3}


@pytest.mark.parametrize(
    ("settings", "kept", "kept_after_10"),
    [
        ({"keep_last": 2}, [7, 8], [8, 10]),
        ({"keep_last": 1, "keep_every_steps": 3}, [3, 6, 8], [3, 6, 10]),
        # Step 5 has no metrics, step 3 no finite one; of equal ones the later counts first.
        ({"keep_last": 1, "keep_best": 1}, [6, 8], [6, 10]),
        ({"keep_last": 1, "keep_best": 3}, [2, 4, 6, 8], [2, 4, 6, 10]),
        ({"keep_last": 1, "keep_best": 2, "best_mode": "min"}, [1, 7, 8], [1, 7, 10]),
    ],
)
def test_retention(tmp_path, settings, kept, kept_after_10):
    config = CheckpointConfig(every_steps=1, best_metric="accuracy", **settings)
    with Checkpointer(tmp_path, config) as checkpointer:
        for step in range(1, 9):
            metrics = {"accuracy": np.float32(ACCURACY[step]), "loss": 1} if step != 5 else None
            checkpointer.save(step, {"params": jnp.full(2, step)}, metrics)
    assert folders(tmp_path) == kept
    with Checkpointer(tmp_path, config) as checkpointer:  # reads the metrics of earlier checkpoints
        checkpointer.save(10, {"params": jnp.full(2, 10)})
    assert folders(tmp_path) == kept_after_10


def test_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpointer("runs/one") as checkpointer:
        assert checkpointer.save(1, {"params": {"x": jnp.arange(3)}}, force=True)
    assert (tmp_path / "runs/one/checkpoints/1").exists()
    np.testing.assert_array_equal(load_params("runs/one")["x"], np.arange(3))


def test_load_params(tmp_path):
    config = CheckpointConfig(every_steps=1, keep_last=9, best_metric="accuracy")
    states = {step: make_state(step, ema=step != 1) for step in (1, 2, 3)}
    with Checkpointer(tmp_path, config) as checkpointer:
        for step, state in states.items():
            metrics = {"accuracy": {1: 0.1, 2: 0.9, 3: 0.5}[step], "loss": -step}
            checkpointer.save(step, state, metrics)
    shapes = abstract(states[1].params)
    last = load_params(tmp_path, shapes)
    assert_identical(last, states[3].params)
    assert last["t"].sharding == states[3].params["t"].sharding
    best = functools.partial(load_params, tmp_path, shapes, which="best")
    assert_identical(best(), states[2].params)
    assert_identical(best(best_mode="min"), states[1].params)
    assert_identical(best(best_metric="loss"), states[1].params)
    assert_identical(load_params(tmp_path, shapes, which=2, key="ema"), states[2].ema)
    on_host = load_params(str(tmp_path))
    assert {type(leaf) for leaf in jax.tree.leaves(on_host)} == {np.ndarray}
    assert_identical(on_host, jax.tree.map(np.asarray, states[3].params))
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), shapes
    )
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), states[3].params)
    assert_identical(load_params(tmp_path, half), expected)

    with pytest.raises(CheckpointError, match=r"1 holds no 'ema', only \['key', 'method',"):
        load_params(tmp_path, which=1, key="ema")
    with pytest.raises(CheckpointError, match=r"metric 'recall'; there are: accuracy, loss"):
        best(best_metric="recall")
    with pytest.raises(CheckpointError, match=r"no checkpoint 5, only \[1, 2, 3\]"):
        load_params(tmp_path, which=5)
    with pytest.raises(CheckpointError, match="no complete checkpoint in"):
        load_params(tmp_path / "elsewhere")
    wide = abstract(make_state(width=8).params)
    with pytest.raises(CheckpointError, match=r"image/kernel: expected \[3,8,5\], found \[3,4,5\]"):
        load_params(tmp_path, wide)


@pytest.mark.parametrize(
    ("other", "differences"),
    [
        (
            {"width": 6},
            [
                "checkpoints/5 does not fit: 7 of ",
                r"params/image/kernel: expected float32\[3,6,5\], found float32\[3,4,5\]",
            ],
        ),
        ({"ema": False}, [r"ema/image/kernel: expected nothing, found float32\[3,4,5\]"]),
        (
            {"name": "lion"},
            [r"opt_state/inner_states/trained/.*/nu/t: expected nothing, found float32\[\]"],
        ),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, other, differences):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, make_state(), force=True)
        checkpointer.wait()
        for difference in differences:
            with pytest.raises(CheckpointError, match=difference):
                checkpointer.restore_or(abstract(make_state(**other)))


def test_another_type_is_refused_and_long_lists_are_cut(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, {f"p{i}": jnp.zeros(2) for i in range(20)})
        checkpointer.wait()
        wrong = abstract({f"p{i}": jnp.zeros(2, jnp.int32) for i in range(20)})
        with pytest.raises(
            CheckpointError, match=r"20 of 20 (.|\n)*int32\[2\], found float32\[2\](.|\n)*12 more"
        ):
            checkpointer.restore_or(wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_steps": 0}, "every_steps must be at least 1"),
        ({"keep_best": 1}, "keep_best needs best_metric"),
        ({"keep_every_steps": 0}, "keep_every_steps must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointConfig(**settings)


def run_python(code, *args, devices=1):
    """Runs `code` in a fresh process that may be limited, killed or given more devices."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=many_processes.environment(devices),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_restores_under_another_sharding(tmp_path):
    done = run_python(
        """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from aced.checkpoints.checkpointer import Checkpointer, load_params

        def mesh(*shape):
            return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

        one, two = mesh(8, 1), mesh(2, 4)
        kernel = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
        state = {
            "params": jax.device_put(kernel, NamedSharding(one, P("data", None))),
            "key": jax.device_put(jax.random.key(3), NamedSharding(one, P())),
        }
        with Checkpointer(sys.argv[1]) as checkpointer:
            checkpointer.save(0, state)
            checkpointer.wait()
            sharding = NamedSharding(two, P("fsdp", "data"))
            everywhere = NamedSharding(two, P())
            wanted = {
                "params": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding),
                "key": jax.ShapeDtypeStruct((), state["key"].dtype, sharding=everywhere),
            }
            got, _ = checkpointer.restore_or(wanted)
        assert got["params"].sharding == sharding
        assert got["params"].addressable_shards[0].data.shape == (2, 8)
        np.testing.assert_array_equal(got["params"], kernel)
        keys = [jax.random.key_data(tree["key"]).tolist() for tree in (got, state)]
        assert keys[0] == keys[1]
        """,
        tmp_path,
        devices=8,
    )
    assert done.returncode == 0, done.stderr
    # And in this process, which has other devices than the one that saved.
    kernel = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    np.testing.assert_array_equal(load_params(tmp_path), kernel)
    one_device = jax.ShapeDtypeStruct(
        (8, 16), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    np.testing.assert_array_equal(load_params(tmp_path, one_device), kernel)


def test_saves_continue_after_a_full_disk(tmp_path):
    # A limit on the size of files fails writes like a full disk, without a disk.
    done = run_python(
        """
        import os, resource, sys, time
        import jax, numpy as np
        from aced.checkpoints.checkpointer import (
            CheckpointConfig,
            CheckpointError,
            Checkpointer,
            load_params,
        )

        def only_checkpoint_3():
            end = time.monotonic() + 20  # remains are removed in the background
            while time.monotonic() < end and os.listdir(checkpointer._folder) != ["3"]:
                time.sleep(0.05)
            assert os.listdir(checkpointer._folder) == ["3"]
            np.testing.assert_array_equal(load_params(sys.argv[1]), state(3)["params"])

        def room(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def state(seed):
            return {"params": jax.random.normal(jax.random.key(seed), (256, 256))}

        config = CheckpointConfig(every_steps=1, keep_last=1, max_failed_saves=2)
        checkpointer = Checkpointer(sys.argv[1], config)
        checkpointer.save(1, state(1))
        checkpointer.wait()

        room(20_000)
        checkpointer.save(2, state(2))  # fails in the background
        while checkpointer._orbax.is_saving_in_progress():
            time.sleep(0.01)
        room(resource.RLIM_INFINITY)
        assert checkpointer.save(3, state(3))  # notices, and works again
        checkpointer.wait()
        assert checkpointer.failed_saves == 1, checkpointer.failed_saves
        only_checkpoint_3()

        room(20_000)
        checkpointer.save(4, state(4))
        try:
            checkpointer.wait()  # as at the end of a run
        except CheckpointError as error:
            assert "could not be written" in str(error) and "[3]" in str(error), error
        else:
            raise AssertionError("the last save failed silently")
        checkpointer.save(5, state(5))
        try:
            checkpointer.save(6, state(6))
        except CheckpointError as error:
            assert "checkpoints/5" in str(error) and "bytes free; failure 2 in a row" in str(error)
        else:
            raise AssertionError("two saves failed in a row silently")
        assert checkpointer.failed_saves == 3
        only_checkpoint_3()
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoints/2 could not be written" in done.stderr
    assert "File too large" in done.stderr


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ("os.mkdir", "/2.orbax-checkpoint-tmp"),  # nothing is written yet
        ("os.rename", "/state.orbax-checkpoint-tmp"),  # all arrays are
        ("os.rename", "/2.orbax-checkpoint-tmp"),  # all is, only not under its name
    ],
)
def test_kill_in_the_middle_of_a_save(tmp_path, event, path):
    done = run_python(
        """
        import os, signal, sys
        import jax
        from aced.checkpoints.checkpointer import CheckpointConfig, Checkpointer

        _, workdir, event, path = sys.argv
        armed = False

        def kill(name, args):
            if armed and name == event and str(args[0]).endswith(path):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        checkpointer = Checkpointer(workdir, CheckpointConfig(every_steps=1, keep_last=1))
        checkpointer.save(1, {"params": jax.random.normal(jax.random.key(1), (64, 64))})
        checkpointer.wait()
        armed = True
        checkpointer.save(2, {"params": jax.random.normal(jax.random.key(2), (64, 64))})
        checkpointer.wait()
        """,
        tmp_path,
        event,
        path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = {"params": jax.random.normal(jax.random.key(1), (64, 64))}
    assert_identical(load_params(tmp_path, abstract(state["params"])), state["params"])
    with Checkpointer(tmp_path, CheckpointConfig(every_steps=1, keep_last=2)) as checkpointer:
        got, step = checkpointer.restore_or(abstract(state))
        assert step == 1
        assert_identical(got, state)
        assert checkpointer.save(2, state)
    assert folders(tmp_path) == [1, 2]  # what the killed process left is gone


PROCESSES = """
import os, resource, time
import jax
from aced.parallel import distributed
from aced.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from tests.sharded_state import state

folder, failing = os.environ["FOLDER"], int(os.environ["FAILING"])
config = CheckpointConfig(every_steps=1, keep_last=1, timeout_minutes=0.1)

def room(size):
    if jax.process_index() == failing:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

with distributed.ending_together():
    distributed.initialize()
    with Checkpointer(folder, config) as checkpointer:
        checkpointer.save(1, state(1))
        checkpointer.wait()
        room(200_000)  # the log is less, the arrays are more
        assert checkpointer.save(2, state(2))
        while checkpointer._orbax.is_saving_in_progress():
            time.sleep(0.05)
        room(resource.RLIM_INFINITY)
        assert checkpointer.save(3, state(3))
        assert checkpointer.failed_saves == 1, checkpointer.failed_saves
        checkpointer.wait()
        print("has", checkpointer.steps(), flush=True)
        room(200_000)  # the log is less, the arrays are more
        checkpointer.save(4, state(4))
        # leaving the block waits for it
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_of_one_process_of_two(tmp_path, failing):
    settings = {"FOLDER": tmp_path / "run", "FAILING": failing}
    with many_processes.start(2, 2, ["-c", PROCESSES], tmp_path, **settings) as started:
        codes = started.exit_codes(120)
    outputs = [started.output(i) for i in range(2)]
    assert codes == [1, 1], outputs[0] + outputs[1]
    for output in outputs:
        assert "has [3]" in output
        assert "CheckpointError: The last checkpoint of this run could not be written" in output
    assert "checkpoints/2 could not be written" in outputs[failing]
    assert "File too large" in outputs[failing]
    assert "another process could not write its part" in outputs[1 - failing] or (
        "failure 1 in a row): " in outputs[1 - failing]
    )
    rows = np.random.default_rng(3).normal(size=(4, 256, 256)).astype(np.float32)
    np.testing.assert_array_equal(load_params(tmp_path / "run"), rows)
    # One process goes on with what two have left.
    with Checkpointer(tmp_path / "run") as checkpointer:
        _, step = checkpointer.restore_or(abstract({"params": jnp.asarray(rows)}))
        assert step == 3
        assert checkpointer.save(4, {"params": jnp.asarray(rows)}, force=True)
    assert folders(tmp_path / "run") == [3, 4]

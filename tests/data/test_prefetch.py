import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from aced.data.prefetch import DevicePrefetch
from aced.parallel import mesh as meshes


def batches(count, delay=0.0):
    for i in range(count):
        time.sleep(delay)
        yield {"x": np.full((8, 2), i)}


def test_batches_come_in_order_and_sharded():
    mesh = meshes.make_mesh()
    with DevicePrefetch(batches(3), mesh) as prefetch:
        for i in range(3):
            batch = prefetch.next(None)
            np.testing.assert_array_equal(batch["x"], np.full((8, 2), i))
            assert batch["x"].sharding == meshes.by_example(mesh)
        with pytest.raises(StopIteration):
            prefetch.next(None)


def test_errors_of_the_input_reach_the_loop():
    def broken():
        yield {"x": np.zeros((8, 1))}
        raise ValueError("record 7")

    with DevicePrefetch(broken(), meshes.make_mesh()) as prefetch:
        prefetch.next(None)
        with pytest.raises(ValueError, match="record 7"):
            prefetch.next(None)


def test_only_idle_time_of_devices_counts():
    class Busy:
        def is_ready(self):
            return False

    with DevicePrefetch(batches(3, delay=0.3), meshes.make_mesh()) as prefetch:
        prefetch.next(Busy())
        assert prefetch.take_waited() == 0
        prefetch.next(jnp.zeros(()))
        prefetch.next(jnp.zeros(()))
        assert 0.1 < prefetch.take_waited() < 1.0
        assert prefetch.take_waited() == 0


def test_close_ends_the_thread_in_the_middle():
    before = threading.active_count()
    prefetch = DevicePrefetch(batches(10**9), meshes.make_mesh())
    prefetch.next(None)
    prefetch.close()
    assert threading.active_count() == before

"""Counts of programs that are known by hand, compiled for CPUs and, where libtpu is, for TPUs."""

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from aced.parallel import mesh as meshes
from aced.preflight import COMPILER_ENVIRONMENT, hlo
from aced.preflight.hlo_flops import _valid_positions
from aced.preflight.hlo_text import Array

F32 = jnp.float32


def facts_of(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes]
    return hlo.read(jax.jit(function).lower(*args).compile().as_text())


def test_a_scan_of_products_counts_every_iteration():
    def run(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    facts = facts_of(run, (8, 32), (7, 32, 32))
    assert facts.flops == Counter({"f32": 7 * 2 * 8 * 32 * 32})
    assert facts.unknown_loops == facts.opaque == facts.collectives == ()
    # Each iteration reads its weights and x, and writes x; not the whole stack of weights.
    least = 7 * 4 * (32 * 32 + 2 * 8 * 32)
    assert least <= facts.hbm_bytes < 3 * least


def test_loops_in_loops_multiply():
    def run(x, w):
        def inner(_, x):
            return jnp.tanh(x @ w)

        return jax.lax.fori_loop(2, 5, lambda _, x: jax.lax.fori_loop(0, 4, inner, x), x)

    assert facts_of(run, (8, 16), (16, 16)).flops["f32"] == 3 * 4 * 2 * 8 * 16 * 16


def test_a_loop_without_a_known_length_is_counted_once_and_flagged():
    def run(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: x @ w, x)

    facts = facts_of(run, (16, 16), (16, 16))
    assert facts.flops["f32"] == 2 * 16**3
    assert len(facts.unknown_loops) == 1


def test_costliest_branch_of_a_conditional_counts():
    def run(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w) @ w

    facts = facts_of(run, (16, 16), (16, 16))
    assert facts.flops["f32"] == 3 * 2 * 16**3
    assert facts.branch_flops == 2 * 16**3


def test_collectives_by_hand():
    mesh = meshes.make_mesh()

    def local(x):  # [4 16] on each of 8 devices
        def pass_on(block, _):
            return jax.lax.ppermute(block, "data", [(i, (i + 1) % 8) for i in range(8)]), None

        x = jax.lax.scan(pass_on, x, length=5)[0]
        whole = jax.lax.all_gather(x, "data", axis=0, tiled=True)  # [32 16]
        parts = jax.lax.psum_scatter(whole * 2, "data", scatter_dimension=0, tiled=True)
        swapped = jax.lax.all_to_all(parts.reshape(8, 8), "data", 0, 0)
        return swapped.sum() + jax.lax.psum(x, "data").sum()

    spec = P("data")
    with jax.set_mesh(mesh):
        run = jax.shard_map(local, in_specs=spec, out_specs=P(), check_vma=False)
        x = jax.ShapeDtypeStruct((32, 16), F32, sharding=meshes.by_example(mesh))
        facts = hlo.read(jax.jit(run).lower(x).compile().as_text())
    block = 4 * 16 * 4
    expected = {  # executions, bytes of a result, bytes sent, devices
        "collective-permute": (5, block, block, 2),
        "all-gather": (1, 8 * block, 7 * block, 8),
        "reduce-scatter": (1, block, 7 * block, 8),
        "all-to-all": (1, block, 7 / 8 * block, 8),
        "all-reduce": (1, block, 2 * 7 / 8 * block, 8),
    }
    found = {c.kind: (c.times, c.bytes, c.sent, c.group) for c in facts.collectives}
    assert found == expected
    assert all(c.dtype == "f32" for c in facts.collectives)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "size", "hbm"),
    [
        ((6, 128, 512), "bf16", "2,1,0:T(8,128)(2,1)", 6 * 128 * 512 * 2, 6 * 128 * 512 * 2),
        ((6, 128, 512), "bf16", "2,1,0:T(8,128)(2,1)S(1)", 6 * 128 * 512 * 2, 0),  # vector memory
        ((3, 5, 64), "f32", "2,1,0:T(8,128)", 3 * 5 * 64 * 4, 3 * 8 * 128 * 4),
        ((64, 3, 5), "f32", "0,2,1:T(8,128)", 3 * 5 * 64 * 4, 3 * 8 * 128 * 4),
        ((700,), "u8", "0:T(1024)", 700, 1024),
        ((10, 10), "s4", "1,0", 50, 50),
        ((), "f32", ":T(128)", 4, 4),
        ((4,), "pred", "", 4, 4),
    ],
)
def test_bytes_of_arrays(shape, dtype, layout, size, hbm):
    array = Array(dtype, shape, layout)
    assert (array.bytes, array.hbm_bytes) == (size, hbm)


@pytest.mark.parametrize(("inputs", "kernel", "stride", "before", "after"), [(9, 3, 2, 1, 0)])
def test_convolutions_count_neither_padding_nor_gaps(inputs, kernel, stride, before, after):
    outputs = (inputs + before + after - kernel) // stride + 1
    padded = np.zeros(inputs + before + after)
    padded[before : before + inputs] = 1
    by_hand = sum(int(padded[o * stride : o * stride + kernel].sum()) for o in range(outputs))
    found = _valid_positions(
        outputs=outputs, kernel=kernel, inputs=inputs, stride=stride, before=before,
        input_dilation=1, kernel_dilation=1,
    )  # fmt: skip
    assert found == by_hand
    # A batched product as TPUs write it: every output meets one place of the kernel, and a matrix.
    batched = _valid_positions(
        outputs=6, kernel=6, inputs=6, stride=5, before=0, input_dilation=6, kernel_dilation=1
    )
    assert batched == 6


def test_convolutions_are_what_xla_counts():
    def run(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 1), "SAME")

    args = [jax.ShapeDtypeStruct(shape, F32) for shape in ((2, 3, 17, 9), (5, 3, 4, 3))]
    compiled = jax.jit(run).lower(*args).compile()
    assert hlo.read(compiled.as_text()).flops["f32"] == compiled.cost_analysis()["flops"]


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        hlo.read("module @jit_f { }")


# An all-gather that runs while a product does: XLA for TPUs names it three times.
ASYNC = """HloModule jit_f

%start (p: f32[8,128]) -> (f32[8,128], f32[64,128]) {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-gather.1 = f32[64,128]{1,0:T(8,128)} all-gather(%p), channel_id=79, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}, metadata={op_name="jit(f)/dot"}
  ROOT %custom-call.1 = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p: f32[8,128], q: f32[64,128], r: bf16[16,32], s: bf16[32,64]) -> f32[16,64] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)} parameter(1)
  %r = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(2)
  %s = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(3)
  %all-gather.2 = f32[64,128]{1,0:T(8,128)} all-gather(%p), channel_id=79, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %convolution.1 = f32[16,64]{1,0:T(8,128)} convolution(%r, %s), dim_labels=bf_io->bf
}

%done (p: f32[8,128], q: f32[64,128]) -> f32[64,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)} parameter(1)
  %all-gather.3 = f32[64,128]{1,0:T(8,128)} all-gather(%p), channel_id=79, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.2 = f32[64,128]{1,0:T(8,128)} custom-call(%p, %q, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[8,128], b: bf16[16,32], c: bf16[32,64]) -> (f32[64,128], f32[16,64]) {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  %c = bf16[32,64]{1,0:T(8,128)(2,1)} parameter(2)
  %fusion.1 = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) fusion(%a), kind=kCustom, calls=%start
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=0
  %y = f32[64,128]{1,0:T(8,128)} get-tuple-element(%fusion.1), index=1
  %fusion.2 = f32[16,64]{1,0:T(8,128)} fusion(%x, %y, %b, %c), kind=kOutput, calls=%meanwhile
  %fusion.3 = f32[64,128]{1,0:T(8,128)} fusion(%x, %y), kind=kCustom, calls=%done
  ROOT %tuple = (f32[64,128]{1,0:T(8,128)}, f32[16,64]{1,0:T(8,128)}) tuple(%fusion.3, %fusion.2)
}
"""  # noqa: E501


def test_an_asynchronous_collective_is_one():
    facts = hlo.read(ASYNC)
    (found,) = facts.collectives
    assert (found.kind, found.bytes, found.group, found.times) == ("all-gather", 64 * 512, 8, 1)
    assert found.origin == "jit(f)/dot"
    assert facts.flops == Counter({"bf16": 2 * 16 * 32 * 64})
    assert facts.opaque == ()


def test_the_same_on_tpus():
    # fsdp 4, data 2: six layers [512 512], gathered forward and backward; gradients scattered over
    # fsdp and summed over data; a ring of 8; and one sum of the loss.
    pytest.importorskip("libtpu")
    script = """
        import json
        import jax, jax.numpy as jnp, numpy as np
        from jax.experimental import topologies
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
        from aced.preflight import hlo

        devices = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu").devices
        both = ("data", "fsdp")
        mesh = Mesh(np.array(devices).reshape(2, 4), both, axis_types=(AxisType.Auto,) * 2)

        def ring(z):
            def step(carry, _):
                block, total = carry
                block = jax.lax.ppermute(block, both, [(i, (i + 1) % 8) for i in range(8)])
                return (block, total + (z @ block.T).astype(jnp.float32).sum()), None
            (_, total), _ = jax.lax.scan(step, (z, jnp.zeros(())), length=7)
            return jax.lax.psum(total, both)

        def train(ws, x):
            def loss(ws):
                layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
                return (jax.lax.scan(layer, x, ws)[0].astype(jnp.float32) ** 2).sum()
            value, grads = jax.value_and_grad(loss)(ws)
            spread = dict(mesh=mesh, in_specs=P(both), out_specs=P(), check_vma=False)
            return ws - grads, value + jax.shard_map(ring, **spread)(x)

        def shape(dims, *spec):
            return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

        compiled = jax.jit(train, donate_argnums=0).lower(
            shape((6, 512, 512), None, "fsdp"), shape((1024, 512), both)).compile()
        facts = hlo.read(compiled.as_text())
        print(json.dumps({
            "flops": facts.flops, "unknown": facts.unknown_loops, "opaque": facts.opaque,
            "hbm": facts.hbm_bytes,
            "collectives": [
                [c.kind, c.dtype, c.bytes, c.group, c.times] for c in facts.collectives],
        }))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | COMPILER_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = json.loads(found.stdout)
    rows, layer = 1024 // 8, 512 * 512
    passes = 4  # forward, again, and the gradients by x and by w
    products = passes * 6 * 2 * rows * layer + 7 * 2 * rows * rows * 512
    assert found["flops"] == {"bf16": products}
    assert found["unknown"] == found["opaque"] == []
    block = rows * 512 * 2
    counted = Counter()
    for kind, dtype, size, group, times in found["collectives"]:
        assert dtype == "bf16" or size <= 8  # the loss
        counted[kind, size, group] += times
    assert counted["all-gather", 2 * layer, 4] == 12
    assert counted["collective-permute", block, 2] == 7
    assert counted["reduce-scatter", 2 * layer // 4, 4] == 6
    assert counted["all-reduce", 2 * layer // 4, 2] == 6
    # The weights of a device are read at least once and written once.
    assert found["hbm"] >= 2 * 6 * 2 * layer // 4

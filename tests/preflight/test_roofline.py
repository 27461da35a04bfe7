from collections import Counter

import pytest

from aced.cost import hardware
from aced.preflight import roofline
from aced.preflight.hlo import Collective, Facts
from aced.preflight.hlo_text import Array

CHIP = hardware.Chip(
    "toy", ("toy",), bf16=1000.0, int8=2000.0, hbm=1e9, hbm_bandwidth=100.0, interconnect=10.0
)


def test_products_take_as_many_passes_as_their_precision():
    flops = Counter({"bf16": 1000, "f32": 2000, "f32 high": 1000, "f32 highest": 1000, "s8": 4000})
    line = roofline.of_program(Facts(flops=flops), CHIP)
    assert line.compute == pytest.approx(1 + 2 + 3 + 6 + 2)
    assert (line.memory, line.interconnect) == (0, 0)
    assert line.bound_by == "compute"
    no_int8 = hardware.Chip("toy", ("toy",), 1000.0, None, 1e9, 100.0, 10.0)
    assert roofline.of_program(Facts(flops=flops), no_int8).compute == pytest.approx(16)


def test_collectives_take_what_a_device_sends():
    # An all-reduce of 40 bytes among 4: 3/4 of them twice; a permute of 12 bytes, five times.
    reduce = Collective("all-reduce", (Array("f32", (10,)),), 4, 1, "")
    permute = Collective("collective-permute", (Array("f32", (3,)),), 2, 5, "")
    line = roofline.of_program(Facts((reduce, permute), Counter(), 500), CHIP)
    assert line.interconnect == pytest.approx((60 + 60) / 10)
    assert line.memory == 5
    assert (line.seconds, line.bound_by) == (12, "interconnect")


@pytest.mark.parametrize(
    ("mesh", "sent"),
    [
        ({"data": 1, "fsdp": 1, "tensor": 1}, 0),
        ({"data": 4, "fsdp": 1, "tensor": 1}, 2 * 3 / 4 * 800),
        ({"data": 1, "fsdp": 4, "tensor": 1}, 3 * 3 / 4 * 800),  # gather, gather, scatter
        ({"data": 2, "fsdp": 4, "tensor": 1}, 3 * 3 / 4 * 800 + 2 * 1 / 2 * 200),
        ({"data": 4, "fsdp": 1, "tensor": 2}, 2 * 3 / 4 * 400),
    ],
)
def test_without_a_program(mesh, sent):
    line = roofline.of_settings(
        flops=3000, state_bytes=700, read_bytes=600, parameter_bytes=800, mesh=mesh, chip=CHIP
    )
    assert (line.compute, line.memory) == (3, 20)
    assert line.interconnect == pytest.approx(sent / 10)

import pytest

from aced.config import ConfigError
from aced.cost import hardware


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
    ],
)
def test_peaks_of_known_devices(kind, tflops):
    assert hardware.peak_flops(kind) == tflops * 1e12


def test_no_peak_on_cpu():
    assert hardware.peak_flops("cpu") is None


def test_every_chip_is_found_by_its_own_kinds():
    for chip in hardware.CHIPS:
        for kind in chip.kinds:
            assert hardware.chip_of(kind) is chip


@pytest.mark.parametrize(
    ("name", "slices", "chip", "chips"),
    [
        ("v5e:16x16", 1, "v5e", 256),
        ("v5p:4x4x4", 1, "v5p", 64),
        ("v6e:2x4", 2, "v6e", 16),
        ("gpu:h200x8", 1, "h200", 8),
        ("gpu:h100-nvlx2", 1, "h100-nvl", 2),
    ],
)
def test_topologies(name, slices, chip, chips):
    found = hardware.topology(name, slices)
    assert (found.name, found.chip.name, found.chips) == (name, chip, chips)


@pytest.mark.parametrize(
    ("name", "slices"),
    [
        ("v5e", 1),
        ("v9:2x2", 1),
        ("v5e:16", 1),
        ("v5e:0x4", 1),
        ("h200x8", 1),
        ("gpu:h200", 1),
        ("gpu:b300x8", 1),
        ("gpu:h200x0", 1),
        ("gpu:h200x8", 2),
        ("v4:2x2x2", 1),  # its compiler takes a chip for two devices, which its runtime does not
    ],
)
def test_unknown_topologies_are_refused_with_those_that_exist(name, slices):
    with pytest.raises(ConfigError, match=r"v5e:16x16, v6e:16x16, v5p:4x4x4, .*gpu:h200x8"):
        hardware.topology(name, slices)


def test_figures_are_in_proportion():
    # Slips of the pen would be factors: memory of a chip is read in 15 to 90 ms, and a step is
    # bound by products only where there are at least 100 FLOPs a byte.
    for chip in hardware.CHIPS:
        assert 0.01 < chip.hbm / chip.hbm_bandwidth < 0.1
        assert 100 < chip.bf16 / chip.hbm_bandwidth < 600
        assert chip.int8 is None or 1.9 < chip.int8 / chip.bf16 < 2.1
        assert chip.interconnect is None or 4 < chip.hbm_bandwidth / chip.interconnect < 40

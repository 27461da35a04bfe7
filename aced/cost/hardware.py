"""Peak rates of accelerators.

Sources: "Google" is docs.cloud.google.com/tpu/docs, "System architecture" of each version; "libtpu"
is the limit in the compiler's out-of-memory message; "NVIDIA" are its data sheets (dense figures,
from secondary sources; half of those with sparsity). Other figures are marked "no source".
"""

import dataclasses
import math
import re

from aced.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, which is one JAX device."""

    name: str  # as in names of topologies
    kinds: tuple[str, ...]  # prefixes of its `device_kind`; the first match in CHIPS applies
    bf16: float  # dense FLOP/s
    int8: float | None  # dense operations/s; None: unknown, or no faster than bf16
    hbm: float  # bytes available to a program
    hbm_bandwidth: float  # bytes/s, read and written together
    interconnect: float | None  # bytes/s sent to other chips, over all links
    tpu: bool = True


CHIPS = (
    # Kinds as spelled in jax/_src/pallas/mosaic/tpu_info.py, which also has the figures of v4.
    Chip(
        "v5e",
        ("TPU v5 lite", "TPU v5e"),
        bf16=197e12,  # Google
        int8=393e12,  # Google
        hbm=15.75 * GIB,  # libtpu; 16 GiB are on the chip
        hbm_bandwidth=819e9,  # Google
        interconnect=200e9,  # Google: 400 GB/s in both directions, 4 links of a 2-D torus
    ),
    Chip(
        "v6e",
        ("TPU v6",),  # "TPU v6 lite"
        bf16=918e12,  # Google
        int8=1836e12,  # Google
        hbm=31.25 * GIB,  # libtpu
        hbm_bandwidth=1638e9,  # Google
        interconnect=400e9,  # Google: 800 GB/s in both directions, 4 links of a 2-D torus
    ),
    Chip(
        "v5p",
        ("TPU v5",),  # also "TPU v5p"
        bf16=459e12,  # Google
        int8=918e12,  # tpu_info.py
        hbm=95.74 * GIB,  # libtpu
        hbm_bandwidth=2765e9,  # Google
        interconnect=600e9,  # Google: 1200 GB/s in both directions, 6 links of a 3-D torus
    ),
    Chip(
        "v4i",
        ("TPU v4 lite",),
        bf16=137e12,
        int8=None,
        hbm=8.59e9,
        hbm_bandwidth=614e9,
        interconnect=None,
    ),
    Chip(
        "v4",
        ("TPU v4",),
        bf16=275e12,  # Google
        int8=None,
        hbm=30.5 * GIB,  # libtpu, twice the limit of each of the two cores
        hbm_bandwidth=1230e9,
        interconnect=300e9,  # no source: 6 links of 50 GB/s
    ),
    Chip(
        "h200-nvl",
        ("NVIDIA H200 NVL",),
        bf16=835e12,  # no source
        int8=1671e12,  # no source
        hbm=141e9,  # NVIDIA
        hbm_bandwidth=4.8e12,  # NVIDIA
        interconnect=450e9,  # no source: NVLink bridges of 2 or 4 cards
        tpu=False,
    ),
    Chip(
        "h200",  # SXM
        ("NVIDIA H200",),
        bf16=989e12,  # NVIDIA
        int8=1979e12,  # NVIDIA
        hbm=141e9,  # NVIDIA
        hbm_bandwidth=4.8e12,  # NVIDIA
        interconnect=450e9,  # NVIDIA: NVLink, 900 GB/s in both directions, within 8 cards
        tpu=False,
    ),
    Chip(
        "h100-pcie",
        ("NVIDIA H100 PCIe",),
        bf16=756e12,  # no source
        int8=1513e12,  # no source
        hbm=80e9,  # NVIDIA
        hbm_bandwidth=2.0e12,  # no source
        interconnect=64e9,  # no source: PCIe 5, 128 GB/s in both directions
        tpu=False,
    ),
    Chip(
        "h100-nvl",
        ("NVIDIA H100 NVL",),
        bf16=835e12,  # no source
        int8=1671e12,  # no source
        hbm=94e9,  # no source
        hbm_bandwidth=3.9e12,  # no source
        interconnect=300e9,  # no source: NVLink bridge of 2 cards
        tpu=False,
    ),
    Chip(
        "h100",  # SXM
        ("NVIDIA H100",),
        bf16=989e12,  # NVIDIA
        int8=1979e12,  # NVIDIA
        hbm=80e9,  # NVIDIA
        hbm_bandwidth=3.35e12,  # NVIDIA
        interconnect=450e9,  # NVIDIA: NVLink, 900 GB/s in both directions, within 8 cards
        tpu=False,
    ),
    Chip(
        "a100",  # SXM, 80 GB
        ("NVIDIA A100",),
        bf16=312e12,  # NVIDIA
        int8=624e12,  # NVIDIA
        hbm=80e9,  # NVIDIA; early cards have 40
        hbm_bandwidth=2.039e12,  # NVIDIA
        interconnect=300e9,  # NVIDIA: NVLink, 600 GB/s in both directions, within 8 cards
        tpu=False,
    ),
)
# TPU slices that can be compiled for on any machine; one device per chip.
SLICES = {"v5e": "v5e:16x16", "v6e": "v6e:16x16", "v5p": "v5p:4x4x4"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A group of chips that train together."""

    name: str
    chip: Chip
    chips: int


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device; None if unknown, as for CPUs."""
    return next((chip for chip in CHIPS if device_kind.startswith(chip.kinds)), None)


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None if unknown."""
    chip = chip_of(device_kind)
    return chip and chip.bf16


def topology(name: str, num_slices: int = 1) -> Topology:
    """Returns the topology of a name such as "v5e:16x16", "v5p:4x4x4" or "gpu:h200x8".

    A TPU slice is named with its shape in chips, and `num_slices` of them train together; GPUs are
    named with their number.

    Raises:
        ConfigError: the chip is unknown, or the name is malformed.
    """
    gpus = {chip.name: chip for chip in CHIPS if not chip.tpu}
    tpus = {chip.name: chip for chip in CHIPS if chip.name in SLICES}
    if gpu := re.fullmatch(r"gpu:([\w-]+)x(\d+)", name):
        if gpu[1] in gpus and int(gpu[2]) and num_slices == 1:
            return Topology(name, gpus[gpu[1]], int(gpu[2]))
    elif tpu := re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name):
        chips = math.prod(map(int, tpu[2].split("x"))) * num_slices
        if tpu[1] in tpus and chips > 0:
            return Topology(name, tpus[tpu[1]], chips)
    known = ", ".join([*SLICES.values(), *(f"gpu:{chip}x8" for chip in gpus)])
    raise ConfigError(
        f"The topology {name!r} is unknown. Known are TPU slices by their shape in chips and "
        f"GPUs by their number, such as {known}."
        + (" Only TPU slices can be several." if num_slices > 1 else "")
    )

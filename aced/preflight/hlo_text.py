"""Parses the text of a compiled program (HLO) into computations of instructions.

Supports the output of `compiled.as_text()` for CPUs, GPUs and TPUs, whose layouts have tiles and
memory spaces: `bf16[6,128,512]{2,1,0:T(8,128)(2,1)S(1)}`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # other types have their bits in the name
_HBM = "S(0)"  # TPU: S(1) is the vector memory, S(2) semaphores, S(5) the host, S(6) scalars


@dataclasses.dataclass(frozen=True)
class Array:
    """An array on one device."""

    dtype: str  # XLA's name: bf16, f32, u8
    shape: tuple[int, ...]
    layout: str = ""  # between the braces: minor-to-major order, tiles, memory space

    @property
    def bits(self) -> int:
        """Bits of an element."""
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        # f8e4m3fn, s4, bf16, c64: the first number.
        return int(re.search(r"\d+", self.dtype)[0])

    @property
    def bytes(self) -> int:
        """Bytes of the elements, without padding."""
        return math.prod(self.shape) * self.bits // 8

    @property
    def hbm_bytes(self) -> int:
        """Bytes in HBM, padded to whole tiles; 0 if the array is in another memory."""
        order, _, place = self.layout.partition(":")
        space = re.search(r"S\(\d+\)", place)
        if space and space[0] != _HBM:
            return 0
        tile = re.search(r"T\(([\d,]+)\)", place)
        if not tile or not order:
            return self.bytes
        tiled = [int(size) for size in tile[1].split(",")]
        minor_first = [self.shape[int(axis)] for axis in order.split(",")]
        for axis, size in enumerate(reversed(tiled[-len(minor_first) :])):
            minor_first[axis] = -(-minor_first[axis] // size) * size
        return math.prod(minor_first) * self.bits // 8


# A type: an array, or a tree of tuples of them.
Type = Array | tuple


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = type opcode(operands), attributes`."""

    name: str
    type: Type
    opcode: str
    operands: tuple[str, ...]
    literal: str  # the text between the parentheses
    attributes: str
    is_root: bool

    def calls(self, *keys: str) -> list[str]:
        """Names of the computations in the attributes `keys`."""
        values = re.findall(rf"\b(?:{'|'.join(keys)})=(%[\w.-]+|{{[^}}]*}})", self.attributes)
        return [name for value in values for name in re.findall(r"%([\w.-]+)", value)]

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All arrays of the result."""
        return tuple(leaves(self.type))

    @property
    def result(self) -> tuple[Array, ...]:
        """The arrays computed, without the operands and semaphores in the type of a `-start`."""
        if self.opcode.endswith("-start") and isinstance(self.type, tuple):
            if self.opcode == "all-reduce-start":
                return self.arrays
            return tuple(leaves(self.type[0 if self.opcode == "copy-start" else 1]))
        return self.arrays


_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\](?:\{([^}]*)\})?")


def leaves(tree: Type) -> Iterator[Array]:
    """All arrays of a type, in order."""
    if isinstance(tree, Array):
        yield tree
    else:
        for part in tree:
            yield from leaves(part)


def _parse_type(text: str, at: int) -> tuple[Type, int]:
    """The type that starts at `at`, and where it ends."""
    if text[at] != "(":
        match = _ARRAY.match(text, at)
        dims = [size.lstrip("<=") for size in match[2].split(",") if size]
        return Array(match[1], tuple(map(int, dims)), match[3] or ""), match.end()
    parts, at = [], at + 1
    while text[at] != ")":
        if text.startswith("/*", at):  # /*index=5*/
            at = text.index("*/", at) + 2
        elif text[at] in ", ":
            at += 1
        else:
            part, at = _parse_type(text, at)
            parts.append(part)
    return tuple(parts), at + 1


def _parse_instruction(line: str) -> Instruction | None:
    match = _NAME.match(line)
    if not match:
        return None
    type_, at = _parse_type(line, match.end())
    start = line.index("(", at)
    depth, end = 1, start + 1
    while depth:
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    inside = line[start + 1 : end - 1]
    return Instruction(
        name=match[2],
        type=type_,
        opcode=line[at:start].strip(),
        operands=tuple(re.findall(r"%([\w.-]+)", inside)),
        literal=inside,
        attributes=line[end:],
        is_root=bool(match[1]),
    )


@dataclasses.dataclass
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction's result."""
        users = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    def parameter(self, number: int) -> Instruction:
        """Argument `number`, from 0."""
        parameters = (i for i in self.instructions.values() if i.opcode == "parameter")
        return next(i for i in parameters if i.literal == str(number))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations by name, and the name of the entry computation.

    Raises:
        ValueError: the text has no entry computation, so it is not a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = Computation(header[2])
            if header[1]:
                entry = header[2]
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _parse_instruction(line)):
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("This is not the text of a compiled program: it has no 'ENTRY ...' line.")
    return computations, entry

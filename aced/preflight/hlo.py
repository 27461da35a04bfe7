"""Costs of a compiled program, read from its text (`compiled.as_text()`).

XLA's own `cost_analysis` counts the body of a loop once, and omits collectives. Here everything is
counted as often as it runs: FLOPs of matrix products and convolutions, bytes moved to and from HBM,
and collectives. Figures are per device.
"""

import dataclasses
import math
import re
from collections import Counter

from aced.preflight.hlo_flops import product_flops
from aced.preflight.hlo_text import Array, Computation, Instruction, parse

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Instructions that move no data: aliases of buffers, or calls whose body is counted.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all"
    "|async-(start|update)|partition-id|replica-id|opt-barrier|.*-done"
)
_ASYNC_START = "AsyncCollectiveStart"
_READS_RESULT = frozenset(("dynamic-slice", "slice", "gather"))  # read only part of the operand
# Custom calls of XLA without products; all others count as kernels.
_NO_KERNELS = re.compile(
    "AllocateBuffer|AssumeGatherIndicesInBound|AsyncCollective(Start|Done)|ConcatBitcast"
    "|GatherScatterIndicesBitpacked|Sharding|SliceToDynamic|TopK|ZeroCrop"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective instruction."""

    kind: str  # one of COLLECTIVES
    arrays: tuple[Array, ...]  # its result on a device, per execution
    group: int  # devices that take part in it
    times: int  # executions
    origin: str  # the JAX operation it comes from

    @property
    def bytes(self) -> int:
        """Bytes of its result on a device, per execution."""
        return sum(array.bytes for array in self.arrays)

    @property
    def dtype(self) -> str:
        """The element type with the most bytes."""
        sizes = Counter()
        for array in self.arrays:
            sizes[array.dtype] += array.bytes
        return max(sizes, key=sizes.get) if sizes else "token"

    @property
    def sent(self) -> int | float:
        """Least bytes that a device sends, per execution (bandwidth-optimal rings)."""
        others = self.group - 1
        shares = {
            "all-gather": others / self.group,  # of the result
            "all-to-all": others / self.group,
            "all-reduce": 2 * others / self.group,  # reduce-scatter, then all-gather
            "reduce-scatter": others,  # the result is one part of `group`
            "collective-permute": 1,
        }
        return shares[self.kind] * self.bytes


@dataclasses.dataclass(frozen=True)
class Facts:
    """Costs of a program on one device, with loops multiplied out."""

    collectives: tuple[Collective, ...] = ()
    # FLOPs of dots and convolutions, by operand type and precision: "bf16", "f32 highest".
    flops: Counter = dataclasses.field(default_factory=Counter)
    hbm_bytes: int | float = 0  # read and written by the instructions, fusions as a whole
    unknown_loops: tuple[str, ...] = ()  # loops without a constant length, counted once
    opaque: tuple[str, ...] = ()  # kernels whose FLOPs are unknown and not counted
    # FLOPs in branches of conditionals, beyond those of the cheapest branch; included in `flops`.
    branch_flops: int = 0

    def __add__(self, other: "Facts") -> "Facts":
        names = (field.name for field in dataclasses.fields(Facts))
        return Facts(*(getattr(self, name) + getattr(other, name) for name in names))

    def repeated(self, times: int) -> "Facts":
        """The costs of `times` executions."""
        return dataclasses.replace(
            self,
            collectives=tuple(
                dataclasses.replace(c, times=c.times * times) for c in self.collectives
            ),
            flops=Counter({kind: count * times for kind, count in self.flops.items()}),
            hbm_bytes=self.hbm_bytes * times,
            branch_flops=self.branch_flops * times,
        )


def read(text: str) -> Facts:
    """Returns the costs of the compiled program `text`, HLO of CPUs, GPUs or TPUs.

    Conditionals count with the branch that has the most FLOPs.

    Raises:
        ValueError: the text has no entry computation, so it is not a compiled program.
    """
    return _Reader(text).entry()


class _Reader:
    """Follows calls, fusions and loops from the entry computation."""

    def __init__(self, text: str):
        self._computations, self._entry = parse(text)
        self._known: dict[tuple[str, bool], Facts] = {}
        self._started = set()  # chains of asynchronous collectives
        for computation in self._computations.values():
            for i in computation.instructions.values():
                if _target(i) == _ASYNC_START:
                    start = computation.instructions[i.operands[0]].attributes
                    self._started |= set(re.findall(r'chain_id="(\d+)"', start))

    def entry(self) -> Facts:
        return self._of(self._entry)

    def _of(self, name: str, fused: bool = False) -> Facts:
        """Facts of one execution of a computation; instructions in a fusion use no HBM."""
        key = name, fused
        if key not in self._known:
            computation = self._computations[name]
            parts = (
                self._of_instruction(computation, i, fused)
                for i in computation.instructions.values()
            )
            self._known[key] = sum(parts, Facts())
        return self._known[key]

    def _of_instruction(self, computation: Computation, i: Instruction, fused: bool) -> Facts:
        facts = Facts() if fused else Facts(hbm_bytes=self._moved(computation, i))
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            if self._is_repeated(computation, i):
                return facts
            return facts + Facts(collectives=(_collective(kind, i, i.result),))
        if i.opcode == "fusion":
            (called,) = i.calls("calls")
            inside = self._of(called, fused=True)
            if reduced := self._as_reduce_scatter(called, i):
                inside = dataclasses.replace(inside, collectives=(reduced,))
            return facts + inside
        if i.opcode in ("call", "async-start"):
            return sum((self._of(name, fused) for name in i.calls("to_apply", "calls")), facts)
        if i.opcode == "while":
            (body,), (condition,) = i.calls("body"), i.calls("condition")
            times = self._trip_count(computation, i)
            once = self._of(body, fused) + self._of(condition, fused)
            if times is None:
                return facts + once + Facts(unknown_loops=(i.name,))
            return facts + once.repeated(times)
        if i.opcode == "conditional":
            names = i.calls("branch_computations", "true_computation", "false_computation")
            branches = [self._of(name, fused) for name in names]
            branches.sort(key=lambda f: (sum(f.flops.values()), f.hbm_bytes))
            beyond = sum(branches[-1].flops.values()) - sum(branches[0].flops.values())
            # Includes conditionals within this branch.
            return facts + dataclasses.replace(branches[-1], branch_flops=beyond)
        if i.opcode in ("dot", "convolution"):
            return facts + Facts(flops=product_flops(computation, i))
        if i.opcode == "custom-call" and not _NO_KERNELS.fullmatch(_target(i)):
            return facts + Facts(opaque=(_target(i),))
        return facts

    def _is_repeated(self, computation: Computation, i: Instruction) -> bool:
        """Whether a TPU collective is repeated in the fusions that overlap with it or finish it.

        All belong to one chain; only the fusion that starts it counts.
        """
        chain = re.search(r'chain_id="(\d+)"', i.attributes)
        if not chain or chain[1] not in self._started:
            return False
        return all(_target(user) != _ASYNC_START for user in computation.users[i.name])

    def _as_reduce_scatter(self, called: str, fusion: Instruction) -> Collective | None:
        """An all-reduce that TPUs fuse with the slice of its result on each device."""
        computation = self._computations[called]
        reduces = [i for i in computation.instructions.values() if i.opcode == "all-reduce"]
        if len(reduces) != 1 or computation.root.opcode != "dynamic-slice":
            return None
        if reduces[0].name != computation.root.operands[0]:
            return None
        part = _collective("reduce-scatter", reduces[0], fusion.arrays)
        return dataclasses.replace(part, origin=part.origin or _origin(fusion))

    # Loops.

    def _trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """Iterations of a loop that counts up to a constant; None for other loops."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        condition = self._computations[loop.calls("condition")[0]]
        body = self._computations[loop.calls("body")[0]]
        initial = _source(computation, loop.operands[0])
        test, sides = self._opened(condition, condition.root.name)
        direction = re.search(r"direction=(LT|LE)", test.attributes)
        if test.opcode != "compare" or not direction:
            return None
        if body.root.opcode != "tuple" or initial.opcode != "tuple":
            return None

        def before(place: int) -> int | None:
            return _number(_source(computation, initial.operands[place]))

        counter, limit, place = _tuple_place(sides[0]), _number(sides[1]), _tuple_place(sides[1])
        if place is not None:  # carried by the loop, so it must be constant
            same = _tuple_place(_source(body, body.root.operands[place])) == place
            limit = before(place) if same else None
        if counter is None or limit is None or (start := before(counter)) is None:
            return None
        add, terms = self._opened(body, body.root.operands[counter])
        steps = [number for term in terms if (number := _number(term))]
        if add.opcode != "add" or len(steps) != 1 or steps[0] < 1:
            return None
        return max(0, -(-(limit + (direction[1] == "LE") - start) // steps[0]))

    def _opened(self, computation: Computation, name: str) -> tuple[Instruction, list[Instruction]]:
        """The operation that computes `name`, perhaps inside a fusion, and its arguments."""
        operation = _source(computation, name)
        if operation.opcode != "fusion":
            return operation, [_source(computation, operand) for operand in operation.operands]
        fused = self._computations[operation.calls("calls")[0]]
        arguments = []
        for operand in fused.root.operands:
            argument = _source(fused, operand)
            if argument.opcode == "parameter":
                argument = _source(computation, operation.operands[int(argument.literal)])
            arguments.append(argument)
        return fused.root, arguments

    # Memory.

    def _moved(self, computation: Computation, i: Instruction) -> int | float:
        """Bytes of HBM that an instruction reads and writes."""
        if _FREE.fullmatch(i.opcode):
            return 0
        operands = [computation.instructions[name] for name in i.operands]
        written = sum(array.hbm_bytes for array in i.result)
        opcode = i.opcode.removesuffix("-start")
        if opcode in _READS_RESULT:
            return written + min(sum(a.hbm_bytes for a in operands[0].arrays), written)
        if opcode in ("dynamic-update-slice", "scatter"):
            update = sum(a.hbm_bytes for a in operands[-1 if opcode == "scatter" else 1].arrays)
            return update + min(written, update)
        if opcode == "fusion":
            inner = self._computations[i.calls("calls")[0]]
            read = sum(
                min(self._read_of(inner, inner.parameter(k).name), size)
                for k, operand in enumerate(operands)
                if (size := sum(a.hbm_bytes for a in operand.arrays))
            )
            return read + self._written_by(inner, i)
        return written + sum(a.hbm_bytes for operand in operands for a in operand.arrays)

    def _read_of(self, fused: Computation, name: str) -> int | float:
        """Bytes that a fusion reads of an operand, which slices read only in part."""
        total = 0
        for user in fused.users[name]:
            if user.opcode == "bitcast":
                total += self._read_of(fused, user.name)
            elif user.opcode in _READS_RESULT and user.operands[0] == name:
                total += sum(a.bytes for a in user.arrays)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                pass  # updated in place
            elif user.opcode == "fusion":
                inner = self._computations[user.calls("calls")[0]]
                places = [k for k, operand in enumerate(user.operands) if operand == name]
                total += sum(self._read_of(inner, inner.parameter(k).name) for k in places)
            else:
                return math.inf
        return total

    def _written_by(self, fused: Computation, fusion: Instruction) -> int | float:
        roots = [fused.root] * len(fusion.arrays)
        if fused.root.opcode == "tuple":
            roots = [fused.instructions[name] for name in fused.root.operands]
        total = 0
        for root, array in zip(roots, fusion.arrays, strict=True):
            while root.opcode == "bitcast":
                root = fused.instructions[root.operands[0]]
            size = array.hbm_bytes
            if root.opcode == "dynamic-update-slice":
                size = min(size, sum(a.bytes for a in fused.instructions[root.operands[1]].arrays))
            total += size
        return total


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction that computes `name`, ignoring copies and reshapes."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "reshape", "copy-done", "copy-start"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _number(instruction: Instruction) -> int | None:
    is_number = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal)
    return int(instruction.literal) if is_number else None


def _tuple_place(instruction: Instruction) -> int | None:
    if instruction.opcode != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", instruction.attributes)[1])


def _collective(kind: str, i: Instruction, arrays: tuple[Array, ...]) -> Collective:
    return Collective(kind, arrays, _group_size(i.attributes), 1, _origin(i))


def _origin(i: Instruction) -> str:
    name = re.search(r'op_name="([^"]*)"', i.attributes)
    return name[1] if name else ""


def _target(i: Instruction) -> str:
    if i.opcode != "custom-call":
        return ""
    return re.search(r'custom_call_target="([^"]*)"', i.attributes)[1]


def _group_size(attributes: str) -> int:
    """Devices of one group: {{0,1},{2,3}}, [4,2]<=[8], or mesh['a'=4,'b'=2] {'a'}."""
    if "source_target_pairs=" in attributes:
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=@?\w+\[([^\]]*)\].*? \{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        return math.prod(axes[name] for name in re.findall(r"'([^']*)'", mesh[2]))
    return 1

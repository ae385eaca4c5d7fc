r"""What a compiled program does to a chip, read off the text of its optimised HLO.

A kernel is an instruction of the entry computation, or of one it calls, that the chip must run: a
fusion, a library's call, a copy. It reads each operand once and writes each result once,

$$\text{bytes} = \sum_\text{operands} \text{read} + \sum_\text{results} \text{written}. \tag{1}$$

Of an operand that a fusion only slices, the slice is read; of a result that is an update in place,
the update is written: otherwise every parameter taken out of one flat vector would count as the
whole vector. Scratch memory of libraries is not counted. Convolutions, products and fused attention
also have floating-point operations: with $n$ numbers in the activations on the side of the output
channels, a filter $w$ and $c$ output channels; and with $n$ numbers in a product's result,

$$\text{FLOP} = \frac{2 n |w|}{c}, \qquad \text{FLOP} = 2 n \prod \text{contracted sides}.
  \tag{2}$$

The body of a loop counts as often as its known number of turns, and once where only the data can
tell; of a branch, the one that moves most.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple


_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+(?:e\w+)?)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")

# Nothing runs on the chip for these.
_FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast after-all partition-id replica-id "
    "opt-barrier add-dependency get-dimension-size domain".split()
)
_SLICES = ("slice", "dynamic-slice", "gather")


class Shape(NamedTuple):
    """A dtype and the sides."""

    dtype: str
    sides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.sides)

    @property
    def bytes(self) -> int:
        width = _WIDTHS.get(self.dtype) or int(re.findall(r"\d+", self.dtype)[0]) / 8
        return math.ceil(width * self.size)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    op: str
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def find(self, pattern: str, default: str = "") -> str:
        """The first group of a pattern in the line's attributes."""
        found = re.search(pattern, self.text)
        return found[1] if found else default

    @property
    def op_name(self) -> str:
        return self.find(r'op_name="([^"]*)"')


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """Computations by name, the name of the first, and the place in the source of each frame."""

    computations: dict[str, Computation]
    entry: str
    places: dict[int, tuple[str, ...]]


class Kernel(NamedTuple):
    """One kernel: (1), (2), how often it runs, and where in the program it comes from.

    - `kind`: the fusion's or instruction's kind, or the library function that is called.
    - `group`: convolution, product, attention, reduction, transpose, copy or elementwise.
    - `part`: forward and backward of a derivative; elsewhere network, or the rest (optimiser,
        averages, draws, metrics, samplers).
    - `op`: the last part of JAX's name of the operation.
    - `places`: file and function of every frame of the source, the innermost first.
    """

    name: str
    kind: str
    group: str
    part: str
    op: str
    places: tuple[str, ...]
    dtype: str
    bytes: int
    flop: int
    times: int


def shapes_in(text: str) -> tuple[Shape, ...]:
    """Every array in the text of a type."""
    return tuple(
        Shape(dtype, tuple(int(side) for side in sides.split(",") if side))
        for dtype, sides in _SHAPE.findall(text)
    )


def parse(text: str) -> Module:
    """The computations of an optimised module, as `compiled.as_text()` prints it."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _LINE.match(line)):
            root, name, shape, op, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
            current[name] = Instruction(
                name, shapes_in(shape), op, operands, rest, root is not None
            )
    if not entry:
        raise ValueError("expected the text of an HLO module with an ENTRY computation.")
    return Module(computations, entry, _places(text))


def _table(text: str, title: str) -> list[str]:
    found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    return [line.split(" ", 1)[1] for line in found[1].splitlines()] if found else []


def _places(text: str) -> dict[int, tuple[str, ...]]:
    """For every stack frame the files and functions from it outwards."""
    files = [name.strip('"') for name in _table(text, "FileNames")]
    functions = [name.strip('"') for name in _table(text, "FunctionNames")]
    locations = [
        f"{files[int(file) - 1]} {functions[int(function) - 1]}"
        for file, function in (
            re.findall(r"file_name_id=(\d+) function_name_id=(\d+)", line)[0]
            for line in _table(text, "FileLocations")
        )
    ]
    chains: dict[int, tuple[str, ...]] = {0: ()}
    for number, line in enumerate(_table(text, "StackFrames"), 1):
        location = int(re.findall(r"file_location_id=(\d+)", line)[0])
        parent = re.findall(r"parent_frame_id=(\d+)", line)
        # Printed one too high: that of an outermost frame is 1, or missing.
        outer = int(parent[0]) - 1 if parent else 0
        chains[number] = (locations[location - 1], *chains.get(outer, ()))
    return chains


def kernels(module: Module) -> list[Kernel]:
    """The kernels of a program, in the order in which they run."""
    return list(_walk(module, module.entry, 1))


def _walk(module: Module, name: str, times: int) -> Iterator[Kernel]:
    computation = module.computations[name]
    for instruction in computation.values():
        op = instruction.op
        if op in _FREE or op.endswith("-done"):
            continue
        if op == "call":
            yield from _walk(module, instruction.find(r"to_apply=%([\w.\-]+)"), times)
        elif op == "async-start":
            yield from _walk(module, instruction.find(r"calls=%([\w.\-]+)"), times)
        elif op == "while":
            turns = int(instruction.find(r"known_trip_count[^\d]+(\d+)", "1"))
            yield from _walk(module, instruction.find(r"condition=%([\w.\-]+)"), times * turns)
            yield from _walk(module, instruction.find(r"body=%([\w.\-]+)"), times * turns)
        elif op == "conditional":
            names = re.findall(
                r"%([\w.\-]+)",
                instruction.find(r"branch_computations=\{([^}]*)\}")
                or "".join(re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", instruction.text)),
            )
            branches = [list(_walk(module, branch, times)) for branch in names]
            yield from max(branches, key=lambda ks: sum(k.bytes for k in ks), default=[])
        else:
            yield _kernel(module, computation, instruction, times)


def _kernel(module: Module, computation: Computation, this: Instruction, times: int) -> Kernel:
    inner = module.computations.get(this.find(r"calls=%([\w.\-]+)"), {})
    # A library's call in a fusion with the slices that are its operands.
    called = next((i for i in inner.values() if i.op == "custom-call"), None)
    kind = this.op
    if this.op == "custom-call" or called:
        kind = (called or this).find(r'custom_call_target="([^"]+)"')
    elif this.op == "fusion":
        triton = "__triton" in this.text
        kind = ("triton " if triton else "") + re.sub(r"[\d._]+$", "", this.name)
    name, frame = _origin(computation, called or this, inner)
    work = [(computation, this), *((inner, i) for i in inner.values())]
    flop = [(_flop(*each), each) for each in work]
    _, (owner, most) = max(flop, key=lambda item: item[0])
    # A product runs at the rate of what it multiplies, whatever it adds up in.
    first = owner[most.operands[0]] if most.operands and most.operands[0] in owner else this
    return Kernel(
        name=this.name,
        kind=kind,
        group=_group(kind, this, inner),
        part=part_of(name),
        op=name.rsplit("/", 1)[-1],
        places=module.places.get(frame, ()),
        dtype=first.shapes[0].dtype,
        bytes=_bytes(computation, this, inner),
        flop=sum(number for number, _ in flop),
        times=times,
    )


def _origin(computation: Computation, this: Instruction, inner: Computation) -> tuple[str, int]:
    """JAX's name of a kernel, and its stack frame.

    A fusion may have kept only the last part of the name, and a copy none: then that of something
    inside, or of what is copied.
    """
    frame = int(this.find(r"stack_frame_id=(\d+)", "0"))
    if "/" in this.op_name:
        return this.op_name, frame
    for other in inner.values():
        if "/" in other.op_name:
            return other.op_name, frame or int(other.find(r"stack_frame_id=(\d+)", "0"))
    seen = this
    while "/" not in seen.op_name and seen.operands and seen.operands[0] in computation:
        seen = computation[seen.operands[0]]
    return (seen.op_name if "/" in seen.op_name else ""), frame


def part_of(op_name: str) -> str:
    """backward, forward, network or the rest, from JAX's name of an operation.

    Networks put their names into it, so that what is beyond the network can be told apart.
    """
    if "transpose(" in op_name or "rematted" in op_name:
        return "backward"
    if "jvp(" in op_name:
        return "forward"
    return "network" if "eqdiff.nn." in op_name else "the rest"


def _group(kind: str, this: Instruction, inner: Computation) -> str:
    ops = {instruction.op for instruction in inner.values()} | {this.op}
    if "$conv" in kind or "convolution" in ops:
        return "convolution"
    if "fmha" in kind:
        return "attention"
    if "cublas" in kind or "dot" in ops:
        return "product"
    if "transpose" in kind:
        return "transpose"
    if this.op in ("copy", "copy-start"):
        return "copy"
    return "reduction" if "reduce" in ops else "elementwise"


def _bytes(computation: Computation, this: Instruction, inner: Computation) -> int:
    """Equation (1)."""
    shapes = [computation[name].bytes for name in this.operands if name in computation]
    if this.op in _SLICES:
        return 2 * this.bytes + sum(shapes[1:])
    if this.op == "dynamic-update-slice":
        return 2 * shapes[1]
    if this.op == "copy-start":
        return 2 * shapes[0]
    if this.op == "custom-call":
        return sum(shapes) + _results(this)
    if not inner:
        return sum(shapes) + this.bytes
    return sum(_read(inner, parameter) for parameter in inner.values()) + _written(inner)


def _results(this: Instruction) -> int:
    """What a library's call writes, but for its scratch memory."""
    scratch = [s for s in this.shapes[1:] if s.dtype in ("u8", "s8") and len(s.sides) == 1]
    return this.bytes - sum(s.bytes for s in scratch)


def _users(inner: Computation, name: str) -> Iterator[tuple[Instruction, bool]]:
    """What uses a value, through bitcasts; and whether as the first operand alone."""
    for user in inner.values():
        if user.op == "bitcast" and name in user.operands:
            yield from _users(inner, user.name)
        elif name in user.operands:
            yield user, user.operands.index(name) == 0 and user.operands.count(name) == 1


def _read(inner: Computation, this: Instruction) -> int:
    if this.op != "parameter":
        return 0
    total = 0
    for user, first in _users(inner, this.name):
        if first and user.op in _SLICES:
            total += user.bytes
        elif not (first and user.op == "dynamic-update-slice"):
            return this.bytes
    return min(total, this.bytes)


def _written(inner: Computation) -> int:
    (root,) = (i for i in inner.values() if i.root)
    results = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
    total = 0
    for result in results:
        while result.op == "bitcast" and result.operands[0] in inner:
            result = inner[result.operands[0]]
        if result.op == "custom-call":
            total += _results(result)
        else:
            updated = result.op == "dynamic-update-slice"
            total += inner[result.operands[1]].bytes if updated else result.bytes
    return total


def _flop(computation: Computation, this: Instruction) -> int:
    """Equation (2), for one instruction; 0 for what is neither convolution nor product."""
    target = this.find(r'custom_call_target="([^"]+)"')
    if not (this.op in ("dot", "convolution") or "$" in target):
        return 0
    operands = [computation[name].shapes[0] for name in this.operands if name in computation]
    if "conv" in target or this.op == "convolution":
        return _convolution_flop(target, this, operands)
    if "fmha" in target:
        return _attention_flop(target, operands)
    sides = this.find(r"lhs_contracting_dims=\{([\d,]*)\}")
    config = this.find(r'"lhs_contracting_dimensions":(\[[^\]]*\])')
    contracted = [int(i) for i in (json.loads(config) if config else sides.split(",")) if i != ""]
    if not contracted or not operands:
        return 0
    return 2 * this.shapes[0].size * math.prod(operands[0].sides[int(i)] for i in contracted)


def _convolution_flop(target: str, this: Instruction, operands: list[Shape]) -> int:
    labels = this.find(r"dim_labels=(\w+)")
    result = this.shapes[0]
    filters = result if "BackwardFilter" in target else operands[1]
    if "BackwardFilter" in target:
        activations = operands[1]
    else:
        activations = operands[0] if "BackwardInput" in target else result
    # dim_labels=b01f_o01i->b01f: the middle is the filter's.
    outputs = filters.sides[labels.split("_")[1].split("-")[0].index("o")]
    return 2 * activations.size * filters.size // outputs


def _attention_flop(target: str, operands: list[Shape]) -> int:
    # (batch, tokens, heads, channels); two products forward, and five backward.
    query, key = operands[:2]
    products = 5 if "Backward" in target else 2
    return 2 * products * query.size * key.sides[1]

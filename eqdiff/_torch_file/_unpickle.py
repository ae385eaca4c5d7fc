"""Reading pickles without running them.

A pickle is a program for a stack machine. Python's own interpreter of it calls what the program
names: `os.system` as readily as a tensor's constructor. The interpreter here is another one, and
smaller: it knows the instructions that make plain data, and where the program names a function or a
class it looks the name up in a table of a dozen, each of which makes a record or an array out of
its arguments. There is no import, no `getattr`, and no call of anything that came out of the
file, so that nothing in a file can run; a name that is not in the table, or an instruction that
only objects need, is refused by name.

Numbers are not copied: a tensor is a view of its storage, which may be a mapped file. Every view is
checked against the size of its storage before it is made.

A program may also make much of little: use one list as the argument of a million calls, or nest
tuples that each hold the one before twice, which no machine can print, compare or hash. What calls
are given is counted and may be a few times the file; and no value is formatted but by
`eqdiff._shown`, nor used as a key unless it is text or a number.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from .._shown import reason, shortened, shown
from ._records import (
    CALLS,
    CONTAINERS,
    dict_of,
    Dtype,
    Global,
    Instance,
    MAPPINGS,
    numpy_array,
    NumpyArray,
    Refused,
    Storage,
    SYMBOLS,
    Tensor,
)


# What a damaged program makes of the steps below; deep nesting in it, a RecursionError.
_DAMAGE = (
    *(ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError),
    RecursionError,
)
# What the arguments of all calls may have in bytes and items, as a multiple of the file's size, and
# the tensors in pairs of numbers.
_MOST_WORK = 16


class _Mark:
    """Where a list of arguments begins on the stack."""


class Unpickler:
    """The stack machine. `load` runs one pickle and leaves the file behind it."""

    def __init__(
        self,
        file: Any,
        source: str,
        *,
        calls: Mapping[Global, Callable[..., Any]] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        size: int | None = None,
    ):
        """**Arguments:**

        - `file`: a seekable file, such as a mapped one or an `io.BytesIO`.
        - `source`: its name, for messages.
        - `calls`: names that this kind of file may call, in addition to those that any may.
        - `persistent`: what to do with references to something outside the pickle; by default they
            are refused.
        - `size`: of everything that the pickle may refer to, in bytes; by default the file's.
        """
        self.file, self.source = file, source
        self.calls = CALLS | dict(calls or {})
        self.persistent = persistent
        self.left = _MOST_WORK * (_length(file) if size is None else size) + 10_000
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """**Raises:** `ValueError` for a truncated or damaged pickle, and for anything that is not
        plain data.
        """
        try:
            for opcode, argument, _ in pickletools.genops(self.file):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except Refused as e:
            raise ValueError(f"{self.source} {e}.") from None
        except _DAMAGE as e:
            raise ValueError(
                f"{self.source} is truncated, damaged or not a pickle ({reason(e)})."
            ) from e
        raise ValueError(f"{self.source} is truncated.")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(
                f"uses the pickle instruction {name}, which plain data and tensors never need"
            )

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        at = next(i for i in range(len(self.stack) - 1, -2, -1) if i < 0 or self.stack[i] is _Mark)
        if at < 0:
            raise IndexError("a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def find(self, module: Any, name: Any) -> Global:
        """A name as a record, if this kind of file may use it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused(f"names {shown((module, name))}, which is not text")
        found = Global(module, name)
        if found not in self.calls and found not in SYMBOLS:
            raise Refused(
                f"names {found}, which is neither a tensor nor plain data. Nothing of the file was "
                "run, and eqdiff does not load it: if you trust it, save its weights alone with "
                "the project that wrote it"
            )
        return found

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or function not in self.calls:
            raise Refused(f"calls {_named(function)}, which no file may call")
        if not isinstance(arguments, tuple):
            raise TypeError(f"{function} is called without arguments")
        self._spend(sum(len(a) for a in arguments if isinstance(a, str | bytes | list | dict)))
        result = self.calls[function](*arguments)
        if isinstance(result, Tensor):
            self._spend(math.prod(result.shape) // 2)
        self.stack.append(result)

    def _spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise Refused("makes far more of its data than there are")

    def new(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Global) or cls not in MAPPINGS | CONTAINERS or arguments != ():
            raise Refused(f"makes an object of {_named(cls)}, which no file may make")
        self.stack.append({} if cls in MAPPINGS else Instance(cls.name))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, dict) and isinstance(state, dict):
            return
        if isinstance(target, Instance) and target.state is None and isinstance(state, dict):
            target.state = state
        elif isinstance(target, Dtype) and isinstance(state, tuple) and state[1] in ("<", ">", "|"):
            if state[1] != "|":
                target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, NumpyArray) and isinstance(state, tuple):
            target.array = numpy_array(*state)
        else:
            raise Refused(f"gives a state to {type(target).__name__}, which takes none")

    def reference(self, identity: Any) -> None:
        if self.persistent is None:
            raise Refused("refers to something outside itself")
        self.stack.append(self.persistent(identity))


def _length(file: Any) -> int:
    at, end = file.tell(), file.seek(0, 2)
    # A mapped file's `seek` returns nothing before Python 3.13.
    end = file.tell() if end is None else end
    file.seek(at)
    return end


def _named(value: Any) -> str:
    return str(value) if isinstance(value, Global) else shown(value)


def _append(machine: Unpickler, items: list[Any]) -> None:
    machine.stack[-1].extend(items)


def _set_items(machine: Unpickler, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise TypeError("items for something that is not a dictionary")
    target.update(dict_of(items))


def _push(machine: Unpickler, value: Any) -> None:
    machine.stack.append(value)


def _pop(machine: Unpickler, count: int) -> list[Any]:
    if count > len(machine.stack):
        raise IndexError("the stack is empty")
    items = machine.stack[len(machine.stack) - count :]
    del machine.stack[len(machine.stack) - count :]
    return items


def _remember(machine: Unpickler, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


_VALUES = frozenset(
    "INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
    "MARK": lambda: _Mark,
}
_STEPS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "APPEND": lambda m, _: _append(m, _pop(m, 1)),
    "APPENDS": lambda m, _: _append(m, m.marked()),
    # A set is a list here, whose members need not be hashable.
    "ADDITEMS": lambda m, _: _append(m, m.marked()),
    "FROZENSET": lambda m, _: _push(m, m.marked()),
    "LIST": lambda m, _: _push(m, m.marked()),
    "TUPLE": lambda m, _: _push(m, tuple(m.marked())),
    **{f"TUPLE{n}": lambda m, _, n=n: _push(m, tuple(_pop(m, n))) for n in (1, 2, 3)},
    "DICT": lambda m, _: _push(m, dict_of(m.marked())),
    "SETITEM": lambda m, _: _set_items(m, _pop(m, 2)),
    "SETITEMS": lambda m, _: _set_items(m, m.marked()),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.marked(),
    "DUP": lambda m, _: _push(m, m.stack[-1]),
    **{name: _remember for name in ("PUT", "BINPUT", "LONG_BINPUT")},
    "MEMOIZE": lambda m, _: _remember(m, len(m.memo)),
    **{name: lambda m, i: _push(m, m.memo[i]) for name in ("GET", "BINGET", "LONG_BINGET")},
    "GLOBAL": lambda m, names: _push(m, m.find(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: _push(m, m.find(*_pop(m, 2))),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.new(),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, identity: m.reference(identity),
    "BINPERSID": lambda m, _: m.reference(m.stack.pop()),
}

# Deeper than any checkpoint; a file that nests further is refused before Python's own limit.
_DEEPEST = 64


def plain(value: Any, source: str) -> Any:
    """Records as plain data: tensors as NumPy arrays, objects refused.

    **Raises:** `ValueError` for objects, and for data that contain themselves.
    """
    return _plain(value, source, {}, 0)


def _plain(value: Any, source: str, done: dict[int, Any], depth: int) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, NumpyArray):
        return value.array
    if isinstance(value, Global | Instance | Storage | Dtype):
        name = value.class_name if isinstance(value, Instance) else type(value).__name__
        raise ValueError(
            f"{source} holds a {shortened(name, 80)}, expected tensors and plain data alone."
        )
    if not isinstance(value, dict | list | tuple):
        return value
    # Each container once, however often the file refers to it.
    if id(value) in done:
        return done[id(value)][1]
    if depth > _DEEPEST:
        raise ValueError(
            f"{source} nests its data deeper than {_DEEPEST} levels, or within themselves."
        )
    if isinstance(value, dict):
        result: Any = {k: _plain(v, source, done, depth + 1) for k, v in value.items()}
    else:
        result = type(value)(_plain(v, source, done, depth + 1) for v in value)
    # The original is kept alive, so that nothing else gets its identity.
    done[id(value)] = value, result
    return result

r"""Filling a network with arrays that have official names.

A network is described as a list of entries: an official name, its place here, and how the two
arrays correspond. That correspondence is a permutation of entries; no name is guessed from a shape
or an order, so that a file of another architecture fails loudly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from .._serialise import check_arguments, Room
from .._shown import shortened, shown


Net = TypeVar("Net")
# Names of weights that do not fit in one message.
_FEW = 8


class Layout(NamedTuple):
    """How official arrays become ours, and back; several where one of ours is several of theirs."""

    to_ours: Callable[..., np.ndarray]
    to_official: Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Path(NamedTuple):
    """A place in a network: `Path().at("encoder", 0)(net)` is `net.encoder[0]`."""

    steps: tuple[str | int, ...] = ()

    def at(self, *steps: str | int) -> "Path":
        return Path((*self.steps, *steps))

    def __call__(self, net: Any) -> Any:
        for step in self.steps:
            net = getattr(net, step) if isinstance(step, str) else net[step]
        return net


class Entry(NamedTuple):
    """One parameter: its official names, its place in our network, and the layout of its array."""

    names: tuple[str, ...]
    where: Path
    layout: Layout


def reordered(official: str, ours: str, **sizes: int) -> Layout:
    """The layout of one array, by the names of its axes: `reordered("o i", "i o")`."""
    return Layout(
        lambda a: rearrange(a, f"{official} -> {ours}", **sizes),
        lambda a: (rearrange(a, f"{ours} -> {official}", **sizes),),
    )


SAME = Layout(lambda a: a, lambda a: (a,))
# Of any number of spatial dimensions.
CONV = reordered("o i ...", "o ... i")
# The same in Flax.
CONV_FLAX = reordered("... i o", "o ... i")
LINEAR = reordered("o i", "i o")
# Convolutions with a kernel of one pixel, which are linear maps here.
CONV1D = reordered("o i 1", "i o")
CONV1X1 = reordered("o i 1 1", "i o")


def pointwise(dims: int) -> Layout:
    """A convolution of `dims` dimensions with a kernel of one pixel, which is a linear map here."""
    return reordered("o i" + dims * " 1", "i o")


def stacked(part: Layout = SAME) -> Layout:
    """Queries, keys and values: three maps there, one here."""
    return Layout(
        lambda *parts: np.concatenate([part.to_ours(a) for a in parts], axis=-1),
        lambda a: tuple(part.to_official(b)[0] for b in np.split(a, 3, axis=-1)),
    )


def affine(
    name: str,
    where: Path,
    weight: Layout = SAME,
    *,
    bias: Layout | None = SAME,
    names: tuple[str, str] = ("weight", "bias"),
) -> Iterator[Entry]:
    """`name.weight` and `name.bias` of a layer; `bias=None` is a layer without one."""
    yield Entry((f"{name}.{names[0]}",), where.at("weight"), weight)
    if bias is not None:
        yield Entry((f"{name}.{names[1]}",), where.at("bias"), bias)


def strip(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The names without a prefix that all of them have (`module.` of data-parallel training)."""
    if state_dict and all(name.startswith(prefix) for name in state_dict):
        return {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return dict(state_dict)


def official_shapes(net: Any, entries: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of a network, or of its skeleton."""
    shapes = {}
    for entry in entries:
        ours = np.broadcast_to(np.float32(0), entry.where(net).shape)
        arrays = entry.layout.to_official(ours)
        shapes |= {name: a.shape for name, a in zip(entry.names, arrays, strict=True)}
    return shapes


def _check(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], network: str
) -> None:
    problems = [f"missing {name} {expected[name]}" for name in expected if name not in given]
    problems += [
        f"unexpected {shortened(name, 60)} {shown(given[name])}"
        for name in given
        if name not in expected
    ]
    problems += [
        f"{name} has shape {shown(given[name])}, expected {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if problems:
        few = [shortened(problem, 100) for problem in problems[:_FEW]]
        few += ["…"] if len(problems) > _FEW else []
        raise ValueError(
            f"the weights do not fit this {network} ({len(problems)} problems); is `config` the "
            "one they were trained with?\n  " + "\n  ".join(few)
        )


def skeleton(build: Callable[..., Net]) -> Net:
    """`build(key)` without its numbers: nothing is drawn only to be overwritten."""
    return eqx.filter_eval_shape(build, jax.random.key(0))


def checked_skeleton(
    make: Callable[..., Any], arguments: Mapping[str, Any], weights: Mapping[str, Any]
) -> Any:
    """`make(**arguments, key=key)` without its numbers, once the arguments are known to describe a
    network of about so many weights.

    **Raises:** `ValueError` for arguments of another kind or size.
    """
    check_arguments(make, arguments, Room.of(weights))
    return skeleton(lambda key: make(**arguments, key=key))


def fill(net: Net, entries: Iterable[Entry], arrays: Mapping[str, Any]) -> Net:
    """The skeleton `net` with official arrays in float32.

    **Raises:** `ValueError` with the names of missing, unexpected and mis-shaped weights.
    """
    entries = list(entries)
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    given = {name: array.shape for name, array in arrays.items()}
    _check(official_shapes(net, entries), given, type(net).__name__)
    leaves = [
        jnp.asarray(
            np.ascontiguousarray(entry.layout.to_ours(*(arrays[name] for name in entry.names))),
            jnp.float32,
        )
        for entry in entries
    ]
    return eqx.tree_at(lambda net: [entry.where(net) for entry in entries], net, leaves)


def official(net: Any, entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """Official names and arrays of a network, or of what has its structure (gradients, an EMA)."""
    found = {}
    for entry in entries:
        arrays = entry.layout.to_official(np.asarray(entry.where(net)))
        for name, array in zip(entry.names, arrays, strict=True):
            found[name] = np.ascontiguousarray(array)
    return found

r"""How the parameters lie in memory: in a few long vectors, or leaf by leaf.

An update acts on every element alike. With Adam and one average,

$$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2,
  \qquad \theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat v} + \epsilon), \qquad
  \bar\theta \leftarrow \bar\theta + (1 - r)(\theta - \bar\theta), \tag{1}$$

and a network of 440 arrays makes 440 times as many kernels of it as one array would, most of them
over before the next one is launched, besides milliseconds of Python. So a train state keeps
parameters, averages and the optimiser's state in long vectors, and a step cuts the parameters out
of them where the network begins. Its gradient is taken with respect to the pieces and joined
afterwards: the transpose of each cut would be a vector of zeros as long as the whole.

Vectors of matrices and vectors of vectors are kept apart, because the compiler reads a short vector
where it is used, but copies out of a long one; and because it is what weight decay tells apart.

A long vector ends in zeros, up to a multiple of 1,024, so that it can be spread evenly over any
such number of devices. Their gradient is zero, and no checkpoint has them.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


# From this length on, vectors are filled up to a multiple of the other number.
_LONG, _MULTIPLE = 2**16, 2**10

# Parameters as an optimiser sees them: long vectors and single leaves, by name.
Params = dict[str, Array]


class AbstractLayout(eqx.Module):
    """Where each parameter of a network lies in the state of a training run.

    Whatever the layout, checkpoints are written parameter by parameter, so that a run saved with
    one can be restored with another where the optimiser's state allows it.
    """

    @abc.abstractmethod
    def vector(self, name: str, leaf: jax.ShapeDtypeStruct) -> str | None:
        """The name of the vector that a parameter is part of; `None` to leave it as it is.

        **Arguments:**

        - `name`: the path of the parameter in the network, such as `"blocks.0.conv1.weight"`.
        - `leaf`: its shape and dtype.
        """


def _by_rank(name: str, leaf: jax.ShapeDtypeStruct) -> str:
    return "matrices" if len(leaf.shape) > 1 else "vectors"


class Flat(AbstractLayout):
    """Parameters in a few long vectors: the fastest, and the default.

    An Optax transformation sees a dictionary of them. By default there are two: `"matrices"`, all
    parameters of at least two dimensions, and `"vectors"`, the others, which are biases and the
    scales of norms. Weight decay on the first alone is

    ```python
    optax.adamw(1e-4, mask={"matrices": True, "vectors": False})
    ```

    and `optax.masked` and `optax.multi_transform` take labels of the same form. Only for
    transformations that act on each element alike, or on the norm of all of them; for those that
    need the shapes of parameters (Adafactor, Muon) or the norm of each (LAMB, LARS) there is
    [`eqdiff.train.Leaves`][].

    **Example:**

    ```python
    import optax
    layout = eqd.train.Flat()  # of eqd.train.init
    optimiser = optax.adamw(1e-4, mask={"matrices": True, "vectors": False})
    ```
    """

    groups: Callable[[str, jax.ShapeDtypeStruct], str | None] = eqx.field(static=True)

    def __init__(
        self, groups: Callable[[str, jax.ShapeDtypeStruct], str | None] = _by_rank
    ) -> None:
        """**Arguments:**

        - `groups`: `groups(name, leaf)` names the vector of a parameter from its path in the
            network and its shape and dtype, or is `None` for one that stays as it is, under its
            own name. A group of several dtypes makes one vector of each, `"vectors.float64"`.
        """
        self.groups = groups

    def vector(self, name: str, leaf: jax.ShapeDtypeStruct) -> str | None:
        return self.groups(name, leaf)


class Leaves(AbstractLayout):
    """Parameters as they are in the network, each under its own name.

    An Optax transformation sees a dictionary such as `{"blocks.0.conv1.weight": …}`: use it for
    those that need the shape of every parameter or its norm, such as `optax.adafactor`,
    `optax.contrib.muon` and `optax.lamb`.

    **Example:**

    ```python
    import optax
    net, times = eqd.nn.MLP(2, 2, key=jax.random.key(0)), eqd.Uniform(eqd.VPSDE())
    optimiser, layout = optax.lamb(1e-3), eqd.train.Leaves()
    state = eqd.train.init(net, optimiser, timesteps=times, layout=layout, key=jax.random.key(1))
    ```
    """

    def vector(self, name: str, leaf: jax.ShapeDtypeStruct) -> None:
        return None


class Slot(NamedTuple):
    """Where a parameter lies: in a vector from `start` on, or alone where that is `None`."""

    name: str
    vector: str
    start: int | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Packing:
    """A network without its arrays, and where they lie. Static: part of the structure of a state.

    `leaves` has one entry for each leaf of the network: a `Slot` for a parameter, a `Constant` for
    any other array, and a `Fixed` for anything that is not an array.
    """

    structure: Any
    leaves: tuple["Slot | Constant | Fixed", ...]
    slots: tuple[Slot, ...]

    def __hash__(self) -> int:
        return hash(self.slots)

    def network(self, pieces: Sequence[Any], constants: dict[str, Any]) -> PyTree:
        """The network with these parameters, in the order of `slots`: arrays, or their shapes."""
        parameters = iter(pieces)
        leaves = [
            next(parameters)
            if isinstance(leaf, Slot)
            else constants[leaf.name]
            if isinstance(leaf, Constant)
            else leaf.value
            for leaf in self.leaves
        ]
        return jax.tree.unflatten(self.structure, leaves)


class Constant(NamedTuple):
    """An array of the network that is not trained."""

    name: str


class Fixed(NamedTuple):
    """A leaf that is not an array, such as a function."""

    value: Any


def split(slots: Sequence[Slot], params: Params) -> list[Array]:
    """The parameters as the network has them."""
    return [
        params[slot.vector]
        if slot.start is None
        else jax.lax.slice(params[slot.vector], (slot.start,), (slot.start + slot.size,)).reshape(
            slot.shape
        )
        for slot in slots
    ]


def vector_length(size: int) -> int:
    """How long the vector of so many numbers is."""
    return size if size < _LONG else -(-size // _MULTIPLE) * _MULTIPLE


def join(slots: Sequence[Slot], pieces: Sequence[Array]) -> Params:
    """The inverse of `split`."""
    parts: dict[str, list[Array]] = {}
    alone: Params = {}
    for slot, piece in zip(slots, pieces, strict=True):
        if slot.start is None:
            alone[slot.vector] = piece
        else:
            parts.setdefault(slot.vector, []).append(piece.reshape(-1))
    return alone | {name: joined(part) for name, part in parts.items()}


def joined(pieces: list[Array]) -> Array:
    """Vectors in one, filled up with zeros."""
    size = sum(piece.size for piece in pieces)
    missing = vector_length(size) - size
    if missing:
        pieces = [*pieces, jnp.zeros(missing, pieces[0].dtype)]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)


def _is_constant(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)


def _slots(layout: AbstractLayout, parameters: dict[str, Array]) -> tuple[Slot, ...]:
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in parameters.items()}
    vectors = {name: layout.vector(name, leaf) for name, leaf in shapes.items()}
    dtypes: dict[str, set[np.dtype]] = {}
    for name, vector in vectors.items():
        if vector in shapes and vector != name:
            raise ValueError(
                f"{type(layout).__name__} puts net.{name} into a vector called {vector!r}, which "
                "is the name of a parameter: choose another name."
            )
        if vector is not None:
            dtypes.setdefault(vector, set()).add(shapes[name].dtype)
    slots, ends = [], {}
    for name, leaf in shapes.items():
        vector, start = vectors[name], None
        if vector is None:
            vector = name
        else:
            vector = vector if len(dtypes[vector]) == 1 else f"{vector}.{leaf.dtype}"
            start = ends.get(vector, 0)
            ends[vector] = start + leaf.size
        slots.append(Slot(name, vector, start, tuple(leaf.shape), leaf.dtype))
    return tuple(slots)


def pack(net: PyTree, layout: AbstractLayout) -> tuple[Packing, list[Array], dict[str, Array]]:
    """How a network is packed, its parameters and its other arrays."""
    named, structure = jax.tree_util.tree_flatten_with_path(net)
    named = [(jax.tree_util.keystr(k, simple=True, separator="."), x) for k, x in named]
    names = [name for name, _ in named]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"two leaves of the network are called net.{twice[0]}: rename one of them."
        )
    parameters = {name: leaf for name, leaf in named if eqx.is_inexact_array(leaf)}
    slots = _slots(layout, parameters)
    by_name = {slot.name: slot for slot in slots}
    leaves = tuple(
        by_name[name] if name in by_name else Constant(name) if _is_constant(leaf) else Fixed(leaf)
        for name, leaf in named
    )
    constants = {
        entry.name: jnp.asarray(leaf)
        for entry, (_, leaf) in zip(leaves, named, strict=True)
        if isinstance(entry, Constant)
    }
    return Packing(structure, leaves, slots), list(parameters.values()), constants

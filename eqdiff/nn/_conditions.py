r"""The conditions a network can take: a class, a vector, a field, a sequence of tokens.

Like a style (`_style.py`), a condition is a small frozen object; the layers it builds are in
`_conditioning.py`. Each kind enters the network where it belongs,

| condition | enters |
|---|---|
| class, vector | the embedding $e$ of the time input, as a sum: $e + \sum_k e_k(y_k)$ |
| field | the input, as further channels: $[x_t, U y]$, where $U$ resamples to the sides of $x_t$ |
| tokens | cross-attention, $\mathrm{softmax}(q k^\top / \sqrt c)\,v$ with their $k$ and $v$ |

**Learned nulls.** To learn $p(x)$ as well as $p(x|y)$, a network needs an input that means "no
$y$". A condition with a `dropout`, or with `null=True`, learns one, its null: pass `None` in place
of $y$. In a call with a key, as in training, each condition of each example becomes its null with
probability `dropout`, independently of the others (Ho & Salimans 2022). So one network learns
every $p(x|\cdot)$, given all, some or none of its conditions.
"""

import abc
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from .._types import Args
from ._check import check_class
from ._norm import at_least_float32


# A number for all entries of a vector, or one for each; kept as a number or a tuple.
Numbers = float | int | tuple[float | int, ...] | Shaped[Array | np.ndarray, " _entries"]


class AbstractCondition(abc.ABC):
    """What one condition of a network is; equal objects describe equal conditions."""

    # Both are arguments of every condition.
    null: bool
    dropout: float | int

    @property
    @abc.abstractmethod
    def takes(self) -> str:
        """What a call gives, in words for an error."""

    @abc.abstractmethod
    def read(self, value: Args, owner: str) -> Any:
        """What a call gave, checked.

        **Arguments:**

        - `value`: of one example; not `None`.
        - `owner`: what the errors name, such as `"MLP: args['theta']"`.

        **Raises:** `ValueError` where it is not what this condition takes.
        """


def has_null(condition: AbstractCondition) -> bool:
    """Whether `None` stands for a learned null of it."""
    return condition.null or condition.dropout > 0


def _check(condition: AbstractCondition, **counts: int) -> None:
    name = type(condition).__name__
    for argument, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}({argument}={count}): expected at least 1.")
    if not 0 <= condition.dropout < 1:
        raise ValueError(
            f"{name}(dropout={condition.dropout}): expected a probability below 1, such as 0.1."
        )


def _set_numbers(condition: Any, size: int, **numbers: Any) -> None:
    # Numbers or arrays as numbers and tuples, which are static and compared by value.
    name = type(condition).__name__
    for argument, given in numbers.items():
        array = np.asarray(given, np.float64)
        if array.shape not in ((), (size,)) or not np.all(np.isfinite(array)):
            raise ValueError(
                f"{name}({argument}=...): expected a finite number, or {size} of them, got shape "
                f"{array.shape}."
            )
        if argument == "std" and not np.all(array > 0):
            raise ValueError(
                f"{name}(std=...): expected positive numbers, got {array.min()}. Leave out an "
                "entry that is the same in every example, or give it the std 1."
            )
        value = float(array) if array.ndim == 0 else tuple(float(a) for a in array)
        object.__setattr__(condition, argument, value)


def _real(value: Args, owner: str, takes: str) -> Shaped[Array, "..."]:
    """Real numbers as an array of at least single precision."""
    try:
        dtype = jnp.result_type(value)
    except TypeError:
        raise ValueError(f"{owner} is {takes}, got {describe(value)}.") from None
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not real:
        raise ValueError(f"{owner} is {takes}, got {describe(value)}.")
    wide = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    return jnp.asarray(value).astype(at_least_float32(wide))


def describe(value: Any) -> str:
    """A value of a call in few words."""
    if isinstance(value, dict):
        return f"a dictionary with {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return repr(value)[:60]


@dataclasses.dataclass(frozen=True)
class ClassCondition(AbstractCondition):
    """A class label: a learned vector for each class, added to the embedding.

    In a call, pass one integer from 0 to `num_classes - 1`.

    **Arguments:**

    - `num_classes`: the number of classes.
    - `null`: whether to learn a null, which you pass as `None`.
    - `dropout`: the probability of replacing the class by the null in a call with a key; above 0 it
        implies `null=True`.

    **Raises:** `ValueError` for fewer than one class, or a dropout outside [0, 1).

    **Example:**

    ```python
    condition = eqd.nn.ClassCondition(10, dropout=0.1)
    net = eqd.nn.MLP(2, 2, conditions=condition, key=jax.random.key(0))
    F = net(0.5, jnp.ones(2), 3)  # None in place of 3 for the null
    ```
    """

    num_classes: int
    null: bool = False
    dropout: float | int = 0.0

    def __post_init__(self):
        _check(self, num_classes=self.num_classes)

    @property
    def takes(self) -> str:
        """See `AbstractCondition.takes`."""
        return f"one integer from 0 to {self.num_classes - 1}"

    def read(self, value: Args, owner: str) -> Any:
        """See `AbstractCondition.read`."""
        return check_class(value, self.num_classes, owner)


@dataclasses.dataclass(frozen=True)
class VectorCondition(AbstractCondition):
    r"""A vector $y$ of real numbers, $\mathrm{MLP}((y - m) / s)$, added to the embedding:
    parameters of a simulator, coordinates, a summary.

    In a call, pass an array `(size,)`.

    **Arguments:**

    - `size`: of the vector.
    - `mean`, `std`: $m$ and $s$, a number or one for each entry. Perceptrons work best on
        inputs of about zero mean and unit variance: if yours differ, pass `mean=ys.mean(0),
        std=ys.std(0)` of the training data. Both are constants, saved with the network.
    - `null`, `dropout`: as for [`eqdiff.nn.ClassCondition`][].

    **Raises:** `ValueError` for an empty vector, a mean or a std of another size, a std that is not
    positive, or a dropout outside [0, 1).

    **Example:**

    ```python
    conditions = {"theta": eqd.nn.VectorCondition(3, mean=1.0, std=2.0)}
    net = eqd.nn.MLP(2, 2, conditions=conditions, key=jax.random.key(0))
    F = net(0.5, jnp.ones(2), {"theta": jnp.ones(3)})
    ```
    """

    size: int
    mean: Numbers = 0.0
    std: Numbers = 1.0
    null: bool = False
    dropout: float | int = 0.0

    def __post_init__(self):
        _check(self, size=self.size)
        _set_numbers(self, self.size, mean=self.mean, std=self.std)

    @property
    def takes(self) -> str:
        """See `AbstractCondition.takes`."""
        return f"one vector of real numbers of shape ({self.size},)"

    def read(self, value: Args, owner: str) -> Any:
        """See `AbstractCondition.read`."""
        array = _real(value, owner, self.takes)
        if array.shape != (self.size,):
            hint = " Write y[None]." if array.ndim == 0 else ""
            hint = " Batch with jax.vmap(net)(c_noises, xs, args)." if array.ndim == 2 else hint
            raise ValueError(f"{owner} is {self.takes}, got {describe(value)}.{hint}")
        return array


@dataclasses.dataclass(frozen=True)
class FieldCondition(AbstractCondition):
    r"""A field, image or signal $y$ over the same domain as $x$, appended to the input's channels
    as $U((y - m) / s)$.

    In a call, pass an array `(channels, …)` with as many spatial axes as $x$ and sides of any size:
    $U$ is linear interpolation between the centres of pixels where a side is smaller than that of
    $x$, and a weighted mean of neighbours where it is larger. A low-resolution image is one case, a
    mask another (with one channel).

    **Arguments:**

    - `channels`: of the field.
    - `mean`, `std`: $m$ and $s$, a number or one for each channel.
    - `null`, `dropout`: as for [`eqdiff.nn.ClassCondition`][]; the null is one learned number for
        each channel.

    **Raises:** `ValueError` for fewer than one channel, a mean or a std of another size, a std that
    is not positive, or a dropout outside [0, 1).

    **Example:**

    ```python
    shape, style = eqd.nn.UNetShape(channels=32, channel_mult=(1, 2)), eqd.nn.styles.ddpm()
    embed, mask = eqd.nn.embeddings.iddpm(), eqd.nn.FieldCondition(1)
    net = eqd.nn.UNet(shape, style, embed, conditions=mask, key=jax.random.key(0))
    F = net(500.0, jnp.ones((3, 16, 16)), jnp.ones((1, 16, 16)))
    ```
    """

    channels: int
    mean: Numbers = 0.0
    std: Numbers = 1.0
    null: bool = False
    dropout: float | int = 0.0

    def __post_init__(self):
        _check(self, channels=self.channels)
        _set_numbers(self, self.channels, mean=self.mean, std=self.std)

    @property
    def takes(self) -> str:
        """See `AbstractCondition.takes`."""
        return (
            f"one field of real numbers of shape ({self.channels}, …), with the spatial axes of x"
        )

    def read(self, value: Args, owner: str) -> Any:
        """See `AbstractCondition.read`."""
        array = _real(value, owner, self.takes)
        if array.ndim < 2 or array.shape[0] != self.channels or math.prod(array.shape) == 0:
            raise ValueError(f"{owner} is {self.takes}, got {describe(value)}.")
        return array


@dataclasses.dataclass(frozen=True)
class TokenCondition(AbstractCondition):
    r"""A sequence or a set of tokens, which the network attends to: text as an encoder embeds it,
    a set of observations, the patches of another image.

    In a call, pass an array `(tokens, size)`; or, for sequences of different lengths in one batch,
    the pair of it and a mask `(tokens,)`, false where a token is padding and to be ignored.
    Attention sees a set: where the order matters, encode each token's position in its numbers.

    The network always attends to one more token, a learned one. It is the null, and so is a
    sequence that is all padding.

    **Arguments:**

    - `size`: of each token.
    - `mean`, `std`: subtracted and divided by first, a number or one for each entry.
    - `null`, `dropout`: as for [`eqdiff.nn.ClassCondition`][]; what is dropped is the whole
        sequence.

    **Raises:** `ValueError` for empty tokens, a mean or a std of another size, a std that is not
    positive, or a dropout outside [0, 1).

    **Example:**

    ```python
    condition = eqd.nn.TokenCondition(4)
    net = eqd.nn.MLP(2, 2, conditions=condition, key=jax.random.key(0))
    F = net(0.5, jnp.ones(2), jnp.ones((7, 4)))  # seven tokens of four numbers
    ```
    """

    size: int
    mean: Numbers = 0.0
    std: Numbers = 1.0
    null: bool = False
    dropout: float | int = 0.0

    def __post_init__(self):
        _check(self, size=self.size)
        _set_numbers(self, self.size, mean=self.mean, std=self.std)

    @property
    def takes(self) -> str:
        """See `AbstractCondition.takes`."""
        return (
            f"one sequence of tokens, real numbers of shape (tokens, {self.size}), or a pair of it "
            "and a mask (tokens,) of booleans"
        )

    def read(self, value: Args, owner: str) -> Any:
        """See `AbstractCondition.read`."""
        pair = isinstance(value, tuple) and len(value) == 2
        tokens, mask = value if pair else (value, None)
        tokens = _real(tokens, owner, self.takes)
        if tokens.ndim != 2 or tokens.shape[1] != self.size:
            hint = " Batch with jax.vmap(net)(c_noises, xs, args)." if tokens.ndim == 3 else ""
            raise ValueError(f"{owner} is {self.takes}, got {describe(tokens)}.{hint}")
        if mask is None:
            return tokens, jnp.ones(tokens.shape[:1], bool)
        right = hasattr(mask, "shape") and tuple(mask.shape) == tokens.shape[:1]
        if not right or jnp.result_type(mask) != jnp.dtype(bool):
            raise ValueError(
                f"{owner} is {self.takes}; the mask of {tokens.shape[0]} tokens is "
                f"{describe(mask)}. Write lengths as jnp.arange({tokens.shape[0]}) < length."
            )
        return tokens, jnp.asarray(mask)

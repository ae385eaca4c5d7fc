r"""How a U-Net's conditioning inputs become its embedding $e$.

$$e = \mathrm{MLP}(\text{features}(c) + a) + b \tag{1}$$

of the time input $c = c_\text{noise}$, where the class and an augmentation are maps $a$, added
before the perceptron, or $b$, added after it. Every choice is a small frozen object, as in
`_style.py`; the layers are in `_embed.py` and `_condition.py`.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Args, Key, Scalar
from ._activation import AbstractActivation, SiLU
from ._check import check_class
from ._condition import OneHotLinear, read_conditions
from ._conv import Linear
from ._embed import ClassEmbedding, fourier_frequencies, TimeEmbedding
from ._init import fan_average, key_stream, zeros
from ._shape import UNetShape
from ._style import AbstractInitialisation, TorchInit
from ._time_features import AbstractTime, Fourier, Sinusoids


# Of either size.
Vector = Float[Array, " _size"]
# What is added before and after the perceptron; `None` for nothing.
Terms = tuple[Vector | None, Vector | None]
Modules = tuple[ClassEmbedding | OneHotLinear | None, Linear | None]


class AbstractConditions(abc.ABC):
    """How the class and an augmentation enter the embedding."""

    @abc.abstractmethod
    def build(self, shape: UNetShape, in_size: int, out_size: int, key: Key) -> Modules:
        """The maps of the class and of the augmentation, `None` where the shape has none.

        **Arguments:**

        - `shape`: the network's.
        - `in_size`, `out_size`: of what is added before the perceptron, and after it.
        - `key`: a PRNG key.
        """

    @abc.abstractmethod
    def __call__(
        self, modules: Modules, shape: UNetShape, args: Args, dtype: Any, key: Key | None
    ) -> Terms:
        """What is added before and after the perceptron.

        **Raises:** `ValueError` where the class or the augmentation is not one that the network
        takes.
        """


@dataclasses.dataclass(frozen=True)
class ClassTable(AbstractConditions):
    """A learned vector for each class, added after the perceptron; pass a class in every call.

    **Example:**

    ```python
    embed = eqd.nn.Embedding(conditions=eqd.nn.embeddings.ClassTable())
    ```
    """

    def build(self, shape: UNetShape, in_size: int, out_size: int, key: Key) -> Modules:
        """See `AbstractConditions.build`."""
        del in_size
        if shape.augment_size:
            raise ValueError(
                f"a ClassTable() has no place for augmentations, got augment_size="
                f"{shape.augment_size}; use eqdiff.nn.embeddings.edm() or edm_adm()."
            )
        if shape.num_classes is None:
            return None, None
        return ClassEmbedding(shape.num_classes, out_size, key=key), None

    def __call__(
        self, modules: Modules, shape: UNetShape, args: Args, dtype: Any, key: Key | None
    ) -> Terms:
        """See `AbstractConditions.__call__`."""
        del key
        index, (classes, _) = check_class(args, shape.num_classes, "UNet"), modules
        if index is None or not isinstance(classes, ClassEmbedding):
            return None, None
        return None, classes(index).astype(dtype)


def _one_hot(
    modules: Modules, shape: UNetShape, args: Args, dtype: Any, key: Key | None
) -> tuple[Vector | None, Vector | None]:
    # The terms of the class and of the augmentation.
    index, augment = read_conditions(args, shape.num_classes, shape.augment_size, "UNet")
    (classes, linear), of_class, of_augment = modules, None, None
    if isinstance(classes, OneHotLinear):
        if key is not None and classes.class_dropout > 0:
            # Not one of the body's keys.
            key = jax.random.fold_in(key, 0)
        of_class = classes(index, dtype, key)
    if linear is not None and augment is not None:
        of_augment = linear(augment.astype(dtype))
    return of_class, of_augment


@dataclasses.dataclass(frozen=True)
class OneHotBefore(AbstractConditions):
    r"""Linear maps of the class's one-hot vector, times the square root of its size, and of the
    augmentation, added before the perceptron (EDM's DDPM++ and NCSN++).

    Without a class the one-hot vector is zero, and so is an augmentation that is not given. The
    `args` of a call are a class, `None`, or [`eqdiff.nn.Conditions`][].

    **Arguments:**

    - `class_dropout`: the probability that a class is dropped where a key is given.

    **Example:**

    ```python
    embed = eqd.nn.Embedding(conditions=eqd.nn.embeddings.OneHotBefore(class_dropout=0.1))
    ```
    """

    class_dropout: float = 0.0

    def build(self, shape: UNetShape, in_size: int, out_size: int, key: Key) -> Modules:
        """See `AbstractConditions.build`."""
        del out_size
        key1, key2 = jax.random.split(key)
        options: dict[str, Any] = dict(init=fan_average(), bias_init=zeros)
        classes = augment = None
        if shape.num_classes is not None:
            options_of_class: dict[str, Any] = {
                **options,
                "scale": shape.num_classes**0.5,
                "class_dropout": self.class_dropout,
            }
            number = shape.num_classes
            classes = OneHotLinear(number, in_size, bias=True, **options_of_class, key=key1)
        if shape.augment_size:
            augment = Linear(shape.augment_size, in_size, bias=False, **options, key=key2)
        return classes, augment

    def __call__(
        self, modules: Modules, shape: UNetShape, args: Args, dtype: Any, key: Key | None
    ) -> Terms:
        """See `AbstractConditions.__call__`."""
        terms = [t for t in _one_hot(modules, shape, args, dtype, key) if t is not None]
        return sum(terms[1:], terms[0]) if terms else None, None


@dataclasses.dataclass(frozen=True)
class OneHotAfter(AbstractConditions):
    """As [`eqdiff.nn.embeddings.OneHotBefore`][], with the class unscaled after the perceptron
    (EDM's ADM).

    **Arguments:**

    - `class_dropout`: the probability that a class is dropped where a key is given.

    **Example:**

    ```python
    embed = eqd.nn.Embedding(conditions=eqd.nn.embeddings.OneHotAfter(class_dropout=0.1))
    ```
    """

    class_dropout: float = 0.0

    def build(self, shape: UNetShape, in_size: int, out_size: int, key: Key) -> Modules:
        """See `AbstractConditions.build`."""
        key1, key2 = jax.random.split(key)
        classes = augment = None
        if shape.num_classes is not None:
            options: dict[str, Any] = dict(class_dropout=self.class_dropout, init=_standard_normal)
            classes = OneHotLinear(shape.num_classes, out_size, bias=False, **options, key=key1)
        if shape.augment_size:
            augment = Linear(shape.augment_size, in_size, bias=False, init=zeros, key=key2)
        return classes, augment

    def __call__(
        self, modules: Modules, shape: UNetShape, args: Args, dtype: Any, key: Key | None
    ) -> Terms:
        """See `AbstractConditions.__call__`."""
        of_class, of_augment = _one_hot(modules, shape, args, dtype, key)
        return of_augment, of_class


def _standard_normal(key, shape, fan_in, fan_out):
    # EDM's map of the one-hot class starts as `torch.nn.Embedding` does.
    del fan_in, fan_out
    return jax.random.normal(key, shape, jnp.float32)


_SINUSOIDS, _TORCH = Sinusoids(), TorchInit()


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Makes the embedding of an [`eqdiff.nn.UNet`][] from the time input, the class and an
    augmentation: equation (1).

    `eqdiff.nn.embeddings` has one function for each family; change its result with
    `dataclasses.replace`.

    **Arguments:**

    - `time`: the features of the time input: [`eqdiff.nn.embeddings.Sinusoids`][],
        [`eqdiff.nn.embeddings.SongSinusoids`][], [`eqdiff.nn.embeddings.NoiseLevels`][] or
        [`eqdiff.nn.embeddings.Fourier`][].
    - `conditions`: the class and the augmentation: [`eqdiff.nn.embeddings.ClassTable`][],
        [`eqdiff.nn.embeddings.OneHotBefore`][] or [`eqdiff.nn.embeddings.OneHotAfter`][].
    - `init`: how the perceptron's weights start, as in [`eqdiff.nn.Style`][].
    - `mult`: the size of the embedding as a multiple of the network's channels.
    - `activation`: of the perceptron, as in [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    embed = eqd.nn.Embedding(eqd.nn.embeddings.Fourier(scale=16.0), mult=4)
    ```
    """

    time: AbstractTime = _SINUSOIDS
    conditions: AbstractConditions = ClassTable()
    init: AbstractInitialisation = _TORCH
    mult: int = 4
    activation: AbstractActivation = SiLU()

    def at(self, channels: int) -> "Embedding":
        """The same for a network of so many channels, with frequencies that are drawn."""
        time = self.time
        if not isinstance(time, Fourier) or time.frequencies is not None:
            return self
        drawn = fourier_frequencies(time.mult * channels // 2, time.scale)
        return dataclasses.replace(self, time=dataclasses.replace(time, frequencies=drawn))

    def size(self, channels: int) -> int:
        """Of the embedding."""
        return self.mult * channels

    def build(self, shape: UNetShape, key: Key) -> tuple[TimeEmbedding, Modules]:
        """The layers, for a network of this shape."""
        keys, in_size = key_stream(key), self.time.mult * shape.channels
        out_size = self.size(shape.channels)
        start = self.init.initialisers()
        options: dict[str, Any] = dict(init=start.maps, bias_init=start.bias)
        options |= self.time.options() | dict(activation=self.activation)
        time = TimeEmbedding(in_size, out_size, **options, key=next(keys))
        return time, self.conditions.build(shape, in_size, out_size, next(keys))

    def __call__(
        self,
        time: TimeEmbedding,
        modules: Modules,
        shape: UNetShape,
        c_noise: Scalar,
        args: Args,
        dtype: Any,
        key: Key | None,
    ) -> Vector:
        """Equation (1) in `dtype`, with the layers that `build` returned.

        **Raises:** `ValueError` where the class or the augmentation is not one that the network
        takes.
        """
        before, after = self.conditions(modules, shape, args, dtype, key)
        e = time(self.time.number(c_noise), dtype, before)
        return e if after is None else e + after

r"""Embeddings of a network's conditioning inputs: its time input and the class.

The sinusoidal embedding (Vaswani et al. 2017) of the time input $c = c_\text{noise}$ has $n/2$
frequencies,

$$e_i = \cos(\omega_i c), \quad e_{n/2 + i} = \sin(\omega_i c), \quad
  \omega_i = P^{-i / (n/2)}, \quad i = 0, \dots, n/2 - 1, \tag{1}$$

with $P = 10^4$. Families differ in the order of the two halves and in whether the lowest frequency
is exactly $1/P$ (then $\omega_i = P^{-i/(n/2 - 1)}$). Fourier features (Tancik et al. 2020) of a
$c_\text{noise}$ that is itself a logarithm have random frequencies instead,

$$\omega_i = 2\pi W_i, \qquad W_i \sim \mathcal N(0, s^2). \tag{2}$$

Frequencies are constants of the program, not parameters: as arrays in a module they would be
trained. So are random ones: a tuple of numbers, always from the same draw (`fourier_frequencies`).

Sines and cosines are computed in the precision of $c_\text{noise}$, float32 or better, and cast
afterwards: in bfloat16 the steps 998 and 999 of a schedule are the same number.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._types import Key, Scalar
from ._activation import AbstractActivation, SiLU
from ._conv import Linear
from ._init import Init, torch_default


def sinusoidal_embedding(
    c_noise: Scalar,
    size: int,
    *,
    cosine_first: bool = True,
    endpoint: bool = False,
    max_period: float = 10_000.0,
) -> Float[Array, " size"]:
    """Equation (1).

    **Arguments:**

    - `c_noise`: a 0-d floating-point array; its dtype is the result's.
    - `size`: even.
    - `cosine_first`: OpenAI's order (cosines, sines); Song's is the other one.
    - `endpoint`: whether the lowest frequency is exactly $1/P$ (Song) or one step above it
        (OpenAI).
    - `max_period`: $P$.
    """
    half = size // 2
    exponents = np.arange(half) / (half - 1 if endpoint else half)
    angles = c_noise * jnp.asarray(np.exp(-math.log(max_period) * exponents), c_noise.dtype)
    halves = (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(halves if cosine_first else halves[::-1])


def fourier_frequencies(number: int, scale: float | int) -> tuple[float, ...]:
    """$W$ of equation (2), always the same draw for the same number and scale."""
    draw = np.random.default_rng(0).standard_normal(number)
    return tuple(float(scale * w) for w in draw)


def fourier_embedding(c_noise: Scalar, frequencies: tuple[float, ...]) -> Float[Array, " size"]:
    """Equation (2), sines first."""
    angles = c_noise * jnp.asarray(2 * np.pi * np.asarray(frequencies), c_noise.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class TimeEmbedding(eqx.Module):
    """Equation (1) or (2), then a two-layer perceptron with an activation between."""

    linear1: Linear
    linear2: Linear
    in_size: int = eqx.field(static=True)
    frequencies: tuple[float, ...] | None = eqx.field(static=True)
    cosine_first: bool = eqx.field(static=True)
    endpoint: bool = eqx.field(static=True)
    activation: AbstractActivation = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        frequencies: tuple[float, ...] | None = None,
        cosine_first: bool = True,
        endpoint: bool = False,
        activation: AbstractActivation = SiLU(),
        init: Init = torch_default,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `in_size`, `out_size`: of the sinusoids and of the result.
        - `frequencies`: $W$ of equation (2), half of `in_size` in number; `None` for equation (1).
        - `cosine_first`, `endpoint`: variants of equation (1).
        - `activation`: between both maps.
        - `init`, `bias_init`: of both maps, and of their biases (by default as the weights).
        - `key`: a PRNG key.
        """
        key1, key2 = jax.random.split(key)
        if in_size % 2 != 0:
            raise ValueError(f"the embedding of the time input needs an even size, got {in_size}.")
        if endpoint and in_size < 4:
            raise ValueError(
                f"frequencies from 1 to 1/10000 need a size of at least 4, got {in_size}."
            )
        if frequencies is not None and 2 * len(frequencies) != in_size:
            raise ValueError(
                f"{len(frequencies)} frequencies were given for an embedding of size {in_size}, "
                f"which has {in_size // 2}."
            )
        self.linear1 = Linear(in_size, out_size, init=init, bias_init=bias_init, key=key1)
        self.linear2 = Linear(out_size, out_size, init=init, bias_init=bias_init, key=key2)
        self.in_size, self.frequencies = in_size, frequencies
        self.cosine_first, self.endpoint = cosine_first, endpoint
        self.activation = activation

    def sinusoids(self, c_noise: Scalar) -> Float[Array, " in_size"]:
        """Equation (1) or (2), in the precision of `c_noise`."""
        if self.frequencies is not None:
            return fourier_embedding(c_noise, self.frequencies)
        return sinusoidal_embedding(
            c_noise, self.in_size, cosine_first=self.cosine_first, endpoint=self.endpoint
        )

    def __call__(
        self, c_noise: Scalar, dtype: Any, extra: Float[Array, " in_size"] | None = None
    ) -> Float[Array, " out_size"]:
        """**Arguments:**

        - `c_noise`: the time input, in float32 or better.
        - `dtype`: of the perceptron and of the result.
        - `extra`: added to the sinusoids, as EDM does with the class and the augmentation.
        """
        e = self.sinusoids(c_noise).astype(dtype)
        return self.linear2(self.activation(self.linear1(e if extra is None else e + extra)))


class ClassEmbedding(eqx.Module):
    """One learned vector per class, N(0, 1) at first (`torch.nn.Embedding`)."""

    weight: Float[Array, "classes size"]

    def __init__(self, num_classes: int, size: int, *, key: Key):
        self.weight = jax.random.normal(key, (num_classes, size), jnp.float32)

    def __call__(self, class_label: Shaped[Array, ""]) -> Float[Array, " size"]:
        return class_row(self.weight, class_label)


def class_row(
    weight: Float[Array, "classes size"], class_label: Shaped[Array, ""]
) -> Float[Array, " size"]:
    """One row of a table.

    `check_class` refuses a class that does not exist. Where its check is switched off, NaNs do: a
    clamped index would silently be another class.
    """
    return weight.at[class_label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

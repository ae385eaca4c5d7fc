r"""Exponential moving averages of the parameters.

After the $n$-th optimiser step, $n = 1, 2, \dots$, the average $\bar\theta$ of the parameters
$\theta$ becomes

$$\bar\theta \leftarrow r_n \bar\theta + (1 - r_n)\,\theta,
  \qquad \bar\theta_0 = \theta_0. \tag{1}$$

It is computed as $\bar\theta + (1 - r_n)(\theta - \bar\theta)$, so that a parameter that never
moves is averaged to itself exactly, and a rule gives the *gain* $1 - r_n$: in float32 the
difference $1 - 0.9999$ would lose four digits.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


class AbstractEMA(eqx.Module):
    """A rule for the rate of an exponential moving average of the parameters."""

    @abc.abstractmethod
    def gain(self, n: Int[Array, ""]) -> float | Float[Array, ""]:
        """$1 - r_n$ of equation (1); `n` counts optimiser steps from 1, this one included."""


def _check_rate(owner: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{owner}({rate}): expected a rate in [0, 1), such as {owner}(0.9999).")


class EMA(AbstractEMA):
    r"""A constant rate, $r_n = r$: no warm-up and no bias correction, as in `improved-diffusion`.

    $$\bar\theta \leftarrow r \bar\theta + (1 - r)\,\theta$$
    """

    rate: float

    def __check_init__(self):
        _check_rate("EMA", self.rate)

    def gain(self, n: Int[Array, ""]) -> float:
        return 1 - self.rate


class EMAWarmup(AbstractEMA):
    r"""A rate that starts low, so that the initial parameters are forgotten early:

    $$r_n = \min\left(r, \frac{1 + n}{10 + n}\right)$$

    as in the PyTorch version of `score_sde` (and TensorFlow's `num_updates`); its JAX version has a
    constant rate.
    """

    rate: float

    def __check_init__(self):
        _check_rate("EMAWarmup", self.rate)

    def gain(self, n: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.maximum(1 - self.rate, 9 / (10 + n))


def as_rule(rule: float | AbstractEMA) -> AbstractEMA:
    return rule if isinstance(rule, AbstractEMA) else EMA(rule)


def ema_update(rule: AbstractEMA, average: PyTree, params: PyTree, n: Int[Array, ""]) -> PyTree:
    """Equation (1) for trees of the same structure."""
    gain = rule.gain(n)

    def update(old: Array, new: Array) -> Array:
        return old + jnp.asarray(gain, old.dtype) * (new - old)

    return jax.tree.map(update, average, params)

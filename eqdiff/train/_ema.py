r"""Exponential moving averages of the parameters.

After the $n$-th optimiser step, $n = 1, 2, \dots$, the average $\bar\theta$ of the parameters
$\theta$ becomes

$$\bar\theta \leftarrow r_n \bar\theta + (1 - r_n)\,\theta,
  \qquad \bar\theta_0 = \theta_0. \tag{1}$$

It is computed as $\bar\theta + (1 - r_n)(\theta - \bar\theta)$, so that a parameter that never
moves is averaged to itself exactly, and a rule gives the *gain* $1 - r_n$: in float32 the
difference $1 - 0.9999$ would lose four digits.

The share of the *untrained* network $\theta_0$ that is left in the average after $n$ steps is

$$\prod_{k=1}^n r_k. \tag{2}$$

A constant rate leaves $r^n$: for $r = 0.999$ that is 37 % after 1,000 steps and 0.7 % after 5,000,
for $r = 0.9999$ still 37 % after 10,000. The warm-up $r_k = (1 + k)/(10 + k)$ leaves

$$\frac{10!\,(n + 1)!}{(n + 10)!} < \frac{10!}{n^9}, \tag{3}$$

0.006 % after only 10 steps. Hence a plain number means the warm-up, and a constant rate is asked
for by name.
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
        """The gain $1 - r_n$ of equation (1).

        **Arguments:**

        - `n`: the number of optimiser steps, this one included: the first is 1.
        """


def _check_rate(owner: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{owner}({rate}): expected a rate in [0, 1), such as {owner}(0.9999).")


class EMA(AbstractEMA):
    r"""A constant rate, $r_n = r$: no warm-up and no bias correction, as in `improved-diffusion`.

    $$\bar\theta \leftarrow r \bar\theta + (1 - r)\,\theta$$

    After $n$ steps $r^n$ of the average is still the untrained network: `EMA(0.999)` leaves 37 %
    after 1,000 steps, `EMA(0.9999)` after 10,000. Use it for runs of more than about $5/(1 - r)$
    steps (which leave less than 1 %), to reproduce the official code.
    """

    rate: float

    def __check_init__(self):
        _check_rate("EMA", self.rate)

    def gain(self, n: Int[Array, ""]) -> float:
        return 1 - self.rate


class EMAWarmup(AbstractEMA):
    r"""A rate that starts low, so that the untrained network is forgotten early. The default.

    $$r_n = \min\left(r, \frac{1 + n}{10 + n}\right)$$

    The warm-up lasts $9/(1 - r) - 10$ steps, during which the average is mostly over the last tenth
    of the run; afterwards the rate is that of [`eqdiff.train.EMA`][]. Of the untrained network less
    than $10!/n^9$ is left after $n$ steps of warm-up: 0.006 % after 10, nothing after 1,000.

    Source: the PyTorch version of `score_sde` (and TensorFlow's `num_updates`); its JAX version has
    a constant rate.
    """

    rate: float

    def __check_init__(self):
        _check_rate("EMAWarmup", self.rate)

    def gain(self, n: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.maximum(1 - self.rate, 9 / (10 + n))


def as_rule(rule: float | AbstractEMA) -> AbstractEMA:
    """The rule that an entry of `ema=` stands for: a number is a rate that is warmed up to."""
    return rule if isinstance(rule, AbstractEMA) else EMAWarmup(rule)


def ema_update(rule: AbstractEMA, average: PyTree, params: PyTree, n: Int[Array, ""]) -> PyTree:
    """Equation (1) for trees of the same structure."""
    gain = rule.gain(n)

    def update(old: Array, new: Array) -> Array:
        return old + jnp.asarray(gain, old.dtype) * (new - old)

    return jax.tree.map(update, average, params)

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

An exponential average forgets at the same rate however long the run is; one that grows with it
weights the time $\tau \le n$ by a power,

$$\bar\theta(n) = \frac{\gamma + 1}{n^{\gamma + 1}} \int_0^n \tau^\gamma\,\theta(\tau)\,d\tau,
  \qquad r_n = \left(1 - \frac1n\right)^{\gamma + 1}, \tag{4}$$

with nothing left of $\theta_0$ after the first step, since $r_1 = 0$. The rate is exact for
parameters that are constant during a step: the weights it leaves,
$(i/n)^{\gamma + 1} - ((i - 1)/n)^{\gamma + 1}$ of $\theta_i$, are integrals of the power over
steps. The standard deviation of $\tau/n$ under these weights, the relative width, is

$$\sigma_\text{rel} = \sqrt{\frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)}}, \tag{5}$$

at most $1/\sqrt{12}$ (all steps alike, $\gamma = 0$) where later steps count at least as much as
earlier ones. Averages of any two widths, stored now and then, are enough to reconstruct one of any
other width when the run has ended: [`eqdiff.train.reconstruct`][].

Source: Karras et al. (2024), *Analyzing and Improving the Training Dynamics of Diffusion Models*
(EDM2), section 3 and equations (123) and (127).
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._check import check_positive, whole


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

    **Arguments:**

    - `rate`: $r$, a number in [0, 1).

    **Raises:** `ValueError` for another rate.

    **Example:**

    ```python
    rule = eqd.train.EMA(0.9999)  # one of the `ema` of eqd.train.init
    ```
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

    **Arguments:**

    - `rate`: $r$ after the warm-up, a number in [0, 1).

    **Raises:** `ValueError` for another rate.

    **Example:**

    ```python
    rule = eqd.train.EMAWarmup(0.9999)  # the same as 0.9999 in the `ema` of eqd.train.init
    ```
    """

    rate: float

    def __check_init__(self):
        _check_rate("EMAWarmup", self.rate)

    def gain(self, n: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.maximum(1 - self.rate, 9 / (10 + n))


class HalfLife(AbstractEMA):
    r"""A rate given by its half-life, which is short at first: the rule of `edm`.

    $$r_n = 2^{-1/h_n}, \qquad h_n = \min(h,\ \rho\,(n - 1))$$

    After a half-life half of the average is of what came since. As long as the ramp-up lasts, until
    step $h/\rho + 1$, the half-life is the share $\rho$ of the run so far; the first step replaces
    the untrained network entirely, since $h_1 = 0$.

    `HalfLife(500_000, batch_size=512)` is EDM's average for CIFAR-10.

    Source: Karras et al. (2022), *Elucidating the Design Space of Diffusion-Based Generative
    Models*, table 6, and `ema_halflife_kimg` and `ema_rampup_ratio` of `edm`.

    **Example:**

    ```python
    rule = eqd.train.HalfLife(500_000, batch_size=512)  # one of the `ema` of eqd.train.init
    ```
    """

    half_life: float
    batch_size: int
    ramp_up: float | None

    def __init__(
        self, half_life: int | float, *, batch_size: int = 1, ramp_up: float | None = 0.05
    ):
        r"""**Arguments:**

        - `half_life`: in images, with their number in a step; or in steps, with `batch_size=1`.
        - `batch_size`: how many images a step takes.
        - `ramp_up`: the ratio $\rho$; `None` for a constant rate.

        **Raises:** `ValueError` unless all are positive.
        """
        check_positive("HalfLife", half_life=half_life)
        self.half_life = float(half_life)
        self.batch_size = whole("HalfLife", "batch_size", batch_size)
        if ramp_up is not None:
            check_positive("HalfLife", ramp_up=ramp_up)
        self.ramp_up = ramp_up

    def gain(self, n: Int[Array, ""]) -> float | Float[Array, ""]:
        steps = self.half_life / self.batch_size
        if self.ramp_up is None:
            return -math.expm1(-math.log(2) / steps)
        # In the first step 2**(-1/0) = 0, which the tiny number stands for.
        grown = jnp.maximum(self.ramp_up * (n - 1).astype(jnp.float32), 1e-8)
        return -jnp.expm1(-math.log(2) / jnp.minimum(grown, steps))


class PowerEMA(AbstractEMA):
    r"""An average over a fixed share of the run so far, however long it gets.

    $$r_n = \left(1 - \frac1n\right)^{\gamma + 1}, \qquad
      \sigma_\text{rel}^2 = \frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)}$$

    Step $\tau$ of $n$ has a weight in proportion to $\tau^\gamma$, so half of a `PowerEMA(0.05)` is
    over the last 4 % of the run, and half of a `PowerEMA(0.10)` over its last 8 %. The best width
    differs from network to network and cannot be known beforehand: keep two, store checkpoints, and
    try others afterwards with [`eqdiff.train.reconstruct`][].

    Source: Karras et al. (2024), *Analyzing and Improving the Training Dynamics of Diffusion
    Models* (EDM2), equations (123) and (127).

    **Example:**

    ```python
    rules = (eqd.train.PowerEMA(0.05), eqd.train.PowerEMA(0.10))  # the `ema` of eqd.train.init
    ```
    """

    sigma_rel: float

    def __init__(self, sigma_rel: float):
        r"""**Arguments:**

        - `sigma_rel`: the relative width $\sigma_\text{rel}$, up to $1/\sqrt{12} \approx 0.2887$,
            the mean of all steps. EDM2 keeps 0.05 and 0.10.

        **Raises:** `ValueError` for another width.
        """
        if not 0 < sigma_rel <= 1 / math.sqrt(12):
            raise ValueError(
                f"PowerEMA({sigma_rel}): expected a relative width in (0, 0.2886], such as "
                "PowerEMA(0.05); the rate of an exponential average goes into EMAWarmup(0.9999)."
            )
        self.sigma_rel = float(sigma_rel)

    @property
    def gamma(self) -> float:
        r"""The exponent $\gamma$, the largest root of equation (5) of the theory above."""
        t = self.sigma_rel**-2
        # (γ + 2)² (γ + 3) - t (γ + 1) = 0.
        return float(np.max(np.roots([1, 7, 16 - t, 12 - t]).real))

    def gain(self, n: Int[Array, ""]) -> Float[Array, ""]:
        # 1 - r_n without cancellation; log1p(-1) = -inf gives the gain 1 of the first step.
        return -jnp.expm1((self.gamma + 1) * jnp.log1p(-1 / n))


def as_rule(rule: float | AbstractEMA) -> AbstractEMA:
    """The rule that an entry of `ema=` stands for: a number is a rate that is warmed up to."""
    return rule if isinstance(rule, AbstractEMA) else EMAWarmup(rule)


def ema_update(rule: AbstractEMA, average: PyTree, params: PyTree, n: Int[Array, ""]) -> PyTree:
    """Equation (1) for trees of the same structure."""
    gain = rule.gain(n)

    def update(old: Array, new: Array) -> Array:
        return old + jnp.asarray(gain, old.dtype) * (new - old)

    return jax.tree.map(update, average, params)

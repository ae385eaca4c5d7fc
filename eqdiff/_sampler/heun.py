r"""EDM's stochastic sampler: churn, then Heun.

In $y = x/\alpha$ every process has $y = x_0 + s\varepsilon$ with the noise level
$s = \sigma/\alpha$, and its probability flow is $\mathrm dy/\mathrm ds = \hat\varepsilon$. Each
step first adds fresh noise and so goes *up*, from $s_i$ to $\hat s = (1 + \gamma_i)s_i$,

$$\hat y = y_i + \sqrt{\hat s^2 - s_i^2}\; S_{\text{noise}}\, z, \qquad
  \gamma_i = \min\!\left(S_{\text{churn}}/n,\ \sqrt2 - 1\right)
    \text{ if } S_{\min} \le s_i \le S_{\max}, \text{ else } 0, \tag{1}$$

and then solves down to $s_{i+1}$ by a second-order step with its second slope at
$s' = \hat s + c\,(s_{i+1} - \hat s)$,

$$y_{i+1} = \hat y + (s_{i+1} - \hat s)
    \left(\left(1 - \tfrac1{2c}\right)\hat\varepsilon(\hat y)
    + \tfrac1{2c}\,\hat\varepsilon(y')\right),
  \qquad y' = \hat y + (s' - \hat s)\,\hat\varepsilon(\hat y) \tag{2}$$

(Karras et al. 2022, algorithm 2, where $c = 1$, Heun; their algorithm 3 has the general $c$, called
α there). The last step goes to $s = 0$ by Euler's method, which is $\hat x_0$.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_positive, of
from .._process import AbstractProcess, as_time, exactly, karras_times, without_signal
from .._types import Example, Scalar
from .base import AbstractChain, Step
from .grid import Grid, grid_of, Spacing


class StochasticHeun(AbstractChain):
    r"""EDM's sampler: each step adds noise ("churn"), then solves the probability flow by Heun's
    method.

    On any process, through $x/\alpha$ and $\sigma/\alpha$; $2n - 1$ network calls. Without `churn`
    it is deterministic and needs no key. On ImageNet the paper takes 256 steps with `churn=40,
    churn_min=0.05, churn_max=50, noise=1.003`.

    **Example:**

    ```python
    denoiser, x1 = eqd.GaussianDenoiser(eqd.EDMSDE(), std=0.5), jnp.full(3, 80.0)
    x0 = eqd.StochasticHeun(18)(denoiser, x1)  # deterministic
    x0 = eqd.StochasticHeun(18, churn=5.0, noise=1.003)(denoiser, x1, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, algorithms 2 and 3.
    """

    grid: Grid
    churn: float = eqx.field(static=True)
    churn_min: float = eqx.field(static=True)
    churn_max: float = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    midpoint: float = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        noise: float = 1.0,
        midpoint: float = 1.0,
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 18 times of
            [`eqdiff.karras_times`][] with ρ = 7 by default.
        - `churn`: $S_{\text{churn}}$; the level rises by the share
            $\gamma = \min(S_{\text{churn}}/n, \sqrt2 - 1)$.
        - `churn_min`, `churn_max`: only noise levels $\sigma/\alpha$ in this range are churned.
        - `noise`: $S_{\text{noise}}$, slightly above 1 to compensate for the detail that a network
            removes.
        - `midpoint`: $c$ of equation (2) in $(0, 1]$: 1 is Heun's method, ½ the midpoint method, ⅔
            Ralston's.

        **Raises:** `ValueError` for a number out of range, and as [`eqdiff.Grid`][].
        """
        check_positive(self, noise=noise, midpoint=midpoint)
        if not churn >= 0 or not 0 <= churn_min <= churn_max:
            raise ValueError(
                f"StochasticHeun(churn={churn}, churn_min={churn_min}, churn_max={churn_max}): "
                "expected churn >= 0 and 0 <= churn_min <= churn_max."
            )
        if midpoint > 1:
            raise ValueError(
                f"StochasticHeun(midpoint={midpoint}): expected a number in (0, 1]; 1 is Heun's "
                "method."
            )
        self.grid = grid_of(
            self, num_steps, spacing, times, default=18, default_spacing=karras_times
        )
        self.churn, self.noise, self.midpoint = float(churn), float(noise), float(midpoint)
        self.churn_min, self.churn_max = float(churn_min), float(churn_max)

    @property
    def random(self) -> bool:
        return self.churn > 0

    @property
    def num_calls(self) -> int | None:
        return None if self.grid.num_steps is None else 2 * self.grid.num_steps - 1

    def step(self, denoiser, step, x, args, *, key):
        process, end = denoiser.process, step.sigma_s / step.alpha_s
        if self.grid.begins_without_signal(process):
            where, remedy = without_signal(process)
            raise ValueError(f"{of(self)}: {where}, and x/alpha is infinite. {remedy}.")
        t, level, rise = self._churned(process, step)
        y = x / step.alpha_t
        if self.random:
            y = y + self.noise * rise * jax.random.normal(key, x.shape, x.dtype)

        def at(t: Array, y: Example):
            return denoiser(t, process.alpha(t).astype(x.dtype) * y, args)

        estimate = at(t, y)

        def second():
            middle, inside = step.s, end
            if self.midpoint != 1:
                inside = level + self.midpoint * (end - level)
                middle = process.time(-2 * jnp.log(inside))
            slope = at(middle, y + (inside - level) * estimate.noise).noise
            share = 0.5 / self.midpoint
            mixed = (1 - share) * estimate.noise + share * slope
            return step.alpha_s * (y + (end - level) * mixed)

        return jax.lax.cond(step.last, lambda: estimate.x0, second), estimate.x0

    def _churned(self, process: AbstractProcess, step: Step) -> tuple[Array, Scalar, Scalar]:
        """The time and the level that a step rises to, and the standard deviation that it takes."""
        level = step.sigma_t / step.alpha_t
        if not self.random:
            return step.t, level, jnp.zeros_like(level)
        num_steps = self.grid.times(process).shape[0]
        gamma = min(self.churn / num_steps, math.sqrt(2) - 1)
        # Rounded and divided as the steps' levels are, or the first would seem to be below it.
        most_alpha, most_sigma = (
            jnp.asarray(end).astype(level.dtype) for end in exactly(_end, process)
        )
        most = most_sigma / most_alpha
        chosen = (level >= self.churn_min) & (level <= self.churn_max)
        # No process goes beyond its own end.
        beyond = (1 + gamma) * level > most
        up = jnp.where(
            chosen, jnp.where(beyond, jnp.maximum(most, level), (1 + gamma) * level), level
        )
        # Written as products: a difference of squares leaves rounding where there is no churn.
        free = math.sqrt(gamma * (2 + gamma)) * level
        bound = jnp.sqrt(jnp.maximum((up - level) * (up + level), 0))
        rise = jnp.where(chosen, jnp.where(beyond, bound, free), 0)
        t = as_time(step.t)
        found = jnp.minimum(process.time(-2 * jnp.log(up)).astype(t.dtype), process.t1)
        return jnp.where(chosen, found, t), up, rise


def _end(process: AbstractProcess) -> tuple[Scalar, Scalar]:
    return process.alpha(process.t1), process.sigma(process.t1)

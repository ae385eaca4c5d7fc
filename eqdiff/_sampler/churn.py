r"""EDM's stochastic sampler: churn, then Heun.

In $y = x/\alpha$ every process has $y = x_0 + s\varepsilon$ with the noise level $s = \sigma/\alpha$, and its probability flow is
$\mathrm dy/\mathrm ds = \hat\varepsilon$. Each step first adds fresh noise and so goes *up*, from $s_i$ to $\hat s = (1 + \gamma_i)s_i$,

$$\hat y = y_i + \sqrt{\hat s^2 - s_i^2}\; S_{\text{noise}}\, z, \qquad
  \gamma_i = \min\!\left(S_{\text{churn}}/n,\ \sqrt2 - 1\right) \text{ if } S_{\min} \le s_i \le S_{\max}, \text{ else } 0, \tag{1}$$

and then solves down to $s_{i+1}$ by a second-order step with its second slope at $s' = \hat s + c\,(s_{i+1} - \hat s)$,

$$y_{i+1} = \hat y + (s_{i+1} - \hat s)\left(\left(1 - \tfrac1{2c}\right)\hat\varepsilon(\hat y) + \tfrac1{2c}\,\hat\varepsilon(y')\right),
  \qquad y' = \hat y + (s' - \hat s)\,\hat\varepsilon(\hat y) \tag{2}$$

(Karras et al. 2022, algorithm 2, where $c = 1$, Heun; their algorithm 3 has the general $c$, called α there). The last step goes to
$s = 0$ by Euler's method, which is $\hat x_0$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from .._process import AbstractProcess, AbstractSDE
from .._solver import time_of
from .._types import Scalar
from .base import AbstractChain, check_decreasing, check_num_steps
from .times import check_times, karras_times


class _Churn(eqx.Module):
    """One step: the level before churning, and times and levels after it, of the second slope, and at the end."""

    level: Float[Array, "*n"]
    churned: Shaped[Array, "*n"]
    churned_level: Float[Array, "*n"]
    middle: Shaped[Array, "*n"]
    middle_level: Float[Array, "*n"]
    end: Shaped[Array, "*n"]
    end_level: Float[Array, "*n"]
    last: Bool[Array, "*n"]


class StochasticHeun(AbstractChain):
    r"""EDM's sampler: at each step noise is added ("churn") and the probability flow then solved by Heun's method.

    On any process, through $x/\alpha$ and $\sigma/\alpha$; $2n - 1$ network calls. Deterministic unless `churn` is positive, and then
    needs no key.

    ```python
    fast = eqd.StochasticHeun(18)(denoiser, x1)
    stochastic = eqd.StochasticHeun(256, churn=40, churn_min=0.05, churn_max=50, noise=1.003)
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS 2022, algorithms 2 and 3.
    """

    num_steps: int = eqx.field(static=True)
    churn: float = eqx.field(static=True)
    churn_min: float = eqx.field(static=True)
    churn_max: float = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    midpoint: float = eqx.field(static=True)
    times: Shaped[Array, " n"] | None

    def __init__(
        self,
        num_steps: int = 18,
        *,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        noise: float = 1.0,
        midpoint: float = 1.0,
        times: Shaped[Array, " n"] | None = None,
    ):
        r"""**Arguments:**

        - `num_steps`: the number of steps $n$, at the times of [`eqdiff.karras_times`][] with ρ = 7.
        - `churn`: $S_{\text{churn}}$; the level rises by the share $\gamma = \min(S_{\text{churn}}/n, \sqrt2 - 1)$.
        - `churn_min`, `churn_max`: only noise levels $\sigma/\alpha$ in this range are churned.
        - `noise`: $S_{\text{noise}}$, slightly above 1 to make up for the detail that a network removes.
        - `midpoint`: $c$ of equation (2) in $(0, 1]$: 1 is Heun's method, ½ the midpoint method, ⅔ Ralston's.
        - `times`: the decreasing times themselves.

        **Raises:** `ValueError` for less than one step, a number out of range, or times that do not decrease; when called, for
        times that the process does not have.
        """
        check_num_steps("StochasticHeun", num_steps)
        if not churn >= 0 or not noise > 0 or not 0 <= churn_min <= churn_max:
            raise ValueError(
                f"StochasticHeun(churn={churn}, churn_min={churn_min}, churn_max={churn_max}, noise={noise}): expected "
                "churn >= 0, 0 <= churn_min <= churn_max and noise > 0."
            )
        if not 0 < midpoint <= 1:
            raise ValueError(
                f"StochasticHeun(midpoint={midpoint}): expected a number in (0, 1]; 1 is Heun's method."
            )
        if times is not None:
            times = check_decreasing("StochasticHeun", times)
        self.num_steps = num_steps if times is None else len(times)
        self.churn, self.churn_min, self.churn_max = (
            float(churn),
            float(churn_min),
            float(churn_max),
        )
        self.noise, self.midpoint, self.times = float(noise), float(midpoint), times

    @property
    def random(self) -> bool:
        return self.churn > 0

    @property
    def num_calls(self) -> int:
        """The number of network calls that make one sample."""
        return 2 * self.num_steps - 1

    def steps(self, process):
        times = self._times(process)
        level = jax.vmap(lambda t: _level(process, t))(times)
        churned, churned_level = times, level
        if self.random:
            gamma = min(self.churn / self.num_steps, math.sqrt(2) - 1)
            chosen = (level >= self.churn_min) & (level <= self.churn_max)
            up = jax.vmap(lambda s: _time_at(process, s))((1 + gamma) * level)
            churned = jnp.where(chosen, up.astype(times.dtype), times)
            # The level of the time found, not the one sought: a chain rounds, and no process goes beyond its own end.
            churned_level = jax.vmap(lambda t: _level(process, t))(churned)
        last = jnp.arange(len(times)) == len(times) - 1
        # The last step goes to the level 0, which has no time.
        end, end_level = jnp.append(times[1:], times[-1:]), jnp.append(level[1:], 0 * level[:1])
        middle, middle_level = end, end_level
        if self.midpoint != 1:
            middle_level = churned_level + self.midpoint * (end_level - churned_level)
            inside = jax.vmap(lambda s: _time_at(process, s))(middle_level)
            middle = jnp.where(last, end, inside.astype(times.dtype))
        return times, _Churn(
            level, churned, churned_level, middle, middle_level, end, end_level, last
        )

    def _times(self, process: AbstractProcess) -> Shaped[Array, " n"]:
        if self.times is None:
            return karras_times(process, self.num_steps)
        return check_times(process, self.times)

    def step(self, denoiser, t, this, x, args, *, key):
        def alpha(time):
            return denoiser.process.alpha(time).astype(x.dtype)

        level, churned, middle, end = (
            s.astype(x.dtype)
            for s in (this.level, this.churned_level, this.middle_level, this.end_level)
        )
        y = x / alpha(t)
        if self.random:
            rise = jnp.sqrt(jnp.maximum(churned**2 - level**2, 0))
            y = y + self.noise * rise * jax.random.normal(key, x.shape, x.dtype)
        estimate = denoiser(this.churned, alpha(this.churned) * y, args)

        def second():
            inside = y + (middle - churned) * estimate.noise
            slope = denoiser(this.middle, alpha(this.middle) * inside, args).noise
            share = 0.5 / self.midpoint
            mixed = (1 - share) * estimate.noise + share * slope
            return alpha(this.end) * (y + (end - churned) * mixed)

        return jax.lax.cond(this.last, lambda: estimate.x0, second), estimate.x0


def _level(process: AbstractProcess, t: Shaped[Array, ""]) -> Scalar:
    """σ/α, which is σ itself where α is 1."""
    return process.sigma(t) / process.alpha(t)


def _time_at(process: AbstractProcess, level: Scalar) -> Shaped[Array, ""]:
    time = time_of(process, -2 * jnp.log(level))
    if isinstance(process, AbstractSDE):
        return jnp.minimum(time, jnp.asarray(process.t1, time.dtype))
    return time

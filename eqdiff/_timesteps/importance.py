r"""Non-uniform times for processes in continuous time.

**To estimate an integral with less variance.** The likelihood-weighted score matching loss is, up
to constants, the integral of $\frac{g^2}{\sigma^2}\|\hat\varepsilon - \varepsilon\|^2$ over $t$.
Near the data $g^2/\sigma^2$ is huge, while the squared error stays of order one. For every process
$(\alpha, \sigma)$

$$\frac{g^2}{\sigma^2} = -\frac{\mathrm d\lambda}{\mathrm dt}, \qquad
  \lambda = \log\frac{\alpha^2}{\sigma^2}, \tag{1}$$

so $p(t) \propto g^2/\sigma^2$ is simply a uniform log-SNR: $t = t(\lambda)$ needs no rejection
and no table (Song et al. 2021, *Maximum Likelihood Training*; in terms of λ, Kingma et al. 2021).

**To choose an objective.** The weighting of a loss and the distribution of its times are one thing:
only their product counts. Karras et al. (2022) and Esser et al. (2024) state it as a distribution.
Their importance weights are 1, and the objective is $\mathbb E_{t\sim p}[L_t]$, not an estimate of
$\mathbb E_{t\sim U}[L_t]$.

All of them spread a batch evenly over their quantiles, like [`eqdiff.LowDiscrepancy`][]. The
references draw independently: each time has the same distribution, and the mean over a batch is
less noisy here.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from .._check import check_positive, of, refuse
from .._process import AbstractProcess, require_process, time_at
from .._types import Key, Scalar
from .base import AbstractFixedTimesteps, AbstractTimesteps, evenly_spread, State


def _log_snr_range(process: AbstractProcess) -> tuple[Scalar, Scalar]:
    """λ at t0 and t1, known at compile time unless the process itself is traced."""
    with jax.ensure_compile_time_eval():
        return process.log_snr(process.t0), process.log_snr(process.t1)


def _times(process: AbstractProcess, log_snr: Float[Array, " n"]) -> Float[Array, " n"]:
    # The ends are clipped: inverting λ rounds, and no time may leave the interval.
    return jnp.clip(jax.vmap(process.time)(log_snr), process.t0, process.t1)


def _finite_range(owner: AbstractTimesteps, process: AbstractProcess) -> tuple[Scalar, Scalar]:
    """λ at t0 and t1; an error where it does not fall from one finite value to another."""
    start, end = _log_snr_range(process)
    bad = ~jnp.isfinite(start - end) | (start <= end)
    message = (
        f"{of(owner)}: the log-SNR of {type(process).__name__} must fall from one finite value at "
        "t0 to another at t1. At an end without signal or without noise it is infinite: give the "
        "process an interval that leaves out that end, such as t0=1e-3 or t1=0.999."
    )
    return refuse((start, end), bad, message)


def _rates(process: AbstractProcess, t: Float[Array, " n"]) -> Float[Array, " n"]:
    """(g/σ)², which is −dλ/dt."""
    return jax.vmap(lambda t: (process.diffusion(t) / process.sigma(t)) ** 2)(t)


class LikelihoodImportance(AbstractFixedTimesteps):
    r"""$p(t) \propto g(t)^2/\sigma_t^2$: the log-SNR is uniform. For a loss with
    [`eqdiff.LikelihoodWeighting`][].

    $$\lambda_i = \lambda_{t_0} + (\lambda_{t_1} - \lambda_{t_0})\,u_i, \qquad
      t_i = t(\lambda_i), \qquad
      w_i = \frac{1/(t_1 - t_0)}{p(t_i)}
        = \frac{\lambda_{t_0} - \lambda_{t_1}}{t_1 - t_0}\cdot\frac{\sigma_{t_i}^2}{g(t_i)^2}.$$

    The weight and $g^2/\sigma^2$ cancel, so that every example counts the same: otherwise the few
    times near the data in a batch decide the loss.

    **Example:**

    ```python
    times = eqd.LikelihoodImportance(eqd.VPSDE())
    t, weights = times.sample(times.init(), 8, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Maximum Likelihood Training of Score-Based Diffusion Models*, NeurIPS 2021
        (variance reduction by importance sampling).
    """

    process: AbstractProcess

    def __init__(self, process: AbstractProcess):
        r"""**Arguments:**

        - `process`: with a finite log-SNR at both ends.

        **Raises:** `ValueError` where $g^2/\sigma^2$ is not integrable on $[t_0, t_1]$: then there
        is no such distribution.
        """
        self.process = require_process(process, "LikelihoodImportance")
        _finite_range(self, process)

    def sample(self, state: State, n: int, *, key: Key):
        process = self.process
        start, end = _finite_range(self, process)
        t = _times(process, start + (end - start) * evenly_spread(n, key=key))
        return t, (start - end) / (process.t1 - process.t0) / _rates(process, t)


class VelocityImportance(AbstractFixedTimesteps):
    r"""$p(\lambda) \propto \operatorname{sigmoid}\lambda$: for a loss with
    [`eqdiff.LikelihoodWeighting`][] of a network that predicts a velocity.

    An error $\hat v - v$ that is of one size at all times is one of $\alpha(\hat v - v)$ in ε under
    VP, which in the bound counts $-\dot\lambda\,\alpha^2$, and $\alpha^2 =
    \operatorname{sigmoid}\lambda$:

    $$s_i = s(\lambda_{t_0}) + (s(\lambda_{t_1}) - s(\lambda_{t_0}))\,u_i, \quad
      s(\lambda) = \log(1 + e^\lambda), \qquad
      w_i = \frac{s(\lambda_{t_0}) - s(\lambda_{t_1})}{t_1 - t_0}\cdot
        \frac{\sigma_{t_i}^2}{g(t_i)^2\operatorname{sigmoid}\lambda_i}.$$

    Compared with [`eqdiff.LikelihoodImportance`][] fewer times are noisy, where $v$ is nearly the
    data and its error says little about ε. For other processes the log-SNR is drawn in the same
    way.

    **Example:**

    ```python
    times = eqd.VelocityImportance(eqd.VPSDE())
    t, weights = times.sample(times.init(), 8, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Zheng, Lu, Chen & Zhu, *Improved Techniques for Maximum Likelihood Estimation for Diffusion
        ODEs*, ICML 2023, section 4.
    """

    process: AbstractProcess

    def __init__(self, process: AbstractProcess):
        r"""**Arguments and errors:** as for [`eqdiff.LikelihoodImportance`][]."""
        self.process = require_process(process, "VelocityImportance")
        _finite_range(self, process)

    def sample(self, state: State, n: int, *, key: Key):
        process = self.process
        start, end = (jax.nn.softplus(level) for level in _finite_range(self, process))
        s = start + (end - start) * evenly_spread(n, key=key)
        # The inverse of the softplus.
        t = _times(process, s + jnp.log(-jnp.expm1(-s)))
        share = jax.nn.sigmoid(jax.vmap(process.log_snr)(t))
        return t, (start - end) / (process.t1 - process.t0) / (_rates(process, t) * share)


class LogNormal(AbstractFixedTimesteps):
    r"""$\log(\sigma_t/\alpha_t) \sim \mathcal N(m, s^2)$, truncated to the process's interval:
    EDM's distribution of noise levels.

    All weights are 1: the distribution defines the objective, $\mathbb E_{t\sim p}[L_t]$. With
    EDM's weighting it concentrates on middle noise levels, where there is something to learn. It is
    defined through $\sigma/\alpha$, so it means the same on every process.

    **Example:**

    ```python
    times = eqd.LogNormal(eqd.EDMSDE())
    t, weights = times.sample(times.init(), 8, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, section 5 and table 1 ($m = -1.2$, $s = 1.2$ for data of standard deviation 0.5).
    """

    process: AbstractProcess
    mean: float | Array
    std: float | Array

    def __init__(
        self, process: AbstractProcess, *, mean: float | Array = -1.2, std: float | Array = 1.2
    ):
        r"""**Arguments:**

        - `process`: any.
        - `mean`, `std`: $m$ and $s > 0$, of the natural logarithm.

        **Raises:** `ValueError` for a `std` that is not positive, or a process whose interval holds
        less than one millionth of the distribution.
        """
        check_positive(self, std=std)
        self.process, self.mean, self.std = require_process(process, "LogNormal"), mean, std
        self._range()

    def _range(self) -> tuple[Scalar, Scalar, Scalar]:
        """The standardised ends of log(σ/α), mirrored where that brings them into the accurate
        tail, and the mirror.
        """
        with jax.ensure_compile_time_eval():
            noise = [-0.5 * log_snr for log_snr in _log_snr_range(self.process)]
            low, high = ((level - self.mean) / self.std for level in noise)
            # Φ is accurate in its lower tail only, so the half with more of the interval is made
            # the lower one.
            mirror = jnp.where(low + high > 0, -1.0, 1.0).astype(low.dtype)
            low, high = (
                jnp.minimum(mirror * low, mirror * high),
                jnp.maximum(mirror * low, mirror * high),
            )
            bad = ~(ndtr(high) - ndtr(low) > 1e-6)
        message = (
            f"LogNormal(mean={self.mean}, std={self.std}): hardly any of it lies between the "
            f"noise levels σ/α of {type(self.process).__name__} at t0 and t1. Move the mean to "
            "the logarithm of a level that the process reaches."
        )
        return refuse((low, high, mirror), bad, message)

    def sample(self, state: State, n: int, *, key: Key):
        low, high, mirror = self._range()
        below = ndtr(low)
        z = ndtri(below + (ndtr(high) - below) * evenly_spread(n, key=key))
        noise = self.mean + self.std * (mirror * jnp.clip(z, low, high))
        return _times(self.process, -2 * noise), jnp.ones(n)


class LogitNormal(AbstractFixedTimesteps):
    r"""$\operatorname{logit} u \sim \mathcal N(m, s^2)$, $t = t_0 + (t_1 - t_0)\,u$: the middle of
    the interval more often than its ends.

    All weights are 1: the distribution defines the objective, $\mathbb E_{t\sim p}[L_t]$. Made for
    rectified flow, whose velocity is hardest to predict in the middle. A positive mean moves the
    times towards the noise.

    **Example:**

    ```python
    times = eqd.LogitNormal(eqd.RectifiedFlow())
    t, weights = times.sample(times.init(), 8, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Esser et al., *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*,
        ICML 2024, section 3.1.
    """

    process: AbstractProcess
    mean: float | Array
    std: float | Array

    def __init__(
        self, process: AbstractProcess, *, mean: float | Array = 0.0, std: float | Array = 1.0
    ):
        r"""**Arguments:**

        - `process`: as for [`eqdiff.Uniform`][].
        - `mean`, `std`: $m$ and $s > 0$.

        **Raises:** `ValueError` for a `std` that is not positive.
        """
        check_positive(self, std=std)
        self.process, self.mean, self.std = require_process(process, "LogitNormal"), mean, std

    def sample(self, state: State, n: int, *, key: Key):
        z = ndtri(evenly_spread(n, key=key))
        return time_at(self.process, jax.nn.sigmoid(self.mean + self.std * z)), jnp.ones(n)

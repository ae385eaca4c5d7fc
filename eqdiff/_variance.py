r"""The variance of a reverse step $p(x_{t-1}|x_t) = \mathcal N(\mu_t, \Sigma_t)$.

$\Sigma$ lies between $\tilde\beta_t$, right if the data were a point, and $\beta_t$, right if they
were white noise. Nichol & Dhariwal (2021, equation 15) let the network interpolate in log-space by
an extra output $v$ per element,

$$\log\Sigma = w\log\beta_t + (1 - w)\log\tilde\beta_t, \qquad w = \tfrac12 (v + 1). \tag{1}$$

Without a trained output there is still a best number per step. The step's mean is the posterior's,
$\tilde\mu_t(x_t, x_0)$, with $\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\alpha_t$ in place of
$x_0$, so in terms of the noise

$$\tilde\mu_t(x_t, x_0) - \mu_t = c_t\,(\hat\varepsilon - \varepsilon), \qquad
  c_t = \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}\sqrt{1 - \beta_t}}, \tag{2}$$

and the expected KL per element is
$\tfrac12(\log\Sigma - \log\tilde\beta_t + (\tilde\beta_t + c_t^2 e_t)/\Sigma - 1)$, least at

$$\Sigma_t^* = \tilde\beta_t + c_t^2\, e_t, \qquad
  e_t = \tfrac1D\,\mathbb E\|\varepsilon - \hat\varepsilon(x_t)\|^2. \tag{3}$$

For the exact $\hat\varepsilon = \mathbb E[\varepsilon|x_t]$, $e_t = 1 - \Gamma_t$ with
$\Gamma_t = \frac1D\mathbb E\|\hat\varepsilon\|^2$, which is Analytic-DPM's formula (Bao et al.
2022, theorem 1 at their $\lambda_n^2 = \tilde\beta_n$).
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ._process import check_signal, Schedule
from ._process._table import Table
from ._types import Example, Time


# The decoder's variance is (3) without β̃, and must not be 0 where the noise error is: at least 1 %
# of σ/α.
_LEAST_FIRST_ERROR = 1e-4


class ReverseStep(eqx.Module):
    r"""What the variance of a reverse step may depend on.

    - `schedule`: the schedule that the step belongs to, or that its ends were taken from; `None`
        for a step between two times of a process that has none.
    - `timestep`: its start in the original schedule, an entry of `schedule.timesteps`.
    - `first`: whether it ends in the data.
    - `log_beta`: $\log\beta$ of the step.
    - `log_posterior_variance`: $\log\tilde\beta$; a first step, whose own is $-\infty$, has that of
        the step before it in the reverse schedule (the official clip), or if there is none,
        $\log\beta$.
    - `posterior_variance`: $\tilde\beta$, 0 at a first step.
    - `noise_coefficient`: $c$ of equation (2).

    One step holds scalars; [`eqdiff.pairwise_terms`][] makes steps between all pairs of times.
    """

    schedule: Schedule | None
    timestep: Int[Array, "*steps"]
    first: Bool[Array, "*steps"]
    log_beta: Float[Array, "*steps"]
    log_posterior_variance: Float[Array, "*steps"]
    posterior_variance: Float[Array, "*steps"]
    noise_coefficient: Float[Array, "*steps"]


def reverse_step(schedule: Schedule, t: Time) -> ReverseStep:
    """The reverse step of a schedule from its time t."""
    betas = schedule.betas
    log_beta = schedule.lookup(np.log(betas), t)
    return ReverseStep(
        schedule,
        jnp.asarray(schedule.timesteps, jnp.int32)[t],
        jnp.asarray(t) == 0,
        log_beta,
        schedule.lookup(schedule.posterior_log_variance, t),
        schedule.lookup(schedule.posterior_variance, t),
        schedule.lookup(noise_coefficient(betas, schedule.alpha_bar), t),
    )


def noise_coefficient(
    beta: Float[np.ndarray, "..."], alpha_bar: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    r"""$c$ of equation (2), float64; infinite for a rate of 1."""
    with np.errstate(divide="ignore"):
        return beta / np.sqrt((1 - alpha_bar) * (1 - beta))


def check_noise_error(schedule: Schedule, owner: str) -> None:
    """Raises `ValueError` for a schedule that ends without signal, where $c_t^2 e_t$ is ∞ · 0."""
    why = "the error of a noise that is known does not tell how uncertain x0 is"
    check_signal(schedule, owner, why, "Write FixedSmall(), or train with LearnedRange().")


class AbstractVariance(eqx.Module):
    r"""How the log-variance of a reverse step is found."""

    learned: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def of_step(self, step: ReverseStep, raw: Example | None) -> Float[Array, "..."]:
        r"""$\log\Sigma$ of a step: a scalar, or one per element where the variance is learned.

        **Arguments:**

        - `step`: the step, of a whole or respaced schedule.
        - `raw`: the network's extra outputs, shaped like $x$; `None` where nothing is learned.
        """

    def log_variance(self, schedule: Schedule, t: Time, raw: Example | None) -> Float[Array, "..."]:
        r"""$\log\Sigma_t$: `of_step` at one step of a schedule.

        **Arguments:**

        - `schedule`: the schedule, respaced if sampling is.
        - `t`: its step.
        - `raw`: the network's extra outputs, shaped like $x$; `None` where nothing is learned.
        """
        return self.of_step(reverse_step(schedule, t), raw)


class FixedSmall(AbstractVariance):
    r"""$\Sigma_t = \tilde\beta_t$, the lower bound; its first entry is the second's (the official
    clip).

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50), variance=eqd.FixedSmall())
    ```
    """

    learned: ClassVar[bool] = False

    def of_step(self, step, raw):
        return step.log_posterior_variance


class FixedLarge(AbstractVariance):
    r"""$\Sigma_t = \beta_t$, the upper bound; its first entry is $\tilde\beta_1$, for a better
    decoder (official).

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50), variance=eqd.FixedLarge())
    ```
    """

    learned: ClassVar[bool] = False

    def of_step(self, step, raw):
        return jnp.where(step.first, step.log_posterior_variance, step.log_beta)


class Learned(AbstractVariance):
    r"""$\log\Sigma_t$ is the network's extra output itself.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 4, key=jax.random.key(0))  # twice the outputs: the second half is v
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(50), variance=eqd.Learned())
    ```
    """

    learned: ClassVar[bool] = True

    def of_step(self, step, raw):
        assert raw is not None
        return raw


class LearnedRange(AbstractVariance):
    r"""The learned interpolation (1) between $\log\tilde\beta_t$ and $\log\beta_t$; $v$ is not
    clamped.

    On a respaced schedule the ends are those of the respaced schedule, so a network trained with
    $T$ steps needs no rescaling.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 4, key=jax.random.key(0))  # twice the outputs: the second half is v
    denoiser = eqd.Denoiser(net, eqd.cosine_schedule(50), variance=eqd.LearnedRange())
    ```

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021, equation
        15.
    """

    learned: ClassVar[bool] = True

    def of_step(self, step, raw):
        assert raw is not None
        low = step.log_posterior_variance.astype(raw.dtype)
        high = step.log_beta.astype(raw.dtype)
        weight = 0.5 * (raw + 1)
        return weight * high + (1 - weight) * low


class AnalyticVariance(AbstractVariance):
    r"""The optimal fixed variance (3), $\Sigma_t = \tilde\beta_t + c_t^2 e_t$, from the noise error
    $e_t$ of a denoiser.

    For $e_t$ from 0 to 1 it runs from $\tilde\beta_t$ to $\beta_t/(1 - \beta_t)$;
    $e_t = \bar\alpha_t$, white data, gives $\beta_t$. Only $\tilde\beta_t$ and $c_t$ depend on
    where a step ends, and $e_t$ on where it starts: one table serves the schedule and all that are
    respaced from it. A first step ends in the data, where $\tilde\beta = 0$, so that the decoder's
    variance is $(\sigma/\alpha)^2 e$, that of $x_0$ given $x_t$. (There $e$ is taken as at least
    $10^{-4}$.)

    Made by [`eqdiff.analytic_variance`][] and [`eqdiff.optimal_variance`][]. A network that was
    trained with variance outputs must drop them.

    **Example:**

    ```python
    variance = eqd.AnalyticVariance(jnp.linspace(0.9, 0.1, 50))  # or from eqd.optimal_variance
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50), variance=variance)
    ```

    ??? cite "Reference"

        Bao, Li, Zhu & Zhang, *Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in
        Diffusion Probabilistic Models*, ICLR 2022, theorems 1 and 2.
    """

    _noise_error: Table = eqx.field(static=True)
    learned: ClassVar[bool] = False

    def __init__(self, noise_error: ArrayLike):
        r"""**Arguments:**

        - `noise_error`: $e_t = 1 - \Gamma_t$ at each step of the original schedule, whole: what a
            respaced schedule's `timesteps` point into. Kept as a static float64 table.

        **Raises:** `ValueError` for a table that is not a vector of finite numbers, none of them
        negative.
        """
        table = np.asarray(noise_error, np.float64)
        if table.ndim != 1 or table.size == 0:
            raise ValueError(
                f"AnalyticVariance: expected one noise error per step, got shape {table.shape}."
            )
        bad = np.flatnonzero(~(np.isfinite(table) & (table >= 0)))
        if bad.size:
            raise ValueError(
                f"AnalyticVariance: noise_error[{bad[0]}] = {table[bad[0]]:g}, but a mean square "
                f"is finite and at least 0 ({bad.size} of {table.size} are not). For moments Γ "
                "write np.clip(1 - gamma, 0, 1)."
            )
        self._noise_error = Table(table)

    @property
    def noise_error(self) -> Float[np.ndarray, " T"]:
        r"""$e_t$ at each step of the original schedule, float64."""
        return self._noise_error.array

    def of_step(self, step, raw):
        if step.schedule is None:
            raise ValueError(
                "An AnalyticVariance has one number per step of a schedule, but the process has "
                "no steps. Write AncestralPredictor(eqdiff.FixedSmall()), or build the denoiser "
                "on the schedule."
            )
        check_noise_error(step.schedule, "AnalyticVariance")
        last = int(np.max(step.schedule.timesteps))
        if last >= self.noise_error.size:
            raise ValueError(
                f"AnalyticVariance knows {self.noise_error.size} steps, but the schedule visits "
                f"step {last} of the one it was respaced from. Make it on the schedule that the "
                "network was trained on: eqdiff.analytic_variance."
            )
        error = jnp.asarray(self.noise_error, step.log_beta.dtype)[step.timestep]
        error = jnp.where(step.first, jnp.maximum(error, _LEAST_FIRST_ERROR), error)
        return jnp.log(step.posterior_variance + step.noise_coefficient**2 * error)

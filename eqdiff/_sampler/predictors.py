r"""Predictors: one step of the reverse process, from a time to a smaller one.

From level $(\alpha_t, \sigma_t)$ to $(\alpha_s, \sigma_s)$, with the forward transition $p(x_t|x_s) = \mathcal N(a x_s, b^2 I)$,

$$a = \frac{\alpha_t}{\alpha_s}, \qquad b^2 = \sigma_t^2 - a^2\sigma_s^2 = -\sigma_t^2\,\mathrm{expm1}(\lambda_t - \lambda_s), \tag{1}$$

Song et al. (2021) propose three steps. *Reverse diffusion* (equation 46) reverses the discretised transition as it stands,

$$x_s = (2 - a)\,x_t + \tfrac{1 + \eta^2}2 b^2\, s(x_t) + \eta\, b z; \tag{2}$$

*ancestral sampling* (equations 4 and 47) draws from the posterior given $\hat x_0$,

$$x_s = \alpha_s\hat x_0 + \frac{a\sigma_s^2}{\sigma_t}\hat\varepsilon + \Sigma^{1/2} z, \qquad
  \tilde\beta = \frac{\sigma_s^2}{\sigma_t^2} b^2 \le \Sigma \le b^2; \tag{3}$$

and *Euler–Maruyama* discretises the reverse SDE with $h = t - s$ (equation 6 with v the probability flow's velocity),

$$x_s = x_t - h v + \tfrac{\eta^2}2 h g^2 s(x_t) + \eta\, g \sqrt h z. \tag{4}$$

η is the share of the reverse SDE's noise: at 0 each is a step of the probability flow. $a$ and $b$ make (2) and (3) valid for every
process, VP ($a = \sqrt{1-\beta}$, $b = \sqrt\beta$) and VE ($a = 1$, $b^2 = \sigma_t^2 - \sigma_s^2$) as published, and others; the official
code falls back to (4) for sub-VP.
"""

import abc
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from .._denoiser import AbstractDenoiser, Estimate
from .._process import AbstractProcess
from .._schedule import Schedule
from .._solver import calls_of
from .._term import require_sde, reverse_sde, shape_of
from .._types import Args, Example, Key, Scalar
from .._variance import AbstractVariance, AnalyticVariance, ReverseStep
from .base import Levels


# In continuous time a step has no chain; variances that look one up are refused there.
_NO_CHAIN = Schedule(np.full(1, 0.5))


class Step(eqx.Module):
    r"""Where a step goes: the time `end`, the levels at both ends, and whether it is the `last`."""

    end: Shaped[Array, "*n"]
    levels: Levels
    last: Bool[Array, "*n"]


class Proposal(eqx.Module):
    r"""What a step proposes: `x`, the state with its noise; `mean`, without; `x0`, the estimate it was made from."""

    x: Example
    mean: Example
    x0: Example


def proposal_of(mean: Example, std: Scalar | Example, estimate: Estimate, key: Key) -> Proposal:
    """A Gaussian step."""
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return Proposal(mean + std * noise, mean, estimate.x0)


class AbstractPredictor(eqx.Module):
    """One step of the reverse process: `predictor(denoiser, t, step, x, args, *, key) -> Proposal`."""

    needs_end: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(
        self,
        denoiser: AbstractDenoiser,
        t: Shaped[Array, ""],
        step: Step,
        x: Example,
        args: Args,
        *,
        key: Key,
    ) -> Proposal:
        r"""A step from `t`.

        **Arguments:**

        - `denoiser`, `args`: any denoiser, and what conditions it.
        - `t`: where the step starts.
        - `step`: where it ends. A step into the data has $\alpha_s = 1$, $\sigma_s = 0$ and no time of its own: predictors that need
            one (`needs_end`) find `end` equal to `t`.
        - `x`: the state at `t`.
        - `key`: for the step's noise.

        **Returns:** the next state with and without its noise, and $\hat x_0$ at `t`.
        """

    @abc.abstractmethod
    def num_calls(self, num_steps: int) -> int:
        """Network calls of this many steps, of which the last goes into the data."""


def check_eta(owner: str, eta: float) -> float:
    """Raises `ValueError` for a share of the noise outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"{owner}(eta={eta}): expected a number between 0 and 1.")
    return float(eta)


def transition(levels: Levels) -> tuple[Scalar, Scalar]:
    r"""$a$ and $b^2$ of equation (1)."""
    variance = -(levels.sigma**2) * jnp.expm1(levels.log_snr - levels.next_log_snr)
    return levels.alpha / levels.next_alpha, variance


class ReverseDiffusion(AbstractPredictor):
    r"""Reverse diffusion, $x_s = (2-a)x_t + \frac{1+\eta^2}2 b^2 s(x_t) + \eta b z$, on any process.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, appendix E.
    """

    eta: float = eqx.field(static=True)
    needs_end: ClassVar[bool] = False

    def __init__(self, eta: float = 1.0):
        r"""**Arguments:**

        - `eta`: η in $[0, 1]$, the share of the noise; 0 is the probability flow (the official `probability_flow=True`).

        **Raises:** `ValueError` for η outside $[0, 1]$.
        """
        self.eta = check_eta("ReverseDiffusion", eta)

    def __call__(self, denoiser, t, step, x, args, *, key):
        estimate = denoiser(t, x, args)
        a, variance = transition(step.levels)
        pull = 0.5 * (1 + self.eta**2) * variance / step.levels.sigma
        mean = (2 - a) * x - pull * estimate.noise
        return proposal_of(mean, self.eta * jnp.sqrt(variance), estimate, key)

    def num_calls(self, num_steps):
        return num_steps


class AncestralPredictor(AbstractPredictor):
    r"""Ancestral sampling, $x_s = \alpha_s\hat x_0 + \frac{a\sigma_s^2}{\sigma_t}\hat\varepsilon + \Sigma^{1/2}z$, on any process.

    On a discrete chain this is [`eqdiff.Ancestral`][] with correctors between its steps.

    ??? cite "Reference"

        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020, algorithm 2 (VP); Song et al., *Score-Based
        Generative Modeling through Stochastic Differential Equations*, ICLR 2021, appendix F (VE).
    """

    variance: AbstractVariance | None
    needs_end: ClassVar[bool] = False

    def __init__(self, variance: AbstractVariance | None = None):
        r"""**Arguments:**

        - `variance`: Σ of equation (3); the denoiser's own by default. Published are `FixedLarge()`, $b^2$, under VP and
            `FixedSmall()`, $\tilde\beta$, under VE.
        """
        self.variance = variance

    def __call__(self, denoiser, t, step, x, args, *, key):
        estimate, levels = denoiser(t, x, args), step.levels
        a, beta = transition(levels)
        along = a * levels.next_sigma**2 / levels.sigma
        mean = levels.next_alpha * estimate.x0 + along * estimate.noise
        variance = denoiser.variance if self.variance is None else self.variance
        reverse = _reverse_step(denoiser.process, t, levels, a, beta, variance)
        log_variance = variance.of_step(reverse, estimate.raw_variance)
        return proposal_of(mean, jnp.exp(0.5 * log_variance.astype(x.dtype)), estimate, key)

    def num_calls(self, num_steps):
        return num_steps


def _reverse_step(
    process: AbstractProcess,
    t: Shaped[Array, ""],
    levels: Levels,
    a: Scalar,
    beta: Scalar,
    variance: AbstractVariance,
) -> ReverseStep:
    """What a variance depends on, for a step between two levels of any process."""
    if not isinstance(process, Schedule) and isinstance(variance, AnalyticVariance):
        raise ValueError(
            f"AncestralPredictor: an AnalyticVariance has one number per step of a chain, but the process is "
            f"{type(process).__name__}. Write AncestralPredictor(eqdiff.FixedSmall()), or build the denoiser on the chain."
        )
    posterior = beta * levels.next_sigma**2 / levels.sigma**2
    timestep = jnp.zeros((), jnp.int32)
    if isinstance(process, Schedule):
        timestep = jnp.asarray(process.timesteps, jnp.int32)[process.index(t)]
    return ReverseStep(
        schedule=process if isinstance(process, Schedule) else _NO_CHAIN,
        timestep=timestep,
        # The official clip of a chain's first step is for its decoder; here the last step's noise is dropped, not shown.
        first=jnp.asarray(False),
        log_beta=jnp.log(beta),
        # A step into the data has none; a finite logarithm of nothing keeps learned interpolations finite.
        log_posterior_variance=jnp.log(jnp.maximum(posterior, jnp.finfo(posterior.dtype).tiny)),
        posterior_variance=posterior,
        noise_coefficient=beta / (levels.sigma * a),
    )


class EulerMaruyama(AbstractPredictor):
    r"""Euler–Maruyama, $x_s = x_t - hv + \frac{\eta^2}2 hg^2 s(x_t) + \eta g\sqrt h z$, on a process in continuous time.

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR 2021, section 4.1.
    """

    eta: float = eqx.field(static=True)
    needs_end: ClassVar[bool] = True

    def __init__(self, eta: float = 1.0):
        r"""**Arguments:**

        - `eta`: η in $[0, 1]$, the share of the noise; 0 is Euler's method for the probability flow.

        **Raises:** `ValueError` for η outside $[0, 1]$.
        """
        self.eta = check_eta("EulerMaruyama", eta)

    def __call__(self, denoiser, t, step, x, args, *, key):
        process, estimate = require_sde(denoiser.process, "EulerMaruyama"), denoiser(t, x, args)
        size = t - step.end
        variance = self.eta**2 * size * process.diffusion(t) ** 2
        on_x0 = -size * process.alpha_dot(t)
        on_noise = -size * process.sigma_dot(t) - 0.5 * variance / process.sigma(t)
        mean = x + on_x0.astype(x.dtype) * estimate.x0 + on_noise.astype(x.dtype) * estimate.noise
        return proposal_of(mean, jnp.sqrt(variance).astype(x.dtype), estimate, key)

    def num_calls(self, num_steps):
        return num_steps


class DiffraxPredictor(AbstractPredictor):
    r"""One step of any Diffrax SDE solver on the reverse SDE, with its own Brownian increment.

    The noise of the reverse SDE is additive, so `DiffraxPredictor(diffrax.ShARK())` is of strong order 1.5 where
    Euler–Maruyama is of order 1. It has no mean without noise, and the estimate $\hat x_0$ beside it is a network call of its own.
    """

    solver: diffrax.AbstractSolver
    needs_end: ClassVar[bool] = True

    def __init__(self, solver: diffrax.AbstractSolver = diffrax.ShARK()):
        """**Arguments:**

        - `solver`: any explicit Diffrax solver for SDEs with additive noise.

        **Raises:** `ValueError` for a solver that wraps another one (`diffrax.HalfSolver`) or whose calls cannot be counted.
        """
        calls_of(solver)
        self.solver = solver

    def __call__(self, denoiser, t, step, x, args, *, key):
        require_sde(denoiser.process, "DiffraxPredictor")
        start, end = -t.astype(x.dtype), -step.end.astype(x.dtype)
        # Only Runge–Kutta solvers for SDEs ask for Lévy areas, and only those name the smallest that will do.
        area = (
            diffrax.SpaceTimeLevyArea
            if hasattr(self.solver, "minimal_levy_area")
            else diffrax.BrownianIncrement
        )
        # A single step asks for a single increment, so no bridge between increments is needed.
        brownian = diffrax.UnsafeBrownianPath(shape_of(x), key, levy_area=area)
        terms = reverse_sde(denoiser, brownian)

        def move():
            state = self.solver.init(terms, start, end, x, args)
            return self.solver.step(terms, start, end, x, args, state, made_jump=False)[0]

        moved = jax.lax.cond(step.last & (start == end), lambda: x, move)
        return Proposal(moved, moved, denoiser(t, x, args).x0)

    def num_calls(self, num_steps):
        start, each = calls_of(self.solver)
        return (start + each) * (num_steps - 1) + num_steps

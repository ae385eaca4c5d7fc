r"""Predictors: one step of the reverse process, from a time to a smaller one.

From level $(\alpha_t, \sigma_t)$ to $(\alpha_s, \sigma_s)$, with the forward transition
$p(x_t|x_s) = \mathcal N(a x_s, b^2 I)$,

$$a = \frac{\alpha_t}{\alpha_s}, \qquad
  b^2 = \sigma_t^2 - a^2\sigma_s^2 = -\sigma_t^2\,\mathrm{expm1}(\lambda_t - \lambda_s), \tag{1}$$

Song et al. (2021) propose three steps. *Reverse diffusion* (equation 46) reverses the discretised
transition as it stands,

$$x_s = (2 - a)\,x_t + \tfrac{1 + \eta^2}2 b^2\, s(x_t) + \eta\, b z; \tag{2}$$

*ancestral sampling* (equations 4 and 47) draws from the posterior given $\hat x_0$,

$$x_s = \alpha_s\hat x_0 + \frac{a\sigma_s^2}{\sigma_t}\hat\varepsilon + \Sigma^{1/2} z, \qquad
  \tilde\beta = \frac{\sigma_s^2}{\sigma_t^2} b^2 \le \Sigma \le b^2; \tag{3}$$

and *Euler–Maruyama* discretises the reverse SDE with $h = t - s$ (equation 6 with v the probability
flow's velocity),

$$x_s = x_t - h v + \tfrac{\eta^2}2 h g^2 s(x_t) + \eta\, g \sqrt h z. \tag{4}$$

η is the share of the reverse SDE's noise: at 0 each is a step of the probability flow. $a$ and $b$
make (2) and (3) valid for every process, VP ($a = \sqrt{1-\beta}$, $b = \sqrt\beta$) and VE
($a = 1$, $b^2 = \sigma_t^2 - \sigma_s^2$) as published, and others; the official code falls back to
(4) for sub-VP.
"""

import abc
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import check_fraction
from .._denoiser import AbstractDenoiser
from .._process import AbstractProcess, as_time, Schedule, with_signal
from .._term import reverse_sde, shape_of
from .._types import Args, Example, Key, Scalar
from .._variance import AbstractVariance, ReverseStep
from .base import Step
from .cost import calls_of
from .solve import levy_area_of


# The next state, the same without the step's noise, and the estimate x̂0 it was made from.
Proposal = tuple[Example, Example, Example]


def gaussian(mean: Example, std: Scalar | Example, x0: Example, key: Key) -> Proposal:
    """A Gaussian step."""
    return mean + std * jax.random.normal(key, mean.shape, mean.dtype), mean, x0


class AbstractPredictor(eqx.Module):
    """One step of the reverse process:
    `predictor(denoiser, step, x, args, *, key) -> (x, mean, x0)`.
    """

    @abc.abstractmethod
    def __call__(
        self, denoiser: AbstractDenoiser, step: Step, x: Example, args: Args, *, key: Key
    ) -> Proposal:
        r"""A step from `step.t` to `step.s`.

        **Arguments:**

        - `denoiser`, `args`: any denoiser, and its conditioning.
        - `step`: from where to where, with the levels: see [`eqdiff.Step`][]. The last step, into
            the data, has $\alpha_s = 1$, $\sigma_s = 0$ and $s = t$. The
            sampler ends in $\hat x_0$ there.
        - `x`: the state at `step.t`.
        - `key`: for the step's noise.

        **Returns:** the next state with its noise, the same without, and $\hat x_0$ at `step.t`.
        """

    @abc.abstractmethod
    def num_calls(self, num_steps: int) -> int:
        """Network calls of this many steps, of which the last goes into the data."""


class ReverseDiffusion(AbstractPredictor):
    r"""Reverse diffusion, $x_s = (2-a)x_t + \frac{1+\eta^2}2 b^2 s(x_t) + \eta b z$, on any
    process.

    **Example:**

    ```python
    sampler = eqd.PredictorCorrector(20, predictor=eqd.ReverseDiffusion(), corrector=None)
    x0 = sampler(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, appendix E.
    """

    eta: float = eqx.field(static=True)

    def __init__(self, eta: float = 1.0):
        r"""**Arguments:**

        - `eta`: η in $[0, 1]$, the share of the noise; 0 is the probability flow (the official
            `probability_flow=True`).

        **Raises:** `ValueError` for η outside $[0, 1]$.
        """
        check_fraction(self, eta=eta)
        self.eta = float(eta)

    def __call__(self, denoiser, step, x, args, *, key):
        # To first order in β, which is 1 where no signal is left.
        estimate = denoiser(with_signal(denoiser.process, step.t), x, args)
        a, variance = step.transition()
        pull = 0.5 * (1 + self.eta**2) * variance / step.sigma_t
        mean = (2 - a) * x - pull * estimate.noise
        return gaussian(mean, self.eta * jnp.sqrt(variance), estimate.x0, key)

    def num_calls(self, num_steps):
        return num_steps


class AncestralPredictor(AbstractPredictor):
    r"""Ancestral sampling,
    $x_s = \alpha_s\hat x_0 + \frac{a\sigma_s^2}{\sigma_t}\hat\varepsilon + \Sigma^{1/2}z$, on any
    process.

    On a schedule this is [`eqdiff.Ancestral`][] with correctors between its steps.

    **Example:**

    ```python
    sampler = eqd.PredictorCorrector(20, predictor=eqd.AncestralPredictor(), corrector=None)
    x0 = sampler(eqd.GaussianDenoiser(eqd.VESDE()), jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020, algorithm 2 (VP); Song
        et al., *Score-Based Generative Modeling through Stochastic Differential Equations*, ICLR
        2021, appendix F (VE).
    """

    variance: AbstractVariance | None

    def __init__(self, variance: AbstractVariance | None = None):
        r"""**Arguments:**

        - `variance`: Σ of equation (3); the denoiser's own by default. Published are
            `FixedLarge()`, $b^2$, under VP and `FixedSmall()`, $\tilde\beta$, under VE.
        """
        self.variance = variance

    def __call__(self, denoiser, step, x, args, *, key):
        estimate = denoiser(step.t, x, args)
        a, beta = step.transition()
        along = a * step.sigma_s**2 / step.sigma_t
        mean = step.alpha_s * estimate.x0 + along * estimate.noise
        variance = denoiser.variance if self.variance is None else self.variance
        reverse = _reverse_step(denoiser.process, step, a, beta)
        log_variance = variance.of_step(reverse, estimate.raw_variance)
        std = jnp.exp(0.5 * log_variance.astype(x.dtype))
        return gaussian(mean, std, estimate.x0, key)

    def num_calls(self, num_steps):
        return num_steps


def _reverse_step(
    process: AbstractProcess, step: Step, a: Scalar, beta: Float[Array, ""]
) -> ReverseStep:
    """What a variance depends on, for a step between two levels of any process."""
    posterior = beta * step.sigma_s**2 / step.sigma_t**2
    schedule = process if isinstance(process, Schedule) else None
    timestep = jnp.zeros((), jnp.int32)
    if schedule is not None:
        # Times between the steps have the variance of the nearest.
        nearest = jnp.rint(step.t).astype(jnp.int32)
        timestep = jnp.asarray(schedule.timesteps, jnp.int32)[nearest]
    return ReverseStep(
        schedule=schedule,
        timestep=timestep,
        # The official clip of the first step is for its decoder; here the last step's noise is
        # dropped.
        first=jnp.asarray(False),
        log_beta=jnp.log(beta),
        # A step into the data has none; a finite logarithm of nothing keeps learned interpolations
        # finite.
        log_posterior_variance=jnp.log(jnp.maximum(posterior, jnp.finfo(posterior.dtype).tiny)),
        posterior_variance=posterior,
        noise_coefficient=beta / (step.sigma_t * a),
    )


class EulerMaruyama(AbstractPredictor):
    r"""Euler–Maruyama, $x_s = x_t - hv + \frac{\eta^2}2 hg^2 s(x_t) + \eta g\sqrt h z$, on any
    process.

    **Example:**

    ```python
    sampler = eqd.PredictorCorrector(20, predictor=eqd.EulerMaruyama(), corrector=None)
    x0 = sampler(eqd.GaussianDenoiser(eqd.SubVPSDE()), jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Song et al., *Score-Based Generative Modeling through Stochastic Differential Equations*,
        ICLR 2021, section 4.1.
    """

    eta: float = eqx.field(static=True)

    def __init__(self, eta: float = 1.0):
        r"""**Arguments:**

        - `eta`: η in $[0, 1]$, the share of the noise; 0 is Euler's method for the probability
            flow.

        **Raises:** `ValueError` for η outside $[0, 1]$.
        """
        check_fraction(self, eta=eta)
        self.eta = float(eta)

    def __call__(self, denoiser, step, x, args, *, key):
        process, t = denoiser.process, step.t
        size = step.size.astype(as_time(t).dtype)
        estimate = denoiser(t, x, args)
        variance = self.eta**2 * size * process.diffusion(t) ** 2
        on_x0 = -size * process.alpha_dot(t)
        on_noise = -size * process.sigma_dot(t) - 0.5 * variance / process.sigma(t)
        mean = x + on_x0.astype(x.dtype) * estimate.x0 + on_noise.astype(x.dtype) * estimate.noise
        return gaussian(mean, jnp.sqrt(variance).astype(x.dtype), estimate.x0, key)

    def num_calls(self, num_steps):
        return num_steps


class DiffraxPredictor(AbstractPredictor):
    r"""One step of any Diffrax SDE solver on the reverse SDE, with its own Brownian increment.

    The noise of the reverse SDE is additive, so `DiffraxPredictor(diffrax.ShARK())` is of strong
    order 1.5 where Euler–Maruyama is of order 1. It has no mean without noise, and the estimate
    $\hat x_0$ is one more network call.

    **Example:**

    ```python
    sampler = eqd.PredictorCorrector(20, predictor=eqd.DiffraxPredictor(), corrector=None)
    x0 = sampler(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones(3), key=jax.random.key(0))
    ```
    """

    solver: diffrax.AbstractSolver

    def __init__(self, solver: diffrax.AbstractSolver = diffrax.ShARK()):
        """**Arguments:**

        - `solver`: any explicit Diffrax solver for SDEs with additive noise.

        **Raises:** `ValueError` for a solver that wraps another one (`diffrax.HalfSolver`) or whose
            calls cannot be counted.
        """
        calls_of(solver)
        self.solver = solver

    def __call__(self, denoiser, step, x, args, *, key):
        start, end = -step.t.astype(x.dtype), -step.s.astype(x.dtype)
        # A single step asks for a single increment, so no bridge between increments is needed.
        area: Any = levy_area_of(self.solver)
        brownian = diffrax.UnsafeBrownianPath(shape_of(x), key, levy_area=area)
        terms = reverse_sde(denoiser, brownian)

        def move():
            state = self.solver.init(terms, start, end, x, args)
            return self.solver.step(terms, start, end, x, args, state, made_jump=False)[0]

        moved = jax.lax.cond(step.last & (start == end), lambda: x, move)
        return moved, moved, denoiser(step.t, x, args).x0

    def num_calls(self, num_steps):
        start, each = calls_of(self.solver)
        return (start + each) * (num_steps - 1) + num_steps

r"""Sequential Monte Carlo over the reverse chain: posterior samples with weights.

The model is a chain, the one that [`eqdiff.DDIM`][] with η = 1 walks,

$$p_\theta(x_s|x_t) = \mathcal N(x_s;\ m(x_t), v\,I), \qquad
  m = \alpha_s\hat x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\hat\varepsilon, \tag{1}$$

from the process's prior down to $x_0 = \hat x_0(x_{t_n})$; $p_\theta(x_0)$ is what it draws. Its
posterior $p_\theta(x_0)\,p(y|x_0)$ is approached through *twists*, guesses of $p(y|x_t)$,

$$\log\psi_t(x_t) = -\tfrac12\, r^\top(\Sigma + HVH^\top)^{-1} r, \qquad r = y - A(\hat x_0),
  \tag{2}$$

with $H$, $\Sigma$ of the measurement linearised at $\hat x_0$ and $V$ the covariance of
$p(x_0|x_t)$ for independent Gaussian data of standard deviation $s$, except at the last time, where
$\psi = p(y|\hat x_0)$ itself. Particles move by (1)
for the *guided* estimate, whose mean is $m'$, and take the weights that this asks for,

$$\log w \mathrel{+}= \log\frac{\mathcal N(x_s; m, vI)}{\mathcal N(x_s; m', vI)}
  + \log\psi_s(x_s) - \log\psi_t(x_t). \tag{3}$$

The product of all factors telescopes to $p_\theta\,p(y|x_0)$ over what was proposed, whatever the
twists: with many particles the weights are exact, and a poor twist costs particles, not truth.
(For that reason (2) needs no determinant.) What is approached is the *chain's* posterior; the
chain's own error falls with the number of steps, not of particles.

The variance of a step is that of the same data,

$$v = \varsigma^2 + \alpha_s^2\left(1 - e^{\lambda_t-\lambda_s}\right)^2
  \frac{s^2\sigma_t^2}{\alpha_t^2s^2+\sigma_t^2}, \qquad
  \varsigma^2 = \sigma_s^2\left(1 - e^{\lambda_t-\lambda_s}\right): \tag{4}$$

$s = 0$ is $\tilde\beta$ and $s = 1$ under VP is $\beta$ (Ho et al. 2020). For such data the chain
is exact with any number of steps.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import check_fraction, known_number, whole
from .._denoiser import AbstractDenoiser
from .._guidance import (
    AbstractPosteriorCovariance,
    IsotropicCovariance,
    refuse_no_signal,
    Tweedie,
    weighed_residual,
)
from .._measurement import Measurement, require_measurement
from .._process import karras_times
from .._types import Args, Example, Key, Scalar
from .base import check_call, Step, steps_along
from .grid import Grid, grid_of, Spacing
from .particles import effective_sample_size, Particles, systematic


class _Look(eqx.Module):
    """What one particle's network call tells.

    - `x0`: the estimate.
    - `log_twist`: equation (2), or log p(y|x0) at the last time.
    - `mean`: m, where the chain's step would go.
    - `shift`: m' − m.
    """

    x0: Example
    log_twist: Scalar
    mean: Example
    shift: Example


class TwistedSMC(eqx.Module):
    r"""The twisted diffusion sampler: weighted samples of $p(x_0|y)$ that are exact as their number
    grows, and $\log p(y)$.

    A call returns one sample of many particles, which depend on each other, not many samples.
    `particles.effective_sample_sizes` says how many of them count at each time. Each particle costs
    one network call a step, and its derivative forward and back. For a batch of measurements map
    over them: `eqd.map_examples(lambda y, key: smc(denoiser, measure(y), shape, key=key), ys,
    key=key)`.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.1)
    denoiser, smc = eqd.GaussianDenoiser(eqd.VPSDE()), eqd.TwistedSMC(10, num_particles=16)
    particles = smc(denoiser, measurement, (4,), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Wu, Trippe, Naesseth, Blei & Cunningham, *Practical and Asymptotically Exact Conditional
        Sampling in Diffusion Models*, NeurIPS 2023, algorithm 1.
    """

    grid: Grid
    num_particles: int = eqx.field(static=True)
    covariance: AbstractPosteriorCovariance
    threshold: float = eqx.field(static=True)
    data_std: float | Array
    iterations: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        num_particles: int = 64,
        *,
        covariance: AbstractPosteriorCovariance = IsotropicCovariance(),
        threshold: float = 0.5,
        data_std: float | Array = 1.0,
        iterations: int = 30,
        batch_size: int | None = None,
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 100 of
            [`eqdiff.karras_times`][] by default.
        - `num_particles`: how many.
        - `covariance`: how the estimate is guided, as for [`eqdiff.PosteriorGuidance`][].
        - `threshold`: particles are resampled when their effective number falls below this fraction
            of them: 0 never resamples, 1 does at every step.
        - `data_std`: $s$ of equations (2) and (4), the standard deviation of the data: 0 is
            $p(y|\hat x_0)$ for every twist.
        - `iterations`: at most this many of conjugate gradients for equation (2).
        - `batch_size`: how many particles the network sees at once, where all together need too
            much memory.

        **Raises:** `ValueError` for a number out of range, and as [`eqdiff.Grid`][].
        """
        check_fraction(self, threshold=threshold)
        known = known_number(data_std)
        if known is not None and not 0 <= known < float("inf"):
            raise ValueError(f"TwistedSMC(data_std={data_std}): expected at least 0, and finite.")
        self.grid = grid_of(
            self, num_steps, spacing, times, default=100, default_spacing=karras_times
        )
        self.num_particles = whole(self, "num_particles", num_particles)
        self.covariance, self.threshold, self.data_std = covariance, float(threshold), data_std
        self.iterations = whole(self, "iterations", iterations)
        self.batch_size = None if batch_size is None else whole(self, "batch_size", batch_size)

    @property
    def num_calls(self) -> int | None:
        """Denoiser calls per particle; `None` where the number depends on the schedule."""
        return self.grid.num_steps

    def __call__(
        self,
        denoiser: AbstractDenoiser,
        measurement: Measurement,
        shape: tuple[int, ...],
        args: Args = None,
        *,
        key: Key,
    ) -> Particles:
        r"""Draws weighted samples of $p(x_0|y)$.

        **Arguments:**

        - `denoiser`: any denoiser of the data without the measurement.
        - `measurement`: what was measured, with noise that has a density.
        - `shape`: of one sample, for example `(3, 32, 32)`.
        - `args`: what conditions the network, of all particles.
        - `key`: for the particles and their noise.

        **Returns:** the particles: see [`eqdiff.Particles`][].

        **Raises:** `ValueError` for a measurement that does not fit the shape or has no density (a
        standard deviation of 0), a process that ends without signal (α = 0), or a network in place
        of a denoiser.
        """
        shape = tuple(whole(self, "shape", n) for n in shape)
        check_call(self, denoiser, jnp.zeros(shape))
        process = denoiser.process
        first, rest = jax.random.split(key)
        like = jnp.zeros(shape, process.prior_scale().dtype)
        self._check(denoiser, measurement, like)
        steps = steps_along(process, self.grid.exact(process), like=like)
        x = process.prior_sample((self.num_particles, *shape), key=first)

        def body(state, inputs):
            x, pending, log_evidence = state
            step, key = inputs
            look = self._look_at_all(denoiser, measurement, step, args, x)
            log_weights = pending + look.log_twist
            size = effective_sample_size(log_weights)
            choose, move = jax.random.split(key)
            chosen, after, log_evidence = self._resampled(
                log_weights, size, step, log_evidence, key=choose
            )
            kept = jax.tree.map(lambda leaf: leaf[chosen], look)
            x, log_ratio = self._moved(step, kept, key=move)
            x = jnp.where(step.last, look.x0, x)
            pending = jnp.where(step.last, log_weights, after + log_ratio - kept.log_twist)
            return (x, pending, log_evidence), size

        start = (x, jnp.zeros(self.num_particles, x.dtype), jnp.zeros((), x.dtype))
        keys = jax.random.split(rest, len(steps.t))
        (x0, log_weights, log_evidence), sizes = jax.lax.scan(body, start, (steps, keys))
        total = jax.nn.logsumexp(log_weights)
        log_evidence = log_evidence + total - jnp.log(jnp.asarray(self.num_particles, x.dtype))
        return Particles(x0, log_weights - total, sizes, log_evidence)

    def _check(self, denoiser: AbstractDenoiser, measurement: Measurement, like: Any) -> None:
        require_measurement(self, measurement)
        measurement.check("TwistedSMC", like)
        measurement.noise.check_density("TwistedSMC")
        self.covariance.check(measurement)
        refuse_no_signal("TwistedSMC", denoiser, "x says nothing of x0")

    def _look_at_all(self, denoiser, measurement, step: Step, args: Args, x: Example) -> _Look:
        def look(x):
            return self._look(denoiser, measurement, step, args, x)

        if self.batch_size is None:
            return jax.vmap(look)(x)
        return jax.lax.map(look, x, batch_size=self.batch_size)

    def _look(self, denoiser, measurement, step: Step, args: Args, x: Example) -> _Look:
        def estimate_of(x):
            estimate = denoiser(step.t, x, args)
            return estimate.x0, estimate

        x0, tangent, estimate = jax.linearize(estimate_of, x, has_aux=True)
        cotangent = jax.linear_transpose(tangent, x)
        alpha, sigma = step.alpha_t, step.sigma_t
        scale = sigma**2 / alpha
        tweedie = Tweedie(lambda v: scale * tangent(v), lambda v: scale * cotangent(v)[0])
        delta = self.covariance.delta(measurement, x0, tweedie, alpha, sigma)

        here, spread = measurement.linearised(x0), self._spread(step)
        u = weighed_residual(here, lambda v: spread * v, self.iterations)
        log_twist = -0.5 * jnp.sum(here.residual * u)
        log_twist = jnp.where(step.last, measurement.log_prob(x0), log_twist)
        guided = estimate.move(delta, alpha, sigma)
        mean = _mean(step, estimate)
        return _Look(x0, log_twist, mean, _mean(step, guided) - mean)

    def _resampled(self, log_weights, size, step: Step, log_evidence: Scalar, *, key: Key):
        """Which particles go on, their weights, and the evidence so far."""
        num = self.num_particles
        again = (size < self.threshold * num) & ~step.last
        drawn = systematic(log_weights, num, key=key)
        chosen = jnp.where(again, drawn, jnp.arange(num, dtype=drawn.dtype))
        mean = jax.nn.logsumexp(log_weights) - jnp.log(jnp.asarray(num, log_weights.dtype))
        after = jnp.where(again, 0, log_weights)
        return chosen, after, log_evidence + jnp.where(again, mean, 0)

    def _moved(self, step: Step, look: _Look, *, key: Key) -> tuple[Example, Array]:
        """The particles after a step, and the first term of equation (3)."""
        # The last step, which has no variance, is not used.
        std = jnp.sqrt(jnp.where(step.last, 1, self._variance(step)))
        noise = jax.random.normal(key, look.mean.shape, look.mean.dtype)
        x = look.mean + look.shift + std * noise
        # |x − m'|² − |x − m|², without the difference.
        shift = look.shift / std
        terms = -0.5 * shift**2 - shift * noise
        return x, jnp.sum(terms.reshape(self.num_particles, -1), axis=1)

    def _variance(self, step: Step) -> Scalar:
        share = -jnp.expm1(-step.log_snr_fall)
        return step.sigma_s**2 * share + (step.alpha_s * share) ** 2 * self._spread(step)

    def _spread(self, step: Step) -> Scalar:
        """The variance of p(x0|x_t) in equations (2) and (4)."""
        data = jnp.asarray(self.data_std, step.alpha_t.dtype) ** 2
        return data * step.sigma_t**2 / (step.alpha_t**2 * data + step.sigma_t**2)


def _mean(step: Step, estimate) -> Float[Array, "..."]:
    """m of equation (1)."""
    along = step.sigma_s * jnp.exp(-0.5 * step.log_snr_fall)
    return step.alpha_s * estimate.x0 + along * estimate.noise

"""What the bounds have in common: a prediction at a step, its errors, and the prior's term."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._denoiser import AbstractDenoiser
from .._gaussian import gaussian_kl, nats_to_bits
from .._predict import predict, Prediction
from .._process import require_schedule, Schedule
from .._types import Args, Example, Key, Scalar


def prior_term(schedule: Schedule, x0: Example, t: Int[Array, ""] | int) -> Scalar:
    r"""$L_T = \mathrm{KL}(q(x_t|x_0)\,\|\,\mathcal N(0, I))$ of a schedule that ends at t, in
    bits/dim.
    """
    alpha = schedule.alpha(t).astype(x0.dtype)
    log_variance = 2 * jnp.log(schedule.sigma(t)).astype(x0.dtype)
    return nats_to_bits(jnp.mean(gaussian_kl(alpha * x0, log_variance, jnp.zeros_like(x0))))


def predict_at(
    denoiser: AbstractDenoiser, t: Int[Array, ""], x0: Example, args: Args, key: Key
) -> Prediction:
    """A prediction at a step, whose noise is decided by `key` and by its place in the original
    schedule.

    A respaced schedule therefore sees the noise that the whole one sees at the same time.
    """
    schedule = require_schedule(denoiser.process, "predict_at")
    original = jnp.asarray(schedule.timesteps, jnp.int32)[t]
    return predict(denoiser, t, x0, args, key=jax.random.fold_in(key, original))


def errors(p: Prediction) -> tuple[Scalar, Scalar]:
    r"""The mean squared errors of $\hat x_0$ and $\hat\varepsilon$."""
    return jnp.mean((p.estimate.x0 - p.x0) ** 2), jnp.mean((p.estimate.noise - p.noise) ** 2)

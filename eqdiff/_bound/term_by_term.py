r"""The variational bound of the discrete chain, term by term.

$$-\log_2 P(x_0) \le D\Big(L_T + \sum_{t=0}^{T-1} L_t\Big), \qquad
  L_T = \frac{\mathrm{KL}(q(x_T|x_0)\,\|\,\mathcal N(0, I))}{D\log 2}, \tag{1}$$

in bits per dimension, the $L_t$ of `_loss/discrete.py` (Nichol & Dhariwal 2021, equations 4–7; the official
`calc_bpd_loop`). It is a bound on discrete data: no dequantisation enters.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood, gaussian_kl, nats_to_bits
from .._loss import bound_term
from .._loss.discrete import Decoder
from .._parameterisation import require_schedule
from .._predict import predict, Prediction
from .._schedule import Schedule
from .._types import Args, Example, Key, Scalar
from .chunks import in_chunks


class VariationalBound(eqx.Module):
    r"""The bound (1) of one example and its parts, in bits per dimension.

    - `total`: the whole bound, `prior` + the sum of `terms`.
    - `prior`: $L_T$.
    - `terms`: $L_t$ at each $t = 0, \dots, T-1$, shape `(T,)` (ascending; the official loop stacks them descending).
    - `x0_error`, `noise_error`: the mean squared errors of $\hat x_0$ and $\hat\varepsilon$ at each $t$.
    """

    total: Scalar
    prior: Scalar
    terms: Float[Array, " T"]
    x0_error: Float[Array, " T"]
    noise_error: Float[Array, " T"]


def prior_term(schedule: Schedule, x0: Example, t: Int[Array, ""] | int) -> Scalar:
    r"""$\mathrm{KL}(q(x_t|x_0)\,\|\,\mathcal N(0, I))$ in bits per dimension: $L_T$ of a chain that starts at t."""
    alpha = schedule.alpha(t).astype(x0.dtype)
    log_variance = 2 * jnp.log(schedule.sigma(t)).astype(x0.dtype)
    return nats_to_bits(jnp.mean(gaussian_kl(alpha * x0, log_variance, jnp.zeros_like(x0))))


def predict_at(
    denoiser: AbstractDenoiser, t: Int[Array, ""], x0: Example, args: Args, key: Key
) -> Prediction:
    """A prediction at step t of a chain, whose noise depends only on `key` and on the step's place in the original chain.

    A respaced chain therefore sees the noise that the whole one sees at the same time.
    """
    schedule = require_schedule(denoiser.process, "predict_at")
    original = jnp.asarray(schedule.timesteps, jnp.int32)[t]
    return predict(denoiser, t, x0, args, key=jax.random.fold_in(key, original))


def errors(p: Prediction) -> tuple[Scalar, Scalar]:
    r"""The mean squared errors of $\hat x_0$ and $\hat\varepsilon$."""
    return jnp.mean((p.estimate.x0 - p.x0) ** 2), jnp.mean((p.estimate.noise - p.noise) ** 2)


def variational_bound(
    denoiser: AbstractDenoiser,
    x0: Example,
    args: Args = None,
    *,
    key: Key,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
    chunk: int = 16,
) -> VariationalBound:
    r"""All terms of the bound (1) on one example, each at its own fresh noise.

    **Arguments:**

    - `denoiser`: on a discrete chain (of $T$ steps: respaced chains give the bound of the respaced model).
    - `x0`: one example on the grid $-1, -1 + 2/(L-1), \dots, 1$.
    - `args`: what conditions the network.
    - `key`: for the noise. A step's noise depends on its index in the original chain alone, so that with one key chains
        respaced from one another are compared at the same noise.
    - `levels`, `decoder`: the number of grey levels $L$ and the decoder's likelihood, as for [`eqdiff.bound_term`][].
    - `chunk`: how many times at most are evaluated at once. Memory grows with it (under `vmap` over images, with their
        product), the result does not depend on it.

    **Raises:** `ValueError` if the process is not a discrete chain, or for a `chunk` below 1.
    """
    schedule = require_schedule(denoiser.process, "variational_bound")

    def term(t):
        p = predict_at(denoiser, t, x0, args, key)
        return bound_term(p, levels=levels, decoder=decoder), *errors(p)

    times = jnp.arange(schedule.num_steps, dtype=jnp.int32)
    terms, x0_error, noise_error = in_chunks(term, times, chunk)
    prior = prior_term(schedule, x0, schedule.num_steps - 1)
    return VariationalBound(prior + jnp.sum(terms), prior, terms, x0_error, noise_error)

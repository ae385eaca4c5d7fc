r"""The variational bound of the discrete chain, term by term.

$$-\log_2 P(x_0) \le D\Big(L_T + \sum_{t=0}^{T-1} L_t\Big), \qquad
  L_T = \frac{\mathrm{KL}(q(x_T|x_0)\,\|\,\mathcal N(0, I))}{D\log 2}, \tag{1}$$

in bits per dimension, the $L_t$ of `_loss/discrete.py` (Nichol & Dhariwal 2021, equations 4–7; the official
`calc_bpd_loop`). It is a bound on discrete data: no dequantisation enters.

All $T$ terms cost $T$ network calls an image. Most of the bound sits in the first steps, so an estimate from $n$ strata that
widen geometrically, one $t_j$ drawn in each stratum $S_j$,

$$\widehat{\mathrm{bpd}} = L_T + \sum_{j=1}^n |S_j|\, L_{t_j}, \tag{2}$$

is unbiased and has little variance: the first strata hold one step each.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._denoiser import AbstractDenoiser
from ._loss import bound_term
from ._misc import gaussian_kl, nats_to_bits
from ._precondition import require_schedule
from ._predict import predict
from ._schedule import Schedule
from ._types import Args, Example, Key, Scalar


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


def _prior_term(schedule: Schedule, x0: Example) -> Scalar:
    last = schedule.num_steps - 1
    alpha = schedule.alpha(last).astype(x0.dtype)
    log_variance = 2 * jnp.log(schedule.sigma(last)).astype(x0.dtype)
    return nats_to_bits(jnp.mean(gaussian_kl(alpha * x0, log_variance, jnp.zeros_like(x0))))


def variational_bound(
    denoiser: AbstractDenoiser,
    x0: Example,
    args: Args = None,
    *,
    key: Key,
    levels: int = 256,
    chunk: int = 16,
) -> VariationalBound:
    r"""All terms of the bound (1) on one example, each at its own fresh noise.

    **Arguments:**

    - `denoiser`: on a discrete chain (of $T$ steps: respaced chains give the bound of the respaced model).
    - `x0`: one example on the grid $-1, -1 + 2/(L-1), \dots, 1$.
    - `args`: what conditions the network.
    - `key`: for the noise.
    - `levels`: the number of grey levels $L$.
    - `chunk`: how many times are evaluated at once; memory grows with it.

    **Raises:** `ValueError` if the process is not a discrete chain.
    """
    schedule = require_schedule(denoiser.process, "variational_bound")

    def term(t):
        p = predict(denoiser, t, x0, args, key=jax.random.fold_in(key, t))
        x0_error = jnp.mean((p.estimate.x0 - p.x0) ** 2)
        noise_error = jnp.mean((p.estimate.noise - p.noise) ** 2)
        return bound_term(p, levels=levels), x0_error, noise_error

    times = jnp.arange(schedule.num_steps, dtype=jnp.int32)
    chunk = min(chunk, schedule.num_steps)
    terms, x0_error, noise_error = jax.lax.map(term, times, batch_size=chunk)
    prior = _prior_term(schedule, x0)
    return VariationalBound(prior + jnp.sum(terms), prior, terms, x0_error, noise_error)


def estimate_variational_bound(
    denoiser: AbstractDenoiser,
    x0: Example,
    args: Args = None,
    *,
    key: Key,
    num_terms: int = 64,
    levels: int = 256,
    chunk: int = 16,
) -> Scalar:
    r"""An unbiased estimate (2) of the bound on one example from `num_terms` of its $T$ terms, in bits per dimension.

    Average it over images, each with its own key: the spread of the values then covers images, times and noise.

    **Arguments:** as for [`eqdiff.variational_bound`][], and

    - `num_terms`: the number $n$ of strata, each costing one network call; at most $T$.

    **Raises:** `ValueError` if the process is not a discrete chain, or `num_terms` is not between 1 and $T$.
    """
    schedule = require_schedule(denoiser.process, "estimate_variational_bound")
    if not 1 <= num_terms <= schedule.num_steps:
        raise ValueError(
            f"estimate_variational_bound(num_terms={num_terms}): expected 1 to {schedule.num_steps}, the chain's steps."
        )
    edges = strata(schedule.num_steps, num_terms)
    time_key, noise_key = jax.random.split(key)
    times = jax.random.randint(time_key, (num_terms,), edges[:-1], edges[1:], jnp.int32)

    def term(t):
        p = predict(denoiser, t, x0, args, key=jax.random.fold_in(noise_key, t))
        return bound_term(p, levels=levels)

    terms = jax.lax.map(term, times, batch_size=min(chunk, num_terms))
    sizes = jnp.asarray(np.diff(edges), terms.dtype)
    return _prior_term(schedule, x0) + jnp.sum(sizes * terms)


def strata(num_steps: int, num_strata: int) -> Int[np.ndarray, " edges"]:
    """The edges of strata that cover 0 … T − 1, each at least one step wide and widening geometrically."""
    # The widest growth for which n strata, rounded up to whole steps, still reach exactly T: found by bisection.
    low, high = 1.0, float(num_steps) ** (1 / max(num_strata - 1, 1)) + 1

    def widths(growth: float) -> np.ndarray:
        # No stratum is wider than the chain, and the cap keeps large powers from overflowing.
        exponents = np.minimum(np.arange(num_strata) * np.log(growth), np.log(2 * num_steps))
        return np.maximum(np.floor(np.exp(exponents)), 1)

    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if widths(middle).sum() <= num_steps else (low, middle)
    sizes = widths(low)
    # What rounding left over goes to the last, widest stratum.
    sizes[-1] += num_steps - sizes.sum()
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

r"""The variational bound from a few of its terms, with a standard error.

All $T$ terms of the bound (`term_by_term.py`) cost $T$ network calls an image. Most of it sits in the first steps, so times
are drawn from strata $S_1, \dots, S_m$ of the chain that widen geometrically, $r$ times $t_{ji}$ in each, every one with
noise of its own:

$$\widehat{\mathrm{bpd}} = L_T + \sum_{j=1}^m |S_j|\,\bar L_j, \qquad \bar L_j = \frac1r\sum_{i=1}^r L_{t_{ji}}. \tag{1}$$

The draws of a stratum are independent and alike, so their own spread gives the variance without bias,

$$\widehat{\mathrm{Var}} = \sum_{j=1}^m \frac{|S_j|^2}{r\,(r-1)}\sum_{i=1}^r (L_{t_{ji}} - \bar L_j)^2 \tag{2}$$

(Cochran 1977, section 5.9). It takes $r \ge 2$, also in a stratum of one step, whose only spread is the noise's: one draw
would leave a variance that nothing in the sample can tell.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood
from .._loss import bound_term
from .._loss.discrete import Decoder
from .._parameterisation import require_schedule
from .._predict import predict
from .._types import Args, Example, Key, Scalar
from .chunks import in_chunks
from .term_by_term import prior_term


class BoundEstimate(eqx.Module):
    r"""An estimate (1) of the bound on one example, in bits per dimension.

    - `value`: the estimate, unbiased.
    - `stderr`: its standard error *given the image*, the root of (2): it covers the drawn times and the noise, and
        `stderr**2` is unbiased. The mean over $N$ images has $\frac1N\sqrt{\sum\texttt{stderr}^2}$ given those images; the
        spread of `value` over images, each with its own key, covers images, times and noise together. For a single image
        it is itself uncertain, being made of pairs of draws; over a few dozen images it is not.
    - `prior`: $L_T$, which is part of `value` and exact.
    """

    value: Scalar
    stderr: Scalar
    prior: Scalar


def estimate_variational_bound(
    denoiser: AbstractDenoiser,
    x0: Example,
    args: Args = None,
    *,
    key: Key,
    num_terms: int = 64,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
    chunk: int = 16,
) -> BoundEstimate:
    r"""An unbiased estimate (1) of the bound on one example from `num_terms` terms, with its standard error.

    Average it over images, each with its own key.

    **Arguments:** as for [`eqdiff.variational_bound`][], and

    - `num_terms`: how many terms are evaluated, each at the cost of one network call: two in each stratum (an odd one is
        a third in the last). From 2 to $2T$, where every step is a stratum of its own.

    **Returns:** a [`eqdiff.BoundEstimate`][].

    **Raises:** `ValueError` if the process is not a discrete chain, `num_terms` is not between 2 and $2T$, or `chunk` is
    below 1.
    """
    schedule = require_schedule(denoiser.process, "estimate_variational_bound")
    if not 2 <= num_terms <= 2 * schedule.num_steps:
        raise ValueError(
            f"estimate_variational_bound(num_terms={num_terms}): expected 2 (a standard error takes two draws) to "
            f"{2 * schedule.num_steps}, two for each of the chain's steps. For every term once, without a standard error, "
            "write variational_bound."
        )
    edges = strata(schedule.num_steps, num_terms // 2)
    stratum = np.minimum(np.arange(num_terms) // 2, len(edges) - 2)
    time_key, noise_key = jax.random.split(key)
    low, high = edges[stratum], edges[stratum + 1]
    times = jax.random.randint(time_key, (num_terms,), low, high, jnp.int32)

    def term(draw):
        t, number = draw
        # Keyed by the draw, not by its time: a time drawn twice must see two noises.
        p = predict(denoiser, t, x0, args, key=jax.random.fold_in(noise_key, number))
        return bound_term(p, levels=levels, decoder=decoder)

    draws = (times, jnp.arange(num_terms, dtype=jnp.int32))
    terms = in_chunks(term, draws, chunk)
    counts = np.bincount(stratum)

    def sums(values):
        return jax.ops.segment_sum(values, stratum, num_segments=len(counts))

    means = sums(terms) / jnp.asarray(counts, terms.dtype)
    weights = jnp.asarray(np.diff(edges), terms.dtype)
    # Not for gradients: a loss made of the value alone must not see the derivative of a square root at 0.
    spread = jax.lax.stop_gradient(sums((terms - means[stratum]) ** 2))
    variance = jnp.sum(weights**2 / jnp.asarray(counts * (counts - 1), terms.dtype) * spread)
    prior = prior_term(schedule, x0, schedule.num_steps - 1)
    return BoundEstimate(prior + jnp.sum(weights * means), jnp.sqrt(variance), prior)


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

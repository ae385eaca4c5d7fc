r"""The variational bound of a discrete schedule, whole or from a few of its terms.

$$-\log_2 P(x_0) \le D\Big(L_T + \sum_{t=0}^{T-1} L_t\Big), \qquad
  L_T = \frac{\mathrm{KL}(q(x_T|x_0)\,\|\,\mathcal N(0, I))}{D\log 2}, \tag{1}$$

in bits per dimension, the $L_t$ of `_loss/discrete.py` (Nichol & Dhariwal 2021, equations 4–7; the
official `calc_bpd_loop`). It is a bound on discrete data: no dequantisation enters.

All $T$ terms cost $T$ network calls an image. Most of the bound sits in the first steps, so times
are drawn from strata $S_1, \dots, S_m$ of the schedule that widen geometrically, $r$ times $t_{ji}$
in each, each with its own noise:

$$\widehat{\mathrm{bpd}} = L_T + \sum_{j=1}^m |S_j|\,\bar L_j, \qquad
  \bar L_j = \frac1r\sum_{i=1}^r L_{t_{ji}}. \tag{2}$$

The draws of a stratum are independent and alike, so their own spread gives the variance without
bias,

$$\widehat{\mathrm{Var}} = \sum_{j=1}^m \frac{|S_j|^2}{r\,(r-1)}
  \sum_{i=1}^r (L_{t_{ji}} - \bar L_j)^2 \tag{3}$$

(Cochran 1977, section 5.9). It takes $r \ge 2$, also in a stratum of one step, whose only spread is
the noise's: from one draw its variance could not be estimated.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._check import check_levels, whole
from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood
from .._loss import bound_term
from .._loss.discrete import Decoder
from .._predict import predict
from .._process import require_schedule
from .._types import Args, Example, Key, Scalar
from .chunks import in_chunks
from .terms import errors, predict_at, prior_term


class VariationalBound(eqx.Module):
    r"""The bound on one example and its parts, in bits per dimension.

    - `bits`: the bound (1), or its unbiased estimate (2): `prior` and the (weighted) sum of
        `terms`.
    - `stderr`: the standard error of an estimate *given the image*, the root of (3): it covers the
        drawn times and the noise, and `stderr**2` is unbiased. The mean over $N$ images has
        $\frac1N\sqrt{\sum\texttt{stderr}^2}$ given those images; the spread of `bits` over images,
        each with its own key, covers images, times and noise together. NaN where every term was
        evaluated once, which leaves their spread unknown.
    - `prior`: $L_T$, exact.
    - `t`: the times of the terms: $0, \dots, T-1$, or those drawn.
    - `terms`: $L_t$ at each of them (ascending in `t` for the whole bound; the official loop stacks
        them descending).
    - `x0_error`, `noise_error`: the mean squared errors of $\hat x_0$ and $\hat\varepsilon$ at
        each.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    x0, key = jnp.ones(3), jax.random.key(0)
    bound = eqd.variational_bound(denoiser, x0, num_terms=8, key=key)
    bits, stderr = bound.bits, bound.stderr  # bound is an eqd.VariationalBound
    ```
    """

    bits: Scalar
    stderr: Scalar
    prior: Scalar
    t: Int[Array, " n"]
    terms: Float[Array, " n"]
    x0_error: Float[Array, " n"]
    noise_error: Float[Array, " n"]


def variational_bound(
    denoiser: AbstractDenoiser,
    x0: Example,
    args: Args = None,
    *,
    key: Key,
    num_terms: int | None = None,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
    chunk: int = 16,
) -> VariationalBound:
    r"""The variational bound on one example, each term at its own fresh noise.

    **Arguments:**

    - `denoiser`: on a schedule (of $T$ steps: a respaced one gives the bound of the respaced
        model).
    - `x0`: one example on the grid $-1, -1 + 2/(L-1), \dots, 1$.
    - `args`: the network's conditioning, if any.
    - `key`: for the noise, and the times of an estimate. In the whole bound a step's noise depends
        on its index in the original schedule alone, so that with one key schedules respaced from
        one another are compared at the same noise.
    - `num_terms`: `None` for all terms, (1), or how many are drawn for the estimate (2), each at
        the cost of one network call: two in each stratum (an odd one is a third in the last). From
        2 to $2T$. Average an estimate over images, each with its own key.
    - `levels`, `decoder`: the number of grey levels $L$ and the decoder's likelihood, as for
        [`eqdiff.bound_term`][].
    - `chunk`: how many times at most are evaluated at once. Memory grows with it (under `vmap` over
        images, with their product), the result does not depend on it.

    **Returns:** a [`eqdiff.VariationalBound`][].

    **Raises:** `ValueError` if the process is not a schedule, `num_terms` is not between 2 and
    $2T$, `chunk` is below 1; an error for an image with values on none of the levels.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    bound = eqd.variational_bound(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```
    """
    schedule = require_schedule(denoiser.process, "variational_bound")
    levels = whole("variational_bound", "levels", levels, least=2, remedy=" 8-bit images have 256.")
    x0 = check_levels(f"variational_bound(levels={levels})", x0, levels)
    num_steps = schedule.num_steps
    prior = prior_term(schedule, x0, num_steps - 1)
    if num_terms is None:

        def term(t):
            p = predict_at(denoiser, t, x0, args, key)
            return bound_term(p, levels=levels, decoder=decoder), *errors(p)

        times = jnp.arange(num_steps, dtype=jnp.int32)
        terms, x0_error, noise_error = in_chunks(term, times, chunk)
        unknown = jnp.full((), jnp.nan, terms.dtype)
        bits = prior + jnp.sum(terms)
        return VariationalBound(bits, unknown, prior, times, terms, x0_error, noise_error)

    num_terms = whole("variational_bound", "num_terms", num_terms, least=2)
    if num_terms > 2 * num_steps:
        raise ValueError(
            f"variational_bound(num_terms={num_terms}): expected 2 (a standard error takes two "
            f"draws) to {2 * num_steps}, two for each step. For every term once, without a "
            "standard error, leave it out."
        )
    edges = strata(num_steps, num_terms // 2)
    stratum = np.minimum(np.arange(num_terms) // 2, len(edges) - 2)
    time_key, noise_key = jax.random.split(key)
    low, high = edges[stratum], edges[stratum + 1]
    times = jax.random.randint(time_key, (num_terms,), low, high, jnp.int32)

    def drawn(draw):
        t, number = draw
        # Keyed by the draw, not by its time: a time drawn twice must see two noises.
        p = predict(denoiser, t, x0, args, key=jax.random.fold_in(noise_key, number))
        return bound_term(p, levels=levels, decoder=decoder), *errors(p)

    draws = (times, jnp.arange(num_terms, dtype=jnp.int32))
    terms, x0_error, noise_error = in_chunks(drawn, draws, chunk)
    total, stderr = _estimate(terms, stratum, np.diff(edges))
    return VariationalBound(prior + total, stderr, prior, times, terms, x0_error, noise_error)


def _estimate(
    terms: Float[Array, " n"], stratum: Int[np.ndarray, " n"], widths: Int[np.ndarray, " m"]
) -> tuple[Scalar, Scalar]:
    """The sum of equation (2), and the root of (3)."""
    counts = np.bincount(stratum)

    def sums(values):
        return jax.ops.segment_sum(values, stratum, num_segments=len(counts))

    means = sums(terms) / jnp.asarray(counts, terms.dtype)
    weights = jnp.asarray(widths, terms.dtype)
    # Not for gradients: a loss made of the value alone must not see the derivative of a square root
    # at 0.
    spread = jax.lax.stop_gradient(sums((terms - means[stratum]) ** 2))
    variance = jnp.sum(weights**2 / jnp.asarray(counts * (counts - 1), terms.dtype) * spread)
    return jnp.sum(weights * means), jnp.sqrt(variance)


def strata(num_steps: int, num_strata: int) -> Int[np.ndarray, " edges"]:
    """The edges of strata that cover 0 … T − 1 and widen geometrically from one step."""
    # The widest growth for which n strata, rounded up to whole steps, still reach exactly T: found
    # by bisection.
    low, high = 1.0, float(num_steps) ** (1 / max(num_strata - 1, 1)) + 1

    def widths(growth: float) -> np.ndarray:
        # No stratum is wider than the schedule, and the cap keeps large powers from overflowing.
        exponents = np.minimum(np.arange(num_strata) * np.log(growth), np.log(2 * num_steps))
        return np.maximum(np.floor(np.exp(exponents)), 1)

    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if widths(middle).sum() <= num_steps else (low, middle)
    sizes = widths(low)
    # What rounding left over goes to the last, widest stratum.
    sizes[-1] += num_steps - sizes.sum()
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

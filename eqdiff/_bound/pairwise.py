r"""The bound of every sub-schedule at once.

A schedule that visits only the times $S_0 < \dots < S_{K-1}$ of a longer one has the bound

$$L(S) = L_T(S_{K-1}) + \sum_{k=1}^{K-1} L(S_k \to S_{k-1}) + L_\text{dec}(S_0; S_1), \tag{1}$$

$$L(t \to s) = \frac{1}{D\log 2}\,\mathrm{KL}\big(q(x_s|x_t, x_0)\,\|\,p(x_s|x_t)\big), \qquad
  L_\text{dec}(t; u) = -\frac{1}{D\log 2}\log P(x_0|x_t), \tag{2}$$

a sum over its edges (Watson, Ho, Norouzi & Chan 2021). A network's output depends on where an edge
starts, not on where it ends: one call per image and time gives $\hat x_0$ and the raw variance for
all edges from there, and the rest of an edge — $\beta$, $\tilde\beta$, the mean's coefficient on
$x_0$ — is in tables over pairs of times.

**The decoder.** The variance of the last edge, into the data, depends on the step $u$ that comes
before it: the official clip replaces its $\tilde\beta = 0$ by that of $u \to t$. So the decoder's
cost is tabulated over pairs $(t, u)$, and (1) is the bound of the respaced schedule exactly, for
every variance. Taking one cost per $t$ instead would err by the difference of those variances.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._check import check_levels, whole
from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood, gaussian_kl, nats_to_bits
from .._loss.discrete import Decoder
from .._parameterisation import PreviousMean
from .._predict import Prediction
from .._process import require_schedule, Schedule
from .._types import Args, Key, Scalar
from .._variance import noise_coefficient, ReverseStep
from .chunks import check_batch, in_chunks, mean_over_images
from .terms import predict_at, prior_term


class PairwiseTerms(eqx.Module):
    r"""The costs (2) of all edges between the times of a grid, in bits/dim, averaged over images.

    - `grid`: the times, indices of the schedule, increasing, shape `(M,)`.
    - `steps`: $L(t_j \to t_k)$ at `[j, k]` for $k < j$, infinite elsewhere; shape `(M, M)`.
    - `decoder`: $L_\text{dec}(t_j; t_k)$ at `[j, k]` for $k > j$: of a schedule whose first times
        are $t_j$ and $t_k$. On the diagonal, of the schedule that has $t_j$ alone. Infinite
        elsewhere.
    - `prior`: $L_T(t_j)$ of a schedule that ends at $t_j$, shape `(M,)`.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    data, grid = jnp.ones((2, 3)), range(0, 50, 7)
    terms = eqd.pairwise_terms(denoiser, data, grid, key=jax.random.key(0))
    bits = terms.bound([0, 14, 49])  # terms is an eqd.PairwiseTerms
    ```
    """

    grid: Int[np.ndarray, " M"]
    steps: Float[Array, "M M"]
    decoder: Float[Array, "M M"]
    prior: Float[Array, " M"]

    def bound(self, timesteps: Sequence[int] | Int[np.ndarray, " K"]) -> Scalar:
        """The bound (1) of the schedule that visits some times of the grid.

        **Arguments:**

        - `timesteps`: the times, increasing indices of the schedule.

        **Raises:** `ValueError` for times that are not on the grid or not increasing.
        """
        path = np.asarray(timesteps)
        place = np.minimum(np.searchsorted(self.grid, path), self.grid.size - 1)
        increasing = path.ndim == 1 and path.size > 0 and bool(np.all(np.diff(path) > 0))
        if not increasing or not np.array_equal(self.grid[place], path):
            raise ValueError(
                f"PairwiseTerms.bound: expected increasing times of the grid, {_shown(self.grid)}, "
                f"got {timesteps!r}."
            )
        second = place[min(1, place.size - 1)]
        edges = jnp.sum(self.steps[place[1:], place[:-1]])
        return self.decoder[place[0], second] + edges + self.prior[place[-1]]


def _shown(values: np.ndarray) -> str:
    return np.array2string(values, threshold=8, separator=", ")


class _Edges(eqx.Module):
    """Tables over pairs [j, k] of times, from t_j; finite also where there is no edge."""

    grid: Int[Array, " M"]
    # To t_k < t_j.
    steps: ReverseStep
    on_x0: Float[Array, "M M"]
    # From t_j into the data, in a schedule that visits t_k > t_j before, or (k = j) nothing.
    decoder: ReverseStep


def _edges(schedule: Schedule, grid: Int[np.ndarray, " M"]) -> _Edges:
    start = np.broadcast_to(schedule.alpha_bar[grid][:, None], (grid.size, grid.size))
    later = np.arange(grid.size)[:, None] > np.arange(grid.size)
    # Where there is no edge, the end is put somewhere between the start and the data.
    end = np.where(later, start.T, 0.5 * (1 + start))
    beta = 1 - start / end
    posterior = beta * (1 - end) / (1 - start)
    timestep = np.broadcast_to(schedule.timesteps[grid][:, None], start.shape)
    steps = _reverse_steps(schedule, timestep, False, beta, start, posterior, posterior)
    # Into the data: β = 1 − ᾱ and β̃ = 0, which the clip replaces by β̃ of the edge t_k → t_j.
    clipped = np.where(later.T, posterior.T, 1 - start)
    decoder = _reverse_steps(
        schedule, timestep, True, 1 - start, start, np.zeros_like(start), clipped
    )
    on_x0 = jnp.asarray(np.sqrt(end) * beta / (1 - start), float)
    return _Edges(jnp.asarray(grid, jnp.int32), steps, on_x0, decoder)


def _reverse_steps(schedule, timestep, first, beta, alpha_bar, posterior, clipped) -> ReverseStep:
    floats = (np.log(beta), np.log(clipped), posterior, noise_coefficient(beta, alpha_bar))
    return ReverseStep(
        schedule,
        jnp.asarray(timestep, jnp.int32),
        jnp.full(timestep.shape, first),
        *(jnp.asarray(table, float) for table in floats),
    )


def _step_cost(p: Prediction, step: ReverseStep, on_x0: Scalar) -> Scalar:
    log_variance = p.variance.of_step(step, p.estimate.raw_variance).astype(p.x.dtype)
    # As in `bound_term`: the two means share their term in x_t.
    difference = on_x0.astype(p.x.dtype) * (p.x0 - p.estimate.x0)
    true_log_variance = step.log_posterior_variance.astype(p.x.dtype)
    return nats_to_bits(jnp.mean(gaussian_kl(difference, true_log_variance, log_variance)))


def _decoder_cost(p: Prediction, step: ReverseStep, levels: int, decoder: Decoder) -> Scalar:
    log_variance = p.variance.of_step(step, p.estimate.raw_variance).astype(p.x.dtype)
    log_std = jnp.broadcast_to(0.5 * log_variance, p.x.shape)
    return nats_to_bits(-jnp.mean(decoder(p.x0, p.estimate.x0, log_std, levels=levels)))


@eqx.filter_jit
def _average_terms(denoiser, edges, data, args, key, levels, decoder, chunk):
    """The three tables, averaged over images."""
    size = edges.grid.shape[0]

    def table(x0, args, key):
        def row(j):
            p = predict_at(denoiser, edges.grid[j], x0, args, key)
            steps, on_x0, firsts = jax.tree.map(
                lambda a: a[j], (edges.steps, edges.on_x0, edges.decoder)
            )
            step_costs = jax.vmap(lambda step, c: _step_cost(p, step, c))(steps, on_x0)
            decoder_costs = jax.vmap(lambda first: _decoder_cost(p, first, levels, decoder))(firsts)
            return step_costs, decoder_costs, prior_term(denoiser.process, x0, edges.grid[j])

        return in_chunks(row, jnp.arange(size, dtype=jnp.int32), chunk)

    return mean_over_images(table, data, args, key)


def pairwise_terms(
    denoiser: AbstractDenoiser,
    data: Float[Array, "n ..."],
    grid: Sequence[int] | Int[np.ndarray, " M"],
    args: Args = None,
    *,
    key: Key,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
    chunk: int = 16,
) -> PairwiseTerms:
    r"""The costs (2) of all edges between the times of a grid, averaged over images.

    The bound of any sub-schedule is then a sum of table entries, [`eqdiff.PairwiseTerms.bound`][],
    and the best sub-schedule is found by [`eqdiff.optimal_timesteps`][]. One network call per image
    and time of the grid.

    With one `key`, `pairwise_terms(...).bound(path)` is, up to rounding, the mean of
    `variational_bound(respaced, x0, key=k).bits` over the images and `jax.random.split(key, n)`,
    where `respaced` is the denoiser on `respace(schedule, path)`: both see the same noise.

    **Arguments:**

    - `denoiser`: on a schedule.
    - `data`: images on the grid of grey levels, along a leading axis.
    - `grid`: increasing indices of the schedule, for example `section_timesteps(T, (256,))`. The
        time for arithmetic grows with the square of their number.
    - `args`: the network's conditioning, each leaf with a leading axis; or `None`.
    - `key`: for the noise.
    - `levels`, `decoder`, `chunk`: as for [`eqdiff.variational_bound`][].

    **Returns:** a [`eqdiff.PairwiseTerms`][].

    **Raises:** `ValueError` if the process is not a schedule, for a grid that is not increasing or
    leaves the schedule, for data without a leading axis, or for [`eqdiff.PreviousMean`][], whose
    $\hat x_0$ depends on where an edge ends.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    data, grid = jnp.ones((2, 3)), range(0, 50, 7)
    terms = eqd.pairwise_terms(denoiser, data, grid, key=jax.random.key(0))
    bits = terms.bound([0, 14, 49])
    ```

    ??? cite "Reference"

        Watson, Ho, Norouzi & Chan, *Learning to Efficiently Sample from Diffusion Probabilistic
        Models*, 2021, section 3.
    """
    schedule = require_schedule(denoiser.process, "pairwise_terms")
    if isinstance(denoiser.parameterisation, PreviousMean):
        raise ValueError(
            "pairwise_terms: a network that predicts the mean of the next step (PreviousMean) "
            "belongs to one spacing of the "
            "schedule, so there are no other edges to compare. Train with PredictNoise(), "
            "PredictData() or PredictVelocity()."
        )
    levels = whole("pairwise_terms", "levels", levels, least=2, remedy=" 8-bit images have 256.")
    check_batch("pairwise_terms", data, args, 1)
    data = check_levels(f"pairwise_terms(levels={levels})", data, levels)
    times = np.asarray(grid)
    valid = times.ndim == 1 and times.size > 0 and np.issubdtype(times.dtype, np.integer)
    if not (
        valid and times[0] >= 0 and times[-1] < schedule.num_steps and np.all(np.diff(times) > 0)
    ):
        raise ValueError(
            "pairwise_terms: expected a grid of increasing whole numbers from 0 to "
            f"{schedule.num_steps - 1}, got {grid!r}. "
            f"For n evenly spaced times write section_timesteps({schedule.num_steps}, (n,))."
        )
    edges = _edges(schedule, times)
    steps, firsts, prior = _average_terms(denoiser, edges, data, args, key, levels, decoder, chunk)
    later = np.arange(times.size)[:, None] > np.arange(times.size)
    # What is not an edge costs more than any path.
    return PairwiseTerms(
        times, jnp.where(later, steps, jnp.inf), jnp.where(later, jnp.inf, firsts), prior
    )

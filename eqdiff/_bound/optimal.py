r"""The best steps and the best fixed variances of a schedule, found from its bound.

**Steps.** With the edge costs of `pairwise.py`, the $K$ steps of least bound are a shortest path of
$K$ edges,

$$C_2(k) = \min_{j<k}\; L_\text{dec}(t_j; t_k) + L(t_k \to t_j), \qquad
  C_n(k) = \min_{j<k}\; C_{n-1}(j) + L(t_k \to t_j), \tag{1}$$

ending in $\min_k C_K(k) + L_T(t_k)$, by dynamic programming in $O(KM^2)$ (Watson, Ho, Norouzi &
Chan 2021, algorithm 1). The decoder and the first edge are one stage because the decoder's variance
depends on both.

**Variances.** The bound is least at $\Sigma_t^* = \tilde\beta_t + c_t^2 e_t$ (`_variance.py`). For
the exact denoiser

$$e_t = 1 - \Gamma_t, \qquad \Gamma_t = \tfrac1D\,\mathbb E\|\hat\varepsilon(x_t)\|^2, \qquad
  0 \le e_t \le \min\Big(1, \frac{\alpha_t^2}{\sigma_t^2}\,
  \frac1D\sum_i \operatorname{Var}(x_{0,i})\Big) \tag{2}$$

(Bao et al. 2022, theorems 1 and 2), because $\sigma_t^2 e_t/\alpha_t^2$ is the mean variance of
$x_0$ given $x_t$, which is at most that of $x_0$. The paper bounds the latter by the range of the
data; the data at hand bound it closer. For a denoiser as it is,
$e_t = \frac1D\mathbb E\|\varepsilon - \hat\varepsilon(x_t)\|^2$ is optimal, whatever its errors
(Bao et al. 2022b, theorem 2).
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._check import whole
from .._denoiser import AbstractDenoiser
from .._process import require_schedule, Schedule
from .._types import Args, Key
from .._variance import AnalyticVariance, check_noise_error
from .chunks import check_batch, in_chunks, mean_over_images
from .pairwise import PairwiseTerms
from .terms import errors, predict_at


def optimal_timesteps(terms: PairwiseTerms, num_steps: int) -> Int[np.ndarray, " K"]:
    r"""The sub-schedule of `num_steps` steps of the grid that has the least bound, by (1).

    It need not end at the grid's last time: the prior's cost decides. The best steps for the bound
    lie near the data, where the bits are, and need not make the best pictures. They are the best
    $K$ steps exactly: more steps are not always better.

    **Arguments:**

    - `terms`: from [`eqdiff.pairwise_terms`][], concrete.
    - `num_steps`: the number $K$ of steps, from 1 to the size of the grid.

    **Returns:** increasing indices of the schedule, for `respace(schedule, path)` or
    `Ancestral(times=path[::-1])`. Its bound, averaged over the images that the terms were made
    with, is `terms.bound(path)`.

    **Raises:** `ValueError` for more steps than the grid has times, or costs that are NaN.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    terms = eqd.pairwise_terms(denoiser, jnp.ones((2, 3)), range(50), key=jax.random.key(0))
    path = eqd.optimal_timesteps(terms, 5)
    ```

    ??? cite "Reference"

        Watson, Ho, Norouzi & Chan, *Learning to Efficiently Sample from Diffusion Probabilistic
        Models*, 2021.
    """
    size = terms.grid.size
    num_steps = whole("optimal_timesteps", "num_steps", num_steps)
    if num_steps > size:
        raise ValueError(
            f"optimal_timesteps(num_steps={num_steps}): expected 1 to {size}, the times of the "
            "grid. For more steps make "
            "pairwise_terms on a larger grid."
        )
    steps, decoder, prior = (
        np.asarray(table, np.float64) for table in (terms.steps, terms.decoder, terms.prior)
    )
    if np.isnan(steps).any() or np.isnan(decoder).any() or np.isnan(prior).any():
        raise ValueError("optimal_timesteps: the terms hold NaN; the denoiser or the data do.")
    if num_steps == 1:
        return terms.grid[[np.argmin(np.diagonal(decoder) + prior)]]
    # through[k, j]: the least cost of the steps up to t_j, and of the edge from t_k to it.
    through, came_from = steps + decoder.T, []
    for _ in range(num_steps - 2):
        came_from.append(np.argmin(through, axis=1))
        through = steps + np.min(through, axis=1)
    came_from.append(np.argmin(through, axis=1))
    path = [np.argmin(np.min(through, axis=1) + prior)]
    for best in reversed(came_from):
        path.append(best[path[-1]])
    return terms.grid[np.array(path[::-1])]


@eqx.filter_jit
def _moments(denoiser, data, args, key, chunk):
    """Γ_t and the noise error at each step, averaged over images."""
    times = jnp.arange(denoiser.process.num_steps, dtype=jnp.int32)

    def of_image(x0, args, key):
        def at(t):
            p = predict_at(denoiser, t, x0, args, key)
            return jnp.mean(p.estimate.noise**2), errors(p)[1]

        return in_chunks(at, times, chunk)

    return mean_over_images(of_image, data, args, key)


def _variance_of(schedule: Schedule, noise_error: np.ndarray) -> AnalyticVariance:
    # Steps of the original schedule between those that this one visits are interpolated.
    every = np.arange(schedule.timesteps[-1] + 1)
    return AnalyticVariance(np.interp(every, schedule.timesteps, noise_error))


def analytic_variance(
    denoiser: AbstractDenoiser,
    data: Float[Array, "n ..."],
    args: Args = None,
    *,
    key: Key,
    chunk: int = 16,
) -> AnalyticVariance:
    r"""Analytic-DPM's variance: $e_t = 1 - \Gamma_t$ of (2) from data, clipped to its bounds.

    One network call per image and step. On a respaced schedule only its steps are visited, and
    $e_t$ is interpolated linearly in the index between them, held beyond: a few hundred of several
    thousand steps are enough.

    **Arguments:**

    - `denoiser`: on a schedule; its own variance is not used.
    - `data`: images, along a leading axis, at least two.
    - `args`: the network's conditioning, each leaf with a leading axis; or `None`.
    - `key`: for the noise.
    - `chunk`: how many times at most are evaluated at once.

    **Returns:** an [`eqdiff.AnalyticVariance`][] for this schedule and all others of the same
    original schedule that start no later.

    **Raises:** `ValueError` if the process is not a schedule, for fewer than two images, or where
    the network returns NaN.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    variance = eqd.analytic_variance(denoiser, jnp.eye(4), key=jax.random.key(0))
    denoiser = eqd.GaussianDenoiser(denoiser.process, variance=variance)
    ```

    ??? cite "Reference"

        Bao, Li, Zhu & Zhang, *Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in
        Diffusion Probabilistic Models*, ICLR 2022.
    """
    schedule = require_schedule(denoiser.process, "analytic_variance")
    check_noise_error(schedule, "analytic_variance")
    check_batch("analytic_variance", data, args, 2)
    power, _ = _moments(denoiser, data, args, key, chunk)
    data_variance = float(jnp.mean(jnp.var(data, axis=0, ddof=1)))
    most = np.minimum(1, data_variance * schedule.alpha_bar / (1 - schedule.alpha_bar))
    return _variance_of(schedule, np.clip(1 - np.asarray(power, np.float64), 0, most))


def optimal_variance(
    denoiser: AbstractDenoiser,
    data: Float[Array, "n ..."],
    args: Args = None,
    *,
    key: Key,
    chunk: int = 16,
) -> AnalyticVariance:
    r"""The fixed variance of least bound for a denoiser as it is.

    $e_t = \frac1D\mathbb E\|\varepsilon - \hat\varepsilon(x_t)\|^2$.
    Equal to [`eqdiff.analytic_variance`][] for the exact denoiser. For any other, also one wrapped
    in [`eqdiff.Clip`][], no fixed variance has a lower KL on average over the data, and where
    $\Gamma_t$ is near 1 nothing cancels.

    Arguments, result and errors as for [`eqdiff.analytic_variance`][]; one image is enough.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.cosine_schedule(50))
    variance = eqd.optimal_variance(denoiser, jnp.eye(4), key=jax.random.key(0))
    denoiser = eqd.GaussianDenoiser(denoiser.process, variance=variance)
    ```

    ??? cite "Reference"

        Bao, Li, Sun, Zhu & Zhang, *Estimating the Optimal Covariance with Imperfect Mean in
        Diffusion Probabilistic Models*, ICML 2022.
    """
    schedule = require_schedule(denoiser.process, "optimal_variance")
    check_noise_error(schedule, "optimal_variance")
    check_batch("optimal_variance", data, args, 1)
    _, noise_error = _moments(denoiser, data, args, key, chunk)
    return _variance_of(schedule, np.asarray(noise_error, np.float64))

r"""Importance sampling of the steps of a schedule that is useful from the first batches on.

`LossSecondMoment` waits until every step has its own history, although neighbouring steps have
almost the same loss. Here they lend each other what they know. The terms of the bound change over
orders of magnitude in the first steps and slowly later, like powers of $t + 1$, so their natural
coordinate is

$$z_t = \log(t + 1), \tag{1}$$

in which the steps are gathered into bins of equal width: of one step each at first, of 5 % of $t$
later. Each bin $b$ keeps an exponentially forgotten sum of squared losses and a count,

$$S_b \leftarrow \rho^{m} S_b + \sum_{i:\,t_i \in b} L_i^2, \qquad
  N_b \leftarrow \rho^{m} N_b + m, \qquad
  \rho = 1 - 1/H, \tag{2}$$

for the $m$ losses that a batch has in it. A bin's memory is about its last $H$ losses, however
often it is drawn, as with the official history; one that is drawn often forgets an outlier quickly.
The second moment is then estimated from coarse to fine with Gaussian kernels
$K_h(b, c) = e^{-(z_b - z_c)^2/2h^2}$. Starting from the mean over everything, at each width the
next coarser estimate is worth κ observations,

$$M_h(b) = \frac{\sum_c K_h(b, c)\,S_c + \kappa\,M_{2h}(b)}{\sum_c K_h(b, c)\,N_c + \kappa},
  \tag{3}$$

down to the finest width $h$. Steps that were never drawn borrow from the nearest that were, and
those drawn often decide for themselves. The probabilities are

$$p_t = (1 - \eta)\frac{\sqrt{M(b_t)}}{\sum_s \sqrt{M(b_s)}} + \frac{\eta}{T}; \tag{4}$$

without any observation (3) is constant and (4) uniform. The weights $1/(T p_t)$ are at most
$1/\eta$, and the estimate is unbiased whatever (3) says.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._process import require_process, require_schedule, Schedule
from .._types import Key
from .base import (
    AbstractTimesteps,
    check_mix,
    evenly_spread,
    invert_cdf,
    mix_uniform,
)


class Moments(eqx.Module):
    """The sums and counts of equation (2), one per bin."""

    squares: Float[Array, " B"]
    counts: Float[Array, " B"]


@ft.cache
def bin_edges(num_steps: int, width: float) -> Int[np.ndarray, " edges"]:
    """The first step of each bin, and T: bins of `width` in log(t + 1), of one step at least."""
    edges = [0]
    while edges[-1] < num_steps:
        start = edges[-1]
        edges.append(min(max(start + 1, int((start + 1) * np.exp(width)) - 1), num_steps))
    return np.asarray(edges, np.int32)


class SmoothedSecondMoment(AbstractTimesteps):
    r"""$p_t \propto \sqrt{\mathbb E[L_t^2]}$ with the second moment smoothed over neighbouring $t$:
    equations (1)–(4).

    For $L_\text{vlb}$, in place of [`eqdiff.LossSecondMoment`][]. It starts out uniform too, but
    leans towards the large losses from the first batch on, instead of after 25 000 draws
    ($T = 1000$) or 100 000 ($T = 4000$). A batch is spread evenly over its quantiles, like
    [`eqdiff.LowDiscrepancy`][]'s. The importance weights $1/(T p_t)$ keep the loss unbiased.

    On the bound of an exact denoiser, 512 draws bring $\mathbb E[(L_t/(T p_t))^2]$ to within 4 % of
    its least value, from more than a hundred times that under uniform draws
    (`benchmarks/timesteps.py`).

    Losses that are not finite are passed over; those larger than $10^{-4}$ of the square root of
    the largest number ($2\cdot10^{15}$ in float32) count as that. If all losses recorded are zero
    the draws are uniform.

    **Example:**

    ```python
    times = eqd.SmoothedSecondMoment(eqd.cosine_schedule(100))
    state = times.update(times.init(), jnp.arange(100), jnp.linspace(2.0, 0.1, 100))
    t, weights = times.sample(state, 8, key=jax.random.key(0))
    ```
    """

    process: Schedule
    history: float = eqx.field(static=True)
    uniform_mix: float = eqx.field(static=True)
    bandwidth: float = eqx.field(static=True)
    prior_count: float = eqx.field(static=True)

    def __init__(
        self,
        process: Schedule,
        *,
        history: float = 100.0,
        uniform_mix: float = 0.05,
        bandwidth: float = 0.1,
        prior_count: float = 1.0,
    ):
        r"""**Arguments:**

        - `process`: the schedule.
        - `history`: about how many of its last losses a bin remembers, $H > 1$.
        - `uniform_mix`: the share η of uniform draws, in $(0, 1]$; weights are at most $1/\eta$.
        - `bandwidth`: the finest kernel's width $h$ in $\log(t+1)$; bins are half as wide.
        - `prior_count`: how many observations the next coarser estimate is worth, κ.

        **Raises:** `ValueError` for a process without steps or numbers outside these ranges.
        """
        require_process(process, "SmoothedSecondMoment")
        self.process = require_schedule(process, "SmoothedSecondMoment")
        check_mix("SmoothedSecondMoment", uniform_mix)
        for name, value, least in (
            ("history", history, 1),
            ("bandwidth", bandwidth, 0),
            ("prior_count", prior_count, 0),
        ):
            if not least < value < float("inf"):
                raise ValueError(
                    f"SmoothedSecondMoment({name}={value}): expected a finite number greater than "
                    f"{least}."
                )
        self.history, self.uniform_mix = float(history), uniform_mix
        self.bandwidth, self.prior_count = bandwidth, prior_count

    @property
    def _edges(self) -> Int[np.ndarray, " edges"]:
        return bin_edges(self.process.num_steps, self.bandwidth / 2)

    def init(self) -> Moments:
        num_bins = self._edges.size - 1
        return Moments(jnp.zeros(num_bins), jnp.zeros(num_bins))

    def _second_moments(self, state: Moments) -> Float[Array, " B"]:
        """Equation (3), from the mean over everything down to the finest width."""
        dtype = state.squares.dtype
        edges = self._edges
        z = np.log(0.5 * (edges[:-1] + edges[1:] - 1) + 1)
        distances = jnp.asarray((z[:, None] - z) ** 2, dtype)
        seen = jnp.sum(state.counts)
        mean = jnp.sum(state.squares) / jnp.where(seen > 0, seen, 1)
        estimate = jnp.full_like(state.squares, mean)
        # The widest kernel spans all of the schedule.
        num_widths = max(1, int(np.ceil(np.log2(max(z[-1] / self.bandwidth, 1)))) + 1)
        for level in reversed(range(num_widths)):
            kernel = jnp.exp(-distances / (2 * (2**level * self.bandwidth) ** 2))
            squares = jnp.sum(kernel * state.squares[None, :], axis=1)
            counts = jnp.sum(kernel * state.counts[None, :], axis=1)
            estimate = (squares + self.prior_count * estimate) / (counts + self.prior_count)
        return estimate

    def _bins(self, state: Moments) -> Float[Array, " B"]:
        """The probability of each bin: that of a step, equation (4), times the number of steps."""
        widths = jnp.asarray(np.diff(self._edges), state.squares.dtype)
        roots = jnp.sqrt(self._second_moments(state))
        total = jnp.sum(widths * roots)
        # Nothing seen yet, or only zeros: uniform.
        learned = jnp.where(
            total > 0, roots / jnp.where(total > 0, total, 1), 1 / self.process.num_steps
        )
        return widths * mix_uniform(learned, self.process.num_steps, self.uniform_mix)

    def probabilities(self, state: Moments) -> Float[Array, " T"]:
        r"""The $p_t$ of equation (4) with which the next times are drawn, shape `(T,)`."""
        widths = np.diff(self._edges)
        each = self._bins(state) / jnp.asarray(widths, state.squares.dtype)
        return jnp.repeat(each, widths, total_repeat_length=self.process.num_steps)

    def sample(
        self, state: Moments, n: int, *, key: Key
    ) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        num_steps, edges = self.process.num_steps, self._edges
        bins = self._bins(state)
        # First the bin, then the step within: a cumulative sum over a hundred bins keeps more
        # digits than one over all steps.
        b, inside = invert_cdf(bins, evenly_spread(n, key=key))
        widths = jnp.asarray(np.diff(edges))[b]
        within = jnp.minimum((inside * widths.astype(inside.dtype)).astype(jnp.int32), widths - 1)
        probability = bins[b] / widths.astype(bins.dtype)
        return jnp.asarray(edges)[b] + within, (1 / num_steps) / probability

    def update(self, state: Moments, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> Moments:
        r"""Updates the state with the unweighted losses at the times drawn, equation (2).

        **Arguments:**

        - `t`: the times, as drawn; the same one may occur many times.
        - `losses`: $L_t$ of each example. Those that are not finite are passed over.

        **Returns:** the new state. The order within a batch does not matter.
        """
        dtype = state.squares.dtype
        losses = losses.astype(dtype)
        # Squares and their sums stay finite.
        largest = 1e-4 * float(np.sqrt(np.finfo(dtype).max))
        valid = jnp.isfinite(losses)
        squares = jnp.where(valid, jnp.minimum(jnp.abs(losses), largest), 0) ** 2
        b = jnp.searchsorted(jnp.asarray(self._edges), t.astype(jnp.int32), side="right") - 1
        num_bins = state.squares.size
        seen = jax.ops.segment_sum(valid.astype(dtype), b, num_bins)
        keep = (1 - 1 / self.history) ** seen
        return Moments(
            keep * state.squares + jax.ops.segment_sum(squares, b, num_bins),
            keep * state.counts + seen,
        )

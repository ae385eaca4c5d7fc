r"""Importance sampling of the steps of a schedule by the size of their past losses.

Of all distributions the one with the least variance is $p_t \propto \sqrt{\mathbb E[L_t^2]}$.
Nichol & Dhariwal (2021, section 3.3) estimate it from the last $H$ losses seen at each $t$,

$$q_t = \frac{r_t}{\sum_s r_s}, \qquad r_t = \sqrt{\frac1H \sum_{j=1}^H L_{t,j}^2}, \qquad
  p_t = (1 - \eta)\,q_t + \frac{\eta}{T}, \tag{1}$$

and draw uniformly until *every* $t$ has been seen $H$ times. Under uniform draws that takes about
$T(\log T + (H - 1)\log\log T)$ of them: 25 000 for $T = 1000$, 100 000 for $T = 4000$.

**A batch with repeated times** is read in order: the $k$-th of its losses at some $t$ follows the
$(k-1)$-th into the history. Each history is a ring that is written at $(c_t + k) \bmod H$, where
$c_t$ losses came before. Ranking the batch by a stable sort gives every loss its own slot, so one
scatter writes all of them; of more than $H$ losses at the same $t$ the last $H$ are kept.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from .._check import whole
from .._process import require_process, require_schedule, Schedule
from .._types import Key
from .base import AbstractTimesteps, check_mix, invert_cdf, mix_uniform


class History(eqx.Module):
    r"""The last losses at each step, as rings.

    - `losses`: the losses, zero where none has been written yet.
    - `written`: how many losses have been recorded at $t$. From $H$ on only the position in the
        ring counts, so it stays below $2H$ and cannot overflow.
    """

    losses: Float[Array, "T H"]
    written: Int[Array, " T"]


class LossSecondMoment(AbstractTimesteps):
    r"""$p_t \propto \sqrt{\mathbb E[L_t^2]}$ over the last losses at each $t$: importance sampling
    for $L_\text{vlb}$.

    $$p_t = (1 - \eta)\,\frac{r_t}{\sum_s r_s} + \frac\eta T, \qquad
      r_t = \sqrt{\tfrac1H \textstyle\sum_{j=1}^H L_{t,j}^2}.$$

    Times are drawn independently, all uniform until every $t$ has a full history, like the official
    `LossSecondMomentResampler`; [`eqdiff.SmoothedSecondMoment`][] is useful from the first batches
    on. The importance weights $1/(T p_t)$ keep the loss unbiased; they are at most $1/\eta$.

    Losses that are not finite are not recorded: the step that saw one is reported by the train
    step's metrics, and the history it would have spoiled stays as it was. (The official code
    records them, and then every weight is NaN.) If all losses recorded are zero the draws are
    uniform.

    **Example:**

    ```python
    times = eqd.LossSecondMoment(eqd.cosine_schedule(100))
    state = times.update(times.init(), jnp.arange(100), jnp.linspace(2.0, 0.1, 100))
    t, weights = times.sample(state, 8, key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021, section
        3.3.
    """

    process: Schedule
    history: int = eqx.field(static=True)
    uniform_mix: float = eqx.field(static=True)

    def __init__(self, process: Schedule, *, history: int = 10, uniform_mix: float = 0.001):
        r"""**Arguments:**

        - `process`: the schedule.
        - `history`: how many losses are remembered at each step, $H$.
        - `uniform_mix`: the share η of uniform draws, in $(0, 1]$.

        **Raises:** `ValueError` for a process that is not a schedule, an empty history, or a share
        outside $(0, 1]$.
        """
        require_process(process, "LossSecondMoment")
        self.process = require_schedule(process, "LossSecondMoment")
        check_mix("LossSecondMoment", uniform_mix)
        self.history, self.uniform_mix = whole(self, "history", history), uniform_mix

    def init(self) -> History:
        num_steps = self.process.num_steps
        return History(jnp.zeros((num_steps, self.history)), jnp.zeros(num_steps, jnp.int32))

    def _learned(self, state: History) -> Float[Array, " T"]:
        """The $q_t$ of equation (1); uniform during warm-up."""
        # Every history is divided by its largest loss before squaring, so that no loss is too large
        # for float32. The compiler multiplies by reciprocals instead, and that of the very largest
        # numbers is zero: hence the bound.
        bound = float(jnp.finfo(state.losses.dtype).max) / 100
        losses = jnp.minimum(jnp.abs(state.losses), bound)
        largest = jnp.max(losses, axis=1)
        scaled = losses / jnp.where(largest > 0, largest, 1)[:, None]
        peak = jnp.max(largest)
        ready = jnp.all(state.written >= self.history) & (peak > 0)
        roots = largest / jnp.where(peak > 0, peak, 1) * jnp.sqrt(jnp.mean(scaled**2, axis=1))
        total = jnp.where(ready, jnp.sum(roots), 1)
        return jnp.where(ready, roots / total, 1 / self.process.num_steps)

    def _mixed(self, learned: Float[Array, " T"]) -> Float[Array, " T"]:
        return mix_uniform(learned, self.process.num_steps, self.uniform_mix)

    def probabilities(self, state: History) -> Float[Array, " T"]:
        r"""The $p_t$ of equation (1) with which the next times are drawn, shape `(T,)`."""
        return self._mixed(self._learned(state))

    def sample(
        self, state: History, n: int, *, key: Key
    ) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        num_steps = self.process.num_steps
        which_key, uniform_key, learned_key = jax.random.split(key, 3)
        learned = self._learned(state)
        # In two stages, because a float32 cumulative sum cannot resolve the steps to which only η/T
        # is left.
        by_loss, _ = invert_cdf(learned, jax.random.uniform(learned_key, (n,)))
        anyhow = jax.random.randint(uniform_key, (n,), 0, num_steps, jnp.int32)
        t = jnp.where(jax.random.uniform(which_key, (n,)) < self.uniform_mix, anyhow, by_loss)
        return t, (1 / num_steps) / self._mixed(learned)[t]

    def update(self, state: History, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> History:
        r"""Updates the state with the unweighted losses at the times drawn, first to last.

        **Arguments:**

        - `t`: the times, as drawn; the same one may occur many times.
        - `losses`: $L_t$ of each example. Those that are not finite are passed over.

        **Returns:** the new state: that of pushing the losses one after the other.
        """
        num_steps, size = self.process.num_steps, self.history
        losses = losses.astype(state.losses.dtype)
        # What is not to be recorded goes to a step that does not exist, and scatters drop it.
        t = jnp.where(jnp.isfinite(losses) & (t >= 0), t, num_steps).astype(jnp.int32)
        order = jnp.argsort(t, stable=True)
        t, losses = t[order], losses[order]
        first = jnp.searchsorted(t, t, side="left").astype(jnp.int32)
        after = jnp.searchsorted(t, t, side="right").astype(jnp.int32)
        place = jnp.arange(t.size, dtype=jnp.int32)
        # Of more than H at the same t only the last H: every slot is written at most once.
        kept = jnp.where(after - place <= size, t, num_steps)
        slot = (state.written.at[t].get(mode="fill", fill_value=0) + place - first) % size
        written = state.written.at[t].add(1, mode="drop")
        written = jnp.where(written >= 2 * size, size + written % size, written)
        return History(state.losses.at[kept, slot].set(losses, mode="drop"), written)

r"""The times to which a training batch is noised.

A loss $\mathbb E_{t\sim U}[w(t) L_t]$ is estimated at times drawn from some $p$, each weighted by
the ratio of the uniform density to $p$, so that the estimate stays unbiased (Nichol & Dhariwal
2021, section 3.3):

$$\mathbb E_{t\sim U}[L_t] = \mathbb E_{t\sim p}\left[\frac{L_t}{T p_t}\right], \qquad
  p_t \propto \sqrt{\mathbb E[L_t^2]}\ \text{ has the least variance}. \tag{1}$$

Every strategy is a pure triple

$$\texttt{init}() \to s, \qquad \texttt{sample}(s) \to (t, w), \qquad
  \texttt{update}(s, t, L) \to s', \tag{2}$$

so its state is a pytree that is jitted, sharded, checkpointed and resumed like any other.

[`eqdiff.LossSecondMoment`][] and [`eqdiff.SmoothedSecondMoment`][] learn (1) while they train,
[`eqdiff.LikelihoodImportance`][] knows it beforehand, and [`eqdiff.LogNormal`][] and
[`eqdiff.LogitNormal`][] draw with all weights 1: there the distribution of the times *is* the
weighting of the objective.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._process import AbstractProcess
from .._types import Key


State = PyTree[Any]


class AbstractTimesteps(eqx.Module):
    """A strategy for drawing the times of a training batch, all from one process."""

    process: eqx.AbstractVar[AbstractProcess]

    @abc.abstractmethod
    def init(self) -> State:
        """The initial state (`None` where there is nothing to remember)."""

    @abc.abstractmethod
    def sample(
        self, state: State, n: int, *, key: Key
    ) -> tuple[Shaped[Array, " n"], Float[Array, " n"]]:
        r"""Draws `n` times.

        **Returns:** the times (int32 or floating-point) and their importance weights, of mean 1
        under the strategy's own distribution.
        """

    @abc.abstractmethod
    def update(self, state: State, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> State:
        """Updates the state with the (unweighted) losses at those times."""


class AbstractFixedTimesteps(AbstractTimesteps):
    """A strategy that learns nothing: the same distribution from the first step to the last."""

    def init(self) -> State:
        return None

    def update(self, state: State, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> State:
        return state


def evenly_spread(n: int, *, key: Key) -> Float[Array, " n"]:
    r"""$u_i = (i + u)/n$ in random order with one shared $u \sim U[0, 1)$: each of them is
    uniform.

    In shuffled order, so that a time says nothing about the place in the batch: micro-batches and
    devices each get the whole range, not a slice of it.
    """
    offset_key, order_key = jax.random.split(key)
    u = (jnp.arange(n, dtype=float) + jax.random.uniform(offset_key)) / n
    return jax.random.permutation(order_key, u)


def invert_cdf(
    probabilities: Float[Array, " K"], u: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The index whose part of [0, 1) holds `u`, and how far into that part `u` lies, in [0, 1]."""
    ends = jnp.cumsum(probabilities)
    # Scaled up rather than dividing by the last end, so that the parts are exactly as wide as they
    # are searched.
    u = u * ends[-1]
    index = jnp.searchsorted(ends, u, side="right").astype(jnp.int32)
    index = jnp.minimum(index, probabilities.size - 1)
    width = probabilities[index]
    # A part of width zero is never searched, except at the very end by rounding.
    inside = (u - (ends[index] - width)) / jnp.where(width > 0, width, 1)
    return index, jnp.clip(inside, 0, 1)


def mix_uniform(
    learned: Float[Array, " K"], num_steps: int, uniform_mix: float
) -> Float[Array, " K"]:
    r"""$(1 - \eta)\,q + \eta/T$, written so that a uniform $q = 1/T$ stays exactly that, and
    weights exactly 1.
    """
    return 1 / num_steps + (1 - uniform_mix) * (learned - 1 / num_steps)


def check_mix(owner: str, uniform_mix: float) -> None:
    """Raises `ValueError` for a share of uniform draws outside (0, 1]."""
    if not 0 < uniform_mix <= 1:
        raise ValueError(
            f"{owner}(uniform_mix={uniform_mix}): expected a fraction in (0, 1]. Importance "
            "weights are at most its inverse, so that without it one time that is never drawn "
            "would be lost for good."
        )

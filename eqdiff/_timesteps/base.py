r"""Which times a training batch is noised to.

A loss $\mathbb E_{t\sim U}[w(t) L_t]$ is estimated at times drawn from some $p$, each weighted by the ratio of the uniform density
to $p$, so that the estimate stays unbiased (Nichol & Dhariwal 2021, section 3.3):

$$\mathbb E_{t\sim U}[L_t] = \mathbb E_{t\sim p}\left[\frac{L_t}{T p_t}\right], \qquad
  p_t \propto \sqrt{\mathbb E[L_t^2]}\ \text{ has the least variance}. \tag{1}$$

Every strategy is a pure triple

$$\texttt{init}() \to s, \qquad \texttt{sample}(s) \to (t, w), \qquad \texttt{update}(s, t, L) \to s', \tag{2}$$

so its state is a pytree that is jitted, sharded, checkpointed and resumed like any other.

[`eqdiff.LossSecondMoment`][] and [`eqdiff.SmoothedSecondMoment`][] learn (1) while they train, [`eqdiff.LikelihoodImportance`][]
knows it beforehand, and [`eqdiff.LogNormal`][] and [`eqdiff.LogitNormal`][] draw with all weights 1: there the distribution
of the times *is* the weighting of the objective.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from .._gaussian import is_traced
from .._process import AbstractProcess, AbstractSDE
from .._schedule import Schedule
from .._types import Key


State = PyTree[Any]


class Steps(eqx.Module):
    """The times 0 … T − 1 of a chain, by number alone."""

    num_steps: int = eqx.field(static=True)

    def place(self, u: Float[Array, "..."]) -> Shaped[Array, "..."]:
        # Rounding may carry u·T up to T for u just below 1.
        return jnp.minimum((u * self.num_steps).astype(jnp.int32), self.num_steps - 1)


Domain = Steps | AbstractProcess


def domain_of(times: int | AbstractProcess) -> Domain:
    """Where times are drawn from: a number of steps, a schedule's steps, or an SDE's interval."""
    if isinstance(times, AbstractProcess):
        return times
    if times < 1:
        raise ValueError(f"expected at least one timestep, got {times}.")
    return Steps(times)


def chain_of(owner: str, times: int | AbstractProcess) -> Steps:
    """The steps of a chain, for strategies that remember something about each of them."""
    if isinstance(times, AbstractProcess) and not isinstance(times, Schedule):
        raise ValueError(
            f"{owner} remembers losses step by step, but {type(times).__name__} has continuous time. Give it a "
            "number of steps or a schedule; for an SDE write LikelihoodImportance(process)."
        )
    domain = domain_of(times.num_steps if isinstance(times, Schedule) else times)
    assert isinstance(domain, Steps)
    return domain


def sde_of(owner: str, process: AbstractProcess) -> AbstractSDE:
    """The process, if it has continuous time."""
    if not isinstance(process, AbstractSDE):
        raise ValueError(
            f"{owner} draws real-valued times, but {type(process).__name__} is a discrete chain. Write "
            f"{owner}(schedule.continuous())."
        )
    return process


class AbstractTimesteps(eqx.Module):
    """A strategy for drawing the times of a training batch."""

    @abc.abstractmethod
    def init(self) -> State:
        """The initial state (`None` where there is nothing to remember)."""

    @abc.abstractmethod
    def sample(
        self, state: State, n: int, *, key: Key
    ) -> tuple[Shaped[Array, " n"], Float[Array, " n"]]:
        r"""Draws `n` times.

        **Returns:** the times (int32 for a chain, floating-point for an SDE) and their importance weights, of mean 1
        under the strategy's own distribution.
        """

    @abc.abstractmethod
    def update(self, state: State, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> State:
        """Takes in the unweighted losses observed at the times drawn."""


class AbstractFixedTimesteps(AbstractTimesteps):
    """A strategy that learns nothing: the same distribution from the first step to the last."""

    def init(self) -> State:
        return None

    def update(self, state: State, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> State:
        return state


def evenly_spread(n: int, *, key: Key) -> Float[Array, " n"]:
    r"""$u_i = (i + u)/n$ in random order with one shared $u \sim U[0, 1)$: each is uniform by itself.

    In shuffled order, so that a time says nothing about the place in the batch: micro-batches and devices each get the
    whole range, not a slice of it.
    """
    offset_key, order_key = jax.random.split(key)
    u = (jnp.arange(n, dtype=float) + jax.random.uniform(offset_key)) / n
    return jax.random.permutation(order_key, u)


def invert_cdf(
    probabilities: Float[Array, " K"], u: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The index whose part of [0, 1) holds `u`, and how far into that part `u` lies, in [0, 1]."""
    ends = jnp.cumsum(probabilities)
    # Scaled up rather than dividing by the last end, so that the parts are exactly as wide as they are searched.
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
    r"""$(1 - \eta)\,q + \eta/T$, written so that a uniform $q = 1/T$ stays exactly that, and weights exactly 1."""
    return 1 / num_steps + (1 - uniform_mix) * (learned - 1 / num_steps)


def check_mix(owner: str, uniform_mix: float) -> None:
    if not 0 < uniform_mix <= 1:
        raise ValueError(
            f"{owner}(uniform_mix={uniform_mix}): expected a fraction in (0, 1]. Importance weights are at most its "
            "inverse, so that without it one time that is never drawn would be lost for good."
        )


def check_std(owner: str, std: float | Array) -> None:
    if isinstance(std, (int, float)) and not (0 < std < float("inf")):
        raise ValueError(f"{owner}(std={std}): expected a positive finite number.")


def refuse(tree: PyTree, bad: Bool[Array, ""], message: str) -> PyTree:
    """`ValueError` where `bad` is known already, an error at run time where it is traced."""
    if is_traced(bad):
        return eqx.error_if(tree, bad, message)
    if bool(bad):
        raise ValueError(message)
    return tree

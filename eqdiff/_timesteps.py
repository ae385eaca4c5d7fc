r"""Which times a training batch is noised to.

A loss $\mathbb E_t[w(t) L_t]$ is estimated at times drawn from some $p$, each weighted by $1/p$ relative to uniform so
that the estimate stays unbiased (Nichol & Dhariwal 2021, section 3.3). Every strategy is a pure triple

$$\texttt{init}() \to s, \qquad \texttt{sample}(s) \to (t, w), \qquad \texttt{update}(s, t, L) \to s',$$

so its state is a pytree that is jitted, sharded, checkpointed and resumed like any other.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from ._process import AbstractProcess
from ._types import Key


State = PyTree[Any]


class _Steps(eqx.Module):
    """The times 0 … T − 1 of a chain, by number alone."""

    num_steps: int = eqx.field(static=True)

    def place(self, u: Float[Array, "..."]) -> Shaped[Array, "..."]:
        # Rounding may carry u·T up to T for u just below 1.
        return jnp.minimum((u * self.num_steps).astype(jnp.int32), self.num_steps - 1)


def _domain(times: int | AbstractProcess) -> _Steps | AbstractProcess:
    if isinstance(times, AbstractProcess):
        return times
    if times < 1:
        raise ValueError(f"expected at least one timestep, got {times}.")
    return _Steps(times)


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


class Uniform(AbstractTimesteps):
    r"""Independent uniform times, all weights 1."""

    domain: _Steps | AbstractProcess

    def __init__(self, times: int | AbstractProcess):
        r"""**Arguments:**

        - `times`: the number of steps $T$ of a chain (times are then $0, \dots, T-1$), or a process: a schedule's steps,
            an SDE's interval $[t_0, t_1]$.
        """
        self.domain = _domain(times)

    def init(self) -> State:
        return None

    def sample(self, state: State, n: int, *, key: Key):
        return self.domain.place(jax.random.uniform(key, (n,))), jnp.ones(n)

    def update(self, state: State, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> State:
        return state


class LowDiscrepancy(AbstractTimesteps):
    r"""Uniform times with one shared random offset: $u_i = (i + u)/n$, $u \sim U[0, 1)$.

    Each time is uniform on its own, so the estimate is unbiased, but a batch always covers the whole range: the loss
    is much less noisy than under independent times.

    ??? cite "Reference"

        Kingma et al., *Variational Diffusion Models*, NeurIPS 2021, appendix I.1.
    """

    domain: _Steps | AbstractProcess

    def __init__(self, times: int | AbstractProcess):
        """**Arguments:** as for [`eqdiff.Uniform`][]."""
        self.domain = _domain(times)

    def init(self) -> State:
        return None

    def sample(self, state: State, n: int, *, key: Key):
        offset_key, order_key = jax.random.split(key)
        u = (jnp.arange(n, dtype=float) + jax.random.uniform(offset_key)) / n
        # In shuffled order, so that a time says nothing about the place in the batch: micro-batches and devices each
        # get the whole range, not a slice of it.
        return self.domain.place(jax.random.permutation(order_key, u)), jnp.ones(n)

    def update(self, state: State, t: Shaped[Array, " n"], losses: Float[Array, " n"]) -> State:
        return state

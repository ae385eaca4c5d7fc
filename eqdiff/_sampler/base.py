r"""What samplers are.

A sampler turns prior noise into data: `sampler(denoiser, x1, args=None, *, key=None) -> x0`, for one example. Those that
solve a differential equation call Diffrax; the others are Markov chains,

$$x_{s} = \texttt{step}(t, s, x_t, \text{key}), \qquad t = t_1 > \dots > t_n, \tag{1}$$

under one `lax.scan`. All end in the denoised estimate $\hat x_0$ at the last time, never in a noisy state.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from .._denoiser import AbstractDenoiser, check_example
from .._gaussian import is_traced
from .._process import AbstractProcess
from .._types import Args, Example, Key


class AbstractSampler(eqx.Module):
    """`sampler(denoiser, x1, args=None, *, key=None) -> x0`, for one example."""

    @abc.abstractmethod
    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""Draws one sample.

        **Arguments:**

        - `denoiser`: any denoiser.
        - `x1`: prior noise, from `denoiser.process.prior_sample`.
        - `args`: what conditions the network.
        - `key`: for the sampler's own noise; not the one `x1` was drawn with.

        **Returns:** a sample, shaped like `x1`.

        **Raises:** `ValueError` for a process the sampler is not defined on, or where it needs a key and has none.
        """


class Trajectory(eqx.Module):
    r"""Every state of a chain.

    - `t`: the times, decreasing, shape `(n,)`; `x`: the state *after* each step; `x0`: the estimate $\hat x_0$ each step was
      made from. Both of shape `(n, ...)`.
    """

    t: Shaped[Array, " n"]
    x: Float[Array, "n ..."]
    x0: Float[Array, "n ..."]


class AbstractChain(AbstractSampler):
    """A sampler that is a Markov chain, equation (1)."""

    random: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def steps(self, process: AbstractProcess) -> tuple[Shaped[Array, " n"], PyTree[Any]]:
        """The decreasing times at which the denoiser is called, and whatever `step` needs at each.

        **Raises:** `ValueError` for a process the chain is not defined on.
        """

    @abc.abstractmethod
    def step(
        self,
        denoiser: AbstractDenoiser,
        t: Shaped[Array, ""],
        this: PyTree[Any],
        x: Example,
        args: Args,
        *,
        key: Key,
    ) -> tuple[Example, Example]:
        r"""One step from `t`: the next state and the estimate $\hat x_0$."""

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        return self._scan(denoiser, x1, args, key, lambda x, x0: None)[0]

    def trajectory(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Trajectory:
        """Draws one sample and keeps every state: see [`eqdiff.Trajectory`][]. Arguments as for the call."""
        times, _ = self.steps(denoiser.process)
        _, (x, x0) = self._scan(denoiser, x1, args, key, lambda x, x0: (x, x0))
        return Trajectory(times, x, x0)

    def _scan(self, denoiser, x1, args, key, keep):
        check_call(type(self).__name__, denoiser, x1)
        if key is None:
            if self.random:
                raise ValueError(
                    f"{type(self).__name__} draws noise at each step and needs a key: write key=jax.random.key(0)."
                )
            # Never read: a chain without noise ignores its keys.
            key = jax.random.key(0)
        times, each = self.steps(denoiser.process)
        keys = jax.random.split(key, len(times))

        def body(x, inputs):
            t, this, step_key = inputs
            x, x0 = self.step(denoiser, t, this, x, args, key=step_key)
            return x, keep(x, x0)

        return jax.lax.scan(body, x1, (times, each, keys))


class Levels(eqx.Module):
    r"""α, σ and λ at a time and at the next; after the last time comes the data, $\alpha = 1$, $\sigma = 0$."""

    alpha: Float[Array, "*n"]
    sigma: Float[Array, "*n"]
    log_snr: Float[Array, "*n"]
    next_alpha: Float[Array, "*n"]
    next_sigma: Float[Array, "*n"]
    next_log_snr: Float[Array, "*n"]


def levels_of(process: AbstractProcess, times: Shaped[Array, " n"]) -> Levels:
    """The noise levels along decreasing times."""
    alpha, sigma, log_snr = (
        jax.vmap(f)(times) for f in (process.alpha, process.sigma, process.log_snr)
    )

    def shift(values: Float[Array, " n"], last: float) -> Float[Array, " n"]:
        return jnp.append(values[1:], jnp.asarray(last, values.dtype))

    return Levels(
        alpha, sigma, log_snr, shift(alpha, 1.0), shift(sigma, 0.0), shift(log_snr, jnp.inf)
    )


def check_num_steps(owner: str, num_steps: int | None) -> None:
    """Raises `ValueError` for a number of steps that is not a positive whole number."""
    if num_steps is not None and (not isinstance(num_steps, int) or num_steps < 1):
        raise ValueError(f"{owner}(num_steps={num_steps!r}): expected a positive whole number.")


def check_call(owner: str, denoiser: AbstractDenoiser, x: Example) -> None:
    """Raises `ValueError` for a network where a denoiser belongs, or an example of whole numbers."""
    if not isinstance(denoiser, AbstractDenoiser):
        raise ValueError(
            f"{owner} takes a denoiser, but was given a {type(denoiser).__name__}. For a network write "
            "eqdiff.Denoiser(net, process)."
        )
    check_example(owner, x)


def check_decreasing(
    owner: str, times: Shaped[Array, "..."] | Shaped[np.ndarray, "..."]
) -> Shaped[Array, " n"]:
    """The times themselves, as a JAX array.

    Raises `ValueError` unless they are a vector that strictly decreases; traced times that do not are an error at run time.
    """
    if jnp.ndim(times) != 1 or jnp.size(times) == 0:
        raise ValueError(f"{owner}: times is a vector of times, got shape {jnp.shape(times)}.")
    remedy = f"{owner}: the times must decrease, from noise to data. For increasing ones write times[::-1]."
    if is_traced(times):
        return eqx.error_if(times, jnp.any(times[1:] >= times[:-1]), remedy)
    known = np.asarray(times)
    if not np.all(known[1:] < known[:-1]):
        raise ValueError(f"{remedy} Got {times}.")
    return jnp.asarray(times)

r"""The interface of samplers.

A sampler turns prior noise into data: `sampler(denoiser, x1, args=None, *, key=None) -> x0`, for
one example. Those that solve a differential equation call Diffrax; the others are Markov chains,

$$x_{s} = \texttt{step}(t, s, x_t, \text{key}), \qquad t = t_1 > \dots > t_n, \tag{1}$$

under one `lax.scan`. All end in the denoised estimate $\hat x_0$ at the last time, never in a noisy
state.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._check import check_precision, is_traced, of
from .._denoiser import AbstractDenoiser
from .._process import AbstractProcess, as_time, exactly
from .._types import Args, Example, Key, Scalar, Time
from .grid import as_times, Grid


class Trajectory(eqx.Module):
    r"""A sample and the way to it.

    - `t`: the times, decreasing, shape `(n,)`.
    - `x0`: the estimate $\hat x_0$ at each of them, shape `(n, ...)`.
    - `x`: the state that follows each, at the next time; the last is the sample. Shape `(n, ...)`.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    trajectory = eqd.DDIM(10).trajectory(denoiser, jnp.ones(3))  # an eqd.Trajectory
    estimates = trajectory.x0  # shape (10, 3)
    ```
    """

    t: Shaped[Array, " n"]
    x: Float[Array, "n ..."]
    x0: Float[Array, "n ..."]


class AbstractSampler(eqx.Module):
    """`sampler(denoiser, x1, args=None, *, key=None) -> x0`, for one example."""

    @property
    @abc.abstractmethod
    def num_calls(self) -> int | None:
        """Denoiser calls per sample; `None` where the number depends on the solve, or on the
        schedule.
        """

    @abc.abstractmethod
    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""Draws one sample.

        **Arguments:**

        - `denoiser`: any denoiser.
        - `x1`: prior noise, from `denoiser.process.prior_sample`; or, for a sampler whose times
            begin below the noisiest, a state at the first of them.
        - `args`: the network's conditioning, if any.
        - `key`: for the sampler's own noise; not the one `x1` was drawn with.

        **Returns:** a sample, shaped like `x1`.

        **Raises:** `ValueError` for a process the sampler is not defined on, a state that is
        integer or in half precision, or a missing key.
        """

    @abc.abstractmethod
    def trajectory(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Trajectory:
        """Draws one sample and keeps the states on the way: see [`eqdiff.Trajectory`][]."""


class Step(eqx.Module):
    r"""From time `t` down to `s`. The last step goes to the data: $\alpha_s = 1$, $\sigma_s = 0$.

    - `t`, `s`: where the step starts and ends; at the last, `s` is `t`.
    - `alpha_t`, `sigma_t`, `log_snr_t`, `alpha_s`, `sigma_s`, `log_snr_s`: the levels there.
    - `log_snr_fall`: $\lambda_s - \lambda_t$, computed without the rounding error of the
        difference.
    - `index`: how many steps come after this one.
    - `last`: whether it is the last.

    Levels are in the precision of the state.

    **Example:**

    ```python
    class Positive(eqd.AbstractConstraint):
        def __call__(self, step, x, x0, *, key):  # step is an eqd.Step
            return jnp.where(step.last, jnp.maximum(x, 0), x)
    ```
    """

    t: Shaped[Array, "*n"]
    s: Shaped[Array, "*n"]
    alpha_t: Float[Array, "*n"]
    sigma_t: Float[Array, "*n"]
    log_snr_t: Float[Array, "*n"]
    alpha_s: Float[Array, "*n"]
    sigma_s: Float[Array, "*n"]
    log_snr_s: Float[Array, "*n"]
    log_snr_fall: Float[Array, "*n"]
    size: Float[Array, "*n"]
    index: Int[Array, "*n"]
    last: Bool[Array, "*n"]

    def transition(self) -> tuple[Scalar, Scalar]:
        r"""$a$ and $b^2$ of $p(x_t|x_s) = \mathcal N(a x_s, b^2 I)$."""
        return self.alpha_t / self.alpha_s, -(self.sigma_t**2) * jnp.expm1(-self.log_snr_fall)

    def staying(self) -> "Step":
        """The step that stays at `t`, as a corrector's does."""
        here = (self.t, self.alpha_t, self.sigma_t, self.log_snr_t)
        zero = jnp.zeros_like(self.size)
        return Step(self.t, *here, *here[1:], zero, zero, self.index, self.last)


def steps_along(process: AbstractProcess, times: Any, *, like: Example) -> Step:
    """The steps between decreasing times, and the last one into the data, with a leading axis."""
    return steps_between(process, times, _shifted(times), like=like)


def _shifted(times: Any) -> Any:
    append = jnp.append if is_traced(times) else np.append
    return append(times[1:], times[-1:])


def steps_between(process: AbstractProcess, t: Any, s: Any, *, like: Example) -> Step:
    r"""The steps from each `t` to its `s`, but the last, which goes into the data.

    Known times are NumPy's, in float64, and so are the levels until they are cast: in float32,
    steps of $10^{-3}$ would be off by $3\cdot10^{-5}$ through the rounding of `t` and `s` alone.
    """
    levels = exactly(_levels, process, t, s)
    alpha_t, sigma_t, log_snr_t, alpha_s, sigma_s, log_snr_s, fall, size = (
        jnp.asarray(values).astype(like.dtype)
        if is_traced(values)
        else jnp.asarray(np.asarray(values), like.dtype)
        for values in levels
    )
    index = jnp.arange(len(t) - 1, -1, -1, dtype=jnp.int32)
    last = index == 0

    def unless_last(values: Float[Array, " n"], end: float) -> Float[Array, " n"]:
        return jnp.where(last, jnp.asarray(end, values.dtype), values)

    return Step(
        *(as_times(t), as_times(s)),
        *(alpha_t, sigma_t, log_snr_t),
        *(unless_last(alpha_s, 1.0), unless_last(sigma_s, 0.0), unless_last(log_snr_s, jnp.inf)),
        unless_last(jnp.maximum(fall, 0), jnp.inf),
        *(unless_last(size, 0.0), index, last),
    )


@eqx.filter_jit
def _levels(process: AbstractProcess, t: Array, s: Array) -> tuple[Float[Array, " n"], ...]:
    def at(t: Time, s: Time):
        here = process.alpha(t), process.sigma(t), process.log_snr(t)
        there = process.alpha(s), process.sigma(s), process.log_snr(s)
        return *here, *there, process.log_snr_fall(s, t), as_time(t) - as_time(s)

    return jax.vmap(at)(t, s)


class AbstractChain(AbstractSampler):
    """A sampler that is a Markov chain, equation (1): a grid of times and a step between two of
    them.
    """

    grid: eqx.AbstractVar[Grid]
    random: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def step(
        self, denoiser: AbstractDenoiser, step: Step, x: Example, args: Args, *, key: Key
    ) -> tuple[Example, Example]:
        r"""One step: the next state and the estimate $\hat x_0$ it was made from.

        **Arguments:**

        - `denoiser`, `args`: any denoiser, and its conditioning.
        - `step`: from where to where, with the levels: see [`eqdiff.Step`][].
        - `x`: the state at `step.t`.
        - `key`: for the step's noise; no other step sees the same.
        """

    def __call__(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        return _scan(self, denoiser, x1, args, key, lambda x, x0: None)[0]

    def trajectory(
        self, denoiser: AbstractDenoiser, x1: Example, args: Args = None, *, key: Key | None = None
    ) -> Trajectory:
        """Draws one sample and keeps every state: see [`eqdiff.Trajectory`][]. Arguments as for the
        call.
        """
        _, (x, x0) = _scan(self, denoiser, x1, args, key, lambda x, x0: (x, x0))
        return Trajectory(self.grid.times(denoiser.process), x, x0)


def _scan(chain: AbstractChain, denoiser, x1, args, key, keep):
    check_call(chain, denoiser, x1)
    if key is None:
        if chain.random:
            raise ValueError(
                f"{of(chain)} draws noise at each step and needs a key: write "
                "key=jax.random.key(0)."
            )
        # A chain without noise ignores its keys.
        key = jax.random.key(0)
    steps = steps_along(denoiser.process, chain.grid.exact(denoiser.process), like=x1)
    keys = jax.random.split(key, len(steps.t))

    def body(x, inputs):
        step, step_key = inputs
        x, x0 = chain.step(denoiser, step, x, args, key=step_key)
        return x, keep(x, x0)

    return jax.lax.scan(body, x1, (steps, keys))


def check_call(owner: object, denoiser: AbstractDenoiser, x: Example) -> None:
    """Raises `ValueError` for a network in place of a denoiser, or a state of low precision."""
    if not isinstance(denoiser, AbstractDenoiser):
        raise ValueError(
            f"{of(owner)} takes a denoiser, but was given a {type(denoiser).__name__}. For a "
            "network write eqdiff.Denoiser(net, process)."
        )
    check_precision(owner, x)

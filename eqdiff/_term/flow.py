"""The probability flow, alone and with its log-density; the theory is the folder's docstring."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._check import known_number
from .._denoiser import AbstractDenoiser
from .._guidance import check_batch, over_examples
from .._process import AbstractProcess, as_time
from .._trace import AbstractTrace
from .._types import Args, Example, Scalar, Time


def interval(process: AbstractProcess, x: Example) -> tuple[Scalar, Scalar]:
    r"""$(t_0, t_1)$ in the precision of x: Diffrax would promote the whole state to the precision
    of its times.
    """
    low, high = known_number(process.t0), known_number(process.t1)
    if low is not None and high is not None and not low < high:
        raise ValueError(
            f"{type(process).__name__}: the interval from t0 = {low:g} to t1 = {high:g} is empty, "
            "so there is nothing to solve. A schedule needs at least two steps for it."
        )
    return jnp.asarray(process.t0, x.dtype), jnp.asarray(process.t1, x.dtype)


def shape_of(x: Example) -> jax.ShapeDtypeStruct:
    """The shape and precision of an example, as Diffrax's Brownian motions expect it."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def outside(process: AbstractProcess, t: Scalar) -> Bool[Array, ""]:
    """Whether a time is off [t0, t1] by more than rounding. At t = 0, the usual mistake, σ may be 0
    and its rate infinite.
    """
    t0, t1 = jnp.asarray(process.t0, t.dtype), jnp.asarray(process.t1, t.dtype)
    slack = 1e-6 * (t1 - t0)
    # So that NaN is outside too.
    return ~((t >= t0 - slack) & (t <= t1 + slack))


def _checked(process: AbstractProcess, t: Time, owner: str) -> Scalar:
    t = as_time(t)
    return eqx.error_if(
        t,
        outside(process, t),
        f"{owner} was solved at a time outside [t0, t1] of its process. The process is used "
        "between process.t0 and process.t1: solve from one to the other, in either direction, or "
        "make the process with other ends.",
    )


def velocity(denoiser: AbstractDenoiser, t: Time, x: Example, args: Args = None) -> Example:
    r"""The probability flow's velocity $\dot\alpha_t\hat x_0 + \dot\sigma_t\hat\varepsilon$,
    equation (2).
    """
    process = denoiser.process
    estimate = denoiser(t, x, args)
    alpha_dot, sigma_dot = process.alpha_dot(t), process.sigma_dot(t)
    return alpha_dot.astype(x.dtype) * estimate.x0 + sigma_dot.astype(x.dtype) * estimate.noise


def probability_flow(denoiser: AbstractDenoiser) -> diffrax.ODETerm:
    r"""The probability-flow ODE $\dot x = \dot\alpha\hat x_0 + \dot\sigma\hat\varepsilon$, equation
    (2).

    Its solutions have the SDE's marginals. Solve from $t_1$ to $t_0$ to sample and from $t_0$ to
    $t_1$ to encode, with any Diffrax ODE solver; `args` of `diffeqsolve` are the network's
    conditions. With an [`eqdiff.Batched`][] denoiser the state is a batch.

    **Raises:** a runtime error if solved outside $[t_0, t_1]$.

    **Example:**

    ```python
    import diffrax
    term = eqd.terms.probability_flow(eqd.GaussianDenoiser(eqd.VPSDE()))
    solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 1.0, 1e-3, -0.05, jnp.ones(3))
    ```
    """
    process = denoiser.process

    def vector_field(t, x, args):
        return velocity(denoiser, _checked(process, t, "probability_flow"), x, args)

    return diffrax.ODETerm(vector_field)


def augmented_flow(
    denoiser: AbstractDenoiser, trace: AbstractTrace, probes: Any
) -> diffrax.ODETerm:
    r"""The probability flow with its log-density, equation (3), on states $(x, \ell)$.

    Solved from $t_0$ to $t_1$ with $\ell(t_0) = 0$,
    $\log p_{t_0}(x(t_0)) = \log p_{t_1}(x(t_1)) + \ell(t_1)$ (Chen et al. 2018, theorem 1).

    **Arguments:**

    - `denoiser`: any denoiser. With an [`eqdiff.Batched`][] one, $x$, ℓ and `probes` have a leading
        axis of examples, and each example has its own log-density.
    - `trace`: how the divergence is found.
    - `probes`: `trace.probes(x, key=key)`. ℓ has one entry per probe (one for the exact trace).

    **Raises:** a runtime error if solved outside $[t_0, t_1]$.

    **Example:**

    ```python
    import diffrax
    denoiser, y0 = eqd.GaussianDenoiser(eqd.VPSDE()), (jnp.ones(3), jnp.zeros(1))
    term = eqd.terms.augmented_flow(denoiser, eqd.ExactTrace(), None)
    solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 1e-3, 1.0, 0.05, y0)
    ```
    """
    process = denoiser.process
    single, each = over_examples(denoiser)

    def vector_field(t, state, args):
        x, _ = state
        t = _checked(process, t, "augmented_flow")
        if single is not denoiser:
            check_batch(x, args)

        def one(x, args, probes):
            return trace.divergence(lambda y: velocity(single, t, y, args), x, probes)

        return each(one)(x, args, probes)

    return diffrax.ODETerm(vector_field)

"""The log-density of the probability flow, equation (1) of the folder's docstring."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._denoiser import AbstractDenoiser, check_example
from .._term import augmented_flow, over_examples, require_sde
from .._trace import AbstractTrace, Hutchinson
from .._types import Args, Example, Key, Scalar
from .solving import Options, solve


class LogLikelihood(eqx.Module):
    r"""A log-likelihood and how it was found.

    - `log_prob`: $\log p_{t_0}(x)$ in nats.
    - `latent`: $x(t_1)$.
    - `stderr`: the standard error over probes, in nats; 0 for the exact trace, NaN (unknown) for a single probe.
    - `stats`: Diffrax's solver statistics, among them `num_steps`, `num_accepted_steps`, `num_rejected_steps`. The default
        solver called the velocity `6 * num_steps + 1` times, each time the network once, and its derivative along each probe.

    Of a batch ([`eqdiff.Batched`][]), `log_prob`, `latent` and `stderr` have a leading axis; the steps were shared.
    """

    log_prob: Float[Array, "..."]
    latent: Example
    stderr: Float[Array, "..."]
    stats: dict[str, Any]


def log_likelihood(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args = None,
    *,
    trace: AbstractTrace = Hutchinson(),
    key: Key | None = None,
    prior: Callable[[Example], Scalar] | None = None,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    rtol: float | Scalar = 1e-5,
    atol: float | Scalar = 1e-5,
    max_steps: int | None = 4096,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
) -> LogLikelihood:
    r"""$\log p_{t_0}(x)$ under the probability flow, equation (1).

    **Arguments:**

    - `denoiser`: any denoiser on an SDE. With an [`eqdiff.Batched`][] one, `x` and `args` are a batch, solved with shared
        steps so that every example meets the tolerance.
    - `x`: one example, at time $t_0$.
    - `args`: what conditions the network.
    - `trace`: [`eqdiff.ExactTrace`][] or [`eqdiff.Hutchinson`][].
    - `key`: for the probes.
    - `prior`: $\log p_{t_1}$ of one example; by default the process's prior.
    - `solver`, `rtol`, `atol`, `max_steps`, `adjoint`: for Diffrax. The state, and the log-density in nats per dimension, are
        each held to the tolerance. For a trained network, which is not smooth in time, `diffrax.Bosh3()` at a tolerance of
        $10^{-3}$ needs the fewest network calls: see the page *Adaptive solves*. For gradients in reverse mode keep the default
        adjoint; for forward mode (`jax.jvp`, `jax.jacfwd`) write `diffrax.ForwardMode()`, for both `diffrax.DirectAdjoint()`.

    **Returns:** a [`eqdiff.LogLikelihood`][].

    **Raises:** `ValueError` if the denoiser is not on an SDE, `x` is of whole numbers, random probes have no key, or the network
    has no forward-mode derivative. A runtime error if `x` is not finite, or `max_steps` were not enough.
    """
    process = require_sde(denoiser.process, "log_likelihood")
    check_example("log_likelihood", x)
    single, each = over_examples(denoiser)
    if single is denoiser:
        probes = trace.probes(x, key=key)
    else:
        keys = None if key is None else jax.random.split(key, x.shape[0])
        probes = jax.vmap(lambda y, k: trace.probes(y, key=k))(x, keys)

    def estimates(x, probes):
        return trace.divergence(lambda y: y, x, probes)[1]

    num = jax.eval_shape(each(estimates), x, probes).shape
    flow = augmented_flow(denoiser, trace, probes)
    dim = x.size if single is denoiser else x.size // x.shape[0]

    def per_dimension(t, y, args):
        velocity, rate = flow.vf(t, y, args)
        return velocity, rate / dim

    solution = solve(
        "log_likelihood",
        # In nats per dimension: in nats, an absolute tolerance would be a thousand times stricter for images than for points.
        diffrax.ODETerm(per_dimension),
        process,
        x,
        (x, jnp.zeros(num, x.dtype)),
        args,
        each,
        Options(solver, rtol, atol, max_steps, adjoint),
    )
    assert solution.ys is not None
    latent, change = (leaf[-1] for leaf in solution.ys)
    log_prior = each(process.prior_log_prob if prior is None else prior)(latent)
    change = dim * change
    log_prob = log_prior + jnp.mean(change, axis=-1)
    # −∞ is a fair answer of a prior of one's own.
    log_prob = eqx.error_if(
        log_prob,
        jnp.any(jnp.isnan(log_prob)),
        "log_likelihood: the log-density is NaN, though the solve succeeded. Look at prior(latent) and at the dtype's range.",
    )
    return LogLikelihood(log_prob, latent, each(trace.stderr)(change), solution.stats)

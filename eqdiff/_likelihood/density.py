"""The log-density of the probability flow, equation (1) of the folder's docstring."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import of
from .._denoiser import AbstractDenoiser
from .._guidance import over_examples
from .._sampler import AbstractSampler, error_norm, integrate, ProbabilityFlow
from .._sampler.base import check_call
from .._sampler.cost import is_counted, solve_stats
from .._term import augmented_flow
from .._trace import AbstractTrace, Hutchinson
from .._types import Args, Example, Key, Scalar


class LogLikelihood(eqx.Module):
    r"""A log-likelihood and how it was found.

    - `log_prob`: $\log p_{t_0}(x)$ in nats.
    - `latent`: $x(t_1)$.
    - `stderr`: the standard error over probes, in nats; 0 for the exact trace, NaN (unknown) for a
        single probe.
    - `solver_error`: the solver's error in nats: `log_prob` less that of a `reference`, with the
        same probes; NaN (unknown) without one.
    - `stats`: Diffrax's solver statistics, among them `num_steps`, `num_accepted_steps`,
        `num_rejected_steps`; and for an explicit solver `num_calls` of the velocity, each one
        network call with its derivative along each probe.

    Of a batch ([`eqdiff.Batched`][]), all but `stats` have a leading axis; the steps were shared.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    likelihood = eqd.log_likelihood(denoiser, jnp.ones(3), trace=eqd.ExactTrace())
    log_p, z = likelihood.log_prob, likelihood.latent  # likelihood is an eqd.LogLikelihood
    ```
    """

    log_prob: Float[Array, "..."]
    latent: Example
    stderr: Float[Array, "..."]
    solver_error: Float[Array, "..."]
    stats: dict[str, Any]


def log_likelihood(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args = None,
    *,
    flow: ProbabilityFlow = ProbabilityFlow(rtol=1e-5, atol=1e-5),
    trace: AbstractTrace = Hutchinson(),
    key: Key | None = None,
    prior: Callable[[Example], Scalar] | None = None,
    reference: ProbabilityFlow | None = None,
) -> LogLikelihood:
    r"""$\log p_{t_0}(x)$ under the probability flow, equation (1).

    **Arguments:**

    - `denoiser`: any denoiser. If it is guided, you get the density of the guided flow: the
        posterior where the guidance is exact, as Bayes' rule at scale 1 is, but not the normalised
        $p(x)\,p(y|x)^s$ at another scale. With an [`eqdiff.Batched`][] one, `x` and `args` are a
        batch, solved with shared steps so that every example meets the tolerance.
    - `x`: one example, at time $t_0$.
    - `args`: the network's conditioning, if any.
    - `flow`: the solver, its tolerances and its adjoint: see [`eqdiff.ProbabilityFlow`][]. The
        state, and the log-density in nats per dimension, are each held to the tolerance.
    - `trace`: [`eqdiff.ExactTrace`][] or [`eqdiff.Hutchinson`][].
    - `key`: for the probes.
    - `prior`: $\log p_{t_1}$ of one example; by default the process's prior.
    - `reference`: a flow of at most a tenth of the tolerance. The likelihood is computed again with
        it for the `solver_error`; the one returned is still that of `flow`.

    **Returns:** a [`eqdiff.LogLikelihood`][].

    **Raises:** `ValueError` if `x` is integer or in half precision, random probes have no key, the
    network has no forward-mode derivative, or the derivative of the solve needs another adjoint. A
    runtime error if `x` is not finite, or `max_steps` is too small.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    likelihood = eqd.log_likelihood(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```
    """
    if isinstance(denoiser, AbstractSampler):
        raise ValueError(
            f"log_likelihood takes a denoiser, but was given the sampler {of(denoiser)}, whose "
            "samples have no known density. For data that were measured write "
            "log_likelihood(PosteriorGuidance(denoiser, measurement), x)."
        )
    check_call("log_likelihood", denoiser, x)
    single, each = over_examples(denoiser)
    if single is denoiser:
        probes = trace.probes(x, key=key)
    else:
        keys = None if key is None else jax.random.split(key, x.shape[0])
        probes = jax.vmap(lambda y, k: trace.probes(y, key=k))(x, keys)

    if prior is None:
        prior = denoiser.process.prior_log_prob
    log_prob, latent, change, stats = _solved(denoiser, x, args, flow, trace, probes, prior)
    solver_error = jnp.full_like(log_prob, jnp.nan)
    if reference is not None:
        solver_error = log_prob - _solved(denoiser, x, args, reference, trace, probes, prior)[0]
    return LogLikelihood(log_prob, latent, each(trace.stderr)(change), solver_error, stats)


def _solved(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args,
    flow: ProbabilityFlow,
    trace: AbstractTrace,
    probes: Any,
    prior: Callable[[Example], Scalar],
) -> tuple[Float[Array, "..."], Example, Float[Array, "..."], dict[str, Any]]:
    """The log-density, the latent, the integral of (1) by each probe, and what it took."""
    single, each = over_examples(denoiser)

    def estimates(x, probes):
        return trace.divergence(lambda y: y, x, probes)[1]

    num = jax.eval_shape(each(estimates), x, probes).shape
    augmented = augmented_flow(denoiser, trace, probes)
    dim = x.size if single is denoiser else x.size // x.shape[0]

    def per_dimension(t, y, args):
        velocity, rate = augmented.vf(t, y, args)
        return velocity, rate / dim

    # In nats per dimension: in nats, an absolute tolerance would be a thousand times stricter for
    # images than for points.
    solution = integrate(
        flow,
        diffrax.ODETerm(per_dimension),
        denoiser.process,
        x,
        (x, jnp.zeros(num, x.dtype)),
        args,
        owner="log_likelihood",
        forwards=True,
        norm=lambda error: jnp.max(each(error_norm)(error)),
    )
    assert solution.ys is not None
    latent, change = (leaf[-1] for leaf in solution.ys)
    change = dim * change
    log_prob = each(prior)(latent) + jnp.mean(change, axis=-1)
    # −∞ is a fair answer of a prior of one's own.
    log_prob = eqx.error_if(
        log_prob,
        jnp.any(jnp.isnan(log_prob)),
        "log_likelihood: the log-density is NaN, though the solve succeeded. Look at "
        "prior(latent) and at the dtype's range.",
    )
    return log_prob, latent, change, _stats(flow, solution)


def _stats(flow: ProbabilityFlow, solution: diffrax.Solution) -> dict[str, Any]:
    if not is_counted(flow.solver):
        return solution.stats
    return solution.stats | {"num_calls": solve_stats(flow.solver, solution, extra=0).num_calls}

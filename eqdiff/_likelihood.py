r"""Exact likelihood and encoding by the probability flow.

The flow carries the data's density to the prior's, so with the augmented flow of `_term.py`

$$\log p_{t_0}(x) = \log p_{t_1}(x(t_1)) + \int_{t_0}^{t_1}\operatorname{div} v(t, x(t))\,\mathrm dt \tag{1}$$

(Chen et al. 2018; Song et al. 2021, equation 39 and appendix D.2), the prior standing for $p_{t_1}$. What is computed is the
density of the *model*: the prior pushed through the flow. In bits per dimension, with a dequantisation's offset $c$,

$$\mathrm{bpd} = -\frac{\log p_{t_0}(y) + c}{D\log 2}. \tag{2}$$
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._denoiser import AbstractDenoiser
from ._dequantise import AbstractDequantisation
from ._misc import nats_to_bits
from ._term import augmented_flow, interval, probability_flow, require_sde
from ._trace import AbstractTrace, Hutchinson
from ._types import Args, Example, Key, Scalar


class LogLikelihood(eqx.Module):
    r"""A log-likelihood and how it was found.

    - `log_prob`: $\log p_{t_0}(x)$ in nats.
    - `latent`: $x(t_1)$.
    - `stderr`: the standard error over probes, in nats; 0 for the exact trace, NaN for a single probe.
    - `stats`: Diffrax's solver statistics, among them `num_steps`, `num_accepted_steps`, `num_rejected_steps`.
    """

    log_prob: Scalar
    latent: Example
    stderr: Scalar
    stats: dict[str, Any]


class BitsPerDim(eqx.Module):
    r"""Bits per dimension of an image, and the parts.

    - `value`: equation (2); an upper bound in expectation over the dequantisation.
    - `stderr`: the standard error over probes alone, in bits/dim. Average `value` over images, each with its own key,
        and the spread of the values covers images, probes and dequantisation together.
    - `likelihood`: the [`eqdiff.LogLikelihood`][] of the dequantised image.
    """

    value: Scalar
    stderr: Scalar
    likelihood: LogLikelihood


def _norm(error: tuple[Example, Array]) -> Scalar:
    # An RMS over both together would give the log-density one vote among D: each is held to the tolerance on its own.
    x, log_density = error
    return jnp.maximum(_rms(x), _rms(log_density))


def _rms(error: Array) -> Scalar:
    square = jnp.mean(error**2)
    # √0 has no gradient; the error is exactly 0 where the flow is constant.
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def log_likelihood(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args = None,
    *,
    trace: AbstractTrace = Hutchinson(),
    key: Key | None = None,
    prior: Callable[[Example], Scalar] | None = None,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
) -> LogLikelihood:
    r"""$\log p_{t_0}(x)$ under the probability flow, equation (1).

    **Arguments:**

    - `denoiser`: any denoiser on an SDE.
    - `x`: one example, at time $t_0$.
    - `args`: what conditions the network.
    - `trace`: [`eqdiff.ExactTrace`][] or [`eqdiff.Hutchinson`][].
    - `key`: for the probes.
    - `prior`: $\log p_{t_1}$; by default the process's prior.
    - `solver`, `rtol`, `atol`, `max_steps`, `adjoint`: for Diffrax. The state and the log-density are each held to the
        tolerance.

    **Returns:** a [`eqdiff.LogLikelihood`][].

    **Raises:** `ValueError` if the denoiser is not on an SDE, or random probes have no key.
    """
    process = require_sde(denoiser.process, "log_likelihood")
    probes = trace.probes(x, key=key)
    t0, t1 = interval(process, x)
    num = jax.eval_shape(lambda y: trace.divergence(lambda z: z, y, probes)[1], x).shape
    solution = diffrax.diffeqsolve(
        augmented_flow(denoiser, trace, probes),
        solver,
        t0=t0,
        t1=t1,
        dt0=None,
        y0=(x, jnp.zeros(num, x.dtype)),
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_norm),
        max_steps=max_steps,
        adjoint=adjoint,
    )
    assert solution.ys is not None
    latent, change = (leaf[-1] for leaf in solution.ys)
    log_prior = (process.prior_log_prob if prior is None else prior)(latent)
    return LogLikelihood(
        log_prior + jnp.mean(change), latent, _stderr(trace, change), solution.stats
    )


def _stderr(trace: AbstractTrace, estimates: Array) -> Scalar:
    if not isinstance(trace, Hutchinson):
        return jnp.zeros((), estimates.dtype)
    if estimates.size == 1:
        return jnp.full((), jnp.nan, estimates.dtype)
    return jnp.std(estimates, ddof=1) / jnp.sqrt(jnp.asarray(estimates.size, estimates.dtype))


def bits_per_dim(
    denoiser: AbstractDenoiser,
    image: Example,
    args: Args = None,
    *,
    dequantise: AbstractDequantisation,
    key: Key,
    **options: Any,
) -> BitsPerDim:
    r"""Bits per dimension of an image, equation (2), from one draw of the dequantisation.

    **Arguments:**

    - `denoiser`: any denoiser on an SDE.
    - `image`: one image on the dequantisation's levels.
    - `args`: what conditions the network.
    - `dequantise`: [`eqdiff.UniformDequantisation`][] for a network trained on dequantised data,
        [`eqdiff.GaussianDequantisation`][] for one trained on grid values.
    - `key`: for the dequantisation and the probes.
    - `options`: of [`eqdiff.log_likelihood`][]: `trace`, `solver`, `rtol` and so on.

    **Returns:** a [`eqdiff.BitsPerDim`][].
    """
    noise_key, probe_key = jax.random.split(key)
    y, offset = dequantise(denoiser, image, args, key=noise_key)
    likelihood = log_likelihood(denoiser, y, args, key=probe_key, **options)
    bits = nats_to_bits(-(likelihood.log_prob + offset)) / image.size
    return BitsPerDim(bits, nats_to_bits(likelihood.stderr) / image.size, likelihood)


def _flow(denoiser, x, args, owner, forwards, solver, rtol, atol, max_steps, adjoint):
    process = require_sde(denoiser.process, owner)
    t0, t1 = interval(process, x)
    ends = (t0, t1) if forwards else (t1, t0)
    solution = diffrax.diffeqsolve(
        probability_flow(denoiser),
        solver,
        t0=ends[0],
        t1=ends[1],
        dt0=None,
        y0=x,
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        adjoint=adjoint,
    )
    assert solution.ys is not None
    return solution.ys[-1]


def encode(
    denoiser: AbstractDenoiser,
    x: Example,
    args: Args = None,
    *,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
) -> Example:
    r"""The latent $x(t_1)$ to which the probability flow carries $x = x(t_0)$.

    **Arguments:** as for [`eqdiff.log_likelihood`][]. Do not clip the denoiser: the flow would not be invertible.
    """
    return _flow(denoiser, x, args, "encode", True, solver, rtol, atol, max_steps, adjoint)


def decode(
    denoiser: AbstractDenoiser,
    latent: Example,
    args: Args = None,
    *,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
) -> Example:
    r"""The inverse of [`eqdiff.encode`][]: $x(t_0)$ from $x(t_1)$, without a final denoising. Arguments as there."""
    return _flow(denoiser, latent, args, "decode", False, solver, rtol, atol, max_steps, adjoint)

r"""Score matching that never sees the noise.

For a model $s$ of the score of $p_t$, integration by parts removes the unknown score from $\mathbb E\|s - \nabla\log p_t\|^2$ (Hyvärinen 2005,
theorem 1): up to a constant it is

$$J = \mathbb E_{x\sim p_t}\left[\|s(x)\|^2 + 2\operatorname{tr}\nabla s(x)\right]. \tag{1}$$

The trace costs $D$ Jacobian–vector products, or one per random projection $v$ with $\mathbb E[vv^\top] = I$ (Song et al. 2019): sliced score
matching projects the norm as well, or keeps it, which has less variance ("SSM-VR"),

$$J = \mathbb E_{x, v}\left[(v^\top s)^2 + 2\,v^\top\nabla s\,v\right] = \mathbb E_{x, v}\left[\|s\|^2 + 2\,v^\top\nabla s\,v\right]. \tag{2}$$

**Against denoising.** With $s = -\hat\varepsilon/\sigma$ and a weighting λ (Vincent 2011),

$$\mathbb E\,\tfrac\lambda D\|s - \nabla\log p_t(x_t|x_0)\|^2 = \tfrac\lambda D J + \tfrac{\lambda}{\sigma^2}: \tag{3}$$

in expectation the losses here are [`eqdiff.score_matching`][] less $\lambda/\sigma^2$, which is 1 for the default. They are (1) and (2), *twice* the
papers' half-norms, so as to be comparable with it. Denoising needs no derivative of the network, so these are for data that come
with their noise, and for checking a network or a score that was made in another way.
"""

import jax
import jax.numpy as jnp

from .._denoiser import AbstractDenoiser, check_example, check_time
from .._trace import AbstractTrace, ExactTrace, Hutchinson
from .._types import Args, Example, Key, Scalar, Time
from .weighting import AbstractWeighting, NoiseWeighting


def implicit_score_matching(
    denoiser: AbstractDenoiser,
    t: Time,
    x: Example,
    args: Args = None,
    *,
    weighting: AbstractWeighting = NoiseWeighting(),
    trace: AbstractTrace = ExactTrace(),
    key: Key | None = None,
) -> Scalar:
    r"""$\frac{\lambda(t)}D\left(\|s\|^2 + 2\operatorname{tr}\nabla s\right)$, equation (1): Hyvärinen's loss at one $x$.

    **Arguments:**

    - `denoiser`: any denoiser.
    - `t`: the time.
    - `x`: one example drawn from $p_t$: data with the process's noise at $t$, `process.perturb(t, x0, noise)`.
    - `args`: what conditions the network.
    - `weighting`: λ; by default $\sigma_t^2$.
    - `trace`: [`eqdiff.ExactTrace`][], or [`eqdiff.Hutchinson`][] for random projections: then this is sliced score matching with reduced
        variance, the right-hand form of (2).
    - `key`: for the projections. The network is called without dropout.

    **Returns:** a number that may be negative.

    **Raises:** `ValueError` for integer data, a time that is known and out of range, or projections without a key.
    """
    noise, trace_of_score, _ = _noise_and_trace(denoiser, t, x, args, trace, key)
    factor = weighting.on_noise(denoiser.process, t).astype(x.dtype)
    return factor * (jnp.sum(noise**2) + 2 * jnp.mean(trace_of_score)) / x.size


def sliced_score_matching(
    denoiser: AbstractDenoiser,
    t: Time,
    x: Example,
    args: Args = None,
    *,
    weighting: AbstractWeighting = NoiseWeighting(),
    projections: Hutchinson = Hutchinson(),
    key: Key | None = None,
) -> Scalar:
    r"""$\frac{\lambda(t)}D\,\mathbb E_v\left[(v^\top s)^2 + 2\,v^\top\nabla s\,v\right]$, the left-hand form of (2).

    For the form with less variance, $\|s\|^2$ for $(v^\top s)^2$, write `implicit_score_matching(..., trace=Hutchinson())`.

    **Arguments:**

    - `denoiser`, `t`, `x`, `args`, `weighting`: as for [`eqdiff.implicit_score_matching`][].
    - `projections`: how many directions $v$ and of which distribution.
    - `key`: for these.

    **Raises:** as for [`eqdiff.implicit_score_matching`][].

    ??? cite "Reference"

        Song, Garg, Shi & Ermon, *Sliced Score Matching: A Scalable Approach to Density and Score Estimation*, UAI 2019.
    """
    noise, trace_of_score, probes = _noise_and_trace(denoiser, t, x, args, projections, key)
    projected = jax.vmap(lambda v: jnp.sum(v * noise))(probes)
    factor = weighting.on_noise(denoiser.process, t).astype(x.dtype)
    return factor * jnp.mean(projected**2 + 2 * trace_of_score) / x.size


def _noise_and_trace(denoiser, t, x, args, trace, key):
    """ε̂, σ² tr∇s by each probe, and the probes. In units of ε no score, large where σ is small, is formed."""
    check_example("Score matching", x)
    check_time(denoiser.process, t)
    probes = trace.probes(x, key=key)
    noise, divergence = trace.divergence(lambda y: denoiser(t, y, args).noise, x, probes)
    return noise, -denoiser.process.sigma(t).astype(x.dtype) * divergence, probes

r"""Score matching that never sees the noise.

For a model $s$ of the score of $p_t$, integration by parts removes the unknown score from
$\mathbb E\|s - \nabla\log p_t\|^2$ (Hyvärinen 2005, theorem 1): up to a constant it is

$$J = \mathbb E_{x\sim p_t}\left[\|s(x)\|^2 + 2\operatorname{tr}\nabla s(x)\right]. \tag{1}$$

The trace costs $D$ Jacobian–vector products, or one per random projection $v$ with
$\mathbb E[vv^\top] = I$: sliced score matching with reduced variance (Song et al. 2019, "SSM-VR"),

$$J = \mathbb E_{x, v}\left[\|s\|^2 + 2\,v^\top\nabla s\,v\right]. \tag{2}$$

**Against denoising.** With $s = -\hat\varepsilon/\sigma$ and a weighting λ (Vincent 2011),

$$\mathbb E\,\tfrac\lambda D\|s - \nabla\log p_t(x_t|x_0)\|^2
  = \tfrac\lambda D J + \tfrac{\lambda}{\sigma^2}: \tag{3}$$

in expectation the losses here are [`eqdiff.score_matching`][] less $\lambda/\sigma^2$, which is 1
for the default. They are (1) and (2), *twice* the papers' half-norms, so as to be comparable with
it. Denoising needs no derivative of the network, so these are for data observed only with noise,
and for checking a network or a score obtained in another way.
"""

import jax.numpy as jnp

from .._check import check_example
from .._denoiser import AbstractDenoiser
from .._process import check_time
from .._trace import AbstractTrace, ExactTrace
from .._types import Args, Example, Key, Scalar, Time
from .weighting import AbstractWeighting, NoiseWeighting, weight


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
    r"""$\frac{\lambda(t)}D\left(\|s\|^2 + 2\operatorname{tr}\nabla s\right)$, equation (1):
    Hyvärinen's loss at one $x$.

    **Arguments:**

    - `denoiser`: any denoiser.
    - `t`: the time.
    - `x`: one example drawn from $p_t$: data with the process's noise at $t$,
        `process.perturb(t, x0, noise)`.
    - `args`: the network's conditioning, if any.
    - `weighting`: λ; by default $\sigma_t^2$.
    - `trace`: [`eqdiff.ExactTrace`][], or [`eqdiff.Hutchinson`][] for random projections: then this
        is sliced score matching with reduced variance, equation (2).
    - `key`: for the projections. The network is called without dropout.

    **Returns:** a number that may be negative.

    **Raises:** `ValueError` for integer data, a time that is known and out of range, or projections
    without a key.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    loss = eqd.implicit_score_matching(denoiser, 0.5, jnp.ones(3))
    ```
    """
    check_example("implicit_score_matching", x)
    check_time(denoiser.process, t)
    probes = trace.probes(x, key=key)
    noise, divergence = trace.divergence(lambda y: denoiser(t, y, args).noise, x, probes)
    # σ² tr∇s: in units of ε no score, large where σ is small, is formed.
    trace_of_score = -denoiser.process.sigma(t).astype(x.dtype) * divergence
    factor = weight(weighting, denoiser.process, t).astype(x.dtype)
    return factor * (jnp.sum(noise**2) + 2 * jnp.mean(trace_of_score)) / x.size

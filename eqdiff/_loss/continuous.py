r"""Denoising score matching in continuous time.

$$L = \mathbb E_{t, x_0, \varepsilon}\left[\tfrac1D\,\lambda(t)\,\|s(x_t, t)
  - \nabla\log p_t(x_t|x_0)\|^2\right] \tag{1}$$

(Song et al. 2021, equation 7), at the one $t$ and ε of a prediction.

**The published losses**, for a prediction $p$ on the process named:

| | here |
|---|---|
| score-SDE, continuous (VP, sub-VP, VE) | `score_matching(p)` |
| … with likelihood weighting | `score_matching(p, LikelihoodWeighting())` |
| SMLD (NCSN) | `score_matching(p)` on VE, at the times of its noise levels |
| DDPM | `l_simple(p)` with `PredictNoise()`, on a schedule |
| EDM | `l_simple(p)` with `EDMPreconditioning()`, or `score_matching(p, EDMWeighting())` |
| EDM's `VPLoss`, `VELoss` | `score_matching(p)` |
| flow matching, rectified flow | `l_simple(p)` with `PredictFlow()` |

All are means over the $D$ elements. The score-SDE code's other reduction (`reduce_mean=False`) is
$\frac12\sum$, so $D/2$ times these.
"""

import jax.numpy as jnp

from .._predict import Prediction
from .._types import Scalar
from .weighting import AbstractWeighting, NoiseWeighting, weight


def score_matching(
    prediction: Prediction, weighting: AbstractWeighting = NoiseWeighting()
) -> Scalar:
    r"""$\frac1D\lambda(t)\|s - \nabla\log p_t(x_t|x_0)\|^2$, equation (1), as an error in ε:
    $\frac1D\frac{\lambda(t)}{\sigma_t^2}\|\hat\varepsilon-\varepsilon\|^2$.

    **Arguments:**

    - `prediction`: from [`eqdiff.predict`][], on any process.
    - `weighting`: λ; by default $\sigma_t^2$.

    **Returns:** the mean over dimensions (the official `reduce_mean=True`; its other reduction is
    $D/2$ times this).

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    p = eqd.predict(denoiser, 0.5, jnp.ones(3), key=jax.random.key(0))
    loss = eqd.score_matching(p, eqd.LikelihoodWeighting())
    ```
    """
    p = prediction
    factor = weight(weighting, p.process, p.t).astype(p.x.dtype)
    return factor * jnp.mean((p.estimate.noise - p.noise) ** 2)

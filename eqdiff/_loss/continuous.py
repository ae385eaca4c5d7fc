r"""Denoising score matching in continuous time.

$$L = \mathbb E_{t, x_0, \varepsilon}\left[\tfrac1D\,\lambda(t)\,\|s(x_t, t) - \nabla\log p_t(x_t|x_0)\|^2\right] \tag{1}$$

(Song et al. 2021, equation 7), at the one $t$ and ε of a prediction.
"""

import jax.numpy as jnp

from .._predict import Prediction
from .._types import Scalar
from .weighting import AbstractWeighting, NoiseWeighting


def score_matching(
    prediction: Prediction, weighting: AbstractWeighting = NoiseWeighting()
) -> Scalar:
    r"""$\frac1D\lambda(t)\|s - \nabla\log p_t(x_t|x_0)\|^2 = \frac1D\frac{\lambda(t)}{\sigma_t^2}\|\hat\varepsilon-\varepsilon\|^2$.

    **Arguments:**

    - `prediction`: from [`eqdiff.predict`][], on any process.
    - `weighting`: λ; by default $\sigma_t^2$.

    **Returns:** the mean over dimensions (the official `reduce_mean=True`; its other reduction is $D/2$ times this).
    """
    p = prediction
    factor = weighting.on_noise(p.process, p.t).astype(p.x.dtype)
    return factor * jnp.mean((p.estimate.noise - p.noise) ** 2)

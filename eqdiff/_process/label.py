r"""Labels with a name: what a network is told as time, other than by its process.

A process has a label of its own, and a denoiser may have another: any function of $t$. A function cannot be written to a file; these
can,

$$l(t) = k\,t, \qquad l(t) = \log\left(k\,\frac{\sigma_t}{\alpha_t}\right) = \log k - \tfrac12\lambda_t. \tag{1}$$
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Scalar, Time
from .base import AbstractProcess, as_time, check_positive


class ScaledTime(eqx.Module):
    """The label $k\\,t$, which can be saved: the $(N-1)\\,t$ of a VP network that was trained on a chain of $N$ steps.

    ```python
    denoiser = eqdiff.Denoiser(net, eqdiff.VPSDE(), label=eqdiff.ScaledTime(499.0))
    ```
    """

    scale: float | Array

    def __init__(self, scale: float | Array):
        """**Arguments:**

        - `scale`: $k$.

        **Raises:** `ValueError` unless it is positive.
        """
        check_positive("ScaledTime", scale=scale)
        self.scale = scale

    def __call__(self, t: Time) -> Scalar:
        return self.scale * as_time(t)


class LogNoise(eqx.Module):
    r"""The label $\log(k\,\sigma_t/\alpha_t)$, which can be saved: the noise level in units of the data, times a number.

    ```python
    process = eqdiff.EDMSDE()
    denoiser = eqdiff.Denoiser(net, process, label=eqdiff.LogNoise(process, 0.5))      # log(σ/2): EDM's VE networks
    ```
    """

    process: AbstractProcess
    scale: float | Array

    def __init__(self, process: AbstractProcess, scale: float | Array = 1.0):
        r"""**Arguments:**

        - `process`: the denoiser's.
        - `scale`: $k$.

        **Raises:** `ValueError` unless the scale is positive.
        """
        check_positive("LogNoise", scale=scale)
        self.process, self.scale = process, scale

    def __call__(self, t: Time) -> Scalar:
        return jnp.log(self.scale) - 0.5 * self.process.log_snr(t)

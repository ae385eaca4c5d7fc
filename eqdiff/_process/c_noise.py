r"""Time inputs that can be written to a file.

A process has a time input for its network, and a denoiser may have another: any function of the
process and $t$. A function cannot be saved; these can,

$$c_\text{noise} = k\,t, \qquad
  c_\text{noise} = \log\left(k\,\frac{\sigma_t}{\alpha_t}\right)
    = \log k - \tfrac12\lambda_t. \tag{1}$$
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_positive
from .._types import Scalar, Time
from .base import AbstractProcess, as_time
from .checks import check_signal


class ScaledTime(eqx.Module):
    r"""$c_\text{noise} = k\,t$: the $(N-1)\,t$ of a VP network that was trained on $N$ discrete
    steps.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.VPSDE(), c_noise=eqd.ScaledTime(499.0))  # trained on 500 steps
    ```
    """

    scale: float | Array

    def __init__(self, scale: float | Array):
        """**Arguments:**

        - `scale`: $k$.

        **Raises:** `ValueError` unless it is positive.
        """
        check_positive(self, scale=scale)
        self.scale = scale

    def __call__(self, process: AbstractProcess, t: Time) -> Scalar:
        return self.scale * as_time(t)


class LogNoise(eqx.Module):
    r"""$c_\text{noise} = \log(k\,\sigma_t/\alpha_t)$: the noise level in units of the data, times a
    number.

    **Example:**

    ```python
    net = eqd.nn.MLP(2, 2, key=jax.random.key(0))
    denoiser = eqd.Denoiser(net, eqd.EDMSDE(), c_noise=eqd.LogNoise(0.5))  # EDM's VE networks
    ```
    """

    scale: float | Array

    def __init__(self, scale: float | Array = 1.0):
        r"""**Arguments:**

        - `scale`: $k$.

        **Raises:** `ValueError` unless it is positive.
        """
        check_positive(self, scale=scale)
        self.scale = scale

    def __call__(self, process: AbstractProcess, t: Time) -> Scalar:
        instead = "Leave c_noise out for the schedule's own."
        check_signal(process, "LogNoise", "its logarithm is infinite", instead)
        return jnp.log(self.scale) - 0.5 * process.log_snr(t)

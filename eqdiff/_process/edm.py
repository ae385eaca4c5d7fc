r"""The process of Karras et al. (2022): only noise is added.

$$\mathrm dx = \sqrt{2t}\,\mathrm dw, \qquad \alpha_t = 1, \qquad \sigma_t = t \tag{1}$$

(their section 3 and table 1, right column): the time *is* the noise level. Every other process is
this one with $x$ divided by $\alpha$ and the clock $t = \sigma/\alpha$, so that its probability
flow has straight lines where the denoiser is constant, $\mathrm dx/\mathrm dt = \hat\varepsilon$.
"""

import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_interval
from .._types import Scalar, Time
from .base import AbstractProcess, as_time


class EDMSDE(AbstractProcess):
    r"""EDM's process: $\alpha_t = 1$, $\sigma_t = t$, $\mathrm dx = \sqrt{2t}\,\mathrm dw$.

    $c_\text{noise} = \frac14\log\sigma_t$. The prior is $\mathcal N(0, t_1^2 I)$.

    Do not draw times uniformly in $t = \sigma$: train with [`eqdiff.LogNormal`][]. Samplers use
    [`eqdiff.karras_times`][] by default.

    **Example:**

    ```python
    sigma = eqd.EDMSDE().sigma(2.0)  # 2: the time is the noise level
    ```

    ??? cite "Reference"

        Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
        2022, table 1.
    """

    t0: float | Array
    t1: float | Array

    def __init__(self, *, t0: float | Array = 0.002, t1: float | Array = 80.0):
        r"""**Arguments:**

        - `t0`, `t1`: the smallest and the largest noise level, in units of the data (the paper's
            $\sigma_{\min}$ and $\sigma_{\max}$, for data of standard deviation about 0.5).

        **Raises:** `ValueError` for times outside $0 < t_0 < t_1$.
        """
        check_interval(self, t0, t1)
        self.t0, self.t1 = t0, t1

    def alpha(self, t: Time) -> Scalar:
        return jnp.ones_like(as_time(t))

    def sigma(self, t: Time) -> Scalar:
        return as_time(t)

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s = as_time(s)
        return 2 * jnp.log1p((as_time(t) - s) / s)

    def time(self, log_snr: Scalar) -> Scalar:
        return jnp.exp(-0.5 * log_snr)

    def c_noise(self, t: Time) -> Scalar:
        return 0.25 * jnp.log(as_time(t))

    def alpha_dot(self, t: Time) -> Scalar:
        return jnp.zeros_like(as_time(t))

    def sigma_dot(self, t: Time) -> Scalar:
        return jnp.ones_like(as_time(t))

    def prior_scale(self) -> Scalar:
        return self.sigma(self.t1)

r"""Straight lines between data and noise.

$$x_t = (1 - t)\,x_0 + t\,\varepsilon, \qquad \alpha_t = 1 - t, \qquad \sigma_t = t, \qquad
  \dot x_t = \varepsilon - x_0 \tag{1}$$

(Liu et al. 2023; Lipman et al. 2023, with $\sigma_{\min} = 0$ and time reversed). With independent
$x_0$ and ε its velocity $\mathbb E[\varepsilon - x_0|x_t]$ is the probability flow of the SDE

$$\mathrm dx = -\frac{x}{1 - t}\,\mathrm dt + \sqrt{\frac{2t}{1 - t}}\,\mathrm dw: \tag{2}$$

a diffusion like any other, in the clock $\sigma/\alpha = t/(1-t)$. At $t = 1$ no signal is left.
The SDE is singular there, the velocity is not.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_interval
from .._types import Scalar, Time
from .base import AbstractProcess, as_time


class RectifiedFlow(AbstractProcess):
    r"""Rectified flow: $\alpha_t = 1 - t$, $\sigma_t = t$; also known as flow matching with linear
    paths.

    Use it with [`eqdiff.PredictFlow`][], whose network predicts $\varepsilon - x_0$, and
    [`eqdiff.l_simple`][], which is then the flow-matching loss. It is an SDE as well, $\mathrm dx =
    -\frac{x}{1-t}\mathrm dt + \sqrt{2t/(1-t)}\,\mathrm dw$, so that stochastic samplers and
    likelihoods apply. $c_\text{noise} = 1000\,t$.

    **Example:**

    ```python
    x = eqd.RectifiedFlow().perturb(0.25, jnp.zeros(3), jnp.ones(3))  # 0.25 each
    ```

    ??? cite "Reference"

        Liu, Gong & Liu, *Flow Straight and Fast: Learning to Generate and Transfer Data with
        Rectified Flow*, ICLR 2023; Lipman et al., *Flow Matching for Generative Modeling*, ICLR
        2023.
    """

    t0: float | Array
    t1: float | Array

    def __init__(self, *, t0: float | Array = 1e-3, t1: float | Array = 0.999):
        r"""**Arguments:**

        - `t0`, `t1`: the interval on which the process is used. $t_1 = 1$ is allowed, and makes the
            prior exact; then drift and diffusion raise an error at $t = 1$, so that only the
            probability flow can start there, with a [`eqdiff.PredictFlow`][] or
            [`eqdiff.PredictVelocity`][] network.

        **Raises:** `ValueError` for times outside $0 < t_0 < t_1 \le 1$.
        """
        check_interval(self, t0, t1, end=1.0)
        self.t0, self.t1 = t0, t1

    def alpha(self, t: Time) -> Scalar:
        return 1 - as_time(t)

    def sigma(self, t: Time) -> Scalar:
        return as_time(t)

    def log_snr_fall(self, s: Time, t: Time) -> Scalar:
        s, t = as_time(s), as_time(t)
        # (1 − s)/(1 − t) and t/s, each as 1 + what it differs by.
        return 2 * (jnp.log1p((t - s) / (1 - t)) + jnp.log1p((t - s) / s))

    def time(self, log_snr: Scalar) -> Scalar:
        return jax.nn.sigmoid(-0.5 * log_snr)

    def c_noise(self, t: Time) -> Scalar:
        return 1000 * as_time(t)

    def alpha_dot(self, t: Time) -> Scalar:
        return -jnp.ones_like(as_time(t))

    def sigma_dot(self, t: Time) -> Scalar:
        return jnp.ones_like(as_time(t))

    def prior_scale(self) -> Scalar:
        return jnp.ones(())

r"""Inverse problems: samples of $p(x_0|y)$ for a measurement $y = A(x_0) + n$.

The data's score given $y$ is $\nabla\log p_t(x) + \nabla_x\log p_t(y|x)$, where
$p_t(y|x_t) = \int p(y|x_0)\,p(x_0|x_t)\,\mathrm dx_0$. With $p(x_0|x_t)$ replaced by a Gaussian of
its own mean $\hat x_0$ and some covariance $V$, taken to vary slowly with $x_t$, and the
measurement by its linearisation at $\hat x_0$,

$$p_t(y|x_t) \approx \mathcal N\!\left(y;\ A(\hat x_0),\ \Sigma + HVH^\top\right), \tag{1}$$

where $H$ is the Jacobian of $A$ and $\Sigma$ the covariance of the noise. The score, written as a
move of $\hat x_0$ by $\delta = \frac{\sigma^2}\alpha\nabla_x\log p_t(y|x_t)$, becomes

$$\delta = \tfrac{\sigma^2}\alpha J^\top H^\top\left(\Sigma
  + HVH^\top\right)^{-1}(y - A(\hat x_0)), \qquad
  J = \frac{\partial\hat x_0}{\partial x_t}. \tag{2}$$

Three published methods are three covariances:

| | $V$ | |
|---|---|---|
| DPS (Chung et al.) | 0 | [`eqdiff.ZeroCovariance`][] |
| ΠGDM (Song et al.) | $s^2\sigma^2 I/(\alpha^2s^2+\sigma^2)$ | [`eqdiff.IsotropicCovariance`][] |
| MMPS (Rozet et al.) | $\frac{\sigma^2}\alpha J$ | [`eqdiff.JacobianCovariance`][] |

The last is the true $\mathrm{Cov}[x_0|x_t]$, by Tweedie's second-order formula, so that (2) is
$\delta = VH^\top(\Sigma + HVH^\top)^{-1}(y - A(\hat x_0))$, which for a linear $A$ and Gaussian
noise gives the posterior mean of a Gaussian: exact if $p(x_0)$ is one.
"""

import jax

from .._denoiser import AbstractDenoiser, AbstractWrapper, Estimate
from .._measurement import Measurement, require_measurement
from .._types import Args, Example, Key, Time
from .base import refuse_no_signal
from .covariance import AbstractPosteriorCovariance, JacobianCovariance, Tweedie


class PosteriorGuidance(AbstractWrapper):
    r"""The denoiser of data that were measured as $y = A(x_0) + n$: equation (2).

    A denoiser like any other: all samplers take it. For a batch of measurements build it inside
    `jax.vmap`. Clip outside, `Clip(PosteriorGuidance(...))`: a clipped pixel has no derivative, so
    measurements could not move it.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.05)  # two of four elements seen
    guided = eqd.PosteriorGuidance(eqd.GaussianDenoiser(eqd.VPSDE()), measurement)
    x0 = eqd.DDIM(10)(guided, jax.random.normal(jax.random.key(0), (4,)))
    ```
    """

    denoiser: AbstractDenoiser
    measurement: Measurement
    covariance: AbstractPosteriorCovariance

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        measurement: Measurement,
        *,
        covariance: AbstractPosteriorCovariance = JacobianCovariance(),
    ):
        r"""**Arguments:**

        - `denoiser`: the denoiser of the data without the measurement.
        - `measurement`: what was measured, and how. A nonlinear operator, and noise that depends on
            the mean, are linearised at $\hat x_0$.
        - `covariance`: which approximation of $p(x_0|x_t)$.

        **Raises:** `ValueError` for anything but a measurement, one without noise with
        [`eqdiff.ZeroCovariance`][], and a process that ends without signal (α = 0); when called,
        for an operator that does not return the shape of $y$.
        """
        require_measurement(self, measurement)
        covariance.check(measurement)
        refuse_no_signal(
            "PosteriorGuidance", denoiser, "x says nothing of x0 and equation (2) is 0/0"
        )
        self.denoiser, self.measurement, self.covariance = denoiser, measurement, covariance

    def __call__(
        self, t: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Estimate:
        self.measurement.check("PosteriorGuidance", x)
        alpha, sigma = self.process.levels(t, like=x)

        def estimate_of(x):
            estimate = self.denoiser(t, x, args, key=key)
            return estimate.x0, estimate

        x0, tangent, estimate = jax.linearize(estimate_of, x, has_aux=True)
        cotangent = jax.linear_transpose(tangent, x)
        scale = sigma**2 / alpha
        tweedie = Tweedie(lambda v: scale * tangent(v), lambda v: scale * cotangent(v)[0])
        delta = self.covariance.delta(self.measurement, x0, tweedie, alpha, sigma)
        return estimate.move(delta, alpha, sigma)

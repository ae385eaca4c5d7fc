r"""DiffPIR: denoise, fit the measurement, add noise again.

A split sampler deals with the prior and the measurement in turn. At each level the denoiser gives
$\hat x_0$; a proximal step moves it towards the measurement, as far as the level's noise leaves
$\hat x_0$ uncertain,

$$\hat x_0' = \operatorname*{arg\,min}_x\ -\log p(y|x) + \frac{\|x - \hat x_0\|^2}{2v}, \qquad
  v = \frac{\sigma_t^2}{\lambda\alpha_t^2}, \tag{1}$$

which for $y = Ax_0 + \sigma_y n$ is the paper's minimum of
$\|y - Ax\|^2 + \rho_t\|x - \hat x_0\|^2$ with $\rho_t = \lambda\sigma_y^2\alpha_t^2/\sigma_t^2$;
and the state at the next level is made from it with a share ζ of fresh noise,

$$x_s = \alpha_s\hat x_0' + \sigma_s\left(\sqrt{1-\zeta}\,\hat\varepsilon' + \sqrt\zeta\,z\right),
  \qquad \hat\varepsilon' = \frac{x_t - \alpha_t\hat x_0'}{\sigma_t}. \tag{2}$$

No derivative of the network is needed. **What this samples.** Not the posterior: (1) is a point
where the posterior given $x_t$ has a spread.
"""

from typing import Any

import equinox as eqx
import jax

from .._check import check_fraction, check_positive, whole
from .._guidance import refuse_no_signal
from .._measurement import Measurement, require_measurement
from .base import AbstractChain
from .grid import Grid, grid_of, Spacing
from .linearised import gauss_newton


class DiffPIR(AbstractChain):
    r"""DiffPIR, equations (1) and (2): a chain that fits a measurement after every denoising.

    Each step costs one network call and no derivative of the network. For a batch of measurements
    build the sampler inside `jax.vmap`.

    **Example:**

    ```python
    measurement = eqd.Measurement(jnp.ones(2), lambda x: x[:2], 0.05)
    denoiser, sampler = eqd.GaussianDenoiser(eqd.VPSDE()), eqd.DiffPIR(measurement, 10)
    x0 = sampler(denoiser, jnp.ones(4), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Zhu et al., *Denoising Diffusion Models for Plug-and-Play Image Restoration*, CVPR Workshops
        2023, algorithm 1.
    """

    measurement: Measurement
    grid: Grid
    strength: float
    share: float = eqx.field(static=True)
    linearisations: int = eqx.field(static=True)
    iterations: int = eqx.field(static=True)

    def __init__(
        self,
        measurement: Measurement,
        num_steps: int | None = None,
        *,
        strength: float = 8.0,
        share: float = 0.5,
        linearisations: int = 1,
        iterations: int = 30,
        spacing: Spacing | None = None,
        times: Any = None,
    ):
        r"""**Arguments:**

        - `measurement`: the measurement; its operator may be nonlinear.
        - `num_steps`, `spacing`, `times`: the times, as for [`eqdiff.Grid`][]; 100 evenly spaced
            ones by default.
        - `strength`: λ of equation (1), how strongly the denoiser's estimate holds against the
            measurement. The paper tunes it between 1 and 25.
        - `share`: ζ in $[0, 1]$ of equation (2), how much of the noise is fresh.
        - `linearisations`: Gauss–Newton steps for equation (1), which is quadratic, and solved by
            one, where the operator is linear.
        - `iterations`: at most this many of conjugate gradients in each; as many as $y$ has
            elements are exact, few are good.

        **Raises:** `ValueError` for a number out of range, and as [`eqdiff.Grid`][]; when called,
        for a measurement that does not fit the sample, and a process that ends without signal
        (α = 0).
        """
        require_measurement(self, measurement)
        check_positive(self, strength=strength)
        check_fraction(self, share=share)
        self.measurement = measurement
        self.grid = grid_of(self, num_steps, spacing, times, default=100)
        self.strength, self.share = strength, float(share)
        self.linearisations = whole(self, "linearisations", linearisations)
        self.iterations = whole(self, "iterations", iterations)

    @property
    def random(self) -> bool:
        return self.share > 0

    @property
    def num_calls(self) -> int | None:
        return self.grid.num_steps

    def step(self, denoiser, step, x, args, *, key):
        self.measurement.check("DiffPIR", x)
        refuse_no_signal("DiffPIR", denoiser, "the proximal step has no scale")
        estimate = denoiser(step.t, x, args)
        variance = step.sigma_t**2 / (self.strength * step.alpha_t**2)
        x0 = gauss_newton(
            self.measurement, estimate.x0, variance, self.linearisations, self.iterations
        )
        noise = estimate.move(x0 - estimate.x0, step.alpha_t, step.sigma_t).noise
        if self.random:
            fresh = jax.random.normal(key, x.shape, x.dtype)
            noise = (1 - self.share) ** 0.5 * noise + self.share**0.5 * fresh
        return step.alpha_s * x0 + step.sigma_s * noise, x0

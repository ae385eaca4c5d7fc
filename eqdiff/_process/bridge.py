r"""A process that ends in data.

Pinned at both ends, $x_0$ and $x_T = x_1$ with $T = t_1$, a process is a *bridge*. Write its end as
a noise, $\varepsilon_T = (x_1 - \alpha_T x_0)/\sigma_T$. Then at every time $x_t = \alpha_t x_0 +
\sigma_t\varepsilon_t$ as always, with

$$\varepsilon_t = \sqrt{\rho_t}\,\varepsilon_T + \sqrt{1 - \rho_t}\,z, \qquad
  \rho_t = \frac{\mathrm{SNR}_T}{\mathrm{SNR}_t} = e^{\lambda_T - \lambda_t}, \qquad
  z \sim \mathcal N(0, I), \tag{1}$$

since the noises of two times of a diffusion are correlated by $\sqrt\rho$. Multiplied out, this is

$$x_t = \alpha_t(1 - \rho_t)\,x_0 + \rho_t\frac{\alpha_t}{\alpha_T}\,x_1
  + \sigma_t\sqrt{1 - \rho_t}\,z, \tag{2}$$

equation 8 of Zhou et al. (2024, DDBM); with $\alpha = 1$ equation 11 of Liu et al. (2023, I²SB);
and with $\sigma_t^2 = s^2 t$ the Brownian bridge
$x_t = (1 - t)x_0 + t x_1 + s\sqrt{t(1 - t)}\,z$, the stochastic interpolant of Albergo &
Vanden-Eijnden (2023) with $\gamma^2 = s^2 t(1 - t)$.

Given $x_0$ and $x_t$, a past $x_s$ does not depend on $x_1$. So one step backwards,
$p(x_s|\hat x_0, x_t)$, is that of the process itself: DDIM's at $\eta = 1$, and in the limit the
reverse SDE with $\hat\varepsilon = \mathbb E[\varepsilon_t|x_t]$,

$$\mathrm dx = \Bigl(f x + \frac{g^2}{\sigma_t}\hat\varepsilon\Bigr)\mathrm dt
  + g\,\mathrm d\bar w, \qquad x_T = x_1, \tag{3}$$

whose law at every $t$ is that of (2), over all pairs of the data (Shi et al. 2023, proposition 2).
With $\hat\varepsilon = \mathbb E[\varepsilon_t|x_t, x_1]$ this holds for each $x_1$ separately:
started at $x_1$, (3) ends in samples of $p(x_0|x_1)$. The probability flow has another velocity
here, since $-\hat\varepsilon/\sigma$ is not the score of $x_t$.
"""

import jax
import jax.numpy as jnp

from .._check import check_example
from .._types import Example, Key, Time
from .base import AbstractProcess, has_no_signal


def bridge_noise(
    process: AbstractProcess, t: Time, x0: Example, x1: Example, *, key: Key
) -> Example:
    r"""The noise $\varepsilon_t$ of a process that ends in `x1`: equation (1), for
    [`eqdiff.predict`][].

    Then $x_t = \alpha_t x_0 + \sigma_t\varepsilon_t$ is `x0` at the data and `x1` at $t_1$. To go
    back from `x1`, use a sampler that adds the noise of the reverse SDE: [`eqdiff.DDIM`][] at η =
    1, [`eqdiff.SDEDPMSolverPP`][] or [`eqdiff.ReverseSDE`][]. The noise on the way is the process's
    own, of width $\sigma_{t_1}$ in all, so choose one that suits the distance of the ends:
    `EDMSDE(t1=1.0)` for ends that are about 1 apart.

    **Arguments:**

    - `process`: any process with some signal left at its end.
    - `t`: a time.
    - `x0`: one example of data.
    - `x1`: what it becomes at $t_1$: another image, a measurement, data of another set.
    - `key`: for $z$.

    **Returns:** $\varepsilon_t$, shaped like `x0`.

    **Raises:** `ValueError` for ends of different shapes, integer data, and a process without
    signal at its end, which forgets `x0` before it gets there.

    **Example:**

    ```python
    process, x0, x1 = eqd.EDMSDE(t1=1.0), jnp.zeros(3), jnp.ones(3)
    noise = eqd.bridge_noise(process, 0.5, x0, x1, key=jax.random.key(0))
    p = eqd.predict(eqd.GaussianDenoiser(process), 0.5, x0, x1, noise=noise)
    ```

    ??? cite "Reference"

        Liu et al., *I²SB: Image-to-Image Schrödinger Bridge*, ICML 2023; Zhou et al., *Denoising
        Diffusion Bridge Models*, ICLR 2024; Albergo, Boffi & Vanden-Eijnden, *Stochastic
        Interpolants*, 2023.
    """
    check_example("bridge_noise", x0)
    check_example("bridge_noise", x1)
    if x0.shape != x1.shape:
        raise ValueError(
            f"bridge_noise: the ends have shapes {x0.shape} and {x1.shape}; they must agree. For a "
            "batch write jax.vmap; a condition of another shape belongs in args."
        )
    if has_no_signal(process):
        name = type(process).__name__
        raise ValueError(
            f"bridge_noise: {name} has no signal at its end t1 = {process.t1} (alpha = 0), so that "
            "x1 would not depend on x0. For straight lines from x0 to x1 give the end itself, "
            "predict(..., noise=x1); for a bridge write for example EDMSDE(t1=1.0)."
        )
    alpha, sigma = process.levels(process.t1, like=x0)
    fall = jnp.maximum(process.log_snr_fall(t, process.t1), 0).astype(x0.dtype)
    end = (x1 - alpha * x0) / sigma
    z = jax.random.normal(key, x0.shape, x0.dtype)
    return jnp.exp(-0.5 * fall) * end + jnp.sqrt(-jnp.expm1(-fall)) * z

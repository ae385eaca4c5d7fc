r"""The variational bound in continuous time, of any process.

A model that draws $x_{t_1}$ from the prior, follows the reverse SDE to $x_{t_0}$ and reads off
discrete data there has

$$-\log P(x_0) \le \mathrm{KL}(q(x_{t_1}|x_0)\,\|\,\mathcal N(0, s^2 I))
  + \mathbb E[-\log P(x_0|x_{t_0})]
  + \frac12\int_{\lambda_1}^{\lambda_0}
    \mathbb E\|\varepsilon - \hat\varepsilon(x_\lambda)\|^2\,\mathrm d\lambda, \tag{1}$$

with $\lambda = \log(\alpha^2/\sigma^2)$: the limit of the discrete bound, which depends on a
process only through the ends of its λ (Kingma et al. 2021, equations 11, 12 and 17).
$P(x_0|x_{t_0})$ is the discretised Gaussian around $\hat x_0$ with the standard deviation
$\sigma_{t_0}/\alpha_{t_0}$.

The integral is estimated with $m$ strata of equal width $h$ in λ, two values
$e_{ji} = \frac1D\|\varepsilon - \hat\varepsilon\|^2$ in each,

$$\widehat L = \frac h2\sum_{j=1}^m \bar e_j, \qquad
  \widehat{\mathrm{Var}} = \frac{h^2}{4}\sum_{j=1}^m \frac{(e_{j1} - e_{j2})^2}{4}. \tag{2}$$

The second term of (1) has two draws, too.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import check_levels, whole
from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood, nats_to_bits
from .._loss import prior_kl
from .._loss.discrete import Decoder
from .._predict import predict
from .._process import AbstractProcess
from .._types import Args, Example, Key, Scalar
from .chunks import in_chunks


class ContinuousBound(eqx.Module):
    r"""The bound on one example and its parts, in bits per dimension.

    - `bits`: the estimate of (1), the sum of `prior`, `reconstruction` and `diffusion`.
    - `stderr`: its standard error given the image, the root of (2) with the spread of the
        reconstruction's draws; `stderr**2` is unbiased.
    - `prior`, `reconstruction`, `diffusion`: the three terms, of which the first is exact.
    - `t`: the times drawn.
    - `noise_error`: $\frac1D\|\varepsilon - \hat\varepsilon\|^2$ at each.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    bound = eqd.continuous_bound(denoiser, jnp.ones(3), key=jax.random.key(0))
    bits, stderr = bound.bits, bound.stderr  # bound is an eqd.ContinuousBound
    ```
    """

    bits: Scalar
    stderr: Scalar
    prior: Scalar
    reconstruction: Scalar
    diffusion: Scalar
    t: Float[Array, " n"]
    noise_error: Float[Array, " n"]


def continuous_bound(
    denoiser: AbstractDenoiser,
    x0: Example,
    args: Args = None,
    *,
    key: Key,
    num_terms: int = 64,
    levels: int = 256,
    decoder: Decoder = discretised_gaussian_log_likelihood,
    chunk: int = 16,
) -> ContinuousBound:
    r"""The variational bound on one example in continuous time, equation (1), estimated.

    It is a bound on discrete data, so no dequantisation enters, and it holds for every process, VE,
    sub-VP, EDM and rectified flow included, on the interval $[t_0, t_1]$. For the bound of a chain
    of finitely many steps see [`eqdiff.variational_bound`][].

    **Arguments:**

    - `denoiser`: on any process.
    - `x0`: one example on the grid $-1, -1 + 2/(L-1), \dots, 1$.
    - `args`: the network's conditioning, if any.
    - `key`: for times and noise.
    - `num_terms`: how many times are drawn, an even number of at least 2; each costs one network
        call, and two more are made at $t_0$.
    - `levels`, `decoder`: the number of grey levels $L$ and the decoder's likelihood, as for
        [`eqdiff.bound_term`][].
    - `chunk`: how many times at most are evaluated at once; the result does not depend on it.

    **Returns:** a [`eqdiff.ContinuousBound`][].

    **Raises:** `ValueError` for numbers out of range; an error for an image with values on none of
    the levels.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    bound = eqd.continuous_bound(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Kingma et al., *Variational Diffusion Models*, NeurIPS 2021.
    """
    owner = "continuous_bound"
    process = denoiser.process
    levels = whole(owner, "levels", levels, least=2, remedy=" 8-bit images have 256.")
    num_terms = whole(owner, "num_terms", num_terms, least=2)
    if num_terms % 2:
        raise ValueError(f"{owner}(num_terms={num_terms}): expected an even number, two a stratum.")
    x0 = check_levels(f"{owner}(levels={levels})", x0, levels)
    times_key, noise_key = jax.random.split(key)
    t0 = jnp.asarray(process.t0, x0.dtype)
    times, width = _times(process, num_terms, x0.dtype, times_key)
    times = jnp.concatenate([times, t0[None], t0[None]])

    def drawn(draw):
        t, number = draw
        p = predict(denoiser, t, x0, args, key=jax.random.fold_in(noise_key, number))
        log_std = jnp.broadcast_to(-0.5 * process.log_snr(t).astype(x0.dtype), x0.shape)
        nll = -jnp.mean(decoder(x0, p.estimate.x0, log_std, levels=levels))
        return jnp.mean((p.estimate.noise - p.noise) ** 2), nll

    draws = (times, jnp.arange(num_terms + 2, dtype=jnp.int32))
    errors, nlls = in_chunks(drawn, draws, chunk)
    pairs = errors[:-2].reshape(-1, 2)
    diffusion = nats_to_bits(0.5 * width * jnp.sum(jnp.mean(pairs, axis=1)))
    reconstruction = nats_to_bits(jnp.mean(nlls[-2:]))
    # Not for gradients: that of a square root at 0 is infinite.
    spread = jax.lax.stop_gradient(jnp.sum((pairs[:, 0] - pairs[:, 1]) ** 2) * (width / 2) ** 2 / 4)
    spread = spread + jax.lax.stop_gradient((nlls[-2] - nlls[-1]) ** 2 / 4)
    prior = nats_to_bits(prior_kl(process, x0))
    bits = prior + reconstruction + diffusion
    stderr = nats_to_bits(jnp.sqrt(spread))
    return ContinuousBound(bits, stderr, prior, reconstruction, diffusion, times[:-2], errors[:-2])


def _times(
    process: AbstractProcess, num_terms: int, dtype, key: Key
) -> tuple[Float[Array, " n"], Scalar]:
    """Times at two uniform values of λ in each stratum, and the strata's width."""
    high, low = (process.log_snr(t).astype(dtype) for t in (process.t0, process.t1))
    strata = num_terms // 2
    width = (high - low) / strata
    u = jax.random.uniform(key, (strata, 2), dtype)
    log_snr = low + width * (jnp.arange(strata, dtype=dtype)[:, None] + u)
    times = jax.vmap(process.time)(log_snr.reshape(-1)).astype(dtype)
    return jnp.clip(times, jnp.asarray(process.t0, dtype), jnp.asarray(process.t1, dtype)), width

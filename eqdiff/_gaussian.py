r"""Small exact pieces of probability shared by every floor above (floor 0).

The KL divergence of two diagonal Gaussians, in nats per element,

$$\mathrm{KL}(\mathcal N(\mu_1, e^{\ell_1})\,\|\,\mathcal N(\mu_2, e^{\ell_2}))
  = \tfrac12\left(\ell_2 - \ell_1 + e^{\ell_1 - \ell_2} - 1
    + (\mu_1 - \mu_2)^2 e^{-\ell_2}\right), \tag{1}$$

and the likelihood of a grid value under a Gaussian integrated over its bin (Ho et al. 2020,
equation 13; Nichol & Dhariwal 2021, official code), with outermost bins that reach to infinity,

$$P(x) = \Phi\!\left(\frac{x
  + h - \mu}{\varsigma}\right) - \Phi\!\left(\frac{x - h - \mu}{\varsigma}\right),
  \qquad h = \frac{1}{L - 1}, \tag{2}$$

for $L$ equally spaced grey levels on $[-1, 1]$; and under a Gaussian restricted to the grid's
values $v$ (Kingma et al. 2021, section 3.3),

$$P(x) = \frac{e^{-(x - \mu)^2/2\varsigma^2}}{\sum_v e^{-(v - \mu)^2/2\varsigma^2}}. \tag{3}$$
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from ._types import Example, Scalar


# The official code clamps every probability here before its logarithm.
_FLOOR = 1e-12

# The official approximation Φ(z) ≈ ½(1 + tanh(√(2/π)(z + 0.044715 z³))), as the logit of Φ: off by
# at most 1.8e-4.
_SLOPE, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def nats_to_bits(nats: Float[Array, "..."]) -> Float[Array, "..."]:
    """Converts nats to bits."""
    return nats / math.log(2)


def log1mexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\log(1 - e^{-x})$ for $x > 0$ without cancellation at either end (Mächler 2012)."""
    small = x < math.log(2)
    # Both branches are evaluated, so each is given an argument where it is finite: gradients stay
    # finite too.
    near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0)))
    far = jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x)))
    return jnp.where(small, near, far)


def gaussian_kl(
    mean_difference: Float[Array, "..."],
    log_variance1: Float[Array, "..."],
    log_variance2: Float[Array, "..."],
) -> Float[Array, "..."]:
    r"""Equation (1) in nats per element, given $\mu_1 - \mu_2$.

    The argument is the difference, not two means: those of a reverse step share the term in $x_t$,
    and subtracting them after adding it would lose the digits in which they differ.
    """
    ratio = log_variance1 - log_variance2
    # expm1(r) − r is the variance part of twice the KL: exact at r = 0, where the two terms cancel.
    return 0.5 * (jnp.expm1(ratio) - ratio + mean_difference**2 * jnp.exp(-log_variance2))


def standard_normal_log_prob(z: Example) -> Scalar:
    r"""$\log \mathcal N(z; 0, I) = -\tfrac12 \|z\|^2 - \tfrac D2 \log 2\pi$, in nats."""
    return -0.5 * jnp.sum(z**2) - 0.5 * z.size * math.log(2 * math.pi)


def _logit_cdf(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return _SLOPE * (z + _CUBIC * z**3)


def _log_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    # The derivative of jax.nn.log_sigmoid is the exponential of a difference of logarithms, which
    # made the decoder's float32 gradient three times as noisy as the official formula's.
    return jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


def discretised_gaussian_log_likelihood(
    x: Example, mean: Example, log_std: Example, *, levels: int = 256
) -> Example:
    r"""Equation (2) in nats per element, with the official code's tanh approximation of $\Phi$.

    **Arguments:**

    - `x`: data on the grid $-1, -1 + 2h, \dots, 1$.
    - `mean`, `log_std`: of the Gaussian, shaped like `x`.
    - `levels`: the number of grey levels $L$ (256 for 8-bit images, 17 for scikit-learn's digits).

    **Returns:** the log-probability of each element, clamped below at $\log 10^{-12}$ like the
    official code.

    **Example:**

    ```python
    log_p = eqd.discretised_gaussian_log_likelihood(
        jnp.zeros(3), jnp.zeros(3), jnp.full(3, -4.0), levels=17
    )
    ```
    """
    half = 1 / (levels - 1)
    inverse_std = jnp.exp(-log_std)
    z, reach = inverse_std * (x - mean), inverse_std * half
    # ½(1 + tanh a) is sigmoid(2a), and sigmoid(A) − sigmoid(B) = sigmoid(A) sigmoid(−B) (1 −
    # e^{B−A}): the official number, but as a sum of logarithms. The difference of two tanh loses
    # every digit of a float32 in the tails.
    upper, lower = _logit_cdf(z + reach), _logit_cdf(z - reach)
    width = _SLOPE * reach * (2 + _CUBIC * (6 * z**2 + 2 * reach**2))
    below, above = _log_sigmoid(upper), _log_sigmoid(-lower)
    # The official edge test |x| > 0.999 is a quarter of a bin inside the last level for 256 levels.
    edge = 1 - half / 4
    # For a Gaussian so wide that the width underflows, the clamp must win without a gradient of 0 ·
    # ∞.
    inside = below + above + log1mexp(jnp.maximum(width, jnp.finfo(width.dtype).tiny))
    log_probability = jnp.where(x < -edge, below, jnp.where(x > edge, above, inside))
    return jnp.maximum(log_probability, math.log(_FLOOR))


def discretised_gaussian_log_likelihood_exact(
    x: Example, mean: Example, log_std: Example, *, levels: int = 256
) -> Example:
    r"""Equation (2) in nats per element, with the exact $\Phi$ and no clamp.

    It works in log-space from the smaller tail, so that it neither cancels nor
    underflows. Arguments as for `discretised_gaussian_log_likelihood`.

    **Example:**

    ```python
    log_p = eqd.discretised_gaussian_log_likelihood_exact(
        jnp.zeros(3), jnp.zeros(3), jnp.full(3, -4.0), levels=17
    )
    ```
    """
    half = 1 / (levels - 1)
    inverse_std = jnp.exp(-log_std)
    # By symmetry the bin is reflected onto the negative axis, where log Φ is accurate.
    centre = -jnp.abs(x - mean)
    log_upper = log_ndtr(inverse_std * (centre + half))
    log_lower = log_ndtr(inverse_std * (centre - half))
    # The difference is positive, but rounding may make it 0 for a bin much narrower than the
    # Gaussian.
    gap = jnp.maximum(log_upper - log_lower, jnp.finfo(x.dtype).tiny)
    inside = log_upper + log1mexp(gap)
    edge = 1 - half / 4
    below = log_ndtr(inverse_std * (x - mean + half))
    above = log_ndtr(-inverse_std * (x - mean - half))
    return jnp.where(x < -edge, below, jnp.where(x > edge, above, inside))


def grid_gaussian_log_likelihood(
    x: Example, mean: Example, log_std: Example, *, levels: int = 256
) -> Example:
    r"""Equation (3) in nats per element: the probability of each level, given its noisy value.

    If all levels are equally likely beforehand this is the posterior: without a network, nothing
    decodes $x + \varsigma\varepsilon$ better. Arguments as for
    `discretised_gaussian_log_likelihood`, `mean` being the noisy value. Memory is `levels` times
    that of `x`.

    **Example:**

    ```python
    log_p = eqd.grid_gaussian_log_likelihood(
        jnp.zeros(3), jnp.zeros(3), jnp.full(3, -4.0), levels=17
    )
    ```

    ??? cite "Reference"

        Kingma, Salimans, Poole & Ho, *Variational Diffusion Models*, NeurIPS 2021, section 3.3.
    """
    grid = jnp.linspace(-1, 1, levels, dtype=x.dtype).reshape(*(1,) * x.ndim, levels)
    x, mean, precision = (a[..., None] for a in (x, mean, jnp.exp(-2 * log_std)))
    # The exponents less that of x itself, as a product, in which nothing cancels.
    exponents = -0.5 * precision * (grid - x) * (grid + x - 2 * mean)
    return -jax.nn.logsumexp(exponents, axis=-1)

r"""From pixels to densities.

Images take $L$ values; a flow has a density. Two ways connect them, each a lower bound on the log-probability $\log P(x)$ of
the pixels, and each right only for the data its network was trained on.

**Uniform**, for networks trained on dequantised data $y = \text{low} + w (k + u)$, $u \sim U[0,1)^D$, where level $k$ owns a
bin of width $w = (\text{high} - \text{low})/L$ (Theis et al. 2016; Song et al. 2021, appendix C):

$$\log P(x) \ge \mathbb E_u[\log p(y)] + D\log w. \tag{1}$$

**Gaussian**, for networks trained on the grid itself, whose density has spikes of width $\sigma_{t_0}$ at the levels, into
which uniform noise never falls. The noise is the process's own first, $y = \alpha_{t_0}x + \sigma_{t_0}z$, and a decoder
returns to the grid:

$$\log P(x) \ge \mathbb E_z[\log p_{t_0}(y) + \log P(x|y)] + \tfrac D2\log(2\pi e\sigma_{t_0}^2), \tag{2}$$

with $P(x|y)$ a Gaussian around $\hat x_0(t_0, y)$ of standard deviation $\sigma_{t_0}/\alpha_{t_0}$, integrated over each level's
bin.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from ._denoiser import AbstractDenoiser
from ._misc import discretised_gaussian_log_likelihood_exact
from ._term import require_sde
from ._types import Args, Example, Key, Scalar


class AbstractDequantisation(eqx.Module):
    r"""Turns pixels into a point of the flow, and its log-density into a bound on their log-probability."""

    @abc.abstractmethod
    def __call__(
        self, denoiser: AbstractDenoiser, image: Example, args: Args = None, *, key: Key
    ) -> tuple[Example, Scalar]:
        r"""Draws $y$.

        **Returns:** $y$, at time $t_0$, and the offset $c$ (nats) with
        $\log P(\text{image}) \ge \mathbb E[\log p_{t_0}(y) + c]$.
        """


def _check(owner: str, levels: int, low: float, high: float) -> None:
    if levels < 2 or not low < high:
        raise ValueError(
            f"{owner}(levels={levels}, low={low}, high={high}): expected at least 2 levels and low < high."
        )


class UniformDequantisation(AbstractDequantisation):
    r"""Uniform noise within each level's bin, equation (1): for networks trained on dequantised data.

    For 8-bit images on $[-1, 1]$ the offset is the familiar 7 bits/dim.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        r"""**Arguments:**

        - `levels`: the number of grey levels $L$ (256 for 8-bit images, 17 for scikit-learn's digits).
        - `low`, `high`: the values of the lowest and highest level in the images given.
        """
        _check("UniformDequantisation", levels, low, high)
        self.levels, self.low, self.high = levels, low, high

    def __call__(self, denoiser, image, args=None, *, key):
        span = self.high - self.low
        level = jnp.rint((image - self.low) * ((self.levels - 1) / span))
        u = jax.random.uniform(key, image.shape, image.dtype)
        y = self.low + span / self.levels * (level + u)
        return y, jnp.asarray(image.size * math.log(span / self.levels), image.dtype)


class GaussianDequantisation(AbstractDequantisation):
    r"""The process's own noise at $t_0$ and a decoder, equation (2): for networks trained on grid values.

    This is what networks trained with $L_\text{vlb}$, $L_\text{hybrid}$ or on plain normalised pixels need.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        """**Arguments:** as for [`eqdiff.UniformDequantisation`][]."""
        _check("GaussianDequantisation", levels, low, high)
        self.levels, self.low, self.high = levels, low, high

    def __call__(self, denoiser, image, args=None, *, key):
        process = require_sde(denoiser.process, "GaussianDequantisation")
        t0 = jnp.asarray(process.t0, image.dtype)
        alpha, sigma = process.alpha(t0).astype(image.dtype), process.sigma(t0).astype(image.dtype)
        y = process.perturb(t0, image, jax.random.normal(key, image.shape, image.dtype))
        # The decoder's grid is [−1, 1].
        scale = 2 / (self.high - self.low)
        mean = scale * (denoiser(t0, y, args).x0 - self.low) - 1
        log_std = jnp.broadcast_to(jnp.log(scale * sigma / alpha), image.shape)
        decoder = discretised_gaussian_log_likelihood_exact(
            scale * (image - self.low) - 1, mean, log_std, levels=self.levels
        )
        entropy = image.size * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(sigma))
        return y, entropy + jnp.sum(decoder)

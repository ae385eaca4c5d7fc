r"""From pixels to densities.

Images take $L$ values; a flow has a density. Three ways connect them, each a lower bound on the
log-probability $\log P(x)$ of the pixels, and each right only for the data its network was trained
on.

**Uniform**, for networks trained on dequantised data $y = \text{low} + w (k + u)$,
$u \sim U[0,1)^D$, where level $k$ owns a bin of width $w = (\text{high} - \text{low})/L$ (Theis et
al. 2016; Song et al. 2021, appendix C):

$$\log P(x) \ge \mathbb E_u[\log p(y)] + D\log w. \tag{1}$$

**Variational**, for the same networks: noise $u \sim q(u|x)$ that is learned is not spread over the
whole bin but goes where the density is (Ho et al. 2019; Song et al. 2021b). Uniform noise is the
case $q = 1$, and the bound is exact where $q(u|x) \propto p(y)$:

$$\log P(x) \ge \mathbb E_{u\sim q}[\log p(y) - \log q(u|x)] + D\log w. \tag{2}$$

**Gaussian**, for networks trained on the grid itself, whose density has spikes of width
$\sigma_{t_0}$ at the levels, into which uniform noise never falls. The noise is the process's own
first, $y = \alpha_{t_0}x + \sigma_{t_0}z$, and a decoder returns to the grid:

$$\log P(x) \ge \mathbb E_z[\log p_{t_0}(y) + \log P(x|y)]
  + \tfrac D2\log(2\pi e\sigma_{t_0}^2), \tag{3}$$

with $P(x|y)$ a Gaussian around $\hat x_0(t_0, y)$ of standard deviation
$\sigma_{t_0}/\alpha_{t_0}$, integrated over each level's bin.
"""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_levels, of, whole
from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood_exact
from .._types import Args, Example, Key, Scalar


class AbstractDequantisation(eqx.Module):
    r"""Turns pixels into a point of the flow, whose log-density bounds their log-probability."""

    @abc.abstractmethod
    def __call__(
        self, denoiser: AbstractDenoiser, image: Example, args: Args = None, *, key: Key
    ) -> tuple[Example, Scalar]:
        r"""Draws $y$.

        **Returns:** $y$, at time $t_0$, and the offset $c$ (nats) with
        $\log P(\text{image}) \ge \mathbb E[\log p_{t_0}(y) + c]$.

        **Raises:** `ValueError` for images of whole numbers; an error for values that are on none
        of the levels (a `ValueError` that shows them, or under `jit` a runtime error).
        """


def _check(owner: AbstractDequantisation, levels: int, low: float, high: float) -> int:
    levels = whole(owner, "levels", levels, least=2, remedy=" 8-bit images have 256.")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{of(owner)}(low={low}, high={high}): expected finite low < high.")
    return levels


def _level(
    dequantise: "UniformDequantisation | GaussianDequantisation | VariationalDequantisation",
    image: Example,
) -> Example:
    """Which level each pixel is on, 0 to L − 1; an error if it is on none."""
    levels, low, high = dequantise.levels, dequantise.low, dequantise.high
    owner = f"{of(dequantise)}(levels={levels}, low={low:g}, high={high:g})"
    image = check_levels(owner, image, levels, low, high)
    return jnp.rint((image - low) * ((levels - 1) / (high - low)))


class UniformDequantisation(AbstractDequantisation):
    r"""Uniform noise within each level's bin, (1): for networks trained on dequantised data.

    For 8-bit images on $[-1, 1]$ the offset is the familiar 7 bits/dim.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        r"""**Arguments:**

        - `levels`: the number of grey levels $L$ (256 for 8-bit images, 17 for scikit-learn's
            digits).
        - `low`, `high`: the values of the lowest and highest level in the images given.
        """
        self.levels = _check(self, levels, low, high)
        self.low, self.high = low, high

    def __call__(self, denoiser, image, args=None, *, key):
        level = _level(self, image)
        width = (self.high - self.low) / self.levels
        y = self.low + width * (level + jax.random.uniform(key, image.shape, image.dtype))
        return y, jnp.asarray(image.size * math.log(width), image.dtype)


# noise(image, args, key=key) -> u in [0, 1], shaped like the image, and log q(u | image).
Noise = Callable[..., tuple[Example, Scalar]]


class VariationalDequantisation(AbstractDequantisation):
    r"""Noise within each level's bin from a model of it, equation (2).

    For networks trained on dequantised data.     Train the model of the noise by minimising
    [`eqdiff.bits_per_dim`][] with respect to it, with the network or after it.

    ??? cite "Reference"

        Ho, Chen, Srinivas, Duan & Abbeel, *Flow++: Improving Flow-Based Generative Models with
        Variational Dequantization and Architecture Design*, ICML 2019, section 3.1; Song, Durkan,
        Murray & Ermon, *Maximum Likelihood Training of Score-Based Diffusion Models*, NeurIPS 2021.
    """

    noise: Noise
    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, noise: Noise, levels: int = 256, low: float = -1.0, high: float = 1.0):
        r"""**Arguments:**

        - `noise`: $q(u|x)$, called as `noise(image, args, key=key)`, which draws $u \in [0, 1]^D$
            shaped like the image and returns it with $\log q(u|x)$ in nats;
            [`eqdiff.LogisticNoise`][], or any callable.
        - `levels`, `low`, `high`: as for [`eqdiff.UniformDequantisation`][].

        **Raises:** `ValueError` for fewer than two levels, or unless `low < high`.
        """
        self.levels = _check(self, levels, low, high)
        self.noise, self.low, self.high = noise, low, high

    def __call__(self, denoiser, image, args=None, *, key):
        level = _level(self, image)
        width = (self.high - self.low) / self.levels
        u, log_q = self.noise(image, args, key=key)
        if u.shape != image.shape or log_q.shape != ():
            raise ValueError(
                f"VariationalDequantisation: noise returned u of shape {u.shape} and log q of "
                f"shape {log_q.shape} for an image of "
                f"shape {image.shape}; expected {image.shape} and () (sum the log-density over "
                "pixels)."
            )
        u = eqx.error_if(
            u,
            ~jnp.all((u >= 0) & (u <= 1)),
            "VariationalDequantisation: noise returned u outside [0, 1], which belongs to another "
            "level's bin.",
        )
        y = self.low + width * (level + u.astype(image.dtype))
        return y, image.size * math.log(width) - log_q.astype(image.dtype)


class LogisticNoise(eqx.Module):
    r"""A learnable $q(u|x)$ for [`eqdiff.VariationalDequantisation`][].

    $u = \operatorname{sigmoid}(\mu(x) + s(x) z)$ with logistic $z$.
    Independent given the image. With $\mu = 0$, $s = 1$, where a network whose last layer is zero
    starts, it is uniform and $\log q = 0$.
    """

    net: Callable[[Example], Example]

    def __init__(self, net: Callable[[Example], Example]):
        r"""**Arguments:**

        - `net`: image to twice its channels: μ, then $\log s$.
        """
        self.net = net

    def __call__(self, image: Example, args: Args = None, *, key: Key) -> tuple[Example, Scalar]:
        r"""Draws $u$.

        **Returns:** $u$ and $\log q(u|x)$ in nats.

        **Raises:** `ValueError` for a network that does not return twice the channels.
        """
        output = self.net(image)
        expected = (2 * image.shape[0], *image.shape[1:])
        if output.shape != expected:
            raise ValueError(
                f"LogisticNoise: net returned shape {output.shape} for an image of shape "
                f"{image.shape}, expected {expected}: "
                "the shift, then the log-scale."
            )
        shift, log_scale = jnp.split(output.astype(image.dtype), 2)
        z = jax.random.logistic(key, image.shape, image.dtype)
        logit = shift + jnp.exp(log_scale) * z

        def log_slope(x):  # of the sigmoid; also the logistic log-density
            return jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x)

        return jax.nn.sigmoid(logit), jnp.sum(log_slope(z) - log_scale - log_slope(logit))


class GaussianDequantisation(AbstractDequantisation):
    r"""The process's own noise at $t_0$ and a decoder, equation (3).

    For networks trained on grid values. This is what networks trained with $L_\text{vlb}$,
    $L_\text{hybrid}$ or on plain normalised pixels need.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        """**Arguments:** as for [`eqdiff.UniformDequantisation`][]."""
        self.levels = _check(self, levels, low, high)
        self.low, self.high = low, high

    def __call__(self, denoiser, image, args=None, *, key):
        process = denoiser.process
        # Exactly on the level, so that the decoder integrates over its bin.
        image = self.low + (self.high - self.low) / (self.levels - 1) * _level(self, image)
        t0 = jnp.asarray(process.t0, image.dtype)
        alpha, sigma = process.levels(t0, like=image)
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

r"""From pixels to densities.

Images take $L$ values; a flow has a density. Four ways connect them, each a lower bound on the
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

**Truncated normal**, for networks trained on the grid itself, whose density has spikes of width
$\sigma_{t_0}$ at the levels, into which uniform noise never falls. The noise is the process's own,
$y = \alpha_{t_0}x + \sigma_{t_0}z$, but with $z$ cut off at $\pm\tau$, half the distance of two
levels (Zheng et al. 2023): then $y/\alpha_{t_0}$ stays in the level's bin, as in (2), and

$$\log P(x) \ge \mathbb E_z[\log p_{t_0}(y) - \log\mathcal N(z; 0, I)]
  + D\log\left(\sigma_{t_0}\operatorname{erf}\tfrac{\tau}{\sqrt2}\right), \qquad
  \tau = \frac{\alpha_{t_0}}{\sigma_{t_0}}\,
    \frac{\text{high} - \text{low}}{2(L - 1)}. \tag{3}$$

**Gaussian**, for the same networks: $z$ is not cut off, and a decoder returns to the grid,

$$\log P(x) \ge \mathbb E_z[\log p_{t_0}(y) + \log P(x|y)]
  + \tfrac D2\log(2\pi e\sigma_{t_0}^2), \tag{4}$$

with $P(x|y)$ a Gaussian around $\hat x_0(t_0, y)$ of standard deviation
$\sigma_{t_0}/\alpha_{t_0}$, integrated over each level's bin.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from .._check import check_levels, of, whole
from .._denoiser import AbstractDenoiser
from .._gaussian import discretised_gaussian_log_likelihood_exact, standard_normal_log_prob
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

        **Raises:** `ValueError` for integer images; an error for values that are on none of the
        levels (a `ValueError` that shows them, or under `jit` a runtime error).
        """


class AbstractGridDequantisation(AbstractDequantisation):
    """A dequantisation of images on $L$ equally spaced levels."""

    levels: eqx.AbstractVar[int]
    low: eqx.AbstractVar[float]
    high: eqx.AbstractVar[float]

    def level(self, image: Example) -> Example:
        """Which level each pixel is on, 0 to L − 1; an error if it is on none."""
        levels, low, high = self.levels, self.low, self.high
        owner = f"{of(self)}(levels={levels}, low={low:g}, high={high:g})"
        image = check_levels(owner, image, levels, low, high)
        return jnp.rint((image - low) * ((levels - 1) / (high - low)))

    def on_level(self, image: Example) -> Example:
        """The image with each pixel exactly on its level."""
        return self.low + (self.high - self.low) / (self.levels - 1) * self.level(image)


def check_grid(owner: AbstractDequantisation, levels: int, low: float, high: float) -> int:
    """The number of levels; `ValueError` for numbers that make no grid."""
    levels = whole(owner, "levels", levels, least=2, remedy=" 8-bit images have 256.")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{of(owner)}(low={low}, high={high}): expected finite low < high.")
    return levels


class UniformDequantisation(AbstractGridDequantisation):
    r"""Uniform noise within each level's bin, (1): for networks trained on dequantised data.

    For 8-bit images on $[-1, 1]$ the offset is the familiar 7 bits/dim.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    dequantise = eqd.UniformDequantisation(levels=17)
    y, offset = dequantise(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```
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
        self.levels = check_grid(self, levels, low, high)
        self.low, self.high = low, high

    def __call__(self, denoiser, image, args=None, *, key):
        level = self.level(image)
        width = (self.high - self.low) / self.levels
        y = self.low + width * (level + jax.random.uniform(key, image.shape, image.dtype))
        return y, jnp.asarray(image.size * math.log(width), image.dtype)


class GaussianDequantisation(AbstractGridDequantisation):
    r"""The process's own noise at $t_0$ and a decoder, equation (4).

    For networks trained on grid values. This is what networks trained with $L_\text{vlb}$,
    $L_\text{hybrid}$ or on plain normalised pixels need.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    dequantise = eqd.GaussianDequantisation(levels=17)
    y, offset = dequantise(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        """**Arguments:** as for [`eqdiff.UniformDequantisation`][]."""
        self.levels = check_grid(self, levels, low, high)
        self.low, self.high = low, high

    def __call__(self, denoiser, image, args=None, *, key):
        process = denoiser.process
        # Exactly on the level, so that the decoder integrates over its bin.
        image = self.on_level(image)
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


class TruncatedNormalDequantisation(AbstractGridDequantisation):
    r"""The process's own noise at $t_0$, cut off where the next level begins, equation (3).

    For networks trained on grid values: nothing else is trained, and there is no decoder. While
    $\sigma_{t_0}/\alpha_{t_0}$ is a small part of a bin, $y$ is distributed as in training; where
    it is much larger, $y$ is uniform on the bin.

    **Example:**

    ```python
    denoiser = eqd.GaussianDenoiser(eqd.VPSDE())
    dequantise = eqd.TruncatedNormalDequantisation(levels=17)
    y, offset = dequantise(denoiser, jnp.ones(3), key=jax.random.key(0))
    ```

    ??? cite "Reference"

        Zheng, Lu, Chen & Zhu, *Improved Techniques for Maximum Likelihood Estimation for Diffusion
        ODEs*, ICML 2023, section 5. The official code takes the mean of $-\log q$ where it draws
        once; here it is that of the draw, which takes the noise's part out of
        $\log p_{t_0}(y)$ too.
    """

    levels: int = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    def __init__(self, levels: int = 256, low: float = -1.0, high: float = 1.0):
        """**Arguments:** as for [`eqdiff.UniformDequantisation`][]."""
        self.levels = check_grid(self, levels, low, high)
        self.low, self.high = low, high

    def __call__(self, denoiser, image, args=None, *, key):
        process = denoiser.process
        image = self.on_level(image)
        t0 = jnp.asarray(process.t0, image.dtype)
        alpha, sigma = process.levels(t0, like=image)
        # Half a bin in units of the noise.
        reach = alpha / sigma * (0.5 * (self.high - self.low) / (self.levels - 1))
        z = jax.random.truncated_normal(key, -reach, reach, image.shape, image.dtype)
        inside = jnp.log(jax.scipy.special.erf(reach / math.sqrt(2)))
        log_q = standard_normal_log_prob(z) - image.size * (jnp.log(sigma) + inside)
        return process.perturb(t0, image, z), -log_q

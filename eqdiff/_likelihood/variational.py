r"""Dequantisation by noise that is learned, equation (2) of `dequantise.py`.

$q(u|x)$ and the network are trained together on one bound. With
$y = \text{low} + w(\text{level} + u)$, $u\sim q(u|x)$, and a bound $L(y)$ on $-\log p(y)$, such as
the one that [`eqdiff.l_continuous`][] estimates with `levels=None`,

$$-\log P(x) \le \mathbb E_{u\sim q}[L(y) + \log q(u|x)] - D\log w \tag{1}$$

is a function of both (Song et al. 2021b, section 5), whose gradient reaches $q$ through $y$.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Args, Example, Key, Scalar
from .dequantise import AbstractGridDequantisation, check_grid


# noise(image, args, key=key) -> u in [0, 1], shaped like the image, and log q(u | image).
Noise = Callable[..., tuple[Example, Scalar]]


class VariationalDequantisation(AbstractGridDequantisation):
    r"""Noise within each level's bin from a model of it, equation (2).

    For networks trained on dequantised data. The model of the noise is trained with the network,
    on (1) of its module, in one step for both:

    ```python
    class Model(eqx.Module):
        denoiser: eqd.Denoiser
        dequantise: eqd.VariationalDequantisation

    def loss_fn(model, t, image, args, *, key):
        noise_key, key = jax.random.split(key)
        y, offset = model.dequantise(model.denoiser, image, args, key=noise_key)
        p = eqd.predict(model.denoiser, t, y, args, key=key)
        bits = eqd.l_continuous(p, levels=None) - offset / (image.size * math.log(2))
        return bits, {}
    ```

    with times as for [`eqdiff.l_continuous`][]; or after it, by minimising
    [`eqdiff.bits_per_dim`][] with respect to the noise alone.

    **Example:**

    ```python
    noise = eqd.LogisticNoise(lambda x: jnp.concatenate([0 * x, 0 * x]))  # use a network here
    dequantise, key = eqd.VariationalDequantisation(noise, levels=17), jax.random.key(0)
    y, offset = dequantise(eqd.GaussianDenoiser(eqd.VPSDE()), jnp.ones((1, 4, 4)), key=key)
    ```

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
        self.levels = check_grid(self, levels, low, high)
        self.noise, self.low, self.high = noise, low, high

    def __call__(self, denoiser, image, args=None, *, key):
        level = self.level(image)
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

    $u = \operatorname{sigmoid}(\mu(x) + s(x) z)$ with logistic $z$, independent given the image.
    With $\mu = 0$, $s = 1$, where a network whose last layer is zero starts, it is uniform and
    $\log q = 0$.

    **Example:**

    ```python
    noise = eqd.LogisticNoise(lambda x: jnp.concatenate([0 * x, 0 * x]))  # uniform: mu = log s = 0
    u, log_q = noise(jnp.ones((1, 4, 4)), key=jax.random.key(0))
    ```
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

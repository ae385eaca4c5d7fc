r"""Super-resolution: a network that also sees a small version of the image it denoises.

Improved DDPM's upsampler (the official code's `SuperResModel`) is its U-Net with twice the input
channels: the low-resolution image $y$ is enlarged to the size of $x_t$ and appended to its
channels,

$$F = \mathrm{net}(c_\text{noise}, [x_t, U y]), \tag{1}$$

with $U$ bilinear interpolation between the centres of pixels. It is trained on $y = D x_0$, where
$D$ is the mean over squares of pixels.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Array, Float, Shaped

from .._types import Args, Example, Key, Network, Time
from ._condition_embeddings import resized


class SuperResolution(eqx.Module):
    """Conditions a network on a low-resolution image: equation (1).

    For a network with classes, `args` is the pair `(low_res, class)`. A corrupted `low_res` in
    training makes the upsampler of a cascade robust: add noise to it in the loss.

    **Example:**

    ```python
    net = eqd.nn.presets.iddpm_imagenet64(in_channels=6, channels=32, key=jax.random.key(0))
    x0 = jnp.ones((3, 64, 64))
    F = eqd.nn.SuperResolution(net)(500.0, x0, eqd.nn.area_downsample(x0, 4))
    ```

    ??? cite "Reference"

        Nichol & Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, ICML 2021; Ho et
        al., *Cascaded Diffusion Models for High Fidelity Image Generation*, JMLR 2022.
    """

    net: Network

    def __init__(self, net: Network):
        """**Arguments:**

        - `net`: a network for images with the channels of $x$ and of the low-resolution image
            together: twice those of $x$, as a rule.
        """
        self.net = net

    @jax.named_scope("eqdiff.nn.SuperResolution")
    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:**

        - `c_noise`: the network's time input, one number.
        - `x`: one image, `(channels, height, width)`.
        - `args`: the low-resolution image, `(channels, low_height, low_width)`; or a tuple of it
            and of what the network itself takes as `args`, such as a class.
        - `key`: for dropout.

        **Returns:** $F$, as the network returns it.

        **Raises:** `ValueError` where the low-resolution image is missing, not a floating-point
        image, larger than `x`, or has another number of channels than the network takes.
        """
        low_res, rest = args if isinstance(args, tuple) and len(args) == 2 else (args, None)
        self._check(x, low_res)
        both = jnp.concatenate([x, resized(jnp.asarray(low_res), x.shape[1:]).astype(x.dtype)])
        return self.net(c_noise, both, rest, key=key)

    def _check(self, x: Example, low_res: Any) -> None:
        form = (
            "args is a floating-point image (channels, height, width), or a pair of it and a class"
        )
        image = isinstance(low_res, (jax.Array, np.ndarray))
        if not image or not jnp.issubdtype(low_res.dtype, jnp.floating):
            raise ValueError(f"SuperResolution: {form}; got {_describe(low_res)}.")
        if low_res.ndim != 3 or x.ndim != 3:
            raise ValueError(
                f"SuperResolution: {form}; got shape {low_res.shape} with x of shape {x.shape}. "
                "Batch with jax.vmap(net)(c_noises, xs, low_ress)."
            )
        if low_res.shape[1] > x.shape[1] or low_res.shape[2] > x.shape[2]:
            raise ValueError(
                f"SuperResolution enlarges an image of shape {low_res.shape} to x's {x.shape}, but "
                "it is the larger already. Make it with eqdiff.nn.area_downsample(x0, factor)."
            )
        # A user's network need not say how many channels it takes.
        shape = getattr(self.net, "shape", self.net)
        expected = getattr(shape, "in_channels", None)
        given = x.shape[0] + low_res.shape[0]
        if expected is not None and expected != given:
            raise ValueError(
                "SuperResolution: x and the low-resolution image have "
                f"{x.shape[0]} + {low_res.shape[0]} channels, but the network takes "
                f"{expected}. Build it with in_channels={given}."
            )


def area_downsample(image: Shaped[Array, "..."], factor: int) -> Float[Array, "channels h w"]:
    """Takes the mean over every `factor`×`factor` square: the low-resolution image to train an
    upsampler on.

    **Arguments:**

    - `image`: one image, `(channels, height, width)`.
    - `factor`: how many times smaller each side becomes.

    **Returns:** the small image.

    **Raises:** `ValueError` for a factor that does not divide the sides, or where the image is not
    a floating-point image.

    **Example:**

    ```python
    low_res = eqd.nn.area_downsample(jnp.ones((3, 64, 64)), 4)  # (3, 16, 16)
    ```
    """
    shape = jnp.shape(image)
    if len(shape) != 3 or not jnp.issubdtype(jnp.result_type(image), jnp.floating):
        raise ValueError(
            "area_downsample takes one floating-point image (channels, height, width), got "
            f"{_describe(image)}. Batch with jax.vmap."
        )
    _, height, width = shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"area_downsample: a factor of {factor} does not divide the sides {height} and {width}."
        )
    return reduce(image, "c (h p) (w q) -> c h w", "mean", p=factor, q=factor)


def _describe(value: Any) -> str:
    if value is None or not hasattr(value, "shape"):
        return repr(value)
    return f"{value.dtype} of shape {value.shape}"

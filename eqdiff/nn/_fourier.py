r"""Fine detail of the input as separate channels.

The last nats of a likelihood are in the finest digit of a pixel. A convolution of data in
$[-1, 1]$ sees a difference of one grey level in 256 as 1/128 of its input; a network that is to
tell levels apart must first learn to blow that up. Kingma et al. (2021, section 3.4 and appendix C)
append to the input

$$\sin(2^n\pi x), \qquad \cos(2^n\pi x), \qquad n \in \{7, 8\}. \tag{1}$$

Their 256 levels are $2^{-7}$ apart, so that $n = 8$ has a period of one level, whose phase says how
far a noisy pixel is from the next level, and $n = 7$ one of two levels, which says on which of both
it is. Higher ones would vary within a level, where there are no data; lower ones add what the
pixel itself says. For $L$ levels on $[-1, 1]$, $2/(L-1)$ apart, that is

$$\omega_j = 2^{-j}\,\pi(L - 1), \qquad j = 0, \dots, \text{octaves} - 1. \tag{2}$$

Where the noise is much wider than a level the phases are uniform: to the network, noise that it
learns to ignore by its time input.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import check_precision, whole
from .._types import Args, Example, Key, Network, Time


class FourierFeatures(eqx.Module):
    r"""Adds sines and cosines of its input as further channels for a network: equation (2).

    What the network sees is $c_\text{in}x_t$, so it is for parameterisations with
    $c_\text{in} = 1$, and processes with $\alpha \approx 1$ where there is little noise: VP, VE.

    **Example:**

    ```python
    net = eqd.nn.FourierFeatures(eqd.nn.MLP(5 * 64, 64, key=jax.random.key(0)), levels=17)
    F = net(500.0, jnp.zeros(64))
    ```

    ??? cite "Reference"

        Kingma, Salimans, Poole & Ho, *Variational Diffusion Models*, NeurIPS 2021, section 3.4.
    """

    net: Network
    levels: int = eqx.field(static=True)
    octaves: int = eqx.field(static=True)

    def __init__(self, net: Network, levels: int = 256, octaves: int = 2):
        r"""**Arguments:**

        - `net`: the network, whose input has $1 + 2\,\text{octaves}$ times the channels of the
            data: the data, their sines, their cosines, the highest frequency first.
        - `levels`: the number of grey levels $L$ of data on $[-1, 1]$: 256 for 8-bit images, 17 for
            scikit-learn's digits.
        - `octaves`: how many frequencies, each half of the one before.

        **Raises:** `ValueError` for fewer than two levels or no octave.
        """
        self.net = net
        self.levels = whole(self, "levels", levels, least=2, remedy=" 8-bit images have 256.")
        self.octaves = whole(self, "octaves", octaves)

    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:** as those of the network, with `x` of the data's channels.

        **Returns:** what the network returns.

        **Raises:** `ValueError` for an input in half precision, in which no phase is left.
        """
        return self.net(c_noise, self.features(x), args, key=key)

    def features(self, x: Float[Array, "channels ..."]) -> Float[Array, "more ..."]:
        """The data and their sines and cosines, along the first axis."""
        check_precision("FourierFeatures", x)
        angles = [2.0**-j * math.pi * (self.levels - 1) * x for j in range(self.octaves)]
        return jnp.concatenate([x, *map(jnp.sin, angles), *map(jnp.cos, angles)])

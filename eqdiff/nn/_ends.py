r"""The scaling around score-based networks: of their data and of their output.

Song's networks for variance-exploding processes are trained on data in $[0, 1]$, which they move
to $[-1, 1]$ first, and return a score,

$$F(c, 2x - 1) \qquad \text{and} \qquad F(c, x) / \sigma, \quad c = \log\sigma. \tag{1}$$
"""

import equinox as eqx
import jax.numpy as jnp

from .._types import Args, Example, Key, Network, Time
from ._c_noise import divide_by_sigma
from ._check import check_c_noise


class Centred(eqx.Module):
    """Makes a network for data in [−1, 1] one for data in [0, 1]: the left of equation (1).

    **Example:**

    ```python
    net = eqd.nn.Centred(eqd.nn.MLP(2, 2, key=jax.random.key(0)))
    F = net(0.5, jnp.array([0.0, 1.0]))  # the network sees [-1, 1]
    ```
    """

    net: Network

    def __init__(self, net: Network):
        """**Arguments:**

        - `net`: the network.
        """
        self.net = net

    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        """**Arguments:** as those of the network, with `x` in [0, 1].

        **Returns:** what the network returns.
        """
        return self.net(c_noise, 2 * x - 1, args, key=key)


class DividedBySigma(eqx.Module):
    r"""Divides a network's output by σ: the right of equation (1).

    Its time input is $\log\sigma$, the `c_noise` of [`eqdiff.VESDE`][]. Use it for a network whose
    output has the same scale at every σ, with [`eqdiff.PredictScore`][].

    **Example:**

    ```python
    net = eqd.nn.DividedBySigma(eqd.nn.MLP(2, 2, key=jax.random.key(0)))
    denoiser = eqd.Denoiser(net, eqd.VESDE(), eqd.PredictScore())
    ```
    """

    net: Network

    def __init__(self, net: Network):
        """**Arguments:**

        - `net`: the network.
        """
        self.net = net

    def __call__(
        self, c_noise: Time, x: Example, args: Args = None, *, key: Key | None = None
    ) -> Example:
        r"""**Arguments:** as those of the network, with $\log\sigma$ for `c_noise`.

        **Returns:** what the network returns, over σ.
        """
        out = self.net(c_noise, x, args, key=key)
        return divide_by_sigma(out, check_c_noise(c_noise, jnp.float32, "DividedBySigma"))


def wrapped(net: Network, *, centred: bool, by_sigma: bool) -> Network:
    """A network for data in [−1, 1] (or in [0, 1]) whose output is divided by σ (or not)."""
    net = net if centred else Centred(net)
    return DividedBySigma(net) if by_sigma else net


def unwrapped(net: Network) -> Network:
    """The network inside."""
    while isinstance(net, Centred | DividedBySigma):
        net = net.net
    return net

r"""The layers of convolutional classifiers as they are evaluated: one image, channels last.

Batch normalisation with fixed statistics is an affine map of each channel, which is folded into the
convolution before it, in float64:

$$\gamma\,\frac{w * x - \mu}{\sqrt{v + \varepsilon}} + \beta
  = \Big(\frac{\gamma}{\sqrt{v + \varepsilon}}\,w\Big) * x
  + \beta - \frac{\gamma\,\mu}{\sqrt{v + \varepsilon}}. \tag{1}$$
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from .._shown import shown


class Conv(eqx.Module):
    """A convolution with its bias and what follows it."""

    kernel: Float32[Array, "kh kw i o"]
    bias: Float32[Array, " o"]
    stride: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float32[Array, "h w _"]) -> Float32[Array, "h2 w2 o"]:
        # float32 throughout: TF32 moves features in their third digit.
        y = jax.lax.conv_general_dilated(
            x[None],
            self.kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return self.activation(y[0] + self.bias[None, None, :])


class Depthwise(eqx.Module):
    """A convolution of each channel by itself, padded as TensorFlow's "SAME"."""

    kernel: Float32[Array, "kh kw c"]
    bias: Float32[Array, " c"]
    stride: int = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float32[Array, "h w c"]) -> Float32[Array, "h2 w2 c"]:
        # A sum over shifted images: ten times as fast on CPUs as a grouped convolution.
        size, stride = self.kernel.shape[0], self.stride
        rows, columns = (-(-n // stride) for n in x.shape[:2])
        pads = [
            max((new - 1) * stride + size - old, 0)
            for new, old in zip((rows, columns), x.shape[:2], strict=True)
        ]
        x = jnp.pad(x, (*((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
        y = self.bias[None, None, :]
        for i in range(size):
            for j in range(size):
                shifted = x[i : i + (rows - 1) * stride + 1, j : j + (columns - 1) * stride + 1]
                y = y + shifted[::stride, ::stride] * self.kernel[i, j][None, None, :]
        return self.activation(y)


class Chain(eqx.Module):
    """One layer after the other."""

    layers: tuple[Any, ...]

    def __call__(self, x: Float32[Array, "h w _"]) -> Float32[Array, "h2 w2 _"]:
        for layer in self.layers:
            x = layer(x)
        return x


class Parallel(eqx.Module):
    """Layers that all see the same, their channels one after the other."""

    branches: tuple[Any, ...]

    def __call__(self, x: Float32[Array, "h w _"]) -> Float32[Array, "h2 w2 _"]:
        return jnp.concatenate([branch(x) for branch in self.branches], axis=-1)


class Residual(eqx.Module):
    """A layer whose input is added to its output."""

    layer: Any

    def __call__(self, x: Float32[Array, "h w c"]) -> Float32[Array, "h w c"]:
        return x + self.layer(x)


class Arrays:
    """The arrays of a state dict, each to be taken once and checked when it is."""

    def __init__(self, arrays: Mapping[str, np.ndarray], source: str, eps: float):
        """**Arguments:**

        - `source`: what to call it in messages.
        - `eps`: of batch normalisation.
        """
        self._left, self._source, self._eps = dict(arrays), source, eps

    def take(self, name: str, *shape: int) -> np.ndarray:
        """An array in float64, and no longer there.

        **Raises:** `ValueError` if it is missing or of another shape.
        """
        if name not in self._left:
            raise ValueError(f"{self._source} lacks {name}: it holds another network.")
        array = np.asarray(self._left.pop(name))
        if array.shape != shape or array.dtype.kind not in "fV":
            raise ValueError(
                f"{self._source} has {name} of shape {array.shape} and type {array.dtype}, "
                f"expected floats of shape {shape}: it holds another network."
            )
        return array.astype(np.float64)

    def conv(
        self,
        conv: str,
        norm: str,
        shape: tuple[int, int, int, int],
        *,
        stride: int = 1,
        padding: str = "SAME",
        activation: Callable[[Array], Array] = jax.nn.relu,
    ) -> Conv:
        """Equation (1).

        **Arguments:**

        - `conv`, `norm`: what the names of both layers begin with.
        - `shape`: of the weight, (out, in, height, width).
        """
        kernel, bias = self._folded(conv, norm, shape)
        kernel = jnp.asarray(np.transpose(kernel, (2, 3, 1, 0)))
        return Conv(kernel, bias, stride, padding, activation)

    def depthwise(
        self,
        conv: str,
        norm: str,
        channels: int,
        size: int,
        *,
        stride: int,
        activation: Callable[[Array], Array],
    ) -> Depthwise:
        """Equation (1) for a weight of shape (channels, 1, size, size)."""
        kernel, bias = self._folded(conv, norm, (channels, 1, size, size))
        kernel = jnp.asarray(np.transpose(kernel[:, 0], (1, 2, 0)))
        return Depthwise(kernel, bias, stride, activation)

    def _folded(
        self, conv: str, norm: str, shape: tuple[int, int, int, int]
    ) -> tuple[np.ndarray, Array]:
        weight = self.take(f"{conv}.weight", *shape)
        gamma, beta, mean, var = (
            self.take(f"{norm}.{part}", shape[0])
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        self._left.pop(f"{norm}.num_batches_tracked", None)
        gain = gamma / np.sqrt(var + self._eps)
        kernel, bias = weight * gain[:, None, None, None], beta - gain * mean
        # Its axes are put in order by NumPy, which compiles nothing.
        return kernel.astype(np.float32), jnp.asarray(bias.astype(np.float32))

    def finish(self) -> None:
        """**Raises:** `ValueError` if something is left."""
        if self._left:
            raise ValueError(
                f"{self._source} has {len(self._left)} arrays that this network lacks, such as "
                f"{shown(sorted(self._left)[:3])}: it holds another network."
            )

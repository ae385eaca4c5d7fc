r"""The blocks of Inception-v3 in the graph that TensorFlow published on 2015-12-05.

Szegedy et al. (2016), *Rethinking the Inception Architecture for Computer Vision*, CVPR, figures 5
to 7, but for what FID depends on and the paper has otherwise:

- averages over 3×3 pixels leave out what lies beyond the edge, instead of counting it as zero;
- the last block has a maximum where the one before it, like the paper, has an average;
- there are 1008 logits, of which a few belong to no class of ImageNet.

Names are those of the port in pytorch-fid, whose `FIDInceptionA`, `FIDInceptionC`,
`FIDInceptionE_1` and `FIDInceptionE_2` have the same three traits.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from ._conv_net import Arrays, Chain, Conv, Parallel


class Average(eqx.Module):
    """The mean of 3×3 pixels, of those inside the image."""

    def __call__(self, x: Float32[Array, "h w c"]) -> Float32[Array, "h w c"]:
        for axis in (0, 1):
            shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
            edge = jnp.zeros(shape, x.dtype)
            before = jnp.concatenate([edge, jax.lax.slice_in_dim(x, 0, -1, axis=axis)], axis)
            after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, None, axis=axis), edge], axis)
            x = before + x + after
        return x / np.outer(_inside(x.shape[0]), _inside(x.shape[1]))[:, :, None]


def _inside(size: int) -> np.ndarray:
    # How many of a pixel and its two neighbours are inside.
    at = np.arange(size)
    return (1 + (at > 0) + (at < size - 1)).astype(np.float32)


class Maximum(eqx.Module):
    """The largest of 3×3 pixels."""

    stride: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)

    def __call__(self, x: Float32[Array, "h w c"]) -> Float32[Array, "h2 w2 c"]:
        return jax.lax.reduce_window(
            x,
            np.float32(-np.inf),
            jax.lax.max,
            (3, 3, 1),
            (self.stride, self.stride, 1),
            self.padding,
        )


class Block:
    """Takes the convolutions of one block, whose names begin alike, out of a state dict."""

    def __init__(self, arrays: Arrays, name: str, channels: int):
        self._arrays, self._name, self._channels = arrays, name, channels

    def conv(
        self,
        name: str,
        out: int,
        kernel: tuple[int, int] = (1, 1),
        *,
        of: int | None = None,
        stride: int = 1,
        padding: str = "SAME",
    ) -> Conv:
        """A convolution with `out` channels of the block's input, or of one with `of`."""
        name = f"{self._name}.{name}"
        shape = (out, self._channels if of is None else of, *kernel)
        return self._arrays.conv(
            f"{name}.conv", f"{name}.bn", shape, stride=stride, padding=padding
        )

    def tower(self, name: str, *layers: tuple[int, tuple[int, int]], halve: bool = False) -> Chain:
        """Convolutions after one another, `name_1`, `name_2`, …; the last may halve the image."""
        made, of = [], self._channels
        for at, (out, kernel) in enumerate(layers, 1):
            last = {"stride": 2, "padding": "VALID"} if halve and at == len(layers) else {}
            made.append(self.conv(f"{name}_{at}", out, kernel, of=of, **last))
            of = out
        return Chain(tuple(made))

    def split(self, name: str, of: int) -> Parallel:
        """1×3 and 3×1 pixels beside one another."""
        return Parallel(
            (
                self.conv(f"{name}a", 384, (1, 3), of=of),
                self.conv(f"{name}b", 384, (3, 1), of=of),
            )
        )


def stem(arrays: Arrays) -> Chain:
    """From the image to 192 channels at an eighth of its size."""

    def conv(name, of, out, size, **kwargs):
        shape = (out, of, size, size)
        return arrays.conv(f"{name}.conv", f"{name}.bn", shape, **kwargs)

    return Chain(
        (
            conv("Conv2d_1a_3x3", 3, 32, 3, stride=2, padding="VALID"),
            conv("Conv2d_2a_3x3", 32, 32, 3, padding="VALID"),
            conv("Conv2d_2b_3x3", 32, 64, 3),
            Maximum(2, "VALID"),
            conv("Conv2d_3b_1x1", 64, 80, 1),
            conv("Conv2d_4a_3x3", 80, 192, 3, padding="VALID"),
            Maximum(2, "VALID"),
        )
    )


def block_a(arrays: Arrays, name: str, channels: int, pool: int) -> Parallel:
    """Figure 5."""
    block = Block(arrays, name, channels)
    return Parallel(
        (
            block.conv("branch1x1", 64),
            block.tower("branch5x5", (48, (1, 1)), (64, (5, 5))),
            block.tower("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            Chain((Average(), block.conv("branch_pool", pool))),
        )
    )


def block_b(arrays: Arrays, name: str) -> Parallel:
    """Halves 288 channels' size."""
    block = Block(arrays, name, 288)
    return Parallel(
        (
            block.conv("branch3x3", 384, (3, 3), stride=2, padding="VALID"),
            block.tower("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), halve=True),
            Maximum(2, "VALID"),
        )
    )


def block_c(arrays: Arrays, name: str, c: int) -> Parallel:
    """Figure 6, with `c` channels inside."""
    block = Block(arrays, name, 768)
    row, column = (1, 7), (7, 1)
    return Parallel(
        (
            block.conv("branch1x1", 192),
            block.tower("branch7x7", (c, (1, 1)), (c, row), (192, column)),
            block.tower(
                "branch7x7dbl", (c, (1, 1)), (c, column), (c, row), (c, column), (192, row)
            ),
            Chain((Average(), block.conv("branch_pool", 192))),
        )
    )


def block_d(arrays: Arrays, name: str) -> Parallel:
    """Halves 768 channels' size."""
    block = Block(arrays, name, 768)
    wide = ((192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)))
    return Parallel(
        (
            block.tower("branch3x3", (192, (1, 1)), (320, (3, 3)), halve=True),
            block.tower("branch7x7x3", *wide, halve=True),
            Maximum(2, "VALID"),
        )
    )


def block_e(arrays: Arrays, name: str, channels: int, pool: Average | Maximum) -> Parallel:
    """Figure 7."""
    block = Block(arrays, name, channels)
    double = block.tower("branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    return Parallel(
        (
            block.conv("branch1x1", 320),
            Chain((block.conv("branch3x3_1", 384), block.split("branch3x3_2", 384))),
            Chain((double, block.split("branch3x3dbl_3", 384))),
            Chain((pool, block.conv("branch_pool", 192))),
        )
    )

r"""The residual block of Improved DDPM, and what later families changed in it.

$$h = \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(x))), \qquad
  y = \mathrm{skip}(x) + \mathrm{conv}_0(\mathrm{drop}(\mathrm{SiLU}(
      (1 + s)\,\mathrm{GN}(h) + b))), \qquad (s, b) = W\,\mathrm{SiLU}(e), \tag{1}$$

where $e$ embeds the time and the class, $\mathrm{conv}_0$ starts at zero, and the skip is the
identity or a 1×1 convolution. Without scale-shift norm the embedding is added before the
normalisation, $\mathrm{GN}(h + W\, \mathrm{SiLU}(e))$, as in Ho et al. (2020).

A block may also change the sides of the image, as BigGAN's does (Brock et al. 2019): then
$h = \mathrm{conv}(R\,\mathrm{SiLU}(\mathrm{GN}(x)))$ and the skip starts with $R x$, for a
resampling $R$. Song et al. (2021) multiply $y$ by $1/\sqrt 2$, which keeps its variance that of its
two terms.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Key
from ._activation import AbstractActivation, SiLU
from ._conv import add_bias, Conv, Linear
from ._dropout import draw_dropout
from ._init import Init, torch_default, zeros
from ._norm import GroupNorm, Groups
from ._resample import Resample


# Scale and shift, or what is added before the normalisation.
Modulation = tuple[Float[Array, " _channels"], ...]


def modulations(
    blocks: Sequence["ResBlock"], embedding: Float[Array, " size"] | None
) -> list[Modulation | None]:
    r"""The products $W\,\mathrm{SiLU}(e)$ of some blocks, computed as one."""
    layers = [block.embedding for block in blocks if block.embedding is not None]
    if embedding is None or not layers:
        return [None] * len(blocks)
    weight = jnp.concatenate([layer.weight for layer in layers], 1)
    e = blocks[0].activation(embedding)
    sizes = [block.modulation_sizes for block in blocks]
    pieces = iter(jax.lax.split(e @ weight.astype(e.dtype), [n for each in sizes for n in each]))
    return [tuple(next(pieces) for _ in each) or None for each in sizes]


class ResBlock(eqx.Module):
    """Equation (1)."""

    norm1: GroupNorm
    conv1: Conv
    embedding: Linear | None
    norm2: GroupNorm
    conv2: Conv
    skip: Linear | None
    resample: Resample | None
    dropout: float = eqx.field(static=True)
    scale_shift_norm: bool = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    activation: AbstractActivation = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_size: int | None,
        *,
        dims: int = 2,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        groups: Groups = 32,
        eps: float = 1e-5,
        scale: float = 1.0,
        activation: AbstractActivation = SiLU(),
        resample: Resample | None = None,
        project_skip: bool = False,
        init: Init = torch_default,
        out_init: Init = zeros,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: of the image.
        - `embedding_size`: of $e$; `None` for a block without conditioning.
        - `dims`: the number of spatial dimensions.
        - `dropout`: a probability.
        - `scale_shift_norm`: whether the embedding scales and shifts the second normalisation, or
            is added before it.
        - `groups`, `eps`: of the group normalisations.
        - `scale`: of the sum of both branches.
        - `activation`: in place of the SiLU.
        - `resample`: $R$, before the first convolution and in the skip.
        - `project_skip`: whether the skip has a 1×1 convolution even where the width stays.
        - `init`, `out_init`: of all maps but the last, and of the last one.
        - `bias_init`: of every bias; by default as its weight.
        - `key`: a PRNG key.
        """
        key1, key2, key3, key4 = jax.random.split(key, 4)
        size = 2 * out_channels if scale_shift_norm else out_channels
        self.norm1 = GroupNorm(in_channels, groups, eps=eps)
        self.conv1 = Conv(
            in_channels, out_channels, dims=dims, init=init, bias_init=bias_init, key=key1
        )
        if embedding_size is None:
            self.embedding = None
        else:
            self.embedding = Linear(embedding_size, size, init=init, bias_init=bias_init, key=key2)
        self.norm2 = GroupNorm(out_channels, groups, eps=eps)
        self.conv2 = Conv(
            out_channels, out_channels, dims=dims, init=out_init, bias_init=bias_init, key=key3
        )
        if in_channels == out_channels and not project_skip:
            self.skip = None
        else:
            self.skip = Linear(in_channels, out_channels, init=init, bias_init=bias_init, key=key4)
        self.resample, self.scale = resample, scale
        self.dropout, self.activation = dropout, activation
        self.scale_shift_norm = scale_shift_norm

    @property
    def modulation_sizes(self) -> tuple[int, ...]:
        """The sizes of what `modulations` returns for this block."""
        if self.embedding is None:
            return ()
        size, channels = self.embedding.weight.shape[1], self.norm2.weight.size
        return (size // channels) * (channels,)

    def __call__(
        self,
        x: Float[Array, "*spatial in"],
        modulation: Modulation | None,
        key: Key | None = None,
    ) -> Float[Array, "*new_spatial out"]:
        r"""**Arguments:**

        - `x`: one image.
        - `modulation`: $W\,\mathrm{SiLU}(e)$ without its bias (`modulations`); `None` for a block
            without conditioning.
        - `key`: for dropout.
        """
        h = self.norm1(x, activation=self.activation)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self._modulate(self.conv1.without_bias(h), modulation, key)
        y = self._join(h, x)
        return y if self.scale == 1 else self.scale * y

    def _join(
        self, h: Float[Array, "*spatial c"], x: Float[Array, "*spatial in"]
    ) -> Float[Array, "*spatial out"]:
        # The sum of both branches, whose biases are added up before they meet an image.
        if self.skip is None:
            return self.conv2(h) + x
        biases = [bias for bias in (self.conv2.bias, self.skip.bias) if bias is not None]
        y = self.conv2.without_bias(h)
        y = add_bias(y, sum(biases[1:], biases[0])) if biases else y
        return y + self.skip.without_bias(x)

    def _modulate(
        self,
        h: Float[Array, "*spatial c"],
        modulation: Modulation | None,
        key: Key | None,
    ) -> Float[Array, "*spatial c"]:
        # From the first convolution, whose bias is still missing, to the second.
        bias, scale, shift = self.conv1.bias, None, None
        if self.embedding is not None and modulation is not None:
            if self.embedding.bias is not None:
                biases = jnp.split(self.embedding.bias, len(modulation))
                modulation = tuple(map(add_bias, modulation, biases))
            if self.scale_shift_norm:
                scale, shift = modulation
            else:
                (e,) = modulation
                bias = e if bias is None else bias.astype(e.dtype) + e
        dropout = draw_dropout(self.dropout, h.shape, key)
        return self.norm2(h, scale, shift, bias=bias, activation=self.activation, dropout=dropout)

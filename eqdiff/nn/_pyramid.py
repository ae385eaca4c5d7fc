r"""The image pyramids next to a U-Net (Song et al. 2021, appendix H; Karras et al. 2020, figure 7).

Next to the features $h$ runs a small image $p$. On the way down $p$ is the input, filtered to the
side of $h$,

$$\text{skip:}\quad p \leftarrow R p, \quad h \leftarrow [W p, h] \text{ or } W p + h; \qquad
  \text{residual:}\quad p, h \leftarrow s\,(\mathrm{conv}\,R\,p + h); \tag{1}$$

and on the way up it becomes the output,

$$\text{skip:}\quad p \leftarrow R p + \mathrm{conv}(\mathrm{SiLU}(\mathrm{GN}(h))); \qquad
  \text{residual:}\quad p, h \leftarrow s\,(\mathrm{conv}\,R\,p + h). \tag{2}$$

Each step is a module that takes $(p, h)$ and returns both.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._activation import AbstractActivation
from ._conv import Conv, Linear
from ._fir import DownsampleConv, UpsampleConv
from ._norm import GroupNorm
from ._resample import Downsample, Resample, Upsample


# Channels last; a function may take and return images of different shapes.
Image = Float[Array, "... _channels"]


class InputSkipStep(eqx.Module):
    """The left of equation (1); `concatenate` chooses which of the two."""

    resample: Resample
    project: Linear
    concatenate: bool = eqx.field(static=True)

    def __call__(self, p: Image, h: Image) -> tuple[Image, Image]:
        p = self.resample(p)
        projected = self.project(p)
        if self.concatenate:
            return p, jnp.concatenate([projected, h], axis=-1)
        return p, projected + h


class ResidualStep(eqx.Module):
    """The right of equations (1) and (2)."""

    resample: DownsampleConv | UpsampleConv | Downsample | Upsample
    scale: float = eqx.field(static=True)

    def __call__(self, p: Image, h: Image) -> tuple[Image, Image]:
        h = self.resample(p) + h
        h = h if self.scale == 1 else self.scale * h
        return h, h


class Head(eqx.Module):
    """conv(SiLU(GN(h))), or with another activation."""

    norm: GroupNorm
    conv: Conv
    activation: AbstractActivation = eqx.field(static=True)

    def __call__(self, h: Image) -> Image:
        return self.conv(self.norm(h, activation=self.activation))


class OutputSkipStep(eqx.Module):
    """The left of equation (2); at the lowest level there is no $p$ yet."""

    resample: Resample | None
    head: Head

    def __call__(self, p: Image | None, h: Image) -> tuple[Image, Image]:
        out = self.head(h)
        return (out if p is None or self.resample is None else self.resample(p) + out), h


class StartStep(eqx.Module):
    """The lowest level of the right of equation (2): $p$ begins as a map of $h$, which stays."""

    head: Head

    def __call__(self, p: Image | None, h: Image) -> tuple[Image, Image]:
        del p
        return self.head(h), h

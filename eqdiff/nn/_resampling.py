"""How sides change between two levels of a U-Net: the layers are in `_resample.py`, `_fir.py`."""

import dataclasses

from .._types import Key
from ._block import ResBlock
from ._fir import DownsampleConv, Kernel, UpsampleConv
from ._resample import Downsample, Resample, Upsample
from ._style import AbstractResampling, Layers


@dataclasses.dataclass(frozen=True)
class Strided(AbstractResampling):
    """A 3×3 convolution with stride 2; on the way up repeated pixels, then a convolution.

    **Arguments:**

    - `padding`: zeros before and after each side: one on both in OpenAI's networks, `(0, 1)` in
        Song's.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(padding=(0, 1)))
    ```
    """

    padding: tuple[int, int] = (1, 1)

    def down(self, layers: Layers, width: int, out: int, key: Key) -> Downsample:
        """See `AbstractResampling.down`."""
        options = layers.options(key)
        return Downsample(width, out, dims=layers.dims, padding=self.padding, **options)

    def up(self, layers: Layers, width: int, out: int, key: Key) -> Upsample:
        """See `AbstractResampling.up`."""
        return Upsample(width, out, dims=layers.dims, **layers.options(key))


@dataclasses.dataclass(frozen=True)
class Filtered(AbstractResampling):
    """A filter, then a convolution with stride 2; on the way up its transpose, then the filter.

    **Arguments:**

    - `kernel`: the filter's taps along one axis, in any scale.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Filtered((1, 3, 3, 1)))
    ```
    """

    kernel: Kernel = (1, 3, 3, 1)

    def _check(self, layers: Layers) -> None:
        if layers.dims != 2:
            raise ValueError(
                f"Filtered convolutions are for images, got dims={layers.dims}; use Strided() or "
                "InBlock()."
            )

    def down(self, layers: Layers, width: int, out: int, key: Key) -> DownsampleConv:
        """See `AbstractResampling.down`."""
        self._check(layers)
        return DownsampleConv(width, out, self.kernel, **layers.options(key))

    def up(self, layers: Layers, width: int, out: int, key: Key) -> UpsampleConv:
        """See `AbstractResampling.up`."""
        self._check(layers)
        return UpsampleConv(width, out, self.kernel, **layers.options(key))


@dataclasses.dataclass(frozen=True)
class Pooling(AbstractResampling):
    """A filter without any convolution.

    **Arguments:**

    - `kernel`: the filter's taps along one axis; `(1, 1)` is a 2×2 mean and repeated pixels.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Pooling())
    ```
    """

    kernel: Kernel = (1, 1)

    def down(self, layers: Layers, width: int, out: int, key: Key) -> Resample:
        """See `AbstractResampling.down`."""
        del layers, width, out, key
        return Resample("down", self.kernel)

    def up(self, layers: Layers, width: int, out: int, key: Key) -> Resample:
        """See `AbstractResampling.up`."""
        del layers, width, out, key
        return Resample("up", self.kernel)


@dataclasses.dataclass(frozen=True)
class InBlock(AbstractResampling):
    """A filter inside a residual block, as BigGAN's blocks have it.

    **Arguments:**

    - `kernel`: the filter's taps along one axis; `(1, 1)` is a 2×2 mean and repeated pixels.
    - `project`: whether the block has a 1×1 convolution in its skip (NCSN++), or none (ADM).

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.InBlock(project=True))
    ```
    """

    kernel: Kernel = (1, 1)
    project: bool = False

    def down(self, layers: Layers, width: int, out: int, key: Key) -> ResBlock:
        """See `AbstractResampling.down`."""
        return layers.block(width, out, key, Resample("down", self.kernel), self.project)

    def up(self, layers: Layers, width: int, out: int, key: Key) -> ResBlock:
        """See `AbstractResampling.up`."""
        return layers.block(width, out, key, Resample("up", self.kernel), self.project)

"""Which image pyramid runs next to a U-Net: its steps are in `_pyramid.py`."""

import dataclasses

from .._types import Key
from ._fir import Kernel
from ._pyramid import InputSkipStep, OutputSkipStep, ResidualStep, StartStep
from ._resample import Resample
from ._style import AbstractInputPyramid, AbstractOutputPyramid, AbstractResampling, Layers


@dataclasses.dataclass(frozen=True)
class InputSkip(AbstractInputPyramid):
    """The input joins the features of every level but the first: an input skip of NCSN++.

    **Arguments:**

    - `kernel`: the taps of its filter; `(1, 1)` is a 2×2 mean.
    - `concatenate`: whether it becomes further channels, or is added.

    **Example:**

    ```python
    style = eqd.nn.styles.ncsnpp(input_pyramid=eqd.nn.styles.InputSkip(concatenate=True))
    ```
    """

    kernel: Kernel = (1, 1)
    concatenate: bool = False

    def down(
        self, layers: Layers, channels: int, width: int, key: Key
    ) -> tuple[InputSkipStep, int, int]:
        """See `AbstractInputPyramid.down`."""
        project = layers.linear(channels, width, key)
        step = InputSkipStep(Resample("down", self.kernel), project, self.concatenate)
        return step, channels, 2 * width if self.concatenate else width


@dataclasses.dataclass(frozen=True)
class OutputSkip(AbstractOutputPyramid):
    """The output is a sum of images made at every level: an output skip of NCSN++.

    **Arguments:**

    - `kernel`: the taps of its filter; `(1, 1)` repeats pixels.

    **Example:**

    ```python
    style = eqd.nn.styles.ncsnpp(output_pyramid=eqd.nn.styles.OutputSkip((1, 3, 3, 1)))
    ```
    """

    kernel: Kernel = (1, 1)

    is_output = True

    def up(
        self, layers: Layers, channels: int | None, width: int, out_channels: int, key: Key
    ) -> tuple[OutputSkipStep, int]:
        """See `AbstractOutputPyramid.up`."""
        head = layers.head(width, out_channels, key, layers.init.out)
        return OutputSkipStep(None if channels is None else Resample("up", self.kernel), head), (
            out_channels
        )


@dataclasses.dataclass(frozen=True)
class ResidualPyramid(AbstractInputPyramid, AbstractOutputPyramid):
    """Makes the small image a residual branch, on the way down or up.

    **Arguments:**

    - `resampling`: how its sides change: [`eqdiff.nn.styles.Filtered`][] or
        [`eqdiff.nn.styles.Strided`][].

    **Example:**

    ```python
    pyramid = eqd.nn.styles.ResidualPyramid(eqd.nn.styles.Filtered())
    style = eqd.nn.styles.ncsnpp(output_pyramid=pyramid)
    ```
    """

    resampling: AbstractResampling

    is_output = False

    def down(
        self, layers: Layers, channels: int, width: int, key: Key
    ) -> tuple[ResidualStep, int, int]:
        """See `AbstractInputPyramid.down`."""
        layer = self.resampling.down(layers, channels, width, key)
        return ResidualStep(layer, layers.style.scale), width, width

    def up(
        self, layers: Layers, channels: int | None, width: int, out_channels: int, key: Key
    ) -> tuple[ResidualStep | StartStep, int]:
        """See `AbstractOutputPyramid.up`."""
        del out_channels
        if channels is None:
            return StartStep(layers.head(width, width, key, layers.init.maps)), width
        layer = self.resampling.up(layers, channels, width, key)
        return ResidualStep(layer, layers.style.scale), width

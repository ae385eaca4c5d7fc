"""The sizes of a U-Net, apart from what it is made of (`_style.py`)."""

import dataclasses

from ._check import check_dims


@dataclasses.dataclass(frozen=True)
class UNetShape:
    """The sizes of [`eqdiff.nn.UNet`][] and [`eqdiff.nn.UNetClassifier`][]; the defaults are those
    of the network of Ho et al. (2020) for CIFAR-10.

    **Arguments:**

    - `in_channels`: of $x$.
    - `out_channels`: of $F$, twice `in_channels` where a variance is learned; the number of logits
        of a classifier.
    - `channels`: the width that others are multiples of.
    - `num_res_blocks`: per level on the way down; one more on the way up.
    - `channel_mult`: the width of each level as a multiple of `channels`, which need not be a whole
        one; its length is the number of levels, each at half the sides of the one before.
    - `attention_downsamples`: the factors by which the sides have shrunk where a level has
        attention; `(2, 4)` is 16 and 8 for images of side 32. The middle always has attention.
    - `stem_mult`: the width after the first convolution as a multiple of `channels`; `None` for
        that of the first level. It is 1 in Song's networks.
    - `num_classes`: how many classes the network takes; `None` for a network without. The `args`
        of a call are then the class, one integer from 0 to `num_classes - 1`.
    - `augment_size`: the number of parameters of an augmentation; 9 for
        [`eqdiff.data.EDMAugmentation`][].
    - `dims`: the number of spatial dimensions, 1 to 3: signals `(channels, length)`, images
        `(channels, height, width)`, or volumes and videos `(channels, depth, height, width)`, of
        which every level halves the height and the width and keeps the depth.

    **Raises:** `ValueError` for fewer than one block or level, a width below one, or another number
    of dimensions.

    **Example:**

    ```python
    shape = eqd.nn.UNetShape(in_channels=1, out_channels=2, channels=32, channel_mult=(1, 2))
    ```
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float | int, ...] = (1, 2, 2, 2)
    attention_downsamples: tuple[int, ...] = (2,)
    stem_mult: float | int | None = None
    num_classes: int | None = None
    augment_size: int = 0
    dims: int = 2

    def __post_init__(self):
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_downsamples", tuple(self.attention_downsamples))
        if self.num_res_blocks < 1 or not self.channel_mult:
            raise ValueError(
                "a U-Net needs at least one level and one residual block per level, got "
                f"num_res_blocks={self.num_res_blocks} and {self.num_levels} levels in "
                "channel_mult."
            )
        if min(self.stem, *self.widths) < 1:
            raise ValueError(
                f"every level needs at least one channel, got channels={self.channels} times "
                f"channel_mult={self.channel_mult}."
            )
        check_dims(self.dims)

    @property
    def num_levels(self) -> int:
        """How many levels there are."""
        return len(self.channel_mult)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level."""
        return tuple(int(mult * self.channels) for mult in self.channel_mult)

    @property
    def stem(self) -> int:
        """The channels after the first convolution."""
        mult = self.channel_mult[0] if self.stem_mult is None else self.stem_mult
        return int(mult * self.channels)

    @property
    def attention(self) -> tuple[bool, ...]:
        """Whether each level has attention."""
        return tuple(2**i in self.attention_downsamples for i in range(self.num_levels))

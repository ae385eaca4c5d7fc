"""What the blocks of one family of U-Nets are made of."""

from typing import Any, NamedTuple

from .._types import Key
from ._attention import AttentionBlock
from ._block import ResBlock
from ._conv import Conv, Linear
from ._fir import DownsampleConv, Kernel, UpsampleConv
from ._init import fan_average, Init, torch_default, zeros
from ._norm import GroupNorm, Groups, song_groups
from ._resample import Downsample, Resample, Upsample


class Style(NamedTuple):
    """What the blocks of one family are made of; the defaults are NCSN++'s.

    - `embedding_size`: of $e$; `None` for blocks without conditioning.
    - `dropout`: its probability.
    - `dims`: the number of spatial dimensions; filters are for two.
    - `groups`, `eps`: of the group normalisations.
    - `scale`: of every sum of two branches.
    - `scale_shift_norm`: how the embedding enters a block.
    - `kernel`: the filter's taps; `None` for a strided convolution and repeated pixels.
    - `resample_in_block`: whether sides change inside a residual block, as BigGAN's do.
    - `project_resampled`: whether such a block has a 1×1 convolution in its skip.
    - `conv_resample`: whether sides change with a convolution elsewhere.
    - `stride_padding`: zeros before and after each side, of a strided convolution.
    - `num_heads`, `num_heads_upsample`: of attention, and of attention on the way up (`None`: the
        same).
    - `channels_per_head`: of attention; wins over the number of heads.
    - `init`, `out_init`, `qkv_init`, `bias_init`: of maps, of the last map of a branch, of the map
        into attention, and of all biases (`None`: as their weights).
    """

    embedding_size: int | None
    dropout: float
    dims: int = 2
    groups: Groups = song_groups
    eps: float = 1e-6
    scale: float = 0.5**0.5
    scale_shift_norm: bool = False
    kernel: Kernel | None = (1, 3, 3, 1)
    resample_in_block: bool = True
    project_resampled: bool = True
    conv_resample: bool = True
    stride_padding: tuple[int, int] = (0, 1)
    num_heads: int = 1
    num_heads_upsample: int | None = None
    channels_per_head: int | None = None
    init: Init = fan_average()
    out_init: Init = fan_average(1e-10)
    qkv_init: Init = fan_average(0.2)
    bias_init: Init | None = zeros

    def norm(self, width: int) -> GroupNorm:
        return GroupNorm(width, self.groups, eps=self.eps)

    def conv(self, width: int, out: int, key: Key, init: Init | None = None) -> Conv:
        return Conv(
            width, out, dims=self.dims, init=init or self.init, bias_init=self.bias_init, key=key
        )

    def linear(self, width: int, out: int, key: Key) -> Linear:
        return Linear(width, out, init=self.init, bias_init=self.bias_init, key=key)

    def block(self, width: int, out: int, key: Key, resample: Resample | None = None) -> ResBlock:
        return ResBlock(
            width,
            out,
            self.embedding_size,
            dims=self.dims,
            dropout=self.dropout,
            scale_shift_norm=self.scale_shift_norm,
            groups=self.groups,
            eps=self.eps,
            scale=self.scale,
            resample=resample,
            project_skip=resample is not None and self.project_resampled,
            init=self.init,
            out_init=self.out_init,
            bias_init=self.bias_init,
            key=key,
        )

    def _heads(self, width: int, up: bool) -> int:
        if self.channels_per_head is None:
            more = self.num_heads_upsample
            return more if up and more is not None else self.num_heads
        if width < self.channels_per_head:
            raise ValueError(
                f"attention with {self.channels_per_head} channels per head needs at least as many "
                f"channels, got {width}; use fewer channels_per_head."
            )
        return width // self.channels_per_head

    def attention(self, width: int, key: Key, *, up: bool = False) -> AttentionBlock:
        return AttentionBlock(
            width,
            self._heads(width, up),
            groups=self.groups,
            eps=self.eps,
            scale=self.scale,
            init=self.qkv_init,
            out_init=self.out_init,
            bias_init=self.bias_init,
            key=key,
        )

    def filter(self, direction: Any) -> Resample:
        return Resample(direction, (1, 1) if self.kernel is None else self.kernel)

    def down_conv(self, width: int, out: int, key: Key) -> DownsampleConv | Downsample:
        options: dict[str, Any] = dict(init=self.init, bias_init=self.bias_init, key=key)
        if self.kernel is None:
            padding = self.stride_padding
            return Downsample(width, out, dims=self.dims, padding=padding, **options)
        return DownsampleConv(width, out, self.kernel, **options)

    def up_conv(self, width: int, out: int, key: Key) -> UpsampleConv | Upsample:
        options: dict[str, Any] = dict(init=self.init, bias_init=self.bias_init, key=key)
        if self.kernel is None:
            return Upsample(width, out, dims=self.dims, **options)
        return UpsampleConv(width, out, self.kernel, **options)

    def down(self, width: int, key: Key):
        if self.resample_in_block:
            return self.block(width, width, key, self.filter("down"))
        return self.down_conv(width, width, key) if self.conv_resample else self.filter("down")

    def up(self, width: int, key: Key):
        if self.resample_in_block:
            return self.block(width, width, key, self.filter("up"))
        return self.up_conv(width, width, key) if self.conv_resample else self.filter("up")


def levels(net: Any) -> dict[str, Any]:
    """The widths of a network's levels, and which of them have attention, for `UNetBody`."""
    downs = net.attention_downsamples
    return {
        "widths": tuple(int(mult * net.channels) for mult in net.channel_mult),
        "attention": tuple(2**i in downs for i in range(len(net.channel_mult))),
    }


def openai_style(net: Any, dims: int = 2, num_heads_upsample: int | None = None) -> Style:
    """Improved DDPM's and ADM's, of a network with the fields of `UNet` or `UNetClassifier`."""
    widths, attention = levels(net).values()
    attended = [width for width, has in zip(widths, attention, strict=True) if has]
    # The middle always has attention.
    per_head = net.channels_per_head
    for width in (*attended, *widths[-1:]):
        # `Style` rounds the number of heads down, as EDM does; the official code refuses.
        if per_head is not None and (per_head < 1 or width % per_head != 0):
            raise ValueError(
                f"{width} channels cannot be split into heads of {per_head}; use a "
                "channels_per_head that divides every width with attention."
            )
    return Style(
        4 * net.channels,
        net.dropout,
        dims=dims,
        groups=net.norm_groups,
        eps=1e-5,
        scale=1.0,
        scale_shift_norm=net.scale_shift_norm,
        kernel=None,
        resample_in_block=net.resblock_updown,
        project_resampled=False,
        conv_resample=net.conv_resample,
        stride_padding=(1, 1),
        num_heads=net.num_heads,
        num_heads_upsample=num_heads_upsample,
        channels_per_head=net.channels_per_head,
        init=torch_default,
        out_init=zeros,
        qkv_init=torch_default,
        bias_init=None,
    )

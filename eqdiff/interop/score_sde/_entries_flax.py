r"""The names that score_sde's JAX code, by way of Flax, gives its weights.

Flax numbers the layers of each class in the order in which they are made, inside the module that
makes them: `ResnetBlockBigGANpp_3/Conv_0/kernel` is the kernel of the first convolution in the
fourth residual block. The same order is walked here. Filters have their outputs last there, and
1×1 convolutions a kernel.

NCSNv2 is left out: its InstanceNorm++ has the biased variance of the channels' means there, and its
bilinear resizing other corners, where our network follows the PyTorch code.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...nn._attention import AttentionBlock
from ...nn._block import ResBlock
from ...nn._body import UNetBody
from ...nn._fir import DownsampleConv, UpsampleConv
from ...nn._pyramid import InputSkipStep, OutputSkipStep, ResidualStep, StartStep
from ...nn._resample import Upsample
from ...nn._resampling import InBlock
from ...nn._unet import UNet
from .._weights import affine, CONV_FLAX, Entry, Path, reordered, stacked


_KERNEL, _NORM, _NIN = ("kernel", "bias"), ("scale", "bias"), ("W", "b")
_POINTWISE = reordered("1 1 i o", "i o")


class _Counter:
    """Entries of the next module of its class."""

    def __init__(self, net: UNet, suffix: str):
        self.made: Counter[str] = Counter()
        self.suffix, self.biggan = suffix, isinstance(net.style.resampling, InBlock)

    def name(self, cls: str) -> str:
        self.made[cls] += 1
        return f"{cls}_{self.made[cls] - 1}"

    def conv(self, where: Path) -> Iterator[Entry]:
        yield from affine(self.name("Conv"), where, CONV_FLAX, names=_KERNEL)

    def dense(self, where: Path) -> Iterator[Entry]:
        yield from affine(self.name("Dense"), where, names=_KERNEL)

    def head(self, where: Path) -> Iterator[Entry]:
        yield from affine(self.name("GroupNorm"), where.at("norm"), names=_NORM)
        yield from self.conv(where.at("conv"))

    def block(self, where: Path, block: ResBlock) -> Iterator[Entry]:
        kind = "BigGAN" if self.biggan else "DDPM"
        name = self.name(f"ResnetBlock{kind}{self.suffix}")
        yield from affine(f"{name}.GroupNorm_0", where.at("norm1"), names=_NORM)
        yield from affine(f"{name}.Conv_0", where.at("conv1"), CONV_FLAX, names=_KERNEL)
        if block.embedding is not None:
            yield from affine(f"{name}.Dense_0", where.at("embedding"), names=_KERNEL)
        yield from affine(f"{name}.GroupNorm_1", where.at("norm2"), names=_NORM)
        yield from affine(f"{name}.Conv_1", where.at("conv2"), CONV_FLAX, names=_KERNEL)
        if block.skip is not None and self.biggan:
            yield from affine(f"{name}.Conv_2", where.at("skip"), _POINTWISE, names=_KERNEL)
        elif block.skip is not None:
            yield from affine(f"{name}.NIN_0", where.at("skip"), names=_NIN)

    def attention(self, where: Path) -> Iterator[Entry]:
        name = self.name(f"AttnBlock{self.suffix}")
        yield from affine(f"{name}.GroupNorm_0", where.at("norm"), names=_NORM)
        for ours, theirs in zip(("weight", "bias"), _NIN, strict=True):
            names = tuple(f"{name}.NIN_{i}.{theirs}" for i in range(3))
            yield Entry(names, where.at("qkv", ours), stacked())
        yield from affine(f"{name}.NIN_3", where.at("out"), names=_NIN)

    def resample(self, cls: str, where: Path, layer: Any) -> Iterator[Entry]:
        """One without parameters is counted too."""
        if isinstance(layer, ResBlock):
            yield from self.block(where, layer)
            return
        name = self.name(cls)
        if isinstance(layer, DownsampleConv | UpsampleConv):
            yield from affine(f"{name}.Conv2d_0", where.at("conv"), CONV_FLAX)
        elif getattr(layer, "conv", None) is not None:
            yield from affine(f"{name}.Conv_0", where.at("conv"), CONV_FLAX, names=_KERNEL)

    def pyramid(self, where: Path, layer: Any) -> Iterator[Entry]:
        if isinstance(layer, InputSkipStep):
            self.name("Downsample")
            name = f"{self.name('Combine')}.Conv_0"
            yield from affine(name, where.at("project"), _POINTWISE, names=_KERNEL)
        elif isinstance(layer, StartStep):
            yield from self.head(where.at("head"))
        elif isinstance(layer, OutputSkipStep):
            if layer.resample is not None:
                self.name("Upsample")
            yield from self.head(where.at("head"))
        elif isinstance(layer, ResidualStep):
            up = isinstance(layer.resample, UpsampleConv | Upsample)
            cls = "Upsample" if up else "Downsample"
            yield from self.resample(cls, where.at("resample"), layer.resample)

    def level(self, where: Path, level: Any) -> Iterator[Entry]:
        for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
            yield from self.block(where.at("blocks", j), block)
            if isinstance(attention, AttentionBlock):
                yield from self.attention(where.at("attentions", j))

    def body(self, body: UNetBody) -> Iterator[Entry]:
        yield from self.conv(Path(("body", "conv_in")))
        for i, level in enumerate(body.encoder):
            at = Path(("body", "encoder", i))
            yield from self.level(at, level)
            if level.resample is not None:
                yield from self.resample("Downsample", at.at("resample"), level.resample)
            yield from self.pyramid(at.at("pyramid"), level.pyramid)
        yield from self.level(Path(("body", "middle")), body.middle)
        for i, level in enumerate(body.decoder):
            at = Path(("body", "decoder", i))
            yield from self.level(at, level)
            yield from self.pyramid(at.at("pyramid"), level.pyramid)
            if level.resample is not None:
                yield from self.resample("Upsample", at.at("resample"), level.resample)
        if body.out is not None:
            yield from self.head(Path(("body", "out")))


def flax_entries(net: UNet, suffix: str) -> Iterator[Entry]:
    """Every parameter of `net`, in the order in which the official modules are made.

    **Arguments:**

    - `net`: the network.
    - `suffix`: of the names of its blocks' classes, "pp" in NCSN++.
    """
    count = _Counter(net, suffix)
    if net.time_embedding is not None:
        yield from count.dense(Path(("time_embedding", "linear1")))
        yield from count.dense(Path(("time_embedding", "linear2")))
    yield from count.body(net.body)

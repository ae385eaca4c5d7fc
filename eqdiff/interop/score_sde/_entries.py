r"""The names that score_sde's PyTorch code gives its weights.

Official weights are numbered in the order in which the layers were made, `all_modules.N.…`; the
same order is walked here. With $\theta$ the official array and $\phi$ ours,

- convolution: $\phi_{hwio} = \theta_{oihw}$; linear and 1×1 convolution: $\phi_{io} = \theta_{oi}$;
- "NIN", a 1×1 convolution in another notation: equal; attention's q, k and v are three of them
  there and one map here;
- norms, biases: equal.

Fourier frequencies and noise levels are buffers there and constants here.
"""

from collections.abc import Iterator
from typing import Any

from ...nn._attention import AttentionBlock
from ...nn._block import ResBlock
from ...nn._body import UNetBody
from ...nn._fir import DownsampleConv, UpsampleConv
from ...nn._ncsnv2 import DilatedBlock, NCSNv2, RefineBlock, ResidualUnit
from ...nn._pyramid import InputSkipStep, OutputSkipStep, ResidualStep, StartStep
from ...nn._resampling import InBlock
from ...nn._time_features import Fourier
from ...nn._unet import UNet
from .._weights import affine, CONV, CONV1X1, Entry, Layout, LINEAR, Path, SAME, stacked


_NIN = ("W", "b")


def _res_block(name: str, where: Path, block: ResBlock, biggan: bool) -> Iterator[Entry]:
    yield from affine(f"{name}.GroupNorm_0", where.at("norm1"))
    yield from affine(f"{name}.Conv_0", where.at("conv1"), CONV)
    if block.embedding is not None:
        yield from affine(f"{name}.Dense_0", where.at("embedding"), LINEAR)
    yield from affine(f"{name}.GroupNorm_1", where.at("norm2"))
    yield from affine(f"{name}.Conv_1", where.at("conv2"), CONV)
    if block.skip is not None and biggan:
        yield from affine(f"{name}.Conv_2", where.at("skip"), CONV1X1)
    elif block.skip is not None:
        yield from affine(f"{name}.NIN_0", where.at("skip"), names=_NIN)


def _attention(name: str, where: Path) -> Iterator[Entry]:
    yield from affine(f"{name}.GroupNorm_0", where.at("norm"))
    for ours, theirs in zip(("weight", "bias"), _NIN, strict=True):
        names = tuple(f"{name}.NIN_{i}.{theirs}" for i in range(3))
        yield Entry(names, where.at("qkv", ours), stacked())
    yield from affine(f"{name}.NIN_3", where.at("out"), names=_NIN)


class _Counter:
    """Entries of the next official module, whatever its class."""

    def __init__(self, biggan: bool):
        self.number, self.biggan = 0, biggan

    def name(self) -> str:
        self.number += 1
        return f"all_modules.{self.number - 1}"

    def layer(self, where: Path, weight: Layout) -> Iterator[Entry]:
        yield from affine(self.name(), where, weight)

    def head(self, where: Path) -> Iterator[Entry]:
        yield from self.layer(where.at("norm"), SAME)
        yield from self.layer(where.at("conv"), CONV)

    def module(self, where: Path, layer: Any) -> Iterator[Entry]:
        """One that has layers inside; a resampling without any is counted too."""
        name = self.name()
        if isinstance(layer, ResBlock):
            yield from _res_block(name, where, layer, self.biggan)
        elif isinstance(layer, AttentionBlock):
            yield from _attention(name, where)
        elif isinstance(layer, DownsampleConv | UpsampleConv):
            yield from affine(f"{name}.Conv2d_0", where.at("conv"), CONV)
        elif getattr(layer, "conv", None) is not None:
            yield from affine(f"{name}.Conv_0", where.at("conv"), CONV)

    def pyramid(self, where: Path, layer: Any) -> Iterator[Entry]:
        if isinstance(layer, InputSkipStep):
            yield from affine(f"{self.name()}.Conv_0", where.at("project"), CONV1X1)
        elif isinstance(layer, OutputSkipStep | StartStep):
            yield from self.head(where.at("head"))
        elif isinstance(layer, ResidualStep):
            yield from self.module(where.at("resample"), layer.resample)

    def level(self, where: Path, level: Any) -> Iterator[Entry]:
        for j, (block, attention) in enumerate(zip(level.blocks, level.attentions, strict=True)):
            yield from self.module(where.at("blocks", j), block)
            if attention is not None:
                yield from self.module(where.at("attentions", j), attention)

    def body(self, body: UNetBody, where: Path) -> Iterator[Entry]:
        yield from self.layer(where.at("conv_in"), CONV)
        for i, level in enumerate(body.encoder):
            at = where.at("encoder", i)
            yield from self.level(at, level)
            # Going down a level is resampled before its pyramid, going up after it.
            if level.resample is not None:
                yield from self.module(at.at("resample"), level.resample)
            yield from self.pyramid(at.at("pyramid"), level.pyramid)
        yield from self.level(where.at("middle"), body.middle)
        for i, level in enumerate(body.decoder):
            at = where.at("decoder", i)
            yield from self.level(at, level)
            yield from self.pyramid(at.at("pyramid"), level.pyramid)
            if level.resample is not None:
                yield from self.module(at.at("resample"), level.resample)
        if body.out is not None:
            yield from self.head(where.at("out"))


def _norm_plus(name: str, where: Path) -> Iterator[Entry]:
    for part in ("alpha", "gamma", "beta"):
        yield Entry((f"{name}.{part}",), where.at(part), SAME)


def _unit(name: str, where: Path, unit: ResidualUnit) -> Iterator[Entry]:
    for i, pair in enumerate(unit.convs):
        for j in range(len(pair)):
            at = where.at("convs", i, j)
            yield from affine(f"{name}.{i + 1}_{j + 1}_conv", at, CONV, bias=None)


def _dilated_block(name: str, where: Path, block: DilatedBlock) -> Iterator[Entry]:
    inner = ".conv" if block.pool else ""
    yield from affine(f"{name}.conv1", where.at("conv1"), CONV)
    yield from _norm_plus(f"{name}.normalize2", where.at("norm2"))
    yield from affine(f"{name}.conv2{inner}", where.at("conv2"), CONV)
    if block.skip is not None:
        yield from affine(f"{name}.shortcut{inner}", where.at("skip"), CONV)
    yield from _norm_plus(f"{name}.normalize1", where.at("norm1"))


def _refine_block(name: str, where: Path, block: RefineBlock) -> Iterator[Entry]:
    for j, unit in enumerate(block.adapt):
        yield from _unit(f"{name}.adapt_convs.{j}", where.at("adapt", j), unit)
    yield from _unit(f"{name}.output_convs", where.at("refine"), block.refine)
    for j in range(len(block.fuse or ())):
        yield from affine(f"{name}.msf.convs.{j}", where.at("fuse", j), CONV)
    for j in range(len(block.pooled)):
        yield from affine(f"{name}.crp.convs.{j}", where.at("pooled", j), CONV, bias=None)


def _ncsnv2(net: NCSNv2) -> Iterator[Entry]:
    yield from affine("begin_conv", Path(("conv_in",)), CONV)
    yield from _norm_plus("normalizer", Path(("norm_out",)))
    yield from affine("end_conv", Path(("conv_out",)), CONV)
    numbers = [str(i + 1) for i in range(len(net.stages))]
    if len(numbers) == 6:  # ncsnv2_256 has its extra stage in the middle.
        numbers = ["1", "2", "3", "31", "4", "5"]
    for i, stage in enumerate(net.stages):
        for j, block in enumerate(stage):
            yield from _dilated_block(f"res{numbers[i]}.{j}", Path(("stages", i, j)), block)
    for i, block in enumerate(net.refines):
        yield from _refine_block(f"refine{numbers[i]}", Path(("refines", i)), block)


def entries(net: UNet | NCSNv2, fourier: bool | None = None) -> Iterator[Entry]:
    """Every parameter of `net`, in the order in which the official layers were made.

    **Arguments:**

    - `net`: the network.
    - `fourier`: whether Fourier features are the first; `None` where the network says so itself,
        as all but those without conditioning do.
    """
    if isinstance(net, NCSNv2):
        yield from _ncsnv2(net)
        return
    count = _Counter(isinstance(net.style.resampling, InBlock))
    if fourier is None:
        fourier = net.embed is not None and isinstance(net.embed.time, Fourier)
    if fourier:
        count.name()
    if net.time_embedding is not None:
        yield from count.layer(Path(("time_embedding", "linear1")), LINEAR)
        yield from count.layer(Path(("time_embedding", "linear2")), LINEAR)
    yield from count.body(net.body, Path(("body",)))

"""What a U-Net is made of, apart from its sizes (`_shape.py`).

A style is a record of small objects, each of which chooses one thing. Like it they are frozen and
hold numbers alone, so that they are static in a network, compared by value, and written to files.
`Layers` makes the layers of one network from them.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

from .._padding import AbstractPadding, ZeroPadding
from .._types import Key
from ._activation import AbstractActivation, SiLU
from ._attend import AbstractAttention, FusedAttention
from ._attention import AttentionBlock
from ._block import ResBlock
from ._conv import Conv, Linear
from ._heads import AbstractAttentionUp, AbstractHeads, EveryBlock, Heads
from ._init import fan_average, Init, torch_default, zeros
from ._norm import GroupNorm
from ._pyramid import Head
from ._resample import Resample


@dataclasses.dataclass(frozen=True)
class Norm:
    """The group normalisations of an [`eqdiff.nn.Style`][].

    **Arguments:**

    - `groups`: how many; must divide every width.
    - `eps`: added to the variance: 1e-5 in PyTorch and OpenAI's networks, 1e-6 in Flax and Song's.
    - `min_channels`: never fewer channels in one group, of which there are then fewer than
        `groups` in narrow layers; NCSN++ and EDM's networks have 4. Zero for exactly `groups`.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), norm=eqd.nn.styles.Norm(groups=8))
    ```
    """

    groups: int = 32
    eps: float = 1e-5
    min_channels: int = 0

    def number(self, channels: int) -> int:
        """The number of groups for so many channels."""
        if self.min_channels == 0:
            return self.groups
        return max(1, min(channels // self.min_channels, self.groups))


class Initialisers(NamedTuple):
    """Of maps, of the last map of a branch, of the map into attention, and of all biases (`None`:
    as their weights)."""

    maps: Init
    out: Init
    qkv: Init
    bias: Init | None


class AbstractInitialisation(abc.ABC):
    """How weights start."""

    @abc.abstractmethod
    def initialisers(self) -> Initialisers:
        """The functions that draw them."""


@dataclasses.dataclass(frozen=True)
class TorchInit(AbstractInitialisation):
    r"""PyTorch's default, $\mathcal U(-n_\text{in}^{-1/2}, n_\text{in}^{-1/2})$; the last map of
    every branch and of the network starts at zero, and with it the output (OpenAI).

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), init=eqd.nn.styles.TorchInit())
    ```
    """

    def initialisers(self) -> Initialisers:
        """See `AbstractInitialisation.initialisers`."""
        return Initialisers(torch_default, zeros, torch_default, None)


@dataclasses.dataclass(frozen=True)
class FanInit(AbstractInitialisation):
    r"""Uniform with the variance $s\,/\,$(mean of both fans), and biases of zero (Song).

    **Arguments:**

    - `out_scale`: $s$ of the last map of every branch and of the network; elsewhere it is 1, and
        0.2 in the map into attention.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), init=eqd.nn.styles.FanInit(out_scale=0.0))
    ```
    """

    out_scale: float | int = 1e-10

    def initialisers(self) -> Initialisers:
        """See `AbstractInitialisation.initialisers`."""
        return Initialisers(fan_average(), fan_average(self.out_scale), fan_average(0.2), zeros)


class AbstractModulation(abc.ABC):
    """How the embedding $e$ enters a residual block."""

    # Whether it has twice as many numbers as channels.
    scales: ClassVar[bool]


@dataclasses.dataclass(frozen=True)
class ScaleShift(AbstractModulation):
    r"""$(1 + s)\,\mathrm{GN}(h) + b$ with $(s, b) = W\,\mathrm{SiLU}(e)$ (Nichol & Dhariwal
    2021).

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), modulation=eqd.nn.styles.ScaleShift())
    ```
    """

    scales = True


@dataclasses.dataclass(frozen=True)
class Added(AbstractModulation):
    r"""$\mathrm{GN}(h + W\,\mathrm{SiLU}(e))$ (Ho et al. 2020).

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), modulation=eqd.nn.styles.Added())
    ```
    """

    scales = False


class AbstractResampling(abc.ABC):
    """How sides change between two levels."""

    @abc.abstractmethod
    def down(self, layers: "Layers", width: int, out: int, key: Key) -> Any:
        """A layer that halves the sides."""

    @abc.abstractmethod
    def up(self, layers: "Layers", width: int, out: int, key: Key) -> Any:
        """A layer that doubles the sides."""


class AbstractInputPyramid(abc.ABC):
    """A small image next to the features on the way down."""

    @abc.abstractmethod
    def down(self, layers: "Layers", channels: int, width: int, key: Key) -> tuple[Any, int, int]:
        """One step, and the channels of the small image and of the features after it.

        **Arguments:**

        - `layers`: those of the network.
        - `channels`: of the small image.
        - `width`: of the features.
        - `key`: a PRNG key.
        """


class AbstractOutputPyramid(abc.ABC):
    """A small image next to the features on the way up."""

    # Whether the small image is the network's output at the end.
    is_output: ClassVar[bool]

    @abc.abstractmethod
    def up(
        self, layers: "Layers", channels: int | None, width: int, out_channels: int, key: Key
    ) -> tuple[Any, int]:
        """One step, and the channels of the small image after it.

        **Arguments:**

        - `layers`: those of the network.
        - `channels`: of the small image; `None` at the lowest level, which begins it.
        - `width`: of the features.
        - `out_channels`: of the network's output.
        - `key`: a PRNG key.
        """


_FUSED = FusedAttention()


@dataclasses.dataclass(frozen=True)
class Style:
    r"""The blocks of an [`eqdiff.nn.UNet`][], and what stands between and next to them.

    `eqdiff.nn.styles` has one function for each family; change its result with
    `dataclasses.replace(style, dropout=0.1)`.

    **Arguments:**

    - `resampling`: how sides change between levels: [`eqdiff.nn.styles.Strided`][],
        [`eqdiff.nn.styles.Filtered`][], [`eqdiff.nn.styles.Pooling`][] or
        [`eqdiff.nn.styles.InBlock`][].
    - `norm`: the normalisations, [`eqdiff.nn.styles.Norm`][].
    - `init`: how weights start: [`eqdiff.nn.styles.TorchInit`][] or
        [`eqdiff.nn.styles.FanInit`][].
    - `modulation`: how the embedding enters a block: [`eqdiff.nn.styles.ScaleShift`][] or
        [`eqdiff.nn.styles.Added`][].
    - `heads`: of attention: [`eqdiff.nn.styles.Heads`][], [`eqdiff.nn.styles.HeadsOf`][] or
        [`eqdiff.nn.styles.HeadsOfAtLeast`][].
    - `attention_up`: which blocks have attention on the way up:
        [`eqdiff.nn.styles.EveryBlock`][] or [`eqdiff.nn.styles.LastBlock`][].
    - `input_pyramid`: [`eqdiff.nn.styles.InputSkip`][], [`eqdiff.nn.styles.ResidualPyramid`][] or
        `None`.
    - `output_pyramid`: [`eqdiff.nn.styles.OutputSkip`][], [`eqdiff.nn.styles.ResidualPyramid`][] or
        `None`.
    - `scale`: of every sum of two branches; $1/\sqrt 2$ keeps the variance that of its terms.
    - `dropout`: its probability, in every residual block.
    - `attention`: what computes attention: [`eqdiff.nn.FusedAttention`][] or
        [`eqdiff.nn.PlainAttention`][].
    - `activation`: of the blocks and of the output's: [`eqdiff.nn.styles.SiLU`][],
        [`eqdiff.nn.styles.ELU`][], [`eqdiff.nn.styles.ReLU`][] or
        [`eqdiff.nn.styles.LeakyReLU`][]; the perceptron of the embedding has its own, and a
        classifier's head SiLU.
    - `padding`: what convolutions take to lie beyond the edges: [`eqdiff.ZeroPadding`][],
        [`eqdiff.PeriodicPadding`][], [`eqdiff.ReflectingPadding`][], [`eqdiff.LatLonPadding`][] or
        [`eqdiff.MixedPadding`][].

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), heads=eqd.nn.styles.Heads(4), dropout=0.1)
    ```
    """

    resampling: AbstractResampling
    norm: Norm = Norm()
    init: AbstractInitialisation = TorchInit()
    modulation: AbstractModulation = ScaleShift()
    heads: AbstractHeads = Heads()
    attention_up: AbstractAttentionUp = EveryBlock()
    input_pyramid: AbstractInputPyramid | None = None
    output_pyramid: AbstractOutputPyramid | None = None
    scale: float | int = 1.0
    dropout: float | int = 0.0
    attention: AbstractAttention = _FUSED
    activation: AbstractActivation = SiLU()
    padding: AbstractPadding = ZeroPadding()


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of one network.

    - `style`: its style.
    - `embedding_size`: of $e$; `None` for blocks without conditioning.
    - `dims`: the number of spatial dimensions.
    """

    style: Style
    embedding_size: int | None
    dims: int

    @property
    def init(self) -> Initialisers:
        return self.style.init.initialisers()

    def options(self, key: Key) -> dict[str, Any]:
        """Of a map that is not the last of a branch."""
        return dict(init=self.init.maps, bias_init=self.init.bias, key=key)

    def norm(self, width: int) -> GroupNorm:
        return GroupNorm(width, self.style.norm.number, eps=self.style.norm.eps)

    def conv(self, width: int, out: int, key: Key) -> Conv:
        return Conv(width, out, dims=self.dims, **self.options(key))

    def linear(self, width: int, out: int, key: Key) -> Linear:
        return Linear(width, out, **self.options(key))

    def head(self, width: int, out: int, key: Key, init: Init) -> Head:
        options: dict[str, Any] = {**self.options(key), "init": init}
        conv = Conv(width, out, dims=self.dims, **options)
        return Head(self.norm(width), conv, self.style.activation)

    def block(
        self,
        width: int,
        out: int,
        key: Key,
        resample: Resample | None = None,
        project_skip: bool = False,
    ) -> ResBlock:
        style = self.style
        return ResBlock(
            width,
            out,
            self.embedding_size,
            dims=self.dims,
            dropout=style.dropout,
            scale_shift_norm=style.modulation.scales,
            groups=style.norm.number,
            eps=style.norm.eps,
            scale=style.scale,
            activation=style.activation,
            resample=resample,
            project_skip=project_skip,
            out_init=self.init.out,
            **self.options(key),
        )

    def attention(self, width: int, key: Key, *, up: bool = False) -> AttentionBlock:
        style = self.style
        return AttentionBlock(
            width,
            style.heads.number(width, up=up),
            groups=style.norm.number,
            eps=style.norm.eps,
            scale=style.scale,
            kernel=style.attention,
            init=self.init.qkv,
            out_init=self.init.out,
            bias_init=self.init.bias,
            key=key,
        )

"""The style of each family, in terms of the objects of `_style.py`."""

from .._fir import Kernel
from .._heads import AbstractAttentionUp, AbstractHeads, Heads, HeadsOf, HeadsOfAtLeast, LastBlock
from .._pyramids import ResidualPyramid
from .._resampling import Filtered, InBlock, Strided
from .._style import (
    AbstractInputPyramid,
    AbstractModulation,
    AbstractOutputPyramid,
    AbstractResampling,
    Added,
    FanInit,
    Norm,
    ScaleShift,
    Style,
)


# NCSN++ and all of EDM's networks: 32 groups, but never fewer than four channels in one.
_SONG_NORM = Norm(eps=1e-6, min_channels=4)


def iddpm(
    *,
    dropout: float = 0.0,
    heads: AbstractHeads = Heads(4),
    modulation: AbstractModulation = ScaleShift(),
    resampling: AbstractResampling = Strided(),
    norm_groups: int = 32,
) -> Style:
    """Improved DDPM's (Nichol & Dhariwal 2021): strided convolutions, scale-shift norm, attention
    after every block.

    **Arguments:**

    - `dropout`, `heads`, `modulation`, `resampling`: as for [`eqdiff.nn.Style`][].
    - `norm_groups`: of every normalisation; must divide every width.

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.iddpm(dropout=0.1, norm_groups=8)
    ```
    """
    return Style(resampling, Norm(norm_groups), modulation=modulation, heads=heads, dropout=dropout)


def adm(
    *,
    dropout: float = 0.0,
    heads: AbstractHeads = HeadsOf(64),
    modulation: AbstractModulation = ScaleShift(),
    norm_groups: int = 32,
) -> Style:
    """ADM's (Dhariwal & Nichol 2021): Improved DDPM's with sides that change inside residual
    blocks, and heads of 64 channels.

    **Arguments:** as for [`eqdiff.nn.styles.iddpm`][].

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.adm(dropout=0.1)
    ```
    """
    return iddpm(
        dropout=dropout,
        heads=heads,
        modulation=modulation,
        resampling=InBlock(),
        norm_groups=norm_groups,
    )


def ddpm(
    *,
    dropout: float = 0.1,
    resampling: AbstractResampling = Strided((0, 1)),
    attention_up: AbstractAttentionUp = LastBlock(),
    norm_groups: int = 32,
) -> Style:
    """DDPM's (Ho et al. 2020), as score_sde has it: the embedding is added before the
    normalisation, one head of attention, on the way up after the last block of a level alone.

    **Arguments:**

    - `dropout`, `resampling`: as for [`eqdiff.nn.Style`][].
    - `attention_up`: as for it; Ho et al. and diffusers have [`eqdiff.nn.styles.EveryBlock`][].
    - `norm_groups`: of every normalisation; must divide every width.

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.ddpm(dropout=0.0)
    ```
    """
    return Style(
        resampling,
        Norm(norm_groups, 1e-6),
        FanInit(),
        Added(),
        attention_up=attention_up,
        dropout=dropout,
    )


def ddpmpp(*, dropout: float = 0.1) -> Style:
    r"""DDPM++'s (Song et al. 2021): BigGAN's residual blocks, sums divided by $\sqrt 2$, neither
    filters nor pyramids.

    **Arguments:**

    - `dropout`: its probability.

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.ddpmpp()
    ```
    """
    return _song(InBlock(project=True), None, None, dropout)


def ncsnpp(
    *,
    dropout: float = 0.1,
    kernel: Kernel = (1, 3, 3, 1),
    input_pyramid: AbstractInputPyramid | None = ResidualPyramid(Filtered()),
    output_pyramid: AbstractOutputPyramid | None = None,
) -> Style:
    """NCSN++'s (Song et al. 2021): DDPM++'s with filters and pyramids.

    **Arguments:**

    - `dropout`, `input_pyramid`, `output_pyramid`: as for [`eqdiff.nn.Style`][].
    - `kernel`: the taps of the filter inside residual blocks.

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.ncsnpp(output_pyramid=eqd.nn.styles.OutputSkip())
    ```
    """
    return _song(InBlock(kernel, project=True), input_pyramid, output_pyramid, dropout)


def edm(
    *,
    dropout: float = 0.13,
    kernel: Kernel = (1, 1),
    input_pyramid: AbstractInputPyramid | None = None,
    output_pyramid: AbstractOutputPyramid | None = None,
) -> Style:
    """EDM's DDPM++ and NCSN++ (Karras et al. 2022, `SongUNet`); the latter has
    `kernel=(1, 3, 3, 1)` and `input_pyramid=ResidualPyramid(Filtered((1, 3, 3, 1)))`.

    **Arguments:** as for [`eqdiff.nn.styles.ncsnpp`][].

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.edm(dropout=0.05)
    ```
    """
    return _song(InBlock(kernel, project=True), input_pyramid, output_pyramid, dropout)


def edm_adm(*, dropout: float = 0.1, heads: AbstractHeads = HeadsOfAtLeast(64)) -> Style:
    """EDM's ADM (Karras et al. 2022, `DhariwalUNet`).

    **Arguments:**

    - `dropout`, `heads`: as for [`eqdiff.nn.Style`][].

    **Returns:** an [`eqdiff.nn.Style`][].

    **Example:**

    ```python
    style = eqd.nn.styles.edm_adm(dropout=0.1)
    ```
    """
    return Style(InBlock(), Norm(min_channels=4), heads=heads, dropout=dropout)


def _song(
    resampling: AbstractResampling,
    input_pyramid: AbstractInputPyramid | None,
    output_pyramid: AbstractOutputPyramid | None,
    dropout: float,
) -> Style:
    return Style(
        resampling,
        _SONG_NORM,
        FanInit(),
        Added(),
        Heads(1),
        LastBlock(),
        input_pyramid,
        output_pyramid,
        0.5**0.5,
        dropout,
    )

"""The styles of published U-Nets, by family, and the objects that a style is made of.

A function's arguments are what people change; `dataclasses.replace` changes everything else.
"""

from .._activation import (
    ELU as ELU,
    LeakyReLU as LeakyReLU,
    ReLU as ReLU,
    SiLU as SiLU,
)
from .._heads import (
    EveryBlock as EveryBlock,
    Heads as Heads,
    HeadsOf as HeadsOf,
    HeadsOfAtLeast as HeadsOfAtLeast,
    LastBlock as LastBlock,
)
from .._pyramids import (
    InputSkip as InputSkip,
    OutputSkip as OutputSkip,
    ResidualPyramid as ResidualPyramid,
)
from .._resampling import (
    Filtered as Filtered,
    InBlock as InBlock,
    Pooling as Pooling,
    Strided as Strided,
)
from .._style import (
    Added as Added,
    FanInit as FanInit,
    Norm as Norm,
    ScaleShift as ScaleShift,
    TorchInit as TorchInit,
)
from ._families import (
    adm as adm,
    ddpm as ddpm,
    ddpmpp as ddpmpp,
    edm as edm,
    edm_adm as edm_adm,
    iddpm as iddpm,
    ncsnpp as ncsnpp,
)

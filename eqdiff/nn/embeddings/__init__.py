"""The embeddings of published U-Nets, by family, and the objects that one is made of."""

from .._embedding import (
    ClassTable as ClassTable,
    OneHotAfter as OneHotAfter,
    OneHotBefore as OneHotBefore,
)
from .._time_features import (
    Fourier as Fourier,
    NoiseLevels as NoiseLevels,
    Sinusoids as Sinusoids,
    SongSinusoids as SongSinusoids,
)
from ._families import edm as edm, edm_adm as edm_adm, iddpm as iddpm, score_sde as score_sde

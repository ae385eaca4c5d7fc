"""What a U-Net's embedding is given of the time input: the features are computed in `_embed.py`."""

import abc
import dataclasses
from typing import Any

from .._types import Scalar
from ._c_noise import level_number, SigmaLevels
from ._embed import fourier_frequencies


class AbstractTime(abc.ABC):
    """What the perceptron is given of the time input."""

    @abc.abstractmethod
    def at(self, channels: int) -> "AbstractTime":
        """The same for a network of so many channels: whatever is drawn at random is drawn."""

    @abc.abstractmethod
    def size(self, channels: int) -> int:
        """The number of features."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Of `TimeEmbedding`."""

    @abc.abstractmethod
    def number(self, c_noise: Scalar) -> Scalar:
        """The number whose features are taken."""


@dataclasses.dataclass(frozen=True)
class Sinusoids(AbstractTime):
    """Sinusoids of the time input, cosines first (OpenAI).

    **Arguments:**

    - `mult`: how many as a multiple of the network's channels.
    """

    mult: int = 1

    def at(self, channels: int) -> "Sinusoids":
        """See `AbstractTime.at`."""
        return self

    def size(self, channels: int) -> int:
        """See `AbstractTime.size`."""
        return self.mult * channels

    def options(self) -> dict[str, Any]:
        """See `AbstractTime.options`."""
        return {}

    def number(self, c_noise: Scalar) -> Scalar:
        """See `AbstractTime.number`."""
        return c_noise


@dataclasses.dataclass(frozen=True)
class SongSinusoids(AbstractTime):
    """Sinusoids of the time input, sines first, of frequencies from exactly 1 to 1/10000 (Ho et
    al. 2020, Song).

    **Arguments:**

    - `mult`: how many as a multiple of the network's channels.
    """

    mult: int = 1

    def at(self, channels: int) -> "SongSinusoids":
        """See `AbstractTime.at`."""
        return self

    def size(self, channels: int) -> int:
        """See `AbstractTime.size`."""
        return self.mult * channels

    def options(self) -> dict[str, Any]:
        """See `AbstractTime.options`."""
        return dict(cosine_first=False, endpoint=True)

    def number(self, c_noise: Scalar) -> Scalar:
        """See `AbstractTime.number`."""
        return c_noise


@dataclasses.dataclass(frozen=True)
class NoiseLevels(AbstractTime):
    r"""Song's sinusoids of the number of a noise level, for a network trained on a list of them.

    The network's time input is $\log\sigma$; of the levels

    $$\sigma_i = \sigma_{\max}(\sigma_{\min}/\sigma_{\max})^{i/(N-1)}, \quad i = 0, \dots, N - 1,$$

    it takes the nearest.

    **Arguments:**

    - `sigma_min`, `sigma_max`, `number_of_levels`: $\sigma_{\min}$, $\sigma_{\max}$ and $N$.

    **Raises:** `ValueError` for levels that are not increasing, positive and at least two.
    """

    sigma_min: float | int
    sigma_max: float | int
    number_of_levels: int

    def __post_init__(self):
        low, high, number = self.levels
        if not 0 < low < high or number < 2:
            raise ValueError(
                "NoiseLevels takes sigma_min, sigma_max and their number, with "
                f"0 < sigma_min < sigma_max and at least two, got {self.levels}."
            )

    @property
    def levels(self) -> SigmaLevels:
        """All three numbers."""
        return self.sigma_min, self.sigma_max, self.number_of_levels

    def at(self, channels: int) -> "NoiseLevels":
        """See `AbstractTime.at`."""
        return self

    def size(self, channels: int) -> int:
        """See `AbstractTime.size`."""
        return channels

    def options(self) -> dict[str, Any]:
        """See `AbstractTime.options`."""
        return dict(cosine_first=False, endpoint=True)

    def number(self, c_noise: Scalar) -> Scalar:
        """See `AbstractTime.number`."""
        return level_number(c_noise, self.levels)


@dataclasses.dataclass(frozen=True)
class Fourier(AbstractTime):
    r"""Fourier features of the time input, which is itself a logarithm.

    **Arguments:**

    - `mult`: how many as a multiple of the network's channels.
    - `scale`: the standard deviation of the frequencies.
    - `frequencies`: themselves, half as many as the features; by default the same draw in every
        network of that size.
    """

    mult: int = 2
    scale: float | int = 16.0
    frequencies: tuple[float, ...] | None = None

    def at(self, channels: int) -> "Fourier":
        """See `AbstractTime.at`."""
        if self.frequencies is not None:
            return self
        drawn = fourier_frequencies(self.size(channels) // 2, self.scale)
        return dataclasses.replace(self, frequencies=drawn)

    def size(self, channels: int) -> int:
        """See `AbstractTime.size`."""
        return self.mult * channels

    def options(self) -> dict[str, Any]:
        """See `AbstractTime.options`."""
        return dict(frequencies=self.frequencies, cosine_first=False)

    def number(self, c_noise: Scalar) -> Scalar:
        """See `AbstractTime.number`."""
        return c_noise

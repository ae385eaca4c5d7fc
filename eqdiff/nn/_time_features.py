"""What a U-Net's embedding is given of the time input: the features are computed in `_embed.py`."""

import abc
import dataclasses
from typing import Any, ClassVar

from .._types import Scalar
from ._c_noise import level_number, SigmaLevels


class AbstractTime(abc.ABC):
    """What the perceptron is given of the time input."""

    # How many features as a multiple of the network's channels.
    mult: int

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

    **Example:**

    ```python
    embed = eqd.nn.Embedding(eqd.nn.embeddings.Sinusoids())
    ```
    """

    mult: int = 1

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

    **Example:**

    ```python
    embed = eqd.nn.embeddings.score_sde(eqd.nn.embeddings.SongSinusoids())
    ```
    """

    mult: int = 1

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

    **Example:**

    ```python
    embed = eqd.nn.embeddings.score_sde(eqd.nn.embeddings.NoiseLevels(0.01, 50.0, 1000))
    ```
    """

    sigma_min: float | int
    sigma_max: float | int
    number_of_levels: int

    mult: ClassVar[int] = 1

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

    **Example:**

    ```python
    embed = eqd.nn.embeddings.score_sde(eqd.nn.embeddings.Fourier(scale=16.0))
    ```
    """

    mult: int = 2
    scale: float | int = 16.0
    frequencies: tuple[float, ...] | None = None

    def options(self) -> dict[str, Any]:
        """See `AbstractTime.options`."""
        return dict(frequencies=self.frequencies, cosine_first=False)

    def number(self, c_noise: Scalar) -> Scalar:
        """See `AbstractTime.number`."""
        return c_noise

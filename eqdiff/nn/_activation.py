r"""The activation of a U-Net: between a normalisation and a convolution, and in the embedding.

$$\mathrm{SiLU}(x) = \frac{x}{1 + e^{-x}}, \qquad
  \mathrm{ELU}(x) = \begin{cases} x & x > 0 \\ e^x - 1 & x \le 0, \end{cases} \qquad
  \mathrm{LeakyReLU}(x) = \max(x, k x). \tag{1}$$

Like everything that a style is made of they are small frozen objects, compared by value.
"""

import abc
import dataclasses

import jax
from jaxtyping import Array, Float


class AbstractActivation(abc.ABC):
    """A function of each number."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Of every number of `x`."""


@dataclasses.dataclass(frozen=True)
class SiLU(AbstractActivation):
    r"""$x / (1 + e^{-x})$, also called swish (every published U-Net).

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), activation=eqd.nn.styles.SiLU())
    ```
    """

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """See `AbstractActivation.__call__`."""
        return jax.nn.silu(x)


@dataclasses.dataclass(frozen=True)
class ELU(AbstractActivation):
    """$x$ above zero, $e^x - 1$ below.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), activation=eqd.nn.styles.ELU())
    ```
    """

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """See `AbstractActivation.__call__`."""
        return jax.nn.elu(x)


@dataclasses.dataclass(frozen=True)
class LeakyReLU(AbstractActivation):
    """$x$ above zero, $k x$ below.

    **Arguments:**

    - `slope`: $k$, between 0 (ReLU) and 1; score_sde's is 0.2.

    **Raises:** `ValueError` for another slope.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), activation=eqd.nn.styles.LeakyReLU(0.2))
    ```
    """

    slope: float | int = 0.2

    def __post_init__(self):
        if not 0 <= self.slope < 1:
            raise ValueError(f"LeakyReLU(slope={self.slope}): expected a number from 0 to below 1.")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """See `AbstractActivation.__call__`."""
        return jax.nn.leaky_relu(x, self.slope)


@dataclasses.dataclass(frozen=True)
class ReLU(AbstractActivation):
    """$x$ above zero, 0 below.

    **Example:**

    ```python
    style = eqd.nn.Style(eqd.nn.styles.Strided(), activation=eqd.nn.styles.ReLU())
    ```
    """

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """See `AbstractActivation.__call__`."""
        return jax.nn.relu(x)

r"""Fourier coefficients, as magnetic resonance imaging and interferometers measure them.

$$\tilde x_f = \frac1{\sqrt N}\sum_j x_j\,e^{-2\pi i f\cdot j/N}, \qquad
  Ax = (\mathrm{Re}\,\tilde x_K, \mathrm{Im}\,\tilde x_K), \tag{1}$$

for $N$ cells and the chosen frequencies $K$. The transform is unitary, so that with all of them
$\|Ax\| = \|x\|$. Data are real: $\tilde x_{-f}$ is the conjugate of $\tilde x_f$, and measured
twice if both are chosen; if they are, for every $f$ in $K$, then $A^\top A$ projects.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from .._types import Example
from ._axes import Axes, resolve_axes, sizes
from ._mask import known_indices, take


class Fourier(eqx.Module):
    r"""Chosen Fourier coefficients, as real and imaginary parts: equation (1).

    **Example:**

    ```python
    import numpy as np
    lines = np.fft.fftfreq(64, 1 / 64)
    known = np.tile((lines % 4 == 0) | (np.abs(lines) < 4), (64, 1))  # the lines of a scan
    y = eqd.operators.Fourier(known)(jnp.ones((1, 64, 64)))
    ```
    """

    indices: Int[Array, " known"]
    shape: tuple[int, ...] = eqx.field(static=True)
    axes: Axes = eqx.field(static=True)

    def __init__(self, known: ArrayLike, axes: Axes = None):
        """**Arguments:**

        - `known`: an array of bool, `True` for the frequencies that are measured, in the order of
            `np.fft.fftfreq` along each of `axes`; `np.ones(shape, bool)` for all of them.
        - `axes`: which are transformed, three at most; by default all but the first, the channels.

        **Raises:** `ValueError` for a mask of other numbers, of no element, or one that is traced;
        when called, for an example of other sides.
        """
        self.shape, self.indices = known_indices("Fourier", known)
        if len(self.shape) > 3:
            raise ValueError(
                f"Fourier: the mask has shape {self.shape}, expected three axes at most."
            )
        self.axes = axes

    def __call__(self, x: Example) -> Float[Array, "2 ... known"]:
        """**Arguments:**

        - `x`: one example.

        **Returns:** real and imaginary parts, `(2, channels, known)`.

        **Raises:** `ValueError` where the sides of `x` are not those of `known`.
        """
        axes = resolve_axes(self, self.axes, x)
        if sizes(x, axes) != self.shape:
            raise ValueError(
                f"Fourier: x has shape {x.shape} and is transformed along {axes}, of sizes "
                f"{sizes(x, axes)}, but the mask of frequencies has shape {self.shape}."
            )
        last = range(-len(axes), 0)
        moved = jnp.moveaxis(x, axes, last)
        coefficients = jnp.fft.fftn(moved, axes=tuple(last), norm="ortho")
        coefficients = take(coefficients, self.indices, len(axes))
        return jnp.stack([jnp.real(coefficients), jnp.imag(coefficients)])

r"""A mean over examples and how far to trust it.

A score of $n$ independent examples $x_1, \dots, x_n$ is quoted with the standard error of its mean,

$$m = \frac1n \sum_i x_i, \qquad
  e = \sqrt{\frac{1}{n (n - 1)} \sum_i (x_i - m)^2}, \tag{1}$$

which covers everything that was drawn anew for each example: which example it is, its noise, its
dequantisation, its Hutchinson probe. Two models that were scored on the same examples with the same
keys are better compared by the mean of the *differences*, whose standard error is far smaller.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Shaped


class Mean(NamedTuple):
    """A mean over examples with its standard error, printed as `value ± stderr`.

    **Fields:**

    - `value`, `stderr`: float64, a number or, for examples that are arrays, an array.
    - `num`: how many examples there were.
    - `num_nonfinite`: how many of them hold a NaN or an infinity.

    **Example:**

    ```python
    bits = eqd.metrics.mean(jnp.array([3.4, 3.6, 3.5]))  # an eqd.metrics.Mean
    print(bits.value, bits.stderr, bits.num)
    ```
    """

    value: Float[np.ndarray, "..."] | float
    stderr: Float[np.ndarray, "..."] | float
    num: int
    num_nonfinite: int

    def __str__(self) -> str:
        with np.printoptions(precision=3):
            scalar = np.ndim(self.value) == 0
            value, stderr = (f"{x:.3f}" if scalar else str(x) for x in (self.value, self.stderr))
        bad = f" ({self.num_nonfinite} of {self.num} are not finite)" if self.num_nonfinite else ""
        return f"{value} ± {stderr}{bad}"


def mean(values: Shaped[ArrayLike, "n ..."]) -> Mean:
    """The mean over a leading axis of examples, and its standard error, in float64: equation (1).

    Values that are not finite are not dropped: the mean is then NaN or infinite, and
    `num_nonfinite` says how many examples to look at. To leave them out, write
    `mean(values[np.isfinite(values)])`.

    **Arguments:**

    - `values`: real numbers of shape `(n, …)`, NumPy or JAX; booleans count as 0 and 1.

    **Returns:** [`eqdiff.metrics.Mean`][]. The standard error of a single example is NaN.

    **Raises:** `ValueError` for no examples, or a scalar.

    **Example:**

    ```python
    print(eqd.metrics.mean(jnp.array([3.4, 3.6, 3.5])))  # 3.500 ± 0.058
    ```
    """
    x = np.asarray(values).astype(np.float64)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(
            f"mean: expected values of shape (n, …) for at least one example, got {x.shape}."
        )
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    # Infinities less an infinite mean are NaN, as they should be.
    with np.errstate(invalid="ignore", divide="ignore"):
        value = x.mean(axis=0)
        squares = np.sum((x - value) ** 2, axis=0)
        stderr = np.sqrt(squares / np.float64(len(x) * (len(x) - 1)))
    return Mean(value, stderr, len(x), int(bad.sum()))

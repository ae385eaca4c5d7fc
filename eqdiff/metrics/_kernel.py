r"""The kernel distance between two sets of features ("KID", Bińkowski et al. 2018).

The squared maximum mean discrepancy for the kernel $k(x, y) = (x^\top y / d + 1)^3$ of $d$
features, which sees the first three moments. Of $n$ and $m$ images it is estimated without bias,
for any number, by

$$\widehat{\mathrm{MMD}}{}^2 = \frac{1}{n(n-1)}\sum_{i \ne j} k(x_i, x_j)
  + \frac{1}{m(m-1)}\sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm}\sum_{i,j} k(x_i, y_j), \tag{1}$$

which may therefore be below zero. Published numbers are means of (1) over random subsets, with the
standard deviation over these. The estimate from all images at once has the same expectation and a
smaller error, known from each image's own part $h$ of (1) (Serfling 1980, section 5.3):

$$e^2 = 4\,\frac{\operatorname{var} h(x_i)}{n} + 4\,\frac{\operatorname{var} h(y_j)}{m}, \qquad
  h(x_i) = \frac{1}{n-1}\sum_{j \ne i} k(x_i, x_j) - \frac1m \sum_j k(x_i, y_j). \tag{2}$$
"""

from typing import Any

import numpy as np

from .._check import whole
from ._mean import Mean, mean
from ._neighbours import check_sets, Rows


# Of a block of the kernel matrix: 32 MB.
_BLOCK = 2048


def kernel_distance(
    features1: Rows,
    features2: Rows,
    *,
    num_subsets: int = 100,
    subset_size: int | None = 1000,
    seed: int = 0,
) -> Mean:
    """The squared kernel distance between two sets of features: equation (1).

    **Arguments:**

    - `features1`, `features2`: features, one row per image.
    - `num_subsets`, `subset_size`: how many random subsets of how many images of each set, by
        default as in published code. With `None`, or where a set has no more images than a
        subset, all images at once.
    - `seed`: of the subsets.

    **Returns:** an [`eqdiff.metrics.Mean`][]. Over subsets its `stderr` is the standard deviation,
    which is what is published, over the root of `num` subsets; it says how well the subsets
    represent these images. Of all images it is (2), the error from drawing the images.

    **Raises:** `ValueError` for sets of unequal width, of fewer than two images, numbers that are
    not whole and positive, or features that are not finite.

    **Example:**

    ```python
    features, reference = jax.random.normal(jax.random.key(0), (2, 100, 8))
    print(eqd.metrics.kernel_distance(features, reference, subset_size=None))
    ```
    """
    x, y = check_sets("kernel_distance", features1, features2, 2, 2)
    num_subsets = whole("kernel_distance", "num_subsets", num_subsets)
    if subset_size is not None:
        subset_size = whole("kernel_distance", "subset_size", subset_size, least=2)
    if subset_size is None or min(len(x), len(y)) <= subset_size:
        return Mean(*_estimate(x, y), num=min(len(x), len(y)), num_nonfinite=0)
    rng = np.random.default_rng(seed)
    values = [
        _estimate(*(f[rng.choice(len(f), subset_size, replace=False)] for f in (x, y)))[0]
        for _ in range(num_subsets)
    ]
    return mean(np.array(values))


def _estimate(x: Any, y: Any) -> tuple[float, float]:
    """Equation (1), and the root of (2)."""
    n, m = len(x), len(y)
    own_x, own_y = _row_sums(x, x)[0] - _diagonal(x), _row_sums(y, y)[0] - _diagonal(y)
    cross_x, cross_y = _row_sums(x, y)
    h_x = own_x / (n - 1) - cross_x / m
    h_y = own_y / (m - 1) - cross_y / n
    error = 4 * h_x.var(ddof=1) / n + 4 * h_y.var(ddof=1) / m
    # Both means hold the cross term once.
    return float(h_x.mean() + h_y.mean()), float(np.sqrt(error))


def _row_sums(x: Any, y: Any) -> tuple[Any, Any]:
    """The kernel matrix's sums over columns and over rows, block by block in float64."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for i in range(0, len(x), _BLOCK):
        part = x[i : i + _BLOCK].astype(np.float64)
        for j in range(0, len(y), _BLOCK):
            kernel = _kernel(part @ y[j : j + _BLOCK].astype(np.float64).T, x.shape[1])
            rows[i : i + _BLOCK] += kernel.sum(axis=1)
            columns[j : j + _BLOCK] += kernel.sum(axis=0)
    return rows, columns


def _diagonal(x: Any) -> Any:
    return _kernel(np.einsum("ij,ij->i", x, x, dtype=np.float64), x.shape[1])


def _kernel(products: Any, d: int) -> Any:
    return (products / d + 1) ** 3

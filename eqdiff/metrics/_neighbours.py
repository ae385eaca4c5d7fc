r"""Nearest neighbours: how much of the real images samples cover, and how many samples look real.

A set's support is estimated by balls around its features, each as large as the distance to the
$k$-th nearest neighbour in the same set, $B(f_i, r_i)$. Precision is the share of samples in the
real images' balls and recall the share of real images in the samples' balls (Kynkäänniemi et al.
2019, equation 2, $k = 3$). A single outlier has a ball that holds much, and so

$$\text{density} = \frac{1}{k m} \sum_{j=1}^m \sum_{i=1}^n 1[g_j \in B(f_i, r_i)], \qquad
  \text{coverage} = \frac1n \sum_{i=1}^n 1[\exists j: g_j \in B(f_i, r_i)] \tag{1}$$

of $m$ samples $g_j$ use the balls of real images alone (Naeem et al. 2020, equation 3, $k = 5$).
Two large sets of one distribution have density 1 and coverage $1 - 2^{-k}$. All four depend on how
many images there are; papers have 10,000 or 50,000 of each.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Shaped

from .._check import whole


# Of a block of distances: 32 MB, whatever the number of images.
_ROWS, _COLUMNS = 1024, 4096

Rows = Shaped[ArrayLike, "_ _"]


class PrecisionRecall(NamedTuple):
    """The share of samples that are like real images, and of real images that are like samples.

    **Fields:** `precision` and `recall`, shares between 0 and 1.

    **Example:**

    ```python
    import numpy as np
    real, generated = np.random.default_rng(0).normal(size=(2, 100, 8))
    found = eqd.metrics.precision_recall(real, generated)  # an eqd.metrics.PrecisionRecall
    print(found.precision, found.recall)
    ```
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """The same question with the balls of real images alone, equation (1).

    **Fields:** `density`, which may exceed 1, and `coverage`, a share.

    **Example:**

    ```python
    import numpy as np
    real, generated = np.random.default_rng(0).normal(size=(2, 100, 8))
    found = eqd.metrics.density_coverage(real, generated)  # an eqd.metrics.DensityCoverage
    print(found.density, found.coverage)
    ```
    """

    density: float
    coverage: float


def precision_recall(real: Rows, generated: Rows, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of samples.

    !!! info "Difference from the official code"

        Distances are computed in float64; the code of Kynkäänniemi et al. and guided-diffusion use
        float16 where that does not overflow, so a sample on the rim of a ball may be counted
        otherwise.

    **Arguments:**

    - `real`, `generated`: features, one row per image.
    - `k`: which neighbour's distance is the radius of a ball.

    **Returns:** [`eqdiff.metrics.PrecisionRecall`][].

    **Raises:** `ValueError` for sets of unequal width or of no more than `k` images, or features
    that are not finite.

    **Example:**

    ```python
    import numpy as np
    real, generated = np.random.default_rng(0).normal(size=(2, 100, 8))
    print(eqd.metrics.precision_recall(real, generated))
    ```
    """
    least = whole("precision_recall", "k", k) + 1
    x, y = check_sets("precision_recall", real, generated, least, least)
    x_radii, y_radii = _radii(x, k), _radii(y, k)
    is_real, is_covered = np.zeros(len(y), bool), np.zeros(len(x), bool)
    for i, j, distances in _blocks(x, y):
        is_real[j] |= (distances <= x_radii[i, None]).any(axis=0)
        is_covered[i] |= (distances <= y_radii[None, j]).any(axis=1)
    return PrecisionRecall(float(is_real.mean()), float(is_covered.mean()))


def density_coverage(real: Rows, generated: Rows, *, k: int = 5) -> DensityCoverage:
    """Density and coverage of samples, equation (1).

    **Arguments:** as for [`eqdiff.metrics.precision_recall`][].

    **Returns:** [`eqdiff.metrics.DensityCoverage`][].

    **Raises:** as there.

    **Example:**

    ```python
    import numpy as np
    real, generated = np.random.default_rng(0).normal(size=(2, 100, 8))
    print(eqd.metrics.density_coverage(real, generated))
    ```
    """
    least = whole("density_coverage", "k", k) + 1
    x, y = check_sets("density_coverage", real, generated, least, 1)
    radii = _radii(x, k)
    count, is_covered = 0, np.zeros(len(x), bool)
    for i, _, distances in _blocks(x, y):
        inside = distances < radii[i, None]
        count += int(inside.sum())
        is_covered[i] |= inside.any(axis=1)
    return DensityCoverage(count / (k * len(y)), float(is_covered.mean()))


def nearest_neighbours(
    features: Rows, reference: Rows, k: int = 1
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Finds the images of a reference nearest to each of yours, to see what was memorised.

    **Arguments:**

    - `features`, `reference`: features, or pixels, one row per image.
    - `k`: how many neighbours.

    **Returns:** their indices in `reference`, nearest first, and Euclidean distances in float64.

    **Raises:** `ValueError` for sets of unequal width, fewer than `k` images of reference, or
    features that are not finite.

    **Example:**

    ```python
    reference = jax.random.normal(jax.random.key(0), (100, 8))
    indices, distances = eqd.metrics.nearest_neighbours(reference[:5], reference, k=2)
    ```
    """
    k = whole("nearest_neighbours", "k", k)
    indices, squares = _nearest(*check_sets("nearest_neighbours", features, reference, 1, k), k)
    return indices, np.sqrt(squares)


def _nearest(features: Any, reference: Any, k: int) -> tuple[Any, ...]:
    """Indices and squared distances of the nearest, in order."""
    indices = np.zeros((len(features), k), np.int64)
    squares = np.full((len(features), k), np.inf)
    for i, j, distances in _blocks(features, reference):
        columns = np.broadcast_to(np.arange(j.start, j.stop), distances.shape)
        distances = np.concatenate([squares[i], distances], axis=1)
        columns = np.concatenate([indices[i], columns], axis=1)
        kept = np.argpartition(distances, k - 1, axis=1)[:, :k]
        squares[i] = np.take_along_axis(distances, kept, axis=1)
        indices[i] = np.take_along_axis(columns, kept, axis=1)
    order = np.argsort(squares, axis=1, kind="stable")
    return tuple(np.take_along_axis(a, order, axis=1) for a in (indices, squares))


def _radii(features: Any, k: int) -> Any:
    """The squared distance to the k-th neighbour; an image itself is the zeroth."""
    return _nearest(features, features, k + 1)[1][:, k]


def _blocks(rows: Any, columns: Any) -> Iterator[tuple[slice, slice, Any]]:
    """Squared distances in float64, block by block: all of them need not fit into the memory."""
    for start in range(0, len(rows), _ROWS):
        i = slice(start, min(start + _ROWS, len(rows)))
        x = rows[i].astype(np.float64)
        x_squares = np.sum(x * x, axis=1)[:, None]
        for begin in range(0, len(columns), _COLUMNS):
            j = slice(begin, min(begin + _COLUMNS, len(columns)))
            y = columns[j].astype(np.float64)
            squares = x_squares + np.sum(y * y, axis=1)[None, :] - 2 * (x @ y.T)
            yield i, j, np.maximum(squares, 0)


def check_sets(
    owner: str, features1: Rows, features2: Rows, least1: int, least2: int
) -> tuple[Any, Any]:
    """Two sets of features as NumPy arrays, of at least so many images."""
    sets = [np.asarray(f) for f in (features1, features2)]
    shapes = [f.shape for f in sets]
    if any(f.ndim != 2 for f in sets) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"{owner}: expected two arrays (images, features) of equal width, got {shapes[0]} and "
            f"{shapes[1]}."
        )
    if shapes[0][0] < least1 or shapes[1][0] < least2:
        raise ValueError(
            f"{owner}: expected at least {least1} and {least2} images, got {shapes[0][0]} and "
            f"{shapes[1][0]}."
        )
    if not all(np.isfinite(f).all() for f in sets):
        raise ValueError(f"{owner}: the features are not all finite.")
    return sets[0], sets[1]

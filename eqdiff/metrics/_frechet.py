r"""The Fréchet distance between two sets of features.

Each set is summarised by the mean and the covariance of its features. Between the two Gaussians
with these moments (Dowson & Landau 1982; Heusel et al. 2017 with Inception features, the "FID")

$$d^2 = \|\mu_1 - \mu_2\|^2
  + \operatorname{tr}\left(C_1 + C_2 - 2\,(C_1^{1/2} C_2 C_1^{1/2})^{1/2}\right). \tag{1}$$

With any factors $C_i = L_i L_i^\top$ the trace of the root is the sum of the singular values of
$L_1^\top L_2$, and is computed so: no root of a non-symmetric matrix, no imaginary parts, and
nothing added to the diagonal where there are fewer images than features. Where published code,
which takes the root of $C_1 C_2$, loses digits of an ill-conditioned product, this does not. The
estimate is biased upwards by an amount that falls like $1/n$, so compare only distances from
equally many samples, ideally next to the distance of as many real images.
"""

import warnings

import numpy as np
from jaxtyping import ArrayLike, Float, Shaped

from ._moments import Moments


Pair = tuple[Shaped[ArrayLike, " d"], Shaped[ArrayLike, "d d"]]
Features = Shaped[ArrayLike, "_ _"] | Moments | Pair


def frechet_distance(features1: Features, features2: Features) -> float:
    r"""The squared Fréchet distance between Gaussians fitted to two sets of features: equation (1).

    ```python
    reference = eqd.metrics.read_moments("cifar10-32x32.npz")
    distance = eqd.metrics.frechet_distance(eqd.metrics.extract(inception, samples), reference)
    ```

    **Arguments:**

    - `features1`, `features2`: each an array with one row per image, an
        [`eqdiff.metrics.Moments`][], or a pair of a mean and a covariance.

    **Returns:** $d^2 \ge 0$: what is quoted as "FID" where the features are Inception's.

    **Warns:** `UserWarning` where a set has no more images than features, so that its covariance
    has no full rank, and where the images of the two sets had different sizes.

    **Raises:** `ValueError` for sets of different feature networks or unequal width, of fewer than
    two images, or that are not finite.

    **Example:**

    ```python
    features, reference = jax.random.normal(jax.random.key(0), (2, 100, 8))
    print(eqd.metrics.frechet_distance(features, reference))
    ```
    """
    moments1, moments2 = (as_moments(f) for f in (features1, features2))
    for remark in remarks(moments1, moments2):
        warnings.warn(f"frechet_distance: {remark}", stacklevel=2)
    return distance(moments1, moments2)


def as_moments(features: Features) -> Moments:
    """The moments of any of the forms in which features are given."""
    if isinstance(features, Moments):
        return features
    if isinstance(features, tuple):
        mean, covariance = (np.asarray(f, np.float64) for f in features)
        return Moments(mean, covariance)
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            "frechet_distance: expected arrays (images, features) of equal width and at least 2 "
            f"images, got {features.shape}."
        )
    return Moments.of(features)


def remarks(moments1: Moments, moments2: Moments) -> list[str]:
    """What a reader of the distance should know; what makes it meaningless is an error."""
    for moments in (moments1, moments2):
        if moments.num is not None and moments.num < 2:
            raise ValueError(
                f"frechet_distance: expected at least 2 images in each set, got {moments.num}."
            )
    names = {m.features for m in (moments1, moments2) if m.features is not None}
    if len(names) > 1:
        raise ValueError(
            "frechet_distance: the sets are of different feature networks, "
            f"{' and '.join(sorted(names))}: their numbers have nothing to do with each other."
        )
    widths = moments1.mean.size, moments2.mean.size
    if widths[0] != widths[1]:
        raise ValueError(
            "frechet_distance: expected two sets of equal width and at least 2 images each, got "
            f"{widths[0]} and {widths[1]} features."
        )
    found = [
        f"{moments.num} images are too few for a covariance of full rank of {widths[0]} features: "
        "compare it only with distances of as many images."
        for moments in (moments1, moments2)
        if moments.num is not None and moments.num <= widths[0]
    ]
    sizes = moments1.size, moments2.size
    if None not in sizes and sizes[0] != sizes[1]:
        found.append(
            f"the images of the two sets are of different sizes, {sizes[0]} and {sizes[1]}."
        )
    return found


def distance(moments1: Moments, moments2: Moments) -> float:
    """Equation (1)."""
    factor1, factor2 = _factor(moments1.covariance), _factor(moments2.covariance)
    # tr C is the squared Frobenius norm of its factor.
    traces = np.sum(factor1**2) + np.sum(factor2**2)
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    means = np.sum((moments1.mean - moments2.mean) ** 2)
    return float(max(means + traces - 2 * cross, 0.0))


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        # No full rank. Rounding may leave eigenvalues a little below zero.
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0))

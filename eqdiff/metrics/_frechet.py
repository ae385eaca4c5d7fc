r"""The Fréchet distance between two sets of features.

Each set is summarised by the mean and the covariance of its features. Between the two Gaussians
with these moments (Dowson & Landau 1982; Heusel et al. 2017 with Inception features, the "FID")

$$d^2 = \|\mu_1 - \mu_2\|^2
  + \operatorname{tr}\left(C_1 + C_2 - 2\,(C_1^{1/2} C_2 C_1^{1/2})^{1/2}\right). \tag{1}$$

The trace of the root is the sum of the singular values of $C_1^{1/2}C_2^{1/2}$, and is computed so:
no root of a non-symmetric matrix, no imaginary parts. The estimate is biased upwards by an amount
that falls like $1/n$, so compare only distances from equally many samples, ideally next to the
distance of as many real images.
"""

import warnings

import numpy as np
from jaxtyping import Float, Int, Shaped

from .._require import require


def frechet_distance(
    features1: Float[np.ndarray, "n d"], features2: Float[np.ndarray, "m d"]
) -> float:
    r"""The squared Fréchet distance (1) between Gaussians fitted to two sets of features.

    **Arguments:**

    - `features1`, `features2`: one row per image, for example from
        [`eqdiff.metrics.ClassifierFeatures`][].

    **Returns:** $d^2 \ge 0$: what is quoted as "FID" where the features are Inception's.

    **Raises:** `ValueError` for features of unequal width, of fewer than two images, or that are
    not finite.
    """
    sets = [np.asarray(f, np.float64) for f in (features1, features2)]
    for f in sets:
        if f.ndim != 2 or len(f) < 2 or f.shape[1] != sets[0].shape[1]:
            raise ValueError(
                "frechet_distance: expected two arrays (images, features) of equal width and at "
                f"least 2 images each, got {sets[0].shape} and {sets[1].shape}."
            )
        if not np.all(np.isfinite(f)):
            raise ValueError("frechet_distance: the features are not all finite.")
    (mean1, root1), (mean2, root2) = (_moments(f) for f in sets)
    # tr C is the squared Frobenius norm of its root.
    traces = np.sum(root1**2) + np.sum(root2**2)
    cross = np.linalg.svd(root1 @ root2, compute_uv=False).sum()
    return float(max(np.sum((mean1 - mean2) ** 2) + traces - 2 * cross, 0.0))


def _moments(
    features: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """The mean and the symmetric root of the covariance."""
    mean = features.mean(axis=0)
    covariance = np.cov(features, rowvar=False).reshape(mean.size, mean.size)
    values, vectors = np.linalg.eigh(covariance)
    # Rounding may leave eigenvalues a little below zero if there are fewer images than features.
    return mean, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


class ClassifierFeatures:
    """Features for a Fréchet distance: the last hidden layer of a classifier of real images.

    For data sets to which an Inception network does not apply, such as 8×8 digits. The classifier
    is a perceptron; calling it with images gives one row of features per image. The same images,
    labels and seed give the same features. Needs `pip install 'eqdiff[metrics]'`.
    """

    def __init__(
        self,
        images: Shaped[np.ndarray, "n ..."],
        labels: Int[np.ndarray, " n"],
        *,
        hidden: tuple[int, ...] = (128, 32),
        max_epochs: int = 200,
        seed: int = 0,
    ):
        """**Arguments:**

        - `images`: real images, of any shape after the first axis.
        - `labels`: their classes.
        - `hidden`: the widths of the hidden layers; the last is the number of features.
        - `max_epochs`: passes through the data; training stops earlier once the loss no longer
            falls.
        - `seed`: of the initial weights and the order of the data.

        **Raises:** `ImportError` without scikit-learn; `ValueError` for fewer than two classes.
        """
        neural = require("sklearn.neural_network", "ClassifierFeatures", extra="metrics")
        exceptions = require("sklearn.exceptions", "ClassifierFeatures", extra="metrics")
        if len(np.unique(labels)) < 2:
            raise ValueError(
                "ClassifierFeatures: expected images of at least two classes, got one."
            )
        self._classifier = neural.MLPClassifier(hidden, random_state=seed, max_iter=max_epochs)
        with warnings.catch_warnings():
            # The features matter, not the last digit of the loss.
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
            self._classifier.fit(_flat(images), labels)

    def accuracy(self, images: Shaped[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]) -> float:
        """The share of images that are classified as their label.

        On held-out real images it says whether the features mean anything; on class-conditional
        samples, whether they show the class asked for.
        """
        return float(self._classifier.score(_flat(images), labels))

    def __call__(self, images: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
        """The features of each image."""
        h = _flat(images)
        for weights, bias in list(
            zip(self._classifier.coefs_, self._classifier.intercepts_, strict=True)
        )[:-1]:
            h = np.maximum(h @ weights + bias, 0)
        return h


def _flat(images: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
    images = np.asarray(images, np.float64)
    return images.reshape(len(images), -1)

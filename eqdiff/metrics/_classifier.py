r"""What a classifier of real images thinks of samples.

A classifier trained on real images gives class probabilities $p(y|x)$. Over samples $x_1, \dots, x_n$ of $K$ classes,

$$\text{confidence} = \frac1n\sum_i \max_y p(y|x_i), \qquad
  \text{coverage} = \#\{y : \text{share}_y \ge \tfrac{1}{2K}\}, \tag{1}$$

the first falls for images that are no digit, the second for classes that are hardly ever drawn. Both are meaningful only beside
the same figures for held-out real images. For data sets too small for an Inception network.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclasses.dataclass(frozen=True)
class SampleScore:
    """What [`eqdiff.metrics.ClassifierScore`][] finds.

    **Fields:**

    - `confidence`: the mean of the largest class probability.
    - `confidence_stderr`: its standard error over images.
    - `coverage`: how many classes have at least half their even share.
    - `shares`: the share of images assigned to each class, shape `(K,)`.
    """

    confidence: float
    confidence_stderr: float
    coverage: int
    shares: Float[np.ndarray, " K"]


class ClassifierScore:
    """A support vector machine with calibrated probabilities, trained on real images, that scores samples.

    Calling it with images gives their [`eqdiff.metrics.SampleScore`][].
    """

    def __init__(self, images: Shaped[np.ndarray, "n ..."], labels: Int[np.ndarray, " n"]):
        """**Arguments:**

        - `images`: real images, of any shape after the first axis.
        - `labels`: their classes.

        **Raises:** `ImportError` without scikit-learn; `ValueError` for fewer than two classes.
        """
        try:
            from sklearn.calibration import CalibratedClassifierCV
            from sklearn.svm import SVC
        except ImportError as e:
            raise ImportError(
                "ClassifierScore needs scikit-learn: pip install 'eqdiff[metrics]'."
            ) from e
        if len(np.unique(labels)) < 2:
            raise ValueError("ClassifierScore: expected images of at least two classes, got one.")
        # Calibrated on held-out folds: a margin is no probability, and confidence is what is measured.
        self._classifier = CalibratedClassifierCV(SVC(), ensemble=False, cv=5)  # pyright: ignore[reportArgumentType]
        self._classifier.fit(_flat(images), labels)

    def probabilities(self, images: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n K"]:
        """The class probabilities of each image."""
        return self._classifier.predict_proba(_flat(images))

    def __call__(self, images: Shaped[np.ndarray, "n ..."]) -> SampleScore:
        """Scores images, equation (1)."""
        probabilities = self.probabilities(images)
        best = probabilities.max(axis=1)
        num_classes = probabilities.shape[1]
        shares = np.bincount(probabilities.argmax(axis=1), minlength=num_classes) / len(best)
        return SampleScore(
            confidence=float(best.mean()),
            confidence_stderr=float(best.std(ddof=1) / np.sqrt(len(best)))
            if len(best) > 1
            else 0.0,
            coverage=int(np.sum(shares >= 0.5 / num_classes)),
            shares=shares,
        )


def _flat(images: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n d"]:
    images = np.asarray(images)
    return images.reshape(len(images), -1)

"""Features where no pretrained network applies: a perceptron's last hidden layer."""

import warnings

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Shaped

from .._require import require


class ClassifierFeatures:
    """Features for a Fréchet distance: the last hidden layer of a classifier of real images.

    For data sets to which an Inception network does not apply, such as 8×8 digits. The classifier
    is a perceptron; calling it with images gives one row of features per image. The same images,
    labels and seed give the same features. Needs `pip install 'eqdiff[metrics]'`.

    **Example:**

    ```python
    x, labels = eqd.data.digits().held_out()
    features = eqd.metrics.ClassifierFeatures(x, labels, hidden=(16,), max_epochs=5)
    print(features.accuracy(x, labels))
    ```
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
            # scikit-learn takes Ctrl-C for "that is enough", but whoever pressed it wants to stop.
            warnings.filterwarnings("error", "Training interrupted", UserWarning)
            try:
                self._classifier.fit(_flat(images), labels)
            except UserWarning as error:
                raise KeyboardInterrupt from error

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

    def probabilities(self, features: Float[ArrayLike, "n d"]) -> Float[np.ndarray, "n classes"]:
        """The probability of each class, of the features of each image."""
        logits = np.asarray(features) @ self._classifier.coefs_[-1]
        logits = logits + self._classifier.intercepts_[-1]
        if logits.shape[1] == 1:
            # Of two classes, the second alone.
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        likely = np.exp(logits - logits.max(axis=1, keepdims=True))
        return likely / likely.sum(axis=1, keepdims=True)


def _flat(images: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
    images = np.asarray(images, np.float64)
    return images.reshape(len(images), -1)

"""The quality of samples of a small data set, in two numbers without a pretrained network."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ._classifier import ClassifierFeatures
from ._frechet import frechet_distance


class SampleQuality(NamedTuple):
    """Two figures of samples, each next to that of real images.

    **Fields:**

    - `num`: how many images the distances are of; they are biased by it.
    - `frechet`, `frechet_real`: the Fréchet distance to held-out images of the samples, and of as
        many training images.
    - `accuracy`, `accuracy_real`: the share that is taken for the class asked for, of the samples
        (`None` if there are no classes) and of held-out images.

    **Example:**

    ```python
    data = eqd.data.digits()
    train, test = next(eqd.data.loader(data.train, 300, seed=0)), data.held_out(100)
    samples, labels = next(eqd.data.loader(data.train, 100, seed=1))
    quality = eqd.metrics.sample_quality(samples, labels, train, test, levels=17)
    rows = quality.table()  # of an eqd.metrics.SampleQuality
    ```
    """

    num: int
    frechet: float
    frechet_real: float
    accuracy: float | None
    accuracy_real: float

    def table(self) -> list[tuple[str, ...]]:
        """Both figures as rows of a table, the first being the names of the columns."""
        accuracy = "" if self.accuracy is None else f"{100 * self.accuracy:.1f} %"
        return [
            ("images", f"Fréchet distance of {self.num}", "taken for the class asked for"),
            ("samples", f"{self.frechet:.2f}", accuracy),
            ("real", f"{self.frechet_real:.2f}", f"{100 * self.accuracy_real:.1f} %"),
        ]


def sample_quality(
    samples: Float[np.ndarray, "n ..."],
    labels: Int[np.ndarray, " n"] | None,
    train: tuple[Float[np.ndarray, "m ..."], Int[np.ndarray, " m"]],
    test: tuple[Float[np.ndarray, "k ..."], Int[np.ndarray, " k"]],
    *,
    levels: int = 256,
) -> SampleQuality:
    """Judges samples by the features of a perceptron trained on the training images.

    For data sets as small as digits; the numbers compare models of one data set, not with papers.

    **Arguments:**

    - `samples`: in [−1, 1]; rounded to the nearest grey level first, as they are shown.
    - `labels`: the classes that were asked for, or `None`.
    - `train`, `test`: real images in [−1, 1] and their classes.
    - `levels`: the number of grey levels.

    **Returns:** an [`eqdiff.metrics.SampleQuality`][].

    **Raises:** `ImportError` without scikit-learn.

    **Example:**

    ```python
    data = eqd.data.digits()
    train, test = next(eqd.data.loader(data.train, 300, seed=0)), data.held_out(100)
    samples, labels = next(eqd.data.loader(data.train, 100, seed=1))
    print(eqd.metrics.sample_quality(samples, labels, train, test, levels=17))
    ```
    """
    features = ClassifierFeatures(*train)
    half = (levels - 1) / 2
    shown = np.rint((np.clip(samples, -1, 1) + 1) * half) / half - 1
    num = min(len(samples), len(test[0]), len(train[0]))
    order = np.random.RandomState(0).permutation(len(train[0]))[:num]
    reference = features(test[0][:num])
    return SampleQuality(
        num,
        frechet_distance(reference, features(shown[:num])),
        frechet_distance(reference, features(train[0][order])),
        None if labels is None else float(features.accuracy(shown, labels)),
        float(features.accuracy(*test)),
    )

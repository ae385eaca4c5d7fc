"""scikit-learn's handwritten digits: 1,797 real 8×8 images, no download, 17 grey levels.

The images are counts of dark pixels in 4×4 cells of 32×32 scans (Alpaydin & Kaynak 1998, the test
part of the UCI set), hence levels 0 to 16. Small enough to train on with a CPU, real enough that a
wrong likelihood shows.
"""

import numpy as np
from jaxtyping import Integer

from .._require import require
from ._dataset import Dataset
from ._source import ArraySource


def _stratified_test_indices(
    labels: Integer[np.ndarray, " n"], test_size: int, seed: int
) -> Integer[np.ndarray, " test"]:
    # RandomState, not Generator: its streams are frozen for good (NEP 19), and so is the split.
    rng = np.random.RandomState(seed)
    members = [rng.permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    ideal = np.array([len(m) * test_size / len(labels) for m in members])
    counts = np.floor(ideal).astype(int)
    # Largest remainders make the class counts add up; a stable sort makes ties repeatable.
    extra = np.argsort(counts - ideal, kind="stable")[: test_size - counts.sum()]
    counts[extra] += 1
    return np.sort(np.concatenate([m[:c] for m, c in zip(members, counts, strict=True)]))


def digits(*, test_size: int = 300, seed: int = 0) -> Dataset[ArraySource]:
    """Handwritten digits, shape `(1, 8, 8)`, 17 grey levels, ten classes.

    The split is stratified (each class has its share of the test set, to within one image) and
    depends on nothing but the two arguments.

    **Arguments:**

    - `test_size`: the number of test images, of 1,797. The default leaves 1,497 for training.
    - `seed`: of the split.

    **Returns:** a [`eqdiff.data.Dataset`][].

    **Raises:** `ImportError` without scikit-learn; `ValueError` for a `test_size` out of range.

    **Example:**

    ```python
    data = eqd.data.digits()
    x, labels = data.held_out(64)  # (64, 1, 8, 8) in [-1, 1]
    ```

    ??? cite "Reference"

        Alpaydin & Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
        Repository, 1998.
    """
    bunch = require("sklearn.datasets", "eqdiff.data.digits", extra="data").load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int32)
    if not 0 <= test_size < len(labels):
        raise ValueError(
            f"test_size={test_size}: expected 0 to {len(labels) - 1} of {len(labels)} images"
        )
    in_test = np.zeros(len(labels), bool)
    in_test[_stratified_test_indices(labels, test_size, seed)] = True
    return Dataset(
        name="digits",
        train=ArraySource(images[~in_test], labels[~in_test], levels=17),
        test=ArraySource(images[in_test], labels[in_test], levels=17),
        class_names=tuple(str(k) for k in range(10)),
    )

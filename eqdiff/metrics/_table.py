r"""The code length of images under a table of pixels: the figure that a model has to beat.

The simplest density of images on a grid of $L$ levels looks at one pixel at a time: in class $c$,
pixel $i$ has level $k$ as often as it had among the $n_c$ training images,

$$P(x \mid c) = \prod_i \frac{n_{c,i,x_i} + \frac12}{n_c + \frac L2}, \qquad
  \mathrm{bpd} = -\tfrac1D\log_2 P(x \mid c), \tag{1}$$

with half a count more for each level, so that a level that was never seen is not impossible
(Krichevsky & Trofimov 1981). It knows nothing of how pixels go together, so a diffusion model whose
bound is larger has learned less about its data than a histogram.
"""

import numpy as np
from jaxtyping import Float, Int

from ._mean import Mean, mean


def table_bits(
    train: tuple[Float[np.ndarray, "m ..."], Int[np.ndarray, " m"] | None],
    test: tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, " n"] | None],
    *,
    levels: int = 256,
) -> Mean:
    """The bits/dim of images under independent tables of pixels, equation (1).

    **Arguments:**

    - `train`: the images that are counted, on the grid of `levels` in [−1, 1], and their classes;
        `None` for one table of all.
    - `test`: the images that are coded, held out, on the same grid, and their classes or `None`.
    - `levels`: the number of grey levels $L$.

    **Returns:** an [`eqdiff.metrics.Mean`][] over the test images.

    **Raises:** `ValueError` for images of unequal shape or off the grid, for classes of one set
    alone, and for a class that has no training image.

    **Example:**

    ```python
    data = eqd.data.digits()
    train, test = eqd.data.loader(data.train, 1497, seed=0), data.held_out()
    print(eqd.metrics.table_bits(next(train), test, levels=17))
    ```
    """
    (seen_images, train_labels), (images, labels) = train, test
    if (train_labels is None) != (labels is None):
        raise ValueError("table_bits: expected classes of both sets, or None for both.")
    if len(seen_images) == 0 or np.shape(seen_images)[1:] != np.shape(images)[1:]:
        raise ValueError(
            "table_bits: expected training images, and test images of the same shape, got "
            f"{np.shape(seen_images)} and {np.shape(images)}."
        )
    counted, coded = _levels(seen_images, levels), _levels(images, levels)
    of_train = np.zeros(len(seen_images), int) if train_labels is None else np.asarray(train_labels)
    of_coded = np.zeros(len(images), int) if labels is None else np.asarray(labels)
    if len(of_train) != len(counted) or len(of_coded) != len(coded):
        raise ValueError("table_bits: expected a label for each image.")
    bits = np.empty(len(coded))
    for c in np.unique(of_coded):
        seen, chosen = counted[of_train == c], of_coded == c
        if len(seen) == 0:
            raise ValueError(f"table_bits: no training image has the label {c}.")
        # A row of counts for each level, so that memory does not grow with images times levels.
        counts = np.stack([np.sum(seen == k, axis=0) for k in range(levels)])
        logs = np.log2((counts + 0.5) / (len(seen) + levels / 2))
        bits[chosen] = -np.mean(logs[coded[chosen], np.arange(coded.shape[1])], axis=1)
    return mean(bits)


def _levels(images: Float[np.ndarray, "n ..."], levels: int) -> Int[np.ndarray, "n d"]:
    scaled = (np.asarray(images, np.float64).reshape(len(images), -1) + 1) * (levels - 1) / 2
    whole = np.rint(scaled)
    if not (np.all(np.abs(scaled - whole) < 1e-2) and np.all((whole >= 0) & (whole < levels))):
        raise ValueError(
            f"table_bits(levels={levels}): the images are not on the grid of {levels} levels from "
            "-1 to 1; data.held_out() gives such images."
        )
    return whole.astype(int)

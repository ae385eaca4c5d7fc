r"""The Inception Score: how sharp and how varied a classifier finds samples.

With class probabilities $p(c \mid x)$ of $n$ samples and their mean $p(c)$ (Salimans et al. 2016)

$$\mathrm{IS} = \exp\Big(\frac1n \sum_i \mathrm{KL}\big(p(c \mid x_i)\,\|\,p(c)\big)\Big), \tag{1}$$

between 1 and the number of classes. It ignores real images: noise that pleases the
classifier scores well. Published numbers are means over ten parts of the samples, each with its own
$p(c)$, and the standard deviation over these.
"""

import itertools

import numpy as np
from jaxtyping import ArrayLike, Float

from .._check import whole
from ._mean import Mean, mean


def inception_score(probabilities: Float[ArrayLike, "n classes"], *, splits: int = 10) -> Mean:
    """The Inception Score, the mean over parts of the samples in their order: equation (1).

    Shuffle the samples first: parts of one class each would all score 1.

    **Arguments:**

    - `probabilities`: of each class for each sample, such as Inception's 1008.
    - `splits`: how many parts, ten in published numbers.

    **Returns:** an [`eqdiff.metrics.Mean`][] over the parts. What is published after a ± is the
    standard deviation over them, `stderr` times the root of `splits - 1`.

    **Raises:** `ValueError` for fewer samples than parts, or rows that are not probabilities.

    **Example:**

    ```python
    probabilities = jax.nn.softmax(jax.random.normal(jax.random.key(0), (100, 10)))
    print(eqd.metrics.inception_score(probabilities))
    ```
    """
    p = np.asarray(probabilities).astype(np.float64)
    splits = whole("inception_score", "splits", splits)
    if p.ndim != 2 or len(p) < splits:
        raise ValueError(
            f"inception_score: expected probabilities of shape (n, classes) of at least {splits} "
            f"samples, one for each part, got {p.shape}."
        )
    if not (np.all(p >= 0) and np.all(np.abs(p.sum(axis=1) - 1) < 1e-3)):
        raise ValueError(
            "inception_score: expected rows that are positive and sum to 1: of logits, take the "
            "softmax first."
        )
    edges = [i * len(p) // splits for i in range(splits + 1)]
    return mean(np.array([_score(p[i:j]) for i, j in itertools.pairwise(edges)]))


def _score(p: Float[np.ndarray, "n classes"]) -> float:
    marginal = p.mean(axis=0)
    return float(np.exp(np.sum(_p_log_p(p)) / len(p) - np.sum(_p_log_p(marginal))))


def _p_log_p(p: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    # 0 log 0 = 0; published code gives NaN where the softmax has no room for a class.
    return p * np.log(np.where(p > 0, p, 1))

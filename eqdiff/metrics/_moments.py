r"""The first two moments of a set of features: all that a Fréchet distance needs.

Of $n$ images with features $f_i$, in float64,

$$\mu = \frac1n \sum_i f_i, \qquad
  C = \frac{1}{n - 1} \sum_i (f_i - \mu)(f_i - \mu)^\top. \tag{1}$$

Two sets are merged without a second look at either (Chan, Golub & LeVeque 1983): with
$\delta = \mu_b - \mu_a$ and $S = (n - 1)\,C$,

$$\mu = \mu_a + \frac{n_b}{n_a + n_b}\,\delta, \qquad
  S = S_a + S_b + \frac{n_a n_b}{n_a + n_b}\,\delta\delta^\top, \tag{2}$$

so that images may come in batches, on several machines, or never be kept.
"""

import dataclasses
import functools
import hashlib
import io
import operator
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Shaped

from .._together import together


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """The mean and covariance of features, equation (1), and their origin.

    **Fields:**

    - `mean`, `covariance`: float64, of shapes `(d,)` and `(d, d)`.
    - `num`: of how many images; `None` in most published files, which do not say.
    - `features`: the name of the feature network, or `None`.
    - `size`: `(height, width)` of the images before they were resized for it, or `None`.

    **Example:**

    ```python
    features = jax.random.normal(jax.random.key(0), (2, 100, 8))  # in two batches
    moments = eqd.metrics.Moments.of(features[0]) + eqd.metrics.Moments.of(features[1])
    ```
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    num: int | None = None
    features: str | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self):
        mean, covariance = (np.asarray(a).astype(np.float64) for a in (self.mean, self.covariance))
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise ValueError(
                "Moments: expected a mean of shape (d,) and a covariance of shape (d, d), got "
                f"{mean.shape} and {covariance.shape}."
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("Moments: the mean and covariance are not all finite.")
        if np.abs(covariance - covariance.T).max() > 1e-5 * np.abs(covariance).max():
            raise ValueError("Moments: the covariance is not symmetric.")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @classmethod
    def of(
        cls,
        values: Shaped[ArrayLike, "n d"] | Iterable[Shaped[ArrayLike, "_ d"]],
        *,
        features: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> "Moments":
        """The moments of features, such as [`eqdiff.metrics.extract`][] gives.

        **Arguments:**

        - `values`: one row per image; or an iterable of such arrays, of which one at a time is in
            memory. The covariance of a single image is zero, for merging.
        - `features`: the feature network's name.
        - `size`: `(height, width)` of the images.

        **Raises:** `ValueError` for other shapes, no images, and features that are not finite.
        """
        batches: Any = [values] if hasattr(values, "shape") else values
        found = None
        for batch in batches:
            part = cls._of(np.asarray(batch), features, size)
            found = part if found is None else found + part
        if found is None:
            raise ValueError("Moments: expected features of at least one image.")
        return found

    @classmethod
    def _of(cls, values, features, size) -> "Moments":
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(
                "Moments: expected features of shape (n, d), one row for each of at least one "
                f"image, got {values.shape}."
            )
        values = values.astype(np.float64)
        mean = values.mean(axis=0)
        if not np.isfinite(mean).all():
            raise ValueError("Moments: the features are not all finite.")
        centred = values - mean
        covariance = centred.T @ centred / max(len(values) - 1, 1)
        return cls(mean, covariance, len(values), features, size)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets together, by equation (2).

        **Raises:** `ValueError` if they differ in the number of features, the feature network or
        the size of the images, or do not say of how many images they are.
        """
        for what in ("features", "size"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                raise ValueError(f"Moments: sets of different {what}: {mine!r} and {theirs!r}.")
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"Moments: sets of {self.mean.size} and of {other.mean.size} features."
            )
        if self.num is None or other.num is None:
            raise ValueError("Moments: to merge two sets, both have to say of how many images.")
        num, delta = self.num + other.num, other.mean - self.mean
        squares = (self.num - 1) * self.covariance + (other.num - 1) * other.covariance
        squares += np.outer(delta, delta) * (self.num * other.num / num)
        mean = self.mean + delta * (other.num / num)
        return Moments(mean, squares / (num - 1), num, self.features, self.size)

    def over_processes(self) -> "Moments":
        """The moments of what all processes of `jax.distributed` have, in each of them.

        The same, bit for bit, everywhere. All processes make the call.

        **Raises:** `ValueError` as for a sum; `RuntimeError` if another process fails.
        """
        peers = range(jax.process_count())
        sent = together("metrics.Moments", peers, self._packed)
        return functools.reduce(operator.add, (_unpacked(sent[peer]) for peer in peers))

    def _packed(self) -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **arrays(self))  # pyright: ignore[reportArgumentType]
        return stream.getvalue()

    @property
    def digest(self) -> str:
        """Twelve digits of a hash of the mean and covariance.

        Two distances with the same digest have the same reference, wherever it was stored.
        """
        found = hashlib.sha256(np.ascontiguousarray(self.mean, "<f8").tobytes())
        found.update(np.ascontiguousarray(self.covariance, "<f8").tobytes())
        return found.hexdigest()[:12]


def arrays(moments: Moments) -> dict[str, Shaped[np.ndarray, "..."]]:
    """As stored: `mu` and `sigma` as everybody has them, and what is known besides."""
    known = {"num": moments.num, "features": moments.features, "size": moments.size}
    return {
        "mu": moments.mean,
        "sigma": moments.covariance,
        **{name: np.asarray(value) for name, value in known.items() if value is not None},
    }


def from_arrays(
    stored: dict[str, Shaped[np.ndarray, "..."]], names: tuple[str, str] = ("mu", "sigma")
) -> Moments:
    """What `arrays` gave, or a published file holds, as moments again."""
    mu, sigma = (stored[name] for name in names)
    num, features, size = (stored.get(name) for name in ("num", "features", "size"))
    return Moments(
        mu,
        sigma,
        None if num is None else int(num),
        None if features is None else str(features),
        None if size is None else (int(size[0]), int(size[1])),
    )


def _unpacked(sent: bytes) -> Moments:
    with np.load(io.BytesIO(sent), allow_pickle=False) as stored:
        return from_arrays(dict(stored))

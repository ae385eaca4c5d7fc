"""Every metric of sample quality at once, of features that are there already."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

from ._frechet import frechet_distance
from ._inception_score import inception_score
from ._kernel import kernel_distance
from ._mean import Mean
from ._moments import Moments
from ._neighbours import density_coverage, precision_recall


class Comparison(NamedTuple):
    """How generated images compare with real ones; `None` for what could not be computed.

    **Fields:**

    - `num`: the number of generated images.
    - `frechet`: the Fréchet distance, the "FID" of Inception's features.
    - `kernel`: the kernel distance, the "KID" of Inception's features.
    - `inception_score`: of the generated images alone.
    - `precision`, `recall`, `density`, `coverage`: by nearest neighbours.

    **Example:**

    ```python
    import numpy as np
    real, generated = np.random.default_rng(0).normal(size=(2, 100, 8))  # features
    found = eqd.metrics.compare(real, generated)  # an eqd.metrics.Comparison
    print(found.frechet, found.kernel, found.recall)
    ```
    """

    num: int
    frechet: float
    kernel: Mean | None = None
    inception_score: Mean | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None

    def shown(self) -> dict[str, str]:
        """What was computed, by its name in a table."""
        texts = {
            "Fréchet distance": f"{self.frechet:.3f}",
            "kernel distance": _shown(self.kernel),
            "inception score": _shown(self.inception_score),
        }
        for name in ("precision", "recall", "density", "coverage"):
            value = getattr(self, name)
            texts[name] = None if value is None else f"{value:.3f}"
        return {name: text for name, text in texts.items() if text is not None}

    def plain(self) -> dict[str, Any]:
        """All fields in types that JSON has."""

        def number(value: Any) -> Any:
            return value if isinstance(value, int) else float(value)

        return {
            name: {k: number(v) for k, v in value._asdict().items()}
            if isinstance(value, Mean)
            else value
            for name, value in self._asdict().items()
        }


def compare(
    real: Float[np.ndarray, "m d"] | Moments,
    generated: Float[np.ndarray, "n d"],
    *,
    probabilities: Float[ArrayLike, "n classes"] | None = None,
) -> Comparison:
    """Every metric of one set of generated images, each with its published settings.

    **Arguments:**

    - `real`: the features of real images; or [`eqdiff.metrics.Moments`][], which the Fréchet
        distance alone can be computed from.
    - `generated`: the features of generated images.
    - `probabilities`: of the classes of each generated image, for the inception score.

    **Returns:** an [`eqdiff.metrics.Comparison`][].

    **Warns** and **Raises:** as [`eqdiff.metrics.frechet_distance`][],
    [`eqdiff.metrics.kernel_distance`][], [`eqdiff.metrics.precision_recall`][] and
    [`eqdiff.metrics.density_coverage`][], which it calls.

    **Example:**

    ```python
    import numpy as np
    real, generated = np.random.default_rng(0).normal(size=(2, 100, 8))  # features
    print(eqd.metrics.compare(real, generated).shown())
    ```
    """
    score = None if probabilities is None else inception_score(probabilities)
    found = Comparison(len(generated), frechet_distance(real, generated), inception_score=score)
    if isinstance(real, Moments):
        return found
    precision, recall = precision_recall(real, generated)
    density, coverage = density_coverage(real, generated)
    return found._replace(
        kernel=kernel_distance(real, generated),
        precision=float(precision),
        recall=float(recall),
        density=float(density),
        coverage=float(coverage),
    )


def _shown(value: Mean | None) -> str | None:
    return None if value is None else f"{value.value:.4g} ± {value.stderr:.2g}"

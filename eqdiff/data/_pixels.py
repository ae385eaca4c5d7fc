r"""The pixel convention: integer grey levels and points of $[-1, 1]$.

Level $k$ of $L$ is the number

$$x_k = -1 + \frac{2k}{L - 1}, \tag{1}$$

so that the outermost levels are exactly $\pm 1$ and neighbours are $2/(L-1)$ apart, the width of a
bin of the discretised Gaussian decoder (Ho et al. 2020, equation 13). The way back picks the
*nearest* level.
"""

import functools

import numpy as np
from jaxtyping import ArrayLike, Float32, Shaped, UInt8


def check_levels(levels: int) -> None:
    if not 2 <= levels <= 65536:
        raise ValueError(
            f"levels={levels}: expected 2 to 65536 grey levels (256 for 8-bit images, 17 for "
            "digits)"
        )


@functools.cache
def _grid(levels: int) -> Float32[np.ndarray, " levels"]:
    # float64 first and cast once: every level is then the float32 nearest to equation (1).
    grid = (-1 + 2 * np.arange(levels) / (levels - 1)).astype(np.float32)
    grid.flags.writeable = False
    return grid


def normalise(image: Shaped[ArrayLike, "..."], *, levels: int = 256) -> Float32[np.ndarray, "..."]:
    r"""Maps integer grey levels $k$ onto $-1 + 2k/(L-1)$.

    **Arguments:**

    - `image`: integers in $\{0, \dots, L-1\}$, any shape.
    - `levels`: the number of grey levels $L$.

    **Returns:** a float32 NumPy array of the same shape in $[-1, 1]$.

    **Raises:** `TypeError` for floats, `ValueError` for a level outside the range.

    **Example:**

    ```python
    import numpy as np
    x = eqd.data.normalise(np.array([0, 8, 16]), levels=17)  # [-1, 0, 1]
    ```
    """
    check_levels(levels)
    image = np.asarray(image)
    if image.dtype.kind not in "iu":
        raise TypeError(
            f"normalise got {image.dtype}, expected integer grey levels: floats in [-1, 1] are "
            "normalised already; for floats in [0, 1] write 2 * x - 1"
        )
    check_range("normalise", image, levels)
    # The range has been checked; "clip" spares `take` its own check (and its copy).
    return np.asarray(np.take(_grid(levels), image, mode="clip"))


def to_uint8(x: Shaped[ArrayLike, "..."], *, levels: int = 256) -> UInt8[np.ndarray, "..."]:
    r"""Maps numbers in $[-1, 1]$ to 8-bit pixels through the nearest of $L$ grey levels.

    The inverse of [`eqdiff.data.normalise`][] on its grid; values outside $[-1, 1]$ are clipped.

    !!! info "Difference from the official code"

        improved-diffusion exports `((x + 1) * 127.5).clamp(0, 255).to(uint8)`, which *truncates*:
        it maps interval $[x_k, x_{k+1})$ to $k$, so a sample a hair below a level — an exact level
        after float32 arithmetic — drops to the one below, and pictures come out half a level too
        dark on average. We round: unbiased, and an exact inverse. Samples that are to be compared
        with published FIDs differ from the official ones by at most one level.

    **Arguments:**

    - `x`: floats, any shape.
    - `levels`: the number of grey levels $L$. Level $k$ becomes the pixel nearest to $255k/(L-1)$.

    **Returns:** a uint8 NumPy array of the same shape.

    **Raises:** `TypeError` for integers, `ValueError` for NaN.

    **Example:**

    ```python
    import numpy as np
    pixels = eqd.data.to_uint8(np.array([-1.0, 0.0, 1.0]))  # [0, 128, 255]
    ```
    """
    check_levels(levels)
    x = np.asarray(x)
    if x.dtype.kind in "iub":
        raise TypeError(
            f"to_uint8 got {x.dtype}, expected floats in [-1, 1]: for integer grey levels write "
            "to_uint8(normalise(image, levels=levels), levels=levels)"
        )
    # float64: bfloat16 would not hold 255 levels, and float32 would round ties by accident.
    x = x.astype(np.float64)
    if np.isnan(x).any():
        raise ValueError(
            f"to_uint8 got {np.isnan(x).sum()} NaN of {x.size} values, expected [-1, 1]"
        )
    level = np.rint((np.clip(x, -1, 1) + 1) / 2 * (levels - 1))
    return np.asarray(np.rint(level * 255 / (levels - 1)).astype(np.uint8))


def check_range(owner: str, image: Shaped[np.ndarray, "..."], levels: int) -> None:
    """Raises `ValueError` for integers that are not grey levels from 0 to `levels - 1`."""
    if not image.size or (image.dtype == np.uint8 and levels >= 256):
        return
    low, high = int(image.min()), int(image.max())
    if 0 <= low and high < levels:
        return
    remedy = f"pass levels={high + 1} or more if they are right"
    if low < 0:
        remedy = "shift them to begin at 0, or pass floats if they are not grey levels"
    raise ValueError(
        f"{owner} got grey levels from {low} to {high}, expected 0 to {levels - 1}: {remedy}"
    )

"""Sources: labelled examples of one shape, by index.

Sources follow grain's random-access protocol (`len(source)`, `source[i]`), so any grain pipeline
takes them. They also give many examples at once, since gathering a batch from an array in one go is
what makes an in-memory loader fast.

An example has any shape: an image `(channels, height, width)`, a signal `(channels, length)`, a
volume `(channels, depth, height, width)`, a vector `(d,)`. It holds either integers, *levels* of a
grid that a loader maps onto [-1, 1], or floats, which nobody changes: their scale is the user's.
"""

import abc

import numpy as np
from jaxtyping import Integer, Shaped

from ._pixels import check_levels, check_range


class DamagedFileError(ValueError):
    """An example cannot be read: its file is damaged, gone, or not what it was.

    A source of your own raises it, with a message that names the file, for what
    `eqd.data.loader(skip_damaged=)` may skip.

    **Example:**

    ```python
    def take(path):  # of your own eqd.data.AbstractSource
        raise eqd.data.DamagedFileError(f"{path} is truncated")
    ```
    """


class AbstractSource(abc.ABC):
    """Base class of all sources of labelled examples. Subclass it to bring your own.

    `shape` is the shape of every example, such as `(channels, height, width)`; `levels` the number
    of grey levels of integers, or `None` where examples are floats.
    """

    shape: tuple[int, ...]
    levels: int | None

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Shaped[np.ndarray, "batch ..."], Shaped[np.ndarray, "batch ..."]]:
        """Gathers examples by index.

        **Arguments:**

        - `indices`: each between 0 and `len(self) - 1`.

        **Returns:** examples `(batch, *shape)`, integers or floats as `levels` says, and labels
        `(batch,)`, or other conditions of a leading axis `batch`.

        **Raises:** [`eqdiff.data.DamagedFileError`][] for an example that cannot be read.
        """

    def __getitem__(self, index: int) -> tuple[Shaped[np.ndarray, "..."], object]:
        """One example and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a source with {len(self)} examples")
        examples, labels = self.take(np.array([index % len(self)]))
        label = labels[0]
        return examples[0], int(label) if np.ndim(
            label
        ) == 0 and label.dtype.kind in "iu" else label


def _check_finite(examples: Shaped[np.ndarray, "..."]) -> None:
    # In parts: a mask of everything would need a quarter of the memory again.
    step = max(1, 2**22 // max(1, int(np.prod(examples.shape[1:]))))
    for start in range(0, len(examples), step):
        good = np.isfinite(examples[start : start + step]).reshape(len(examples[start:][:step]), -1)
        if not good.all():
            at = start + int(np.argmin(good.all(axis=1)))
            raise ValueError(f"example {at} holds NaN or infinity, expected finite floats")


class ArraySource(AbstractSource):
    """Examples and labels in memory, or in a memory-mapped array.

    **Example:**

    ```python
    import numpy as np
    source = eqd.data.ArraySource(np.zeros((100, 3, 32, 32), np.uint8), np.arange(100) % 10)
    batches = eqd.data.loader(source, 32, seed=0)
    ```
    """

    images: Shaped[np.ndarray, "n ..."]
    labels: Shaped[np.ndarray, "n ..."]

    def __init__(
        self,
        images: Shaped[np.ndarray, "..."],
        labels: Shaped[np.ndarray, "..."] | None = None,
        *,
        levels: int | None = None,
    ):
        """**Arguments:**

        - `images`: `(n, *shape)` with examples of any shape: images `(n, channels, height,
            width)`, signals `(n, channels, length)`, vectors `(n, d)`. Integers from 0 to `levels -
            1`, which a loader maps onto [-1, 1], or floats, which it passes on unchanged, as
            float32: scale them before. Not copied.
        - `labels`: integers `(n,)`, or other conditions (floats or integers) of a leading axis
            `n`; all 0 if not given.
        - `levels`: the number of grey levels of integers, by default 256; 65536 for 16 bits. Not
            for floats.
        """
        images = np.asarray(images)
        if images.ndim < 2 or images.dtype.kind not in "iuf":
            raise ValueError(
                f"images are {images.dtype} of shape {images.shape}, expected integers or floats "
                "(n, *shape), such as (n, channels, height, width); for grey images (n, height, "
                "width) write images[:, None]"
            )
        if labels is None:
            labels = np.zeros(len(images), np.int32)
        labels = np.asarray(labels)
        if labels.shape[:1] != images.shape[:1] or labels.dtype.kind not in "iuf":
            raise ValueError(
                f"labels are {labels.dtype} of shape {labels.shape}, expected {len(images)} "
                "integers, one per image (or other conditions, with one row per image)"
            )
        if images.dtype.kind == "f":
            if levels is not None:
                raise ValueError(
                    f"levels={levels} with {images.dtype} images: floats pass through unchanged "
                    "and have no levels; scale them yourself and leave it out, or pass integers"
                )
            _check_finite(images)
        else:
            levels = 256 if levels is None else levels
            check_levels(levels)
            check_range("ArraySource", images, levels)
        self.images = images
        self.labels = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32)
        self.levels = levels
        self.shape = images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Shaped[np.ndarray, "batch ..."], Shaped[np.ndarray, "batch ..."]]:
        return np.asarray(self.images[indices]), self.labels[indices]

    def __repr__(self) -> str:
        return f"ArraySource({len(self)} images {self.shape}, levels={self.levels})"

"""Data sets and their sources: labelled integer images by index.

Sources follow grain's random-access protocol (`len(source)`, `source[i]`), so any grain pipeline
takes them. They also give many examples at once, since gathering a batch from an array in one go is
what makes an in-memory loader fast.
"""

import abc
import dataclasses
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import ArrayLike, Float32, Integer, Shaped, UInt8

from ._pixels import check_levels, normalise, to_uint8


class AbstractSource(abc.ABC):
    """Base class of all sources of labelled images. Subclass it to bring your own.

    `shape` is the `(channels, height, width)` of every image, `levels` the number of grey levels.
    """

    shape: tuple[int, int, int]
    levels: int

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Integer[np.ndarray, "batch channels height width"], Integer[np.ndarray, " batch"]]:
        """Gathers examples by index.

        **Arguments:**

        - `indices`: each between 0 and `len(self) - 1`.

        **Returns:** integer images `(batch, channels, height, width)` and integer labels
        `(batch,)`.
        """

    def __getitem__(self, index: int) -> tuple[Integer[np.ndarray, "channels height width"], int]:
        """One image `(channels, height, width)` and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a source with {len(self)} examples")
        images, labels = self.take(np.array([index % len(self)]))
        return images[0], int(labels[0])


class ArraySource(AbstractSource):
    """Images and labels that are held in memory."""

    images: Integer[np.ndarray, "n channels height width"]
    labels: Integer[np.ndarray, " n"]

    def __init__(
        self,
        images: Shaped[np.ndarray, "..."],
        labels: Shaped[np.ndarray, "..."] | None = None,
        *,
        levels: int = 256,
    ):
        """**Arguments:**

        - `images`: integers `(n, channels, height, width)` from 0 to `levels - 1`. Not copied.
        - `labels`: integers `(n,)`; all 0 if not given.
        - `levels`: the number of grey levels.
        """
        check_levels(levels)
        if images.ndim != 4 or images.dtype.kind not in "iu":
            raise ValueError(
                f"images are {images.dtype} of shape {images.shape}, expected integers (n, "
                "channels, height, width); for grey images (n, height, width) write images[:, "
                "None]"
            )
        if labels is None:
            labels = np.zeros(len(images), np.int32)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels are {labels.dtype} of shape {labels.shape}, expected {len(images)} "
                "integers, one per image"
            )
        if images.size and not (images.dtype == np.uint8 and levels >= 256):
            low, high = int(images.min()), int(images.max())
            if low < 0 or high >= levels:
                raise ValueError(
                    f"images hold grey levels from {low} to {high}, expected 0 to {levels - 1}: "
                    f"pass levels={high + 1} or more if they are right"
                )
        self.images = images
        self.labels = labels.astype(np.int32)
        self.levels = levels
        self.shape = (images.shape[1], images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.images)

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Integer[np.ndarray, "batch channels height width"], Integer[np.ndarray, " batch"]]:
        return self.images[indices], self.labels[indices]

    def __repr__(self) -> str:
        return f"ArraySource({len(self)} images {self.shape}, levels={self.levels})"


_Source = TypeVar("_Source", bound=AbstractSource)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(Generic[_Source]):
    """Training and test images of one shape and one number of grey levels.

    **Fields:**

    - `name`: for logs and file names.
    - `train`, `test`: sources, `source[i] -> (image, label)`. `test` may be empty.
    - `class_names`: the name of each label, or `None` where images carry no class (their labels are
        all 0).
    """

    name: str
    train: _Source
    test: _Source
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.train.shape != self.test.shape or self.train.levels != self.test.levels:
            raise ValueError(
                f"train images are {self.train.shape} with {self.train.levels} levels but test "
                f"images are {self.test.shape} with {self.test.levels}: expected the same"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of every image."""
        return self.train.shape

    @property
    def levels(self) -> int:
        """The number of grey levels: 256 for 8-bit images."""
        return self.train.levels

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or `None` where images carry no class."""
        return None if self.class_names is None else len(self.class_names)

    def normalise(self, image: Shaped[ArrayLike, "..."]) -> Float32[np.ndarray, "..."]:
        """[`eqdiff.data.normalise`][] with this data set's levels."""
        return normalise(image, levels=self.levels)

    def to_uint8(self, x: Shaped[ArrayLike, "..."]) -> UInt8[np.ndarray, "..."]:
        """[`eqdiff.data.to_uint8`][] with this data set's levels."""
        return to_uint8(x, levels=self.levels)

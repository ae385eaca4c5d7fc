"""A data set: two sources and what is known about their images."""

import dataclasses
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import ArrayLike, Float32, Shaped, UInt8

from ._pixels import normalise, to_uint8
from ._source import AbstractSource


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

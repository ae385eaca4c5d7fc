"""A data set: examples to train on, examples held out, and what they are."""

import dataclasses
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import ArrayLike, Float32, Shaped, UInt8

from ._pixels import normalise, to_uint8
from ._source import AbstractSource


_Source = TypeVar("_Source", bound=AbstractSource)


def network_input(x: Shaped[ArrayLike, "..."], levels: int | None) -> Float32[np.ndarray, "..."]:
    """What a network sees of examples: levels on the grid of [-1, 1], floats as they are."""
    return np.asarray(x, np.float32) if levels is None else normalise(x, levels=levels)


def network_labels(labels: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Integers as int32, other conditions as float32."""
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(Generic[_Source]):
    """Training and test examples of one shape and one number of grey levels.

    **Fields:**

    - `name`: for logs and file names.
    - `train`, `test`: sources, `source[i] -> (example, label)`. `test` may be empty.
    - `class_names`: the name of each label, or `None` where examples carry no class (their labels
        are all 0).
    - `description`: a line that says how the data were read, with their classes and counts, for a
        program to print.

    **Example:**

    ```python
    import numpy as np
    points = np.random.default_rng(0).normal(size=(100, 2))
    train, test = eqd.data.ArraySource(points[:90]), eqd.data.ArraySource(points[90:])
    data = eqd.data.Dataset("points", train, test)
    ```
    """

    name: str
    train: _Source
    test: _Source
    class_names: tuple[str, ...] | None = None
    description: str = ""

    def __post_init__(self):
        if self.train.shape != self.test.shape or self.train.levels != self.test.levels:
            raise ValueError(
                f"train images are {self.train.shape} with {self.train.levels} levels but test "
                f"images are {self.test.shape} with {self.test.levels}: expected the same"
            )
        if not self.description:
            line = f"{self.name}: {len(self.train)} training and {len(self.test)} test examples"
            classes = "" if self.class_names is None else f", {len(self.class_names)} classes"
            object.__setattr__(self, "description", f"{line} {self.shape}{classes}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of every example: `(channels, height, width)` of images."""
        return self.train.shape

    @property
    def levels(self) -> Any:  # Not `int | None`: every use with images would need a check.
        """The number of grey levels, an integer: 256 for 8-bit images. `None` for floats."""
        return self.train.levels

    @property
    def num_classes(self) -> int | None:
        """The number of classes, or `None` where examples carry no class."""
        return None if self.class_names is None else len(self.class_names)

    def held_out(
        self, num: int | None = None, *, seed: int = 0
    ) -> tuple[Float32[np.ndarray, "num ..."], Shaped[np.ndarray, "num ..."]]:
        """Held-out examples as a network sees them, in one call.

        They are the first of a fixed shuffle of the test set, so that a small number is a fair
        sample, and the same one in every program.

        ```python
        x, labels = data.held_out(256)        # float32 (256, 3, 32, 32) in [-1, 1], int32 (256,)
        ```

        **Arguments:**

        - `num`: how many, at most; by default all.
        - `seed`: of the shuffle.

        **Returns:** the examples, normalised (floats unchanged), and their labels.

        **Raises:** `ValueError` without a test set, or for a `num` below 1.
        """
        if len(self.test) == 0:
            raise ValueError(
                f"{self.name} has no test examples: make it with test_size= or test_fraction= "
                "above 0, or take some of data.train"
            )
        if num is not None and num < 1:
            raise ValueError(f"num={num}: expected at least 1 held-out example, or None for all")
        # RandomState's streams are frozen for good (NEP 19), and so are the examples.
        order = np.random.RandomState(seed).permutation(len(self.test))[:num]
        examples, labels = self.test.take(order)
        return network_input(examples, self.levels), network_labels(labels)

    def normalise(self, image: Shaped[ArrayLike, "..."]) -> Float32[np.ndarray, "..."]:
        """[`eqdiff.data.normalise`][] with this data set's levels; floats as they are."""
        return network_input(image, self.levels)

    def to_uint8(self, x: Shaped[ArrayLike, "..."]) -> UInt8[np.ndarray, "..."]:
        """[`eqdiff.data.to_uint8`][] with this data set's levels, 256 where it has none."""
        return to_uint8(x, levels=256 if self.levels is None else self.levels)

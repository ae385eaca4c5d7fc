"""Data as people have it, as a source: arrays, grain's sources, Hugging Face's data sets.

Nothing is imported for it: an object that has a length and examples by index is a random-access
source, whoever made it. An example is an array, a picture of Pillow, a pair `(example, label)` or a
dictionary of columns.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer, Shaped

from ._pixels import check_levels
from ._source import AbstractSource, ArraySource


_LABELS = ("label", "labels", "class", "target", "fine_label")


def _is_example(value: Any) -> bool:
    picture = hasattr(value, "getbands") and hasattr(value, "convert")
    return picture or (isinstance(value, np.ndarray) and value.ndim > 0)


def _column(example: Mapping, given: str | None) -> str:
    names = [str(name) for name in example]
    if given is not None:
        if given not in example:
            raise ValueError(f"examples have no column {given!r}: they have {', '.join(names)}")
        return given
    found = [name for name in names if name not in _LABELS and _is_example(example[name])]
    if len(found) != 1:
        what = "several" if found else "no"
        raise ValueError(
            f"examples have {what} columns with pictures or arrays "
            f"({', '.join(found or names)}): say which with RandomAccessSource(…, column=)"
        )
    return found[0]


def _label_column(example: Mapping, given: str | None) -> str | None:
    if given is not None:
        return _column(example, given)
    found = [name for name in _LABELS if name in example]
    if len(found) > 1:
        raise ValueError(
            f"examples have several columns of labels ({', '.join(found)}): say which with "
            "RandomAccessSource(…, label_column=)"
        )
    return found[0] if found else None


class RandomAccessSource(AbstractSource):
    """Any object with a length and examples by index: grain's sources, Hugging Face's `datasets`.

    ```python
    pets = datasets.load_dataset("…", split="train")      # columns "image" and "label"
    source = eqd.data.RandomAccessSource(pets, channels=3, image_size=64)
    batches = eqd.data.loader(source, 128, seed=0)
    ```

    Examples are arrays, pictures of Pillow, pairs `(example, label)`, or dictionaries of columns.

    **Example:**

    ```python
    import numpy as np
    examples = [{"image": np.zeros((3, 8, 8), np.uint8), "label": i % 10} for i in range(100)]
    source = eqd.data.RandomAccessSource(examples)
    ```
    """

    examples: Any
    column: str | None
    label_column: str | None

    def __init__(
        self,
        examples: Any,
        *,
        column: str | None = None,
        label_column: str | None = None,
        levels: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        channels: int | None = None,
    ):
        """**Arguments:**

        - `examples`: has `len(examples)` and `examples[i]`.
        - `column`, `label_column`: which columns hold the examples and their labels, where an
            example is a dictionary. By default the only one with pictures or arrays, and `label`,
            `labels`, `class`, `target` or `fine_label`, if there is one.
        - `levels`: the number of grey levels of integers, by default 256; floats have none.
        - `image_size`, `channels`: of pictures, as for [`eqdiff.data.image_folder`][]; by default
            those of the first one.

        **Raises:** `TypeError` for another object; `ValueError` for columns that are ambiguous.
        """
        if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
            raise TypeError(
                f"examples are a {type(examples).__name__}, expected an object with len(examples) "
                "and examples[i]"
            )
        self.examples, self.column, self.label_column = examples, column, label_column
        self._size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self._channels = channels
        if len(examples) == 0:
            raise ValueError(f"the {type(examples).__name__} has no examples")
        first = examples[0]
        if isinstance(first, Mapping):
            self.column = _column(first, column)
            self.label_column = _label_column(first, label_column)
        elif column is not None or label_column is not None:
            raise ValueError(
                f"column={column}, label_column={label_column}: examples are "
                f"{type(first).__name__}s, expected dictionaries of columns"
            )
        value, _ = self._split(first)
        array = self._array(value)
        self.shape = array.shape
        if array.dtype.kind == "f" and levels is not None:
            raise ValueError(f"levels={levels}: examples are {array.dtype}, which has no levels")
        self.levels = None if array.dtype.kind == "f" else (levels or 256)
        if self.levels is not None:
            check_levels(self.levels)

    def _split(self, example: Any) -> tuple[Any, Any]:
        if isinstance(example, Mapping):
            assert self.column is not None
            label = 0 if self.label_column is None else example[self.label_column]
            return example[self.column], label
        if isinstance(example, tuple | list) and len(example) == 2:
            return example[0], example[1]
        return example, 0

    def _array(self, value: Any) -> Shaped[np.ndarray, "..."]:
        if hasattr(value, "getbands"):
            from ._decode import pixels

            value = pixels(value, self._size, self._channels)
        array = np.asarray(value)
        if array.ndim == 0 or array.dtype.kind not in "iuf":
            raise ValueError(
                f"an example is a {type(value).__name__} of {array.dtype}, expected a picture or "
                "an array of integers or floats"
            )
        return array

    def __len__(self) -> int:
        return len(self.examples)

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Shaped[np.ndarray, "batch ..."], Shaped[np.ndarray, "batch ..."]]:
        arrays, labels = [], []
        for index in indices.tolist():
            value, label = self._split(self.examples[index])
            array = self._array(value)
            if array.shape != self.shape or (array.dtype.kind == "f") != (self.levels is None):
                raise ValueError(
                    f"example {index} is {array.dtype} {array.shape}, but the first one "
                    f"{'floats' if self.levels is None else 'integers'} {self.shape}: expected the "
                    "same; pictures take image_size= and channels="
                )
            arrays.append(array)
            if label is None:
                raise ValueError(f"example {index} has no label (None), expected an integer")
            labels.append(np.asarray(label))
        return np.stack(arrays), np.stack(labels)

    def __repr__(self) -> str:
        kind = type(self.examples).__name__
        return f"RandomAccessSource({len(self)} examples {self.shape} of a {kind})"


def as_source(examples: Any) -> AbstractSource:
    """Makes a source of anything that holds examples, as [`eqdiff.data.loader`][] does.

    **Arguments:**

    - `examples`: a source; an array `(n, *shape)`; a tuple `(array, labels)`; or an object with
        `len(examples)` and `examples[i]` for [`eqdiff.data.RandomAccessSource`][], such as a source
        of grain or a data set of Hugging Face.

    **Returns:** the source itself, an [`eqdiff.data.ArraySource`][] or a
    [`eqdiff.data.RandomAccessSource`][].

    **Raises:** `TypeError` for anything else.

    **Example:**

    ```python
    import numpy as np
    source = eqd.data.as_source((np.zeros((100, 2)), np.arange(100) % 10))
    ```
    """
    if isinstance(examples, AbstractSource):
        return examples
    if isinstance(examples, jax.Array):
        examples = np.asarray(examples)
    if isinstance(examples, np.ndarray):
        return ArraySource(examples)
    if isinstance(examples, tuple) and len(examples) == 2 and isinstance(examples[0], np.ndarray):
        return ArraySource(*examples)
    random_access = hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
    if not random_access or isinstance(examples, Mapping | tuple | list | str | bytes):
        raise TypeError(
            f"source is a {type(examples).__name__}, expected an eqdiff.data.AbstractSource, an "
            "array, (array, labels), or an object with len(source) and source[i]: pass "
            "dataset.train, or write ArraySource(images, labels)"
        )
    return RandomAccessSource(examples)

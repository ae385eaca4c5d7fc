"""Where samples go that are not to be held in memory.

A *writer* takes samples chunk by chunk, in any order, and knows which chunks it has, so that a
call which was interrupted continues. With several processes each has a writer of its own, for the
same place on a shared file system: the first process creates the place, all write their chunks, and
the first finishes.
"""

import abc
from typing import Any

import numpy as np
from jaxtyping import Float


class AbstractWriter(abc.ABC):
    """Base class of what [`eqdiff.generate_to`][] writes to. Subclass it to bring your own.

    The library has [`eqdiff.data.PNGWriter`][] and [`eqdiff.data.NPZWriter`][].
    """

    @abc.abstractmethod
    def create(self, call: dict[str, Any]) -> None:
        """Prepares the place, or finds that of the same call. Comes first, in the first process.

        **Arguments:**

        - `call`: describes the call in types that JSON has; of the same call it is equal. `num` is
            how many samples will come, `shape` that of one.

        **Raises:** `ValueError` if the place holds anything else, or for a number or a shape that
        cannot be written.
        """

    @abc.abstractmethod
    def open(self, call: dict[str, Any]) -> None:
        """Finds the place that the first process has created. Comes first in the others.

        **Arguments:** and **Raises:** as `create`, and `ValueError` if it is not there.
        """

    @abc.abstractmethod
    def present(self) -> set[int]:
        """The indices at which the chunks begin that are there, without a look into them."""

    @abc.abstractmethod
    def has(self, start: int, digest: str) -> bool:
        """Whether a chunk is there and sound.

        **Arguments:**

        - `start`: the index of its first sample.
        - `digest`: of all that the chunk depends on. One that was written with another digest is
            another chunk.
        """

    @abc.abstractmethod
    def write(self, start: int, digest: str, samples: Float[np.ndarray, "n ..."]) -> None:
        """Writes a chunk, so that it is there whole, or not at all.

        **Arguments:** as `has`, and the samples.
        """

    @abc.abstractmethod
    def finish(self, chunks: dict[int, str]) -> None:
        """Comes last, in the first process, when every chunk is written.

        **Arguments:**

        - `chunks`: the digest of each chunk, by the index of its first sample.
        """

"""Writers, for samples that should not be held in memory.

A *writer* takes samples chunk by chunk, in any order, and knows which chunks it has, so that a call
that was interrupted continues. Several processes each have a writer for the same destination on a
shared file system: the first process creates it, all write their chunks, and the first finishes.
"""

import abc
from typing import Any

import numpy as np
from jaxtyping import Float


class AbstractWriter(abc.ABC):
    """A destination of [`eqdiff.generate_to`][]. Subclass it to write your own.

    The library has [`eqdiff.data.PNGWriter`][] and [`eqdiff.data.NPZWriter`][].
    """

    @abc.abstractmethod
    def create(self, call: dict[str, Any]) -> None:
        """Creates the destination, or finds that of the same call. Called first, in the first
        process.

        **Arguments:**

        - `call`: describes the call, JSON-serialisable; equal for the same call. `num` is the
            number of samples, `shape` the shape of one.

        **Raises:** `ValueError` if the destination holds anything else, or for a number or a shape
        that cannot be written.
        """

    @abc.abstractmethod
    def open(self, call: dict[str, Any]) -> None:
        """Finds the destination that the first process has created. Called first in the others.

        **Arguments:** and **Raises:** as `create`, and `ValueError` if it is not there.
        """

    @abc.abstractmethod
    def present(self) -> set[int]:
        """The first indices of the chunks that exist, without reading them."""

    @abc.abstractmethod
    def has(self, start: int, digest: str) -> bool:
        """Whether a chunk exists and is sound.

        **Arguments:**

        - `start`: the index of its first sample.
        - `digest`: of everything the chunk depends on. A chunk written with another digest is
            another chunk.
        """

    @abc.abstractmethod
    def write(self, start: int, digest: str, samples: Float[np.ndarray, "n ..."]) -> None:
        """Writes a chunk completely or not at all.

        **Arguments:** as `has`, and the samples.
        """

    @abc.abstractmethod
    def finish(self, chunks: dict[int, str]) -> None:
        """Called last, in the first process, when every chunk is written.

        **Arguments:**

        - `chunks`: the digest of each chunk, by the index of its first sample.
        """

"""Damaged examples, skipped up to a limit and always named.

The replacement of a damaged example is the next whole one of its source: a function of its index,
not of what was met before, so that a resumed stream is the same stream.
"""

import threading
import warnings

import numpy as np
from jaxtyping import Integer, Shaped

from ._source import AbstractSource, DamagedFileError


class Skipping:
    """Takes examples of a source; `found` has a message per damaged index."""

    def __init__(self, source: AbstractSource, limit: int):
        self._source, self._limit = source, limit
        self._lock = threading.Lock()
        self.found: dict[int, str] = {}

    def _note(self, index: int, error: DamagedFileError) -> None:
        with self._lock:
            if index in self.found:
                return
            if len(self.found) >= self._limit:
                before = "".join(f"\n  {message}" for message in self.found.values())
                skipped = f" {len(self.found)} were skipped before it:{before}" if before else ""
                raise DamagedFileError(
                    f"{error}. It is one more than skip_damaged={self._limit} allows.{skipped}"
                ) from error
            self.found[index] = str(error)
            number = len(self.found)
        warnings.warn(
            f"skipped a damaged example ({number} of at most {self._limit}): {error}",
            stacklevel=2,
        )

    def _one(self, index: int) -> tuple[Shaped[np.ndarray, "1 ..."], Shaped[np.ndarray, "1 ..."]]:
        length = len(self._source)
        for step in range(length):
            at = (index + step) % length
            try:
                return self._source.take(np.array([at]))
            except DamagedFileError as error:
                self._note(at, error)
        raise DamagedFileError(f"all {length} examples of {self._source} are damaged")

    def take(
        self, indices: Integer[np.ndarray, " batch"]
    ) -> tuple[Shaped[np.ndarray, "batch ..."], Shaped[np.ndarray, "batch ..."]]:
        """As the source's, with damaged examples replaced; the error of one too many."""
        try:
            return self._source.take(indices)
        except DamagedFileError:
            if self._limit == 0:
                raise
        parts = [self._one(int(index)) for index in indices]
        examples, labels = zip(*parts, strict=True)
        return np.concatenate(examples), np.concatenate(labels)

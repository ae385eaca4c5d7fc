"""An immutable array that can be a static field.

JAX compares static fields by `==` and `hash`, which NumPy arrays do not have. A table hashes its
bytes once, so two schedules with equal rates share one compilation, and derived tables are computed
once per set of rates.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


class Table:
    """A read-only NumPy array with content equality, and a cache of what was derived from it."""

    def __init__(self, array: np.ndarray):
        self.array = np.array(array)
        self.array.setflags(write=False)
        self._hash = hash((self.array.shape, self.array.dtype.str, self.array.tobytes()))
        self._derived: dict[Callable, Any] = {}

    def derived(self, function: Callable[[np.ndarray], Any]) -> Any:
        """`function(array)`, computed once."""
        if function not in self._derived:
            self._derived[function] = function(self.array)
        return self._derived[function]

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and np.array_equal(self.array, other.array)

    def __repr__(self) -> str:
        return f"Table({self.array.dtype}[{', '.join(map(str, self.array.shape))}])"

"""Random changes of an example that the network is informed of.

A network that sees how an example was changed learns the data as they are: *non-leaking*
augmentation. At zero parameters, "not changed", it generates unchanged examples.
"""

import abc

import numpy as np
from jaxtyping import Float32, Int


class AbstractAugmentation(abc.ABC):
    """Base class of augmentations. Subclass it to bring your own, as a frozen dataclass: its
    `repr` says to a loader's state which one it is.

    `size` is the number of parameters that the network gets: build it with this `augment_size`.
    """

    size: int

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raises `ValueError` for examples of a shape that it cannot change."""

    @abc.abstractmethod
    def __call__(
        self,
        x: Float32[np.ndarray, "batch ..."],
        *,
        seed: int,
        positions: Int[np.ndarray, " batch"],
    ) -> tuple[Float32[np.ndarray, "batch ..."], Float32[np.ndarray, "batch size"]]:
        """Changes a batch.

        **Arguments:**

        - `x`: normalised examples. It may be overwritten.
        - `seed`, `positions`: what the changes may depend on, besides the examples: the loader's
            seed, and each example's place in its stream. A loader then resumes exactly.

        **Returns:** the changed examples, and the parameters of their changes: zero where nothing
        was changed.
        """

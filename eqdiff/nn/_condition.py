r"""EDM's conditioning besides time: a class, and how the example was augmented.

Both are linear maps of a vector, added to the embedding: of the one-hot vector of the class (times
$\sqrt n$ in SongUNet, where there are $n$ classes), and of the parameters of a geometric
augmentation (Karras et al. 2022, appendix F.2), which are zero for an example that was not
augmented. Without a class the one-hot vector is zero: a network trained with dropped classes is
then the unconditional one.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._types import Args, Key
from ._check import check_class
from ._embed import class_row
from ._init import Init


class Conditions(NamedTuple):
    """The `args` of a [`eqdiff.nn.UNet`][] with one of EDM's embeddings, where a class alone is not
    enough.

    - `class_label`: the class, one integer, or `None`.
    - `augment`: the parameters of the augmentation, `(augment_size,)`, or `None` for zeros.

    **Example:**

    ```python
    args = eqd.nn.Conditions(class_label=3, augment=jnp.zeros(9))
    ```
    """

    class_label: Any = None
    augment: Any = None


def read_conditions(
    args: Args, num_classes: int | None, augment_size: int, network: str
) -> tuple[Shaped[Array, ""] | None, Float[Array, " augment_size"] | None]:
    """The class and the augmentation, each `None` where there is none.

    **Raises:** `ValueError` for a class or an augmentation that the network does not take.
    """
    class_label, augment = args if isinstance(args, Conditions) else (args, None)
    if class_label is not None:
        class_label = check_class(class_label, num_classes, network)
    if augment is not None and jnp.shape(augment) != (augment_size,):
        raise ValueError(
            f"this {network} was built with augment_size={augment_size} and takes an augmentation "
            f"of shape ({augment_size},) per example, got {jnp.shape(augment)}."
        )
    return class_label, None if augment is None else jnp.asarray(augment)


class OneHotLinear(eqx.Module):
    """A linear map of a scaled one-hot vector: a row of its weight."""

    weight: Float[Array, "classes size"]
    bias: Float[Array, " size"] | None
    scale: float = eqx.field(static=True)
    class_dropout: float = eqx.field(static=True)

    def __init__(
        self,
        num_classes: int,
        size: int,
        *,
        bias: bool,
        scale: float = 1.0,
        class_dropout: float,
        init: Init,
        bias_init: Init | None = None,
        key: Key,
    ):
        """**Arguments:**

        - `num_classes`, `size`: of the two vectors.
        - `bias`: whether there is one.
        - `scale`: of the one-hot vector.
        - `class_dropout`: the probability of a zero vector where a key is given.
        - `init`, `bias_init`: initialisers; the bias's defaults to the weight's.
        - `key`: a PRNG key.
        """
        key1, key2 = jax.random.split(key)
        self.weight = init(key1, (num_classes, size), num_classes, size)
        self.bias = (bias_init or init)(key2, (size,), num_classes, size) if bias else None
        self.scale, self.class_dropout = scale, class_dropout

    def __call__(
        self, class_label: Shaped[Array, ""] | None, dtype: Any, key: Key | None
    ) -> Float[Array, " size"]:
        if class_label is None:
            row = jnp.zeros(self.weight.shape[1:], dtype)
        else:
            row = self.scale * class_row(self.weight, class_label).astype(dtype)
            if key is not None and self.class_dropout > 0:
                keep = jax.random.bernoulli(key, 1 - self.class_dropout)
                row = jnp.where(keep, row, jnp.zeros_like(row))
        return row if self.bias is None else row + self.bias.astype(dtype)

r"""Embeddings of what a network is told beside the example: the time label and the class.

The sinusoidal embedding (Vaswani et al. 2017) of a label $l$ has $n/2$ frequencies,

$$e_i = \cos(\omega_i l), \quad e_{n/2 + i} = \sin(\omega_i l), \quad
  \omega_i = P^{-i / (n/2)}, \quad i = 0, \dots, n/2 - 1, \tag{1}$$

with $P = 10^4$. Families differ in the order of the two halves and in whether the lowest frequency
is exactly $1/P$ (then $\omega_i = P^{-i/(n/2 - 1)}$). Frequencies are constants of the program, not
parameters: as arrays in a module they would be trained.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._types import Args, Key, Scalar
from ._conv import Linear
from ._init import Init, torch_default


def sinusoidal_embedding(
    label: Scalar,
    size: int,
    *,
    cosine_first: bool = True,
    endpoint: bool = False,
    max_period: float = 10_000.0,
) -> Float[Array, " size"]:
    """Equation (1).

    **Arguments:**

    - `label`: a 0-d floating-point array; its dtype is the result's.
    - `size`: even.
    - `cosine_first`: OpenAI's order (cosines, sines); Song's is the other one.
    - `endpoint`: whether the lowest frequency is exactly $1/P$ (Song) or one step above it
        (OpenAI).
    - `max_period`: $P$.
    """
    half = size // 2
    exponents = np.arange(half) / (half - 1 if endpoint else half)
    angles = label * jnp.asarray(np.exp(-math.log(max_period) * exponents), label.dtype)
    halves = (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(halves if cosine_first else halves[::-1])


class TimeEmbedding(eqx.Module):
    """Equation (1), then a two-layer perceptron with a SiLU between."""

    linear1: Linear
    linear2: Linear
    in_size: int = eqx.field(static=True)

    def __init__(self, in_size: int, out_size: int, *, init: Init = torch_default, key: Key):
        key1, key2 = jax.random.split(key)
        if in_size % 2 != 0:
            raise ValueError(f"the embedding of the time label needs an even size, got {in_size}.")
        self.linear1 = Linear(in_size, out_size, init=init, key=key1)
        self.linear2 = Linear(out_size, out_size, init=init, key=key2)
        self.in_size = in_size

    def __call__(self, label: Scalar) -> Float[Array, " out_size"]:
        return self.linear2(jax.nn.silu(self.linear1(sinusoidal_embedding(label, self.in_size))))


class ClassEmbedding(eqx.Module):
    """One learned vector per class, N(0, 1) at first (`torch.nn.Embedding`)."""

    weight: Float[Array, "classes size"]

    def __init__(self, num_classes: int, size: int, *, key: Key):
        self.weight = jax.random.normal(key, (num_classes, size), jnp.float32)

    def __call__(self, label: Shaped[Array, ""]) -> Float[Array, " size"]:
        # A class that does not exist gives NaNs: a clamped index would be another class in silence.
        return self.weight.at[label].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )


def check_label(label, network: str) -> None:
    """**Raises:** `ValueError` where the time label is not one number."""
    if jnp.shape(label) != ():
        raise ValueError(
            f"{network} takes one time label per example, got shape {jnp.shape(label)}. Batch with "
            "jax.vmap(net)(labels, xs); for one label, jax.vmap(net, in_axes=(None, 0))(label, xs)."
        )


def check_class(args: Args, num_classes: int | None, network: str) -> Shaped[Array, ""] | None:
    """The class as an array, `None` for a network without classes.

    **Raises:** `ValueError` where a class is missing, unexpected, or not one integer.
    """
    if num_classes is None:
        if args is not None:
            raise ValueError(
                f"this {network} was built without classes but was given args={args}. "
                "Build it with num_classes=..., or pass args=None."
            )
        return None
    if args is None:
        raise ValueError(
            f"this {network} was built with num_classes={num_classes} and needs a class: "
            f"net(label, x, args) with an integer 0 <= args < {num_classes}."
        )
    if jnp.shape(args) != () or not jnp.issubdtype(jnp.result_type(args), jnp.integer):
        raise ValueError(
            f"the class of one example is one integer, got shape {jnp.shape(args)} and dtype "
            f"{jnp.result_type(args)}. Batch with jax.vmap(net)(labels, xs, classes); turn one-hot "
            "vectors into integers with jnp.argmax."
        )
    return jnp.asarray(args)

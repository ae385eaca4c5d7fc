r"""The divergence of a vector field, exactly or by probes.

$$\operatorname{div} v(x) = \operatorname{tr} J = \sum_i e_i^\top J e_i
  = \mathbb E_\epsilon[\epsilon^\top J \epsilon], \qquad \mathbb E[\epsilon\epsilon^\top] = I, \tag{1}$$

with the Jacobian $J = \partial v/\partial x$ (Hutchinson 1990; Skilling 1989). Forward-mode products: the value is computed
once, and each probe costs about one more evaluation. Probes are drawn once and stay fixed during a solve, or error
control would chase their noise.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Example, Key


VectorField = Callable[[Example], Example]


class AbstractTrace(eqx.Module):
    """A way to find the trace of a vector field's Jacobian."""

    @abc.abstractmethod
    def probes(self, x: Example, *, key: Key | None) -> Any:
        """What is drawn before a solve and kept during it.

        **Raises:** `ValueError` where a key is needed and none was given.
        """

    @abc.abstractmethod
    def divergence(
        self, vector_field: VectorField, x: Example, probes: Any
    ) -> tuple[Example, Float[Array, " n"]]:
        r"""$(v(x), \operatorname{div}v(x))$, the second as one estimate per probe (exact: one)."""


class ExactTrace(AbstractTrace):
    r"""The exact trace $\sum_i e_i^\top J e_i$: $D$ Jacobian–vector products, a bounded number at a time."""

    chunk: int = eqx.field(static=True)

    def __init__(self, *, chunk: int = 64):
        """**Arguments:**

        - `chunk`: how many dimensions are treated at once; memory grows with it.
        """
        if chunk < 1:
            raise ValueError(f"ExactTrace(chunk={chunk}): expected at least 1.")
        self.chunk = chunk

    def probes(self, x: Example, *, key: Key | None) -> None:
        return None

    def divergence(self, vector_field, x, probes):
        value, jvp = jax.linearize(vector_field, x)

        def entry(i):
            basis = jnp.zeros(x.size, x.dtype).at[i].set(1).reshape(x.shape)
            return jvp(basis).reshape(-1)[i]

        diagonal = jax.lax.map(entry, jnp.arange(x.size), batch_size=min(self.chunk, x.size))
        return value, jnp.sum(diagonal, keepdims=True)


def rademacher(key: Key, shape: tuple[int, ...], dtype: Any) -> Float[Array, "..."]:
    """Independent signs: of all probes with independent elements, the least variance."""
    return jax.random.rademacher(key, shape, dtype)


class Hutchinson(AbstractTrace):
    r"""The unbiased estimate $\epsilon^\top J\epsilon$ from random probes.

    With Rademacher probes its variance is $2\sum_{i\ne j} S_{ij}^2$, $S$ the symmetric part of $J$, per probe.
    """

    num_probes: int = eqx.field(static=True)
    distribution: Callable[..., Example] = eqx.field(static=True)

    def __init__(self, num_probes: int = 1, distribution: Callable[..., Example] = rademacher):
        """**Arguments:**

        - `num_probes`: how many probes; two or more give a standard error.
        - `distribution`: `(key, shape, dtype) -> probes` of mean zero and unit covariance: `eqdiff.rademacher`, or
            `jax.random.normal`.
        """
        if num_probes < 1:
            raise ValueError(f"Hutchinson({num_probes}): expected at least one probe.")
        self.num_probes, self.distribution = num_probes, distribution

    def probes(self, x: Example, *, key: Key | None) -> Float[Array, "n ..."]:
        if key is None:
            raise ValueError(
                "Hutchinson() draws random probes and needs a key: write key=jax.random.key(0), or use ExactTrace()."
            )
        return self.distribution(key, (self.num_probes, *x.shape), x.dtype)

    def divergence(self, vector_field, x, probes):
        def product(probe):
            value, tangent = jax.jvp(vector_field, (x,), (probe,))
            return value, jnp.sum(probe * tangent)

        # The value does not depend on the probe, so it is computed once.
        return jax.vmap(product, out_axes=(None, 0))(probes)

r"""Weighted particles: what sequential Monte Carlo returns."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._check import whole
from .._types import Example, Key, Scalar


class Particles(eqx.Module):
    r"""Samples with weights: $\mathbb E[f(x_0)|y] \approx \sum_i w_i f(x^i)$.

    - `x`: the particles, shape `(num_particles, ...)`.
    - `log_weights`: $\log w_i$, normalised, $\sum_i w_i = 1$. Shape `(num_particles,)`.
    - `effective_sample_sizes`: $1 / \sum_i w_i^2$ at each time, before particles are resampled;
        the last is that of `log_weights`. Shape `(n,)`.
    - `log_evidence`: an estimate of $\log p(y)$. That of $p(y)$ itself is unbiased.

    **Example:**

    ```python
    log_weights = jnp.log(jnp.asarray([0.9, 0.1]))
    particles = eqd.Particles(jnp.eye(2), log_weights, jnp.ones(1), jnp.zeros(()))
    mean = particles.mean()  # 0.9, 0.1
    ```
    """

    x: Float[Array, "num_particles ..."]
    log_weights: Float[Array, " num_particles"]
    effective_sample_sizes: Float[Array, " n"]
    log_evidence: Scalar

    def mean(self) -> Example:
        r"""$\sum_i w_i x^i$, the posterior mean."""
        return jnp.tensordot(jnp.exp(self.log_weights), self.x, axes=1)

    def resample(self, num: int, *, key: Key) -> Float[Array, "num ..."]:
        """Draws `num` particles in proportion to their weights, by systematic resampling: equally
        weighted, in random order.

        **Arguments:**

        - `num`: how many. Beyond the effective sample size they repeat.
        - `key`: for the choice.

        **Raises:** `ValueError` for a number that is not whole and positive.
        """
        num = whole("Particles.resample", "num", num)
        choose, order = jax.random.split(key)
        chosen = self.x[systematic(self.log_weights, num, key=choose)]
        return jax.random.permutation(order, chosen)


def effective_sample_size(log_weights: Float[Array, " num_particles"]) -> Scalar:
    r"""$(\sum_i w_i)^2 / \sum_i w_i^2$."""
    return jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))


def systematic(
    log_weights: Float[Array, " num_particles"], num: int, *, key: Key
) -> Int[Array, " num"]:
    r"""Which particles are kept: $i$ either $\lfloor n w_i\rfloor$ or one time more, on average
    $n w_i$.

    One uniform number $u$ places a comb of $n$ teeth, $(u + j)/n$, on the weights' cumulative sum.
    """
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    cumulative = cumulative / cumulative[-1]
    teeth = (
        jnp.arange(num, dtype=cumulative.dtype) + jax.random.uniform(key, (), cumulative.dtype)
    ) / num
    # The last tooth may be rounded to 1, which no particle reaches.
    below = jnp.minimum(teeth, 1 - jnp.finfo(cumulative.dtype).epsneg)
    return jnp.searchsorted(cumulative, below, side="right")
